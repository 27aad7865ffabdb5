"""Two towers as open_clip trains them, with a learned scale: the halves of a digit find each other.

torchrun --nproc-per-node 2 examples/open_clip/train_open_clip.py, or python for a single process
"""

import math

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel
from tqdm import trange

from pairops.compat.open_clip import ClipLoss  # pairops: in place of open_clip's own
from pairops.retrieval import evaluate

STEPS, BATCH = 100, 240  # pairs of all ranks together


class Towers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.upper, self.lower = (
            torch.nn.Sequential(torch.nn.Linear(32, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
            for _ in range(2)
        )
        self.logit_scale = torch.nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, upper: torch.Tensor, lower: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return normalize(self.upper(upper)), normalize(self.lower(lower)), self.logit_scale.exp()


if dist.is_torchelastic_launched():  # by torchrun
    dist.init_process_group("gloo")  # "nccl" on GPUs
rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
torch.manual_seed(0)  # alike on all ranks: the two sets, the towers and the batches
halves = (torch.from_numpy(load_digits().data).float() / 16).view(-1, 2, 32)
train, test = halves[torch.randperm(len(halves))].split([900, 897])
towers = Towers()
loss = ClipLoss(gather_with_grad=True, rank=rank, world_size=world)
shared = DistributedDataParallel(towers) if world > 1 else towers
optimizer = torch.optim.Adam(towers.parameters(), lr=2e-3)
for _ in trange(STEPS, unit="step", disable=True if rank else None):
    pairs = train[torch.randperm(len(train))[:BATCH]].tensor_split(world)[rank]
    value = loss(*shared(*pairs.unbind(1)))
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    with torch.no_grad():
        towers.logit_scale.clamp_(0, math.log(100))

if rank == 0:
    x, y, scale = towers(*test.unbind(1))
    index = torch.arange(len(test))
    found = evaluate(x, index, ref_emb=y, ref_labels=index, recall_at=[10]).recall[10]
    print(f"{world} x {len(pairs)} pairs a step; last loss {value:.6f}, scale {scale:.1f}")
    print(f"recall@10 on {len(test)} other pairs: {found:.3f}, by chance {10 / len(test):.3f}")
if dist.is_initialized():
    dist.destroy_process_group()
