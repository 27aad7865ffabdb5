"""Batches as most people train with: a step beside torch by hand and pytorch-metric-learning.

Three figures for each N: process time on one thread, the wall's on two, and Python calls, which no
noise touches. Times are medians of calls that take turns. Everyone trains on the same batch, and
must return the gradient of the loss by hand, but for a factor: reductions differ. Those of
pytorch-metric-learning reduce and mine in their own way, so ours answer for them: what is converted
must return the gradient of what it was converted from.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

import pairops
from bench.contestants import Step, reason
from bench.cpu import by_hand
from bench.options import RESULTS, at_least
from bench.problems import Setting, problem
from bench.report import columns, number, write_figures
from bench.stamp import stamp
from bench.stopwatch import Times, take_turns
from pairops import nn

HAND, COMPILED, PML = "by hand", "by hand, compiled", "pytorch-metric-learning"
CONVERTED, PAIROPS, NN = "converted", "pairops", "pairops.nn"
ALIKE = 1e-4  # by how much the cosine of two gradients that are the same may miss 1
PATIENCE = 0.5  # seconds of a step: who takes longer has no turns
CALLED_AT = 128  # rows, of the steps whose Python calls are counted

Loss = Callable[[Tensor, Tensor], Tensor]


class Rivals(NamedTuple):
    """One loss as everybody has it."""

    problem: str  # the loss of `bench.problems` that is given the same batch
    hand: Loss
    ours: Loss
    module: Callable[[], Loss]
    pml: Callable[[], tuple[Any, ...]] | None = None  # a loss of theirs, and its miner


def _theirs(name: str, *args: Any, miner: str = "", **arguments: Any) -> tuple[Any, ...]:
    from pytorch_metric_learning import distances, losses, miners

    given = {k: getattr(distances, v)() if k == "distance" else v for k, v in arguments.items()}
    loss = getattr(losses, name)(*args, **given)
    if not miner:
        return (loss,)
    compared = {"distance": loss.distance} if miner == "BatchHardMiner" else {}
    return loss, getattr(miners, miner)(**compared)


LOSSES = {
    "ms": Rivals(
        "ms",
        by_hand.ms,
        pairops.ms_loss,
        nn.MSLoss,
        partial(_theirs, "MultiSimilarityLoss", 2, 50, 0.5, miner="MultiSimilarityMiner"),
    ),
    "supcon": Rivals(
        "supcon",
        by_hand.supcon,
        pairops.supcon_loss,
        nn.SupConLoss,
        partial(_theirs, "SupConLoss", 0.1),
    ),
    "nt_xent": Rivals(
        "nt_xent",
        by_hand.nt_xent,
        pairops.nt_xent_loss,
        nn.NTXentLoss,
        partial(_theirs, "NTXentLoss", 0.07),
    ),
    "contrastive": Rivals(
        "contrastive",
        by_hand.contrastive,
        pairops.contrastive_loss,
        nn.ContrastivePairLoss,
        partial(_theirs, "ContrastiveLoss", 1.0, 0.5, distance="CosineSimilarity"),
    ),
    "info_nce": Rivals(
        "info_nce",
        by_hand.info_nce,
        pairops.info_nce_loss,
        partial(nn.InfoNCELoss, learn=["temperature"]),
    ),
    "siglip": Rivals(
        "info_nce",
        by_hand.siglip,
        pairops.siglip_loss,
        partial(nn.SigLIPLoss, learn=["scale", "bias"]),
    ),
    "contrastive, l2": Rivals(
        "contrastive",
        by_hand.contrastive_l2,
        partial(pairops.contrastive_loss, pos_margin=0.0, neg_margin=1.0, distance="l2"),
        partial(nn.ContrastivePairLoss, distance="l2"),
        partial(_theirs, "ContrastiveLoss"),
    ),
    "triplet, l2": Rivals(
        "triplet",
        by_hand.triplet_l2,
        partial(pairops.triplet_loss, margin=0.05, distance="l2"),
        partial(nn.TripletLoss, distance="l2"),
        partial(_theirs, "TripletMarginLoss", 0.05, miner="BatchHardMiner"),
    ),
    "margin, l2": Rivals(
        "margin",
        by_hand.margin_l2,
        partial(pairops.margin_loss, beta=1.2, margin=0.2, distance="l2"),
        nn.MarginPairLoss,
        partial(_theirs, "MarginLoss"),
    ),
}


def entrants(rivals: Rivals, compiles: bool) -> dict[str, Loss]:
    """Everybody who has this loss, by name."""
    found = {HAND: rivals.hand}
    if compiles:
        # Every N is a training of its own, whose shapes stay.
        found[COMPILED] = torch.compile(rivals.hand, dynamic=False, fullgraph=True)
    if rivals.pml is not None:
        from pairops.compat.pml import convert  # whose import is that of pytorch-metric-learning

        loss, *miner = rivals.pml()
        found[PML] = partial(_mined, loss, *miner) if miner else loss
        found[CONVERTED] = convert(loss, *miner)
    return {**found, PAIROPS: rivals.ours, NN: rivals.module()}


def _mined(loss: Any, miner: Any, x: Tensor, labels: Tensor) -> Tensor:
    value: Tensor = loss(x, labels, miner(x, labels))
    return value


def step_of(loss: Loss, leaves: Sequence[Tensor], x: Tensor, other: Tensor) -> Step:
    def step() -> Tensor:
        value = loss(x, other)
        return torch.cat(torch.autograd.grad(value, leaves)).flatten()

    return step


def agreeing(steps: dict[str, Step], failures: dict[str, str]) -> dict[str, Step]:
    """Those who return the right gradient in time; why the others do not take part goes to
    `failures`."""
    gradients = {}
    for name, step in steps.items():
        try:
            gradients[name] = step().double()
            begin = process_time()
            step()
        except Exception as error:
            failures[name] = reason(error)
            continue
        if process_time() - begin > PATIENCE:
            failures[name] = f"it takes {process_time() - begin:.1f} s a step and has no turns"
    for name, found in gradients.items():
        truth = gradients.get(PML if name == CONVERTED else HAND)
        if name == PML or truth is None:
            continue
        apart = 1 - cosine_similarity(found, truth, 0).item()
        if not apart < ALIKE:
            failures[name] = f"its gradient is not that of the loss: cosine 1 - {apart:.1e}"
    return {name: step for name, step in steps.items() if name not in failures}


def calls_of(step: Step) -> int:
    """What cProfile counts of a warm step: functions of Python and of C that are called."""
    for _ in range(3):
        step()
    profile = cProfile.Profile()
    with torch.autograd.set_multithreading_enabled(False):
        profile.runcall(step)
    # Of these one is the profiler's own.
    return pstats.Stats(profile).total_calls - 1


def measure(name: str, n: int, options: argparse.Namespace, bar: tqdm) -> list[dict[str, object]]:
    """A record of everybody at this N."""
    rivals = LOSSES[name]
    torch.compiler.reset()
    given = problem(Setting(rivals.problem, n, options.d, options.per_class))
    found = entrants(rivals, not options.no_compile)
    steps = {who: step_of(loss, given.leaves, given.x, given.other) for who, loss in found.items()}
    failures: dict[str, str] = {}
    torch.set_num_threads(1)
    able = agreeing(steps, failures)
    calls = {who: calls_of(step) for who, step in able.items()}
    medians = {}
    for threads, clock in ((1, process_time), (2, perf_counter)):
        torch.set_num_threads(threads)
        seconds, late = take_turns(able, options.repeats, "cpu", bar.update, clock)
        failures |= late
        medians[threads] = {who: Times.of(taken).ms for who, taken in seconds.items() if taken}
    return [
        {
            "loss": name,
            "n": n,
            "who": who,
            "process_ms": medians[1].get(who),
            "wall_ms": medians[2].get(who),
            "calls": calls.get(who),
            "failure": failures.get(who),
        }
        for who in found
    ]


def table(records: Sequence[dict[str, Any]], sizes: Sequence[int]) -> str:
    """Per loss and who: at each N the multiple of by hand, of process time and of the wall's."""
    at = {(r["loss"], r["who"], r["n"]): r for r in records}
    lines: list[list[object]] = []
    for loss, who in dict.fromkeys([(r["loss"], r["who"]) for r in records]):
        cells: list[object] = [loss, who]
        for kind in ("process_ms", "wall_ms"):
            for n in sizes:
                ours, hand = at[loss, who, n][kind], at[loss, HAND, n][kind]
                if who == HAND:
                    cells.append(f"{number(ours)} ms")
                else:
                    cells.append("-" if ours is None or hand is None else f"{ours / hand:.2f}")
        counted = [at[loss, who, n]["calls"] for n in sizes if n >= CALLED_AT] or [None]
        lines.append([*cells, "-" if counted[0] is None else counted[0]])
    head = ["loss", "who", *[f"N={n}" for n in sizes], *[f"wall {n}" for n in sizes], "calls"]
    return columns(head, lines)


def options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--loss", nargs="+", choices=list(LOSSES), default=list(LOSSES))
    add("--n", nargs="+", type=at_least(2), default=[32, 64, 128, 256, 512], help="batch sizes")
    add("--d", type=at_least(1), default=128, help="dimensions of the embedding")
    add("--per-class", type=at_least(2), default=4, help="embeddings of each class")
    add("--repeats", type=at_least(2), default=41, help="timed calls of each at each N")
    add("--no-compile", action="store_true", help="without torch.compile: saves a minute per loss")
    add("--output", type=Path, default=RESULTS, help="folder for small-cpu.json")


def run(options: argparse.Namespace, argv: Sequence[str]) -> None:
    before = torch.get_num_threads()
    sizes = sorted(options.n)
    records: list[dict[str, object]] = []
    rounds = 2 * (options.repeats + 1) * len(sizes) * len(options.loss)
    with tqdm(total=rounds, leave=False, disable=None) as bar:
        for name in options.loss:
            for n in sizes:
                bar.set_postfix_str(f"{name}, N={n}")
                records += measure(name, n, options, bar)
    torch.set_num_threads(before)
    conditions = stamp(list(argv), "cpu") | {"d": options.d, "repeats": options.repeats}
    print(f"\nForward + backward, D={options.d}, float32, {options.per_class} of a class, ", end="")
    print(f"{conditions['cpu']}, load {conditions['load']}, ", end="")
    print(f"medians of {options.repeats} taken in turns. By hand in ms, the others in multiples")
    print("of that: process time on one thread, the wall's on two. Python calls of one step.\n")
    print(table(records, sizes))
    for record in records:
        if record["failure"] is not None:
            print(f"{record['loss']}, N={record['n']}, {record['who']}: {record['failure']}")
    print(f"\nwritten: {write_figures(options.output, 'small-cpu', records, conditions)}")
