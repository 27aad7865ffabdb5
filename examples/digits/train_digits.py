"""A small network trained on scikit-learn's digits with any loss of pairops."""

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import memory
import torch
from digits_picture import draw
from objective import NAMES, PAIRED, Objective
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

from retrieval import map_at_r, recall_at_1

TRAINING_IMAGES = 900
MEMORY_ROWS = 8192


@dataclass
class Half:
    """Images (N, 64) in 0..1 and their digits (N,)."""

    images: Tensor
    digits: Tensor


@dataclass
class Run:
    """What a training left behind."""

    curve: list[float]
    step_seconds: float
    loss_seconds: float
    before: Tensor
    after: Tensor


def load_halves(seed: int) -> tuple[Half, Half]:
    data = load_digits()
    images = torch.from_numpy(data.data).float() / 16
    digits = torch.from_numpy(data.target).long()
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    train, test = order[:TRAINING_IMAGES], order[TRAINING_IMAGES:]
    return Half(images[train], digits[train]), Half(images[test], digits[test])


def partners(digits: Tensor, anchors: Tensor) -> Tensor:
    """For each anchor, the index of another image of its digit, drawn at random."""
    order = digits.argsort(stable=True)
    place = order.argsort()[anchors]
    count = digits.bincount()[digits[anchors]]
    first = torch.searchsorted(digits[order], digits[anchors])
    jump = 1 + (torch.rand(len(anchors)) * (count - 1)).long()
    return order[first + (place - first + jump) % count]


def batches(half: Half, size: int, paired: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Random batches without end; a paired loss gets each image's partner below the images.

    The partner is another image of the same digit: what the embedding shall hold is the digit, and
    a noisy copy of the image itself would not say that. Other images of the digit then stand among
    the negatives by chance. They do no harm: both losses are best served by similarities that
    follow log p(x, y) / p(x) p(y), which is highest within a digit.
    """
    while True:
        chosen = torch.randperm(len(half.digits))[:size]
        labels = half.digits[chosen]
        if paired:
            chosen = torch.cat([chosen, partners(half.digits, chosen)])
        yield half.images[chosen], labels


def embed(network: torch.nn.Module, images: Tensor, dtype: torch.dtype) -> Tensor:
    """The embedding in `dtype`; the weights stay in float32, as is usual in mixed precision."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        return network(images)


def fit(training: Half, test: Half, options: argparse.Namespace) -> Run:
    torch.manual_seed(options.seed)
    dtype = getattr(torch, options.dtype)
    network = torch.nn.Sequential(
        torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64)
    )
    objective = Objective(options.loss)
    optimizer = torch.optim.Adam([*network.parameters(), *objective.parameters()], lr=2e-3)
    with torch.no_grad():
        before = embed(network, test.images, dtype).float()

    curve, step_seconds, loss_seconds = [], [], []
    deadline = time.perf_counter() + options.seconds
    source = batches(training, options.batch, objective.paired)
    progress = tqdm(range(options.steps), desc=options.loss, unit="step")
    for _ in progress:
        begin = time.perf_counter()
        images, labels = next(source)
        optimizer.zero_grad()
        embedding = embed(network, images, dtype)
        # The loss ends where its gradient arrives at the embedding.
        loss_begin = time.perf_counter()
        embedding.register_hook(
            lambda _, begin=loss_begin: loss_seconds.append(time.perf_counter() - begin)
        )
        loss = objective(embedding, labels)
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
        step_seconds.append(time.perf_counter() - begin)
        progress.set_postfix(loss=f"{curve[-1]:.4f}", refresh=False)
        if time.perf_counter() > deadline:
            break

    with torch.no_grad():
        after = embed(network, test.images, dtype).float()
    return Run(
        curve, statistics.median(step_seconds), statistics.median(loss_seconds), before, after
    )


def table(run: Run, test: Half, options: argparse.Namespace) -> str:
    found = {"raw pixels": test.images, "before training": run.before, "after training": run.after}
    grown = memory.growth(options.loss, MEMORY_ROWS)
    batch = f"{options.batch} {'pairs of images' if options.loss in PAIRED else 'images'}"
    lines = [
        f"{options.loss} loss in {options.dtype}: {len(run.curve):,} steps of {batch}, "
        f"tested on {len(test.digits)} other images",
        "",
        f"{'':<18}{'MAP@R':>8}{'Recall@1':>11}",
    ]
    for name, embedding in found.items():
        precision, recall = map_at_r(embedding, test.digits), recall_at_1(embedding, test.digits)
        lines.append(f"{name:<18}{precision:>8.3f}{recall:>11.3f}")
    lines += [
        "",
        f"one training step           {run.step_seconds * 1e3:>9.2f} ms",
        f"loss, forward and backward  {run.loss_seconds * 1e3:>9.2f} ms",
        f"its peak at {MEMORY_ROWS:,} rows      {grown:>9.0f} MiB "
        f"(the similarity matrix alone: {MEMORY_ROWS**2 * 4 / 2**20:.0f})",
    ]
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--loss", choices=NAMES, default="ms", help="what to train with")
    parser.add_argument("--steps", type=int, default=1000, help="steps of training")
    parser.add_argument("--seconds", type=float, default=60, help="stop earlier, after this time")
    parser.add_argument("--batch", type=int, default=128, help="images (or pairs of them) a step")
    parser.add_argument("--seed", type=int, default=0, help="of split, start values and batches")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the embedding"
    )
    parser.add_argument("--output", type=Path, default="digits.png", help="where the picture goes")
    options = parser.parse_args(arguments)
    if not 2 <= options.batch <= TRAINING_IMAGES:
        parser.error(f"--batch must be from 2 to {TRAINING_IMAGES}, not {options.batch}")
    if options.steps < 1 or options.seconds <= 0:
        parser.error("--steps and --seconds must be positive")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    training_half, test_half = load_halves(options.seed)
    run = fit(training_half, test_half, options)
    print(table(run, test_half, options))
    score = map_at_r(run.after, test_half.digits)
    title = f"Digits embedded by {options.loss} loss: MAP@R {score:.3f} on unseen images"
    draw(options.output, title, run.curve, run.before, run.after, test_half.digits)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
