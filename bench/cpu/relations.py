"""What pairs cost that are not told apart by one label: positives by a list or within a width of a
number; negatives that a second product, `between(u, v)`, leaves out; keywords of InfoNCE."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus
from tqdm import tqdm

import pairops
from bench.contestants import Step
from bench.options import RESULTS, at_least, extension
from bench.report import columns, number, write_figures
from bench.stamp import stamp
from bench.stopwatch import Times, take_turns
from pairops import NEG, POS, functions

LOSSES: dict[str, Callable[..., Any]] = {
    "supcon": pairops.supcon_loss,
    "ms": pairops.ms_loss,
    "nt_xent": pairops.nt_xent_loss,
}
GUIDED = "guided"  # one-way InfoNCE without what a guide rates above a bar, beside all of it
KEYWORDS = "keywords"  # one-way InfoNCE with what it may be told, beside all of it
FAMILIES = [*LOSSES, GUIDED, KEYWORDS]
SCALE = 14.0


def relations(n: int, m: int, per_class: int, listed: int) -> dict[str, dict[str, Any]]:
    """Ways to say who is positive: labels, which `per_class` references have each; a list of random
    pairs; random numbers, with as many references within the width as a class has."""
    random = torch.Generator().manual_seed(0)
    classes = max(1, m // per_class)
    labels = torch.randint(0, classes, (n,), generator=random)
    theirs = torch.randint(0, classes, (m,), generator=random)
    pairs = torch.randint(0, n * m, (listed,), generator=random)
    values = torch.rand(n, dtype=torch.float64, generator=random)
    others = torch.rand(m, dtype=torch.float64, generator=random)
    return {
        "labels": {"labels": labels, "ref_labels": theirs},
        "list": {"labels": None, "positives": (pairs // m, pairs % m)},
        "width": {"labels": values, "ref_labels": others, "width": per_class / (2 * m)},
    }


def steps_of(options: argparse.Namespace, loss: str) -> dict[str, Step]:
    """The steps of a loss, by the way in which it is told pairs apart; the first is the ordinary
    one."""
    random = torch.Generator().manual_seed(1)
    x, y, u, v = [torch.randn(k, options.d, generator=random) for k in 2 * (options.n, options.m)]
    leaves = x.requires_grad_(), y.requires_grad_()

    def step(value: Callable[[], Tensor]) -> Step:
        def run() -> Tensor:
            with pairops.engine("cpu"):
                return torch.cat(torch.autograd.grad(value(), leaves))

        return run

    if loss == GUIDED:
        bar = torch.zeros(options.n)  # half of the negatives are left out

        def info_nce(*term: Any, **function: Any) -> Tensor:
            pairs = pairops.Pairs.paired(x, y)
            terms = pairops.lse(NEG, *term, **function), pairops.total(POS, SCALE, 0.0)
            negatives, positive = pairops.row_stats(pairs, *terms)
            return softplus(negatives - positive).mean()

        return {
            "plain": step(lambda: info_nce(SCALE, 0.0)),
            "gated": step(
                lambda: info_nce(pairops.between(u, v), SCALE, bar, function=functions.gated)
            ),
        }
    if loss == KEYWORDS:
        own = torch.randn(options.n, 7, options.d, generator=random).requires_grad_()
        every = {"directions": ("xy", "yx", "xx", "yy"), "partition": "joint"}
        told: dict[str, dict[str, Any]] = {
            "plain": {"symmetric": False},
            "mask": {"symmetric": False, "false_negatives": 0.1},
            "own negatives": {"symmetric": False, "own_negatives": own},
            "all directions": {**every, "false_negatives": 0.1},
        }

        def keyword(given: dict[str, Any]) -> Step:
            learned = (*leaves, own) if "own_negatives" in given else leaves

            def run() -> Tensor:
                with pairops.engine("cpu"):
                    value = pairops.info_nce_loss(x, y, **given)
                    by_x, *_ = torch.autograd.grad(value, learned)
                    return by_x

            return run

        return {name: keyword(given) for name, given in told.items()}
    ways = relations(options.n, options.m, options.per_class, options.listed)

    def by(labels: Tensor | None, **given: Any) -> Tensor:
        value: Tensor = LOSSES[loss](x, labels, ref_emb=y, **given)
        return value

    return {name: step(functools.partial(by, **given)) for name, given in ways.items()}


def measure(options: argparse.Namespace, loss: str) -> list[dict[str, Any]]:
    """A row for each way but the ordinary one, which it is compared with."""
    steps = steps_of(options, loss)
    seconds, failures = take_turns(steps, options.repeats, "cpu", lambda: None)
    if failures:
        raise RuntimeError("; ".join(failures.values()))
    times = {way: Times.of(taken) for way, taken in seconds.items()}
    ordinary, *others = times
    return [
        {
            "loss": loss,
            "way": way,
            **asdict(times[way]),
            "beside": ordinary,
            "ratio": times[way].ms / times[ordinary].ms,
        }
        for way in others
    ]


def options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--loss", nargs="+", choices=FAMILIES, default=FAMILIES)
    add("--n", type=at_least(1), default=4096, help="anchors")
    add("--m", type=at_least(1), default=16384, help="references")
    add("--d", type=at_least(1), default=128)
    add("--per-class", type=at_least(1), default=5, help="references of a class, or within a width")
    add("--listed", type=at_least(0), default=20000, help="pairs of the list")
    add("--threads", type=at_least(1), default=torch.get_num_threads())
    add("--repeats", type=at_least(2), default=11, help="timed calls of each")
    add("--output", type=Path, default=RESULTS, help="folder for relations-cpu.json")


def run(options: argparse.Namespace, argv: Sequence[str]) -> None:
    extension()
    torch.set_num_threads(options.threads)
    asked = ("n", "m", "d", "per_class", "listed", "repeats")
    conditions = stamp(list(argv), "cpu") | {name: getattr(options, name) for name in asked}
    rows = [
        row
        for loss in tqdm(options.loss, desc="relations", leave=False, disable=None)
        for row in measure(options, loss)
    ]
    print(
        f"\nOne loss, its pairs told apart in several ways: N={options.n}, M={options.m}, ", end=""
    )
    print(f"D={options.d}, float32, {options.per_class} references of a class or within a width, ")
    print(f"{options.listed} pairs in the list, {conditions['cpu']}, threads: ", end="")
    print(f"{options.threads}, load {conditions['load']}, medians of {options.repeats} in turns:")
    print("ms of forward + backward, and multiples of the ordinary way\n")
    print(columns(["loss", "way", "ms", "ratio", "beside"], [cells(row) for row in rows]))
    print(f"written: {write_figures(options.output, 'relations-cpu', rows, conditions)}")


def cells(row: dict[str, Any]) -> list[object]:
    return [row["loss"], row["way"], number(row["ms"]), f"{row['ratio']:.2f}", row["beside"]]
