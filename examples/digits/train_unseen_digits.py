"""Several losses learn from the digits 0 to 4, and are tested on 5 to 9, which they never saw.

Each learns twice: from the five classes as they are, and from forty, since each digit is another
class when it is turned by 90 degrees or mirrored, in images that are warped a little at every step.
"""

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from objective import NAMES, Objective
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from tqdm import tqdm
from train_digits import Half, batches
from unseen_picture import draw

from retrieval import map_at_r, recall_at_1

STEPS, BATCH = 300, 256  # for each loss alike
CLASSES = FIVE, FORTY = "5 classes", "40 classes"


@dataclass
class Score:
    """MAP@R and recall@1 of each seed, and what the last of them embedded."""

    precision: list[float]
    recall: list[float]
    embedding: Tensor


def images_of(digits: range) -> Half:
    data = load_digits()
    chosen = torch.isin(torch.from_numpy(data.target), torch.tensor(digits))
    images = torch.from_numpy(data.data).float() / 16
    return Half(images[chosen], torch.from_numpy(data.target).long()[chosen])


def turned(half: Half) -> Half:
    """All eight symmetries of the images, each a class of its own for every digit."""
    square = half.images.view(-1, 8, 8)
    images = [
        side.rot90(turns, (1, 2)).flatten(1)
        for side in (square, square.flip(2))
        for turns in range(4)
    ]
    digits = [half.digits + 10 * k for k in range(8)]
    return Half(torch.cat(images), torch.cat(digits))


def warped(images: Tensor) -> Tensor:
    """Turned by up to 15 degrees, scaled by 15 %, shifted by a pixel, and sheared."""
    n = len(images)
    angle, scale, shear = (
        limit * (2 * torch.rand(n) - 1) for limit in (math.radians(15), 0.15, 0.2)
    )
    cos, sin = (1 + scale) * angle.cos(), (1 + scale) * angle.sin()
    shift = 0.25 * (2 * torch.rand(2, n) - 1)  # of a width of 2
    rows = torch.stack([cos, shear - sin, shift[0]]), torch.stack([sin, cos, shift[1]])
    grid = affine_grid(torch.stack(rows).permute(2, 0, 1), [n, 1, 8, 8], align_corners=False)
    return grid_sample(images.view(n, 1, 8, 8), grid, align_corners=False).flatten(1)


def fit(loss: str, training: Half, test: Half, classes: str, seed: int) -> Tensor:
    """The embedding of the test images after a training."""
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64)
    )
    objective = Objective(loss)
    optimizer = torch.optim.Adam([*network.parameters(), *objective.parameters()], lr=2e-3)
    source = batches(training if classes == FIVE else turned(training), BATCH, objective.paired)
    for _ in range(STEPS):
        images, labels = next(source)
        optimizer.zero_grad()
        objective(network(images if classes == FIVE else warped(images)), labels).backward()
        optimizer.step()
    with torch.no_grad():
        return network(test.images)


def scored(loss: str, classes: str, seeds: int) -> Score:
    training, test = images_of(range(5)), images_of(range(5, 10))
    found = [fit(loss, training, test, classes, seed) for seed in range(seeds)]
    precision = [map_at_r(each, test.digits) for each in found]
    return Score(precision, [recall_at_1(each, test.digits) for each in found], found[-1])


def shown(values: list[float]) -> str:
    """The mean of the seeds, and its standard error."""
    seeds = torch.tensor(values)
    error = f" ±{seeds.std() / math.sqrt(len(values)):.3f}" if len(values) > 1 else ""
    return f"{seeds.mean():.3f}{error}"


def table(scores: dict[tuple[str, str], Score], raw: Half, seeds: int) -> str:
    precision, recall = (f"{of(raw.images, raw.digits):.3f}" for of in (map_at_r, recall_at_1))
    lines = [
        f"learned from the digits 0 to 4 in {STEPS} steps of {BATCH}, tested on {len(raw.digits)} "
        f"images of 5 to 9; means of {seeds} seeds and their standard errors",
        "",
        f"{'':<12}" + "".join(f"{'learned from ' + name:>32}" for name in CLASSES),
        f"{'':<12}" + f"{'MAP@R':>17}{'Recall@1':>15}" * 2,
        f"{'raw pixels':<12}{precision:>17}{recall:>15}",
    ]
    for loss in dict.fromkeys(loss for loss, _ in scores):
        line = f"{loss:<12}"
        for classes in CLASSES:
            score = scores[loss, classes]
            line += f"{shown(score.precision):>17}{shown(score.recall):>15}"
        lines.append(line)
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--losses", choices=NAMES, nargs="+", default=list(NAMES), metavar="LOSS")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each loss")
    parser.add_argument("--output", type=Path, default="unseen_digits.png", help="for the picture")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds must be 1 or more, not {options.seeds}")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    began = time.perf_counter()
    each = [(loss, classes) for loss in options.losses for classes in CLASSES]
    progress = tqdm(each, desc="losses", unit="loss")
    scores = {one: scored(*one, options.seeds) for one in progress}
    test = images_of(range(5, 10))
    print(table(scores, test, options.seeds))
    precision = {one: score.precision for one, score in scores.items()}
    embeddings = {one: score.embedding for one, score in scores.items()}
    raw = map_at_r(test.images, test.digits)
    draw(options.output, precision, embeddings, raw, test.images, test.digits)
    print(f"{time.perf_counter() - began:.0f} s; picture: {options.output}")


if __name__ == "__main__":
    main()
