"""Digits under FSDP2: fully_shard divides the network among ranks, which share every batch.

torchrun --nproc-per-node 2 examples/fsdp2/train_fsdp2.py
"""

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from tqdm import trange

import pairops
from pairops.retrieval import evaluate

STEPS, BATCH = 50, 240  # rows of all ranks together

dist.init_process_group("gloo")  # "nccl" on GPUs
rank, world = dist.get_rank(), dist.get_world_size()
data = load_digits()
images = torch.from_numpy(data.data).float() / 16
digits = torch.from_numpy(data.target).long()
torch.manual_seed(0)  # alike on all ranks: the halves, the network and the batches
train, test = torch.randperm(len(digits)).split([900, 897])

network = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
mesh = init_device_mesh("cpu", (world,))  # "cuda" on GPUs
for layer in (network[0], network[2], network):
    fully_shard(layer, mesh=mesh)
# A layer is gathered from all ranks, so each of them embeds the other images.
before = evaluate(network(images[test]), digits[test]).map_at_r
optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
for _ in trange(STEPS, unit="step", disable=True if rank else None):
    rows = train[torch.randperm(len(train))[:BATCH]].tensor_split(world)[rank]
    loss = pairops.ms_loss(network(images[rows]), digits[rows], group="auto")  # pairops
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

after = evaluate(network(images[test]), digits[test]).map_at_r
if rank == 0:
    print(f"{world} x {len(rows)} images a step; last loss {loss:.6f}")
    print(f"MAP@R on {len(test)} other images: {before:.3f} before training, {after:.3f} after")
dist.destroy_process_group()
