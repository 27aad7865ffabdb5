"""Digits under DistributedDataParallel: ranks that share every batch have the curve of one process.

torchrun --nproc-per-node 2 examples/ddp/train_ddp.py, or python for a single process
"""

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch.nn.parallel import DistributedDataParallel
from tqdm import trange

import pairops
from pairops.retrieval import evaluate

STEPS, BATCH = 50, 240  # rows of all ranks together

if dist.is_torchelastic_launched():  # by torchrun
    dist.init_process_group("gloo")  # "nccl" on GPUs
rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
data = load_digits()
images = torch.from_numpy(data.data).float() / 16
digits = torch.from_numpy(data.target).long()
torch.manual_seed(0)  # alike on all ranks: the halves, the network and the batches
train, test = torch.randperm(len(digits)).split([900, 897])

network = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
before = evaluate(network(images[test]), digits[test]).map_at_r
shared = DistributedDataParallel(network) if world > 1 else network
optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
for _ in trange(STEPS, unit="step", disable=True if rank else None):
    rows = train[torch.randperm(len(train))[:BATCH]].tensor_split(world)[rank]
    loss = pairops.ms_loss(shared(images[rows]), digits[rows], group="auto")  # pairops
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

if rank == 0:
    after = evaluate(network(images[test]), digits[test]).map_at_r
    print(f"{world} x {len(rows)} images a step; last loss {loss:.6f}")
    print(f"MAP@R on {len(test)} other images: {before:.3f} before training, {after:.3f} after")
if dist.is_initialized():
    dist.destroy_process_group()
