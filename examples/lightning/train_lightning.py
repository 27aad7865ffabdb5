"""Digits under Lightning, whose processes share every batch.

python examples/lightning/train_lightning.py 2, the number of processes
"""

import sys

import lightning
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import pairops
from pairops.retrieval import evaluate

EPOCHS, BATCH = 10, 240  # rows of all processes together


class Digits(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = torch.nn.Sequential(
            torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64)
        )

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x, labels = batch
        loss = pairops.ms_loss(self.network(x), labels, group="auto")  # pairops
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


world = int(sys.argv[1]) if sys.argv[1:] else 1
data = load_digits()
images = torch.from_numpy(data.data).float() / 16
digits = torch.from_numpy(data.target).long()
lightning.seed_everything(0, verbose=False)
train, test = torch.randperm(len(digits)).split([900, 897])
rows = TensorDataset(images[train], digits[train])
loader = DataLoader(rows, BATCH // world, shuffle=True, drop_last=True)
module = Digits()
before = evaluate(module.network(images[test]), digits[test]).map_at_r
options = {"max_epochs": EPOCHS, "logger": False, "enable_checkpointing": False}
trainer = lightning.Trainer(accelerator="cpu", devices=world, **options)
trainer.fit(module, loader)
if trainer.is_global_zero:
    after = evaluate(module.network(images[test]), digits[test]).map_at_r
    last = trainer.callback_metrics["loss"]
    print(f"{world} x {BATCH // world} images a step; last loss {last:.6f}")
    print(f"MAP@R on {len(test)} other images: {before:.3f} before training, {after:.3f} after")
