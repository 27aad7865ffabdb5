"""A code search that learns: docstrings find their code in the packages of this machine."""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from textwrap import shorten
from typing import Any

import torch
from code_search_picture import WITHIN, draw
from docstrings import Pair, read, split, without_doubles
from options import parse as options_of
from ranking import ranks_by_words, recall
from torch import Tensor
from torch.nn.functional import normalize
from towers import Side, Towers, bags_of, batches
from tqdm import tqdm
from ways_picture import draw_ways

from pairops.nn import InfoNCELoss, SigLIPLoss
from pairops.retrieval import first_ranks

# With what each learns itself.
LOSSES: dict[str, Callable[[], torch.nn.Module]] = {
    "info_nce": partial(InfoNCELoss, learn=["temperature"]),
    "siglip": partial(SigLIPLoss, learn=["scale", "bias"]),
}
# What InfoNCE may be told further. Functions of one name often do the same: `names` makes them no
# negatives of one another.
KEYWORDS: dict[str, dict[str, Any]] = {
    "all directions": {"directions": ("xy", "yx", "xx", "yy"), "partition": "joint"},
    "false negatives": {"false_negatives": 0.1},
    "names": {},
}
LOSSES |= {
    name: partial(InfoNCELoss, learn=["temperature"], **given) for name, given in KEYWORDS.items()
}
LEARNING_RATE = 5e-3
OWN_LEARNING_RATE = 1e-2  # of temperature, scale and bias
ASKED, SHOWN = 4, 3  # of what is printed: docstrings, and functions for each
SEEDS = 3  # with --loss keywords


@dataclass
class Found:
    """The rank of each test pair's own partner, (N,), asked from either side."""

    codes: Tensor
    docstrings: Tensor


@dataclass
class Run:
    """What a training left behind."""

    curve: list[float]
    step_seconds: float
    loss_seconds: float
    before: Found
    after: Found
    nearest: Tensor  # (N, 3): the codes nearest to each docstring, best first


def found_by(docstrings: Tensor, codes: Tensor) -> Found:
    own = torch.arange(len(codes))
    return Found(
        first_ranks(docstrings, own, ref_emb=codes, ref_labels=own),
        first_ranks(codes, own, ref_emb=docstrings, ref_labels=own),
    )


def found_by_words(side: Side) -> Found:
    """Without any training: by the cosine of the bags themselves."""
    docstrings, codes = side.docstrings.matrix(), side.codes.matrix()
    return Found(ranks_by_words(docstrings, codes), ranks_by_words(codes, docstrings))


def nearest(docstrings: Tensor, codes: Tensor) -> Tensor:
    """(N, SHOWN): the codes nearest to each docstring, best first."""
    others = normalize(codes).T
    blocks = [rows @ others for rows in normalize(docstrings).split(1024)]
    return torch.cat([block.topk(min(SHOWN, len(codes))).indices for block in blocks])


def fit(training: Side, test: Side, loss_name: str, seed: int, options: argparse.Namespace) -> Run:
    torch.manual_seed(seed)
    towers, objective = Towers(), LOSSES[loss_name]()
    optimizer = torch.optim.Adam(
        [
            {"params": towers.parameters(), "lr": LEARNING_RATE},
            {"params": objective.parameters(), "lr": OWN_LEARNING_RATE},
        ],
        fused=True,  # the table is some hundred MiB with its averages: passed over once
    )
    with torch.no_grad():
        before = found_by(*towers(test))

    curve, step_seconds, loss_seconds = [], [], []
    start = time.perf_counter()

    def rate(step: int) -> float:
        """Half a cosine from 1 to 0, at its end with the last step or the last second."""
        passed = (time.perf_counter() - start) / options.seconds
        return (1 + math.cos(math.pi * min(1, max(step / options.steps, passed)))) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    source = batches(training, options.batch)
    progress = tqdm(range(options.steps), desc=loss_name, unit="step")
    for _ in progress:
        begin = time.perf_counter()
        optimizer.zero_grad()
        batch = next(source)
        docstrings, codes = towers(batch)
        # The loss ends where its gradient, both at once, arrives at the embeddings.
        loss_begin = time.perf_counter()
        docstrings.register_hook(
            lambda _, begin=loss_begin: loss_seconds.append(time.perf_counter() - begin)
        )
        loss = objective(
            docstrings, codes, **({"ids": batch.names} if loss_name == "names" else {})
        )
        loss.backward()
        optimizer.step()
        schedule.step()
        curve.append(loss.item())
        step_seconds.append(time.perf_counter() - begin)
        progress.set_postfix(loss=f"{curve[-1]:.4f}", refresh=False)
        if time.perf_counter() - start > options.seconds:
            break

    with torch.no_grad():
        docstrings, codes = towers(test)
    return Run(
        curve,
        statistics.median(step_seconds),
        statistics.median(loss_seconds),
        before,
        found_by(docstrings, codes),
        nearest(docstrings, codes),
    )


def table(found: dict[str, Found], runs: dict[str, Run], options: argparse.Namespace) -> str:
    tested = len(next(iter(found.values())).codes)
    lines = [
        f"{tested:,} docstrings and their code, from files that training has not seen; by chance "
        f"recall@1 is {1 / tested:.4f}",
        "",
        f"{'':<22}{'docstring finds code':>24}{'code finds docstring':>24}",
        f"{'':<22}" + "".join(f"{f'@{k}':>12}" for _ in range(2) for k in WITHIN),
    ]
    for name, either in found.items():
        numbers = [recall(side, k) for side in (either.codes, either.docstrings) for k in WITHIN]
        lines.append(f"{name:<22}" + "".join(f"{number:>12.3f}" for number in numbers))
    for name, run in runs.items():
        lines += [
            "",
            f"{name}: {len(run.curve):,} steps of {options.batch:,} pairs, "
            f"{run.step_seconds * 1e3:.0f} ms a step, of which the loss, forward and backward, "
            f"{run.loss_seconds * 1e3:.0f} ms",
        ]
    return "\n".join(lines)


def compare(training: Side, test: Side, options: argparse.Namespace) -> None:
    """Train with InfoNCE and each of its keywords from SEEDS seeds; print and draw the recalls."""
    found: dict[str, list[float]] = {}
    for name in ("info_nce", *KEYWORDS):
        for seed in range(options.seed, options.seed + SEEDS):
            run = fit(training, test, name, seed, options)
            found.setdefault(name, []).append(recall(run.after.codes, 1))
    lines = [f"{'':<22}{'recall@1':>12}{'lowest':>12}{'highest':>12}"]
    for name, values in found.items():
        numbers = (statistics.mean(values), min(values), max(values))
        lines.append(f"{name:<22}" + "".join(f"{number:>12.4f}" for number in numbers))
    print("\n".join(lines))
    title = f"Docstrings that find their code first, of {len(test.codes):,}, {SEEDS} seeds"
    draw_ways(options.output, title, found)
    print(f"\npicture: {options.output}")


def questions(test: Sequence[Pair], run: Run) -> str:
    """A few docstrings of the test, and the functions that were found for them."""
    lines = []
    for asked in range(len(test) // (2 * ASKED), len(test), max(1, len(test) // ASKED))[:ASKED]:
        lines += ["", f"“{shorten(test[asked].docstring, 96)}”"]
        for place in run.nearest[asked].tolist():
            answer = test[place]
            mark = "→" if place == asked else " "
            lines.append(f"  {mark} {answer.name}, {answer.file}:{answer.line}")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--loss",
        choices=(*LOSSES, "both", "keywords"),
        default="both",
        help="to train with; both: info_nce and siglip; keywords: info_nce alone, and with each of "
        f"{', '.join(KEYWORDS)}, from three seeds",
    )
    parser.add_argument("--steps", type=int, default=200, help="steps of training with each loss")
    parser.add_argument("--seconds", type=float, default=75, help="stop each earlier, after these")
    parser.add_argument("--batch", type=int, default=2048, help="pairs a step")
    parser.add_argument("--seed", type=int, default=0, help="of start values and batches")
    options = options_of(parser, "code_search.png", arguments)
    if options.steps < 1:
        parser.error(f"--steps must be 1 or more, not {options.steps}")
    if not options.seconds > 0:
        parser.error(f"--seconds must be above 0, not {options.seconds:g}")
    if options.batch < 2:
        parser.error(f"--batch must be 2 or more, not {options.batch}")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    training, test = split(without_doubles(read(options.folders)))
    if options.batch > len(training) or not test:
        sys.exit(
            f"--batch is {options.batch:,}, and {len(training):,} pairs of docstring and code were "
            f"found for training, {len(test):,} for the test: a batch must not be larger than the "
            "first, and the test must not be empty; lower --batch or name more --folders"
        )
    print(f"{len(training):,} pairs for training, {len(test):,} for the test")
    training_side, test_side = bags_of(training, test)
    if options.loss == "keywords":
        compare(training_side, test_side, options)
        return
    names = ("info_nce", "siglip") if options.loss == "both" else (options.loss,)
    runs = {name: fit(training_side, test_side, name, options.seed, options) for name in names}

    found = {"shared words (TF-IDF)": found_by_words(test_side)}
    found["before training"] = runs[names[0]].before
    found |= {name: run.after for name, run in runs.items()}
    print(table(found, runs, options))
    best = max(recall(run.after.codes, 1) for run in runs.values())
    title = (
        f"Docstrings that find their code among {len(test):,} of unseen files: recall@1 {best:.3f}"
    )
    curves = {name: run.curve for name, run in runs.items()}
    draw(options.output, title, curves, {name: either.codes for name, either in found.items()})
    print(questions(test, runs[names[0]]))
    print(f"\npicture: {options.output}")


if __name__ == "__main__":
    main()
