"""A training on several processes that share every batch, and the same on one: one curve.

torchrun --nproc-per-node 2 examples/ddp/train_ddp.py
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import pairops
from pairops.nn import InfoNCELoss

# `--data code` takes pairs and towers from the example beside this one.
sys.path.append(str(Path(__file__).parents[1] / "code_search"))

from docstrings import installed, read, split, without_doubles
from towers import Side, Towers, bags_of

Rows = Callable[
    [Tensor], tuple[Any, ...]
]  # some rows of the training set, as the module takes them


class Digits(torch.nn.Module):
    """Images and their digits to the loss of the batch of all ranks."""

    def __init__(self, group: Literal["auto"] | None) -> None:
        super().__init__()
        self.group = group
        self.network = torch.nn.Sequential(
            torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64)
        )

    def forward(self, images: Tensor, digits: Tensor) -> Tensor:
        return pairops.ms_loss(self.network(images), digits, group=self.group)


class CodeSearch(torch.nn.Module):
    """Docstrings and their code to the same, with a temperature that is learned."""

    def __init__(self, group: Literal["auto"] | None) -> None:
        super().__init__()
        self.towers, self.loss = Towers(), InfoNCELoss(learn=["temperature"], group=group)

    def forward(self, side: Side) -> Tensor:
        return self.loss(*self.towers(side))


def digits(_options: argparse.Namespace) -> tuple[type[torch.nn.Module], Rows, int]:
    data = load_digits()
    half = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))[:900]
    images = torch.from_numpy(data.data).float()[half] / 16
    labels = torch.from_numpy(data.target).long()[half]
    return Digits, lambda rows: (images[rows], labels[rows]), len(labels)


def code(options: argparse.Namespace) -> tuple[type[torch.nn.Module], Rows, int]:
    training, test = split(without_doubles(read(options.folders)))
    side, _ = bags_of(training, test)

    def rows_of(rows: Tensor) -> tuple[Side]:
        return (Side(side.docstrings.chosen(rows), side.codes.chosen(rows), side.names[rows]),)

    return CodeSearch, rows_of, len(side.codes)


def fit(
    kind: type[torch.nn.Module], rows_of: Rows, total: int, options: argparse.Namespace, world: int
) -> list[float]:
    """The curve of a training in which each of `world` ranks has its part of every batch."""
    rank = dist.get_rank() if world > 1 else 0
    torch.manual_seed(0)
    module = kind("auto" if world > 1 else None)
    if world > 1:
        module = DistributedDataParallel(module)
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
    drawn = torch.Generator().manual_seed(1)  # alike on all ranks
    curve = []
    hidden = True if rank else None
    for _ in tqdm(range(options.steps), desc=f"{world} ranks", unit="step", disable=hidden):
        batch = torch.randperm(total, generator=drawn)[: options.batch]
        loss = module(*rows_of(batch.tensor_split(world)[rank]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


def table(curves: list[list[float]], world: int) -> str:
    """Some steps of both curves, and by how much they differ at most."""
    together, alone = curves
    lines = [f"{'step':>6}{f'{world} ranks':>14}{'1 rank':>14}"]
    shown = range(0, len(alone), max(1, len(alone) // 5))
    lines += [f"{step:>6}{together[step]:>14.6f}{alone[step]:>14.6f}" for step in shown]
    apart = max(abs(a - b) / abs(b) for a, b in zip(together, alone, strict=True))
    return "\n".join([*lines, f"largest difference: {apart:.1e} of the loss"])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", choices=("digits", "code"), default="digits",
        help="scikit-learn's digits with ms_loss, or docstrings and their code with info_nce_loss",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=50, help="steps of training")
    parser.add_argument("--batch", type=int, default=250, help="rows of all ranks together")
    parser.add_argument(
        "--folders", type=Path, nargs="+", metavar="FOLDER", default=installed(),
        help="where to look for code, instead of the standard library and what is installed",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.batch < 2:
        parser.error("--steps must be 1 or more, and --batch 2 or more")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    kind, rows_of, total = (digits if options.data == "digits" else code)(options)
    if "WORLD_SIZE" not in os.environ:
        raise SystemExit("start it with torchrun --nproc-per-node 2 examples/ddp/train_ddp.py")
    dist.init_process_group("gloo")
    world = dist.get_world_size()
    together = fit(kind, rows_of, total, options, world)
    if dist.get_rank() == 0:
        print(table([together, fit(kind, rows_of, total, options, 1)], world))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
