"""Digits under accelerate, whose processes share every batch.

torchrun --nproc-per-node 2 examples/accelerate/train_accelerate.py, or python for a single process
"""

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset
from tqdm import trange

import pairops
from pairops.retrieval import evaluate

EPOCHS, BATCH = 10, 240  # rows of all processes together

loading = DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True)
accelerator = Accelerator(cpu=True, dataloader_config=loading)  # without cpu=True: the GPUs
data = load_digits()
images = torch.from_numpy(data.data).float() / 16
digits = torch.from_numpy(data.target).long()
set_seed(0)  # alike in all processes: the halves, the network and the batches
train, test = torch.randperm(len(digits)).split([900, 897])
rows = TensorDataset(images[train], digits[train])
loader = DataLoader(rows, BATCH, shuffle=True, drop_last=True)

network = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
before = evaluate(network(images[test]), digits[test]).map_at_r
optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
network, optimizer, loader = accelerator.prepare(network, optimizer, loader)
for _ in trange(EPOCHS, unit="epoch", disable=not accelerator.is_main_process):
    for x, labels in loader:
        loss = pairops.ms_loss(network(x), labels, group="auto")  # pairops
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()

if accelerator.is_main_process:
    network = accelerator.unwrap_model(network)
    after = evaluate(network(images[test]), digits[test]).map_at_r
    print(f"{accelerator.num_processes} x {len(x)} images a step; last loss {loss:.6f}")
    print(f"MAP@R on {len(test)} other images: {before:.3f} before training, {after:.3f} after")
accelerator.end_training()
