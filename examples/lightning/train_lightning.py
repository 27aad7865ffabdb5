"""A training on scikit-learn's digits with Lightning, whose processes share every batch."""

import argparse

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import pairops
from pairops.retrieval import evaluate

TRAINING_IMAGES = 900


class Digits(lightning.LightningModule):
    """A small network that embeds images (N, 64) by the digit they show."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torch.nn.Sequential(
            torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, digits = batch
        # Each process brings its own rows, and compares them with those of all. Lightning
        # initialises torch.distributed where there are several processes.
        loss = pairops.ms_loss(self(images), digits, group="auto")
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def load_halves() -> tuple[TensorDataset, TensorDataset]:
    """Images (N, 64) in 0..1 and their digits (N,), for training and for the test."""
    data = load_digits()
    images = torch.from_numpy(data.data).float() / 16
    digits = torch.from_numpy(data.target).long()
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    train, test = order[:TRAINING_IMAGES], order[TRAINING_IMAGES:]
    return TensorDataset(images[train], digits[train]), TensorDataset(images[test], digits[test])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2, help="on the CPU, by gloo")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training images")
    parser.add_argument("--batch", type=int, default=128, help="images a step, of all processes")
    options = parser.parse_args(arguments)
    if options.processes < 1 or options.epochs < 1:
        parser.error("--processes and --epochs must be at least 1")
    if not 2 * options.processes <= options.batch <= TRAINING_IMAGES:
        parser.error(
            f"--batch must be from {2 * options.processes} to {TRAINING_IMAGES}, "
            f"not {options.batch}"
        )
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    lightning.seed_everything(0, verbose=False)
    training, test = load_halves()
    loader = DataLoader(
        training,
        batch_size=options.batch // options.processes,
        shuffle=True,
        drop_last=True,
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=options.processes,
        max_epochs=options.epochs,
        logger=False,
        enable_checkpointing=False,
    )
    module = Digits()
    before = score(module, test)
    trainer.fit(module, loader)
    if trainer.is_global_zero:
        after = score(module, test)
        print(f"{options.processes} x {options.batch // options.processes} images a step")
        print(f"loss after {trainer.global_step} steps {trainer.callback_metrics['loss']:.4f}")
        print(f"MAP@R on {len(test)} other images {before:.3f}, after training {after:.3f}")


@torch.no_grad()
def score(module: Digits, test: TensorDataset) -> float:
    images, digits = test.tensors
    return evaluate(module(images), digits, progress=False).map_at_r


if __name__ == "__main__":
    main()
