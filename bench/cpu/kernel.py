"""The native kernels' share of the multiply-adds that a core can do.

Each instruction set, D and number of threads has a process of its own; in it the peak, forward and
backward take turns. The peak is the best of its calls on one thread, times the number of threads:
where two of those share a core it is out of reach. `product` is the micro-kernel on one tile in
cache; in the sweeps only the products are counted, not the norms, exponentials and sums between
them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

from bench.contestants import Step
from bench.options import RESULTS, at_least, extension
from bench.own_process import answer, in_own_process
from bench.problems import Setting, problem, takes_labels
from bench.report import columns, number, write_figures
from bench.stamp import stamp
from bench.stopwatch import Times, take_turns
from pairops.ops.engines import cpu as cpu_engine
from pairops.ops.engines.plan import plan_of
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.terms.term import NEG, POS, Wanted, highest, lse, total

ROUNDS = 5_000_000  # of multiply-adds: tens of milliseconds

# Products N×N×D of each sweep. The same set visits the upper triangle of tiles: forward needs half
# of s, backward half of s and two products by half of the weights.
PRODUCTS = {
    ("supcon", "forward"): 0.5,
    ("supcon", "backward"): 1.5,
    ("info_nce", "forward"): 1.0,
    ("info_nce", "backward"): 3.0,
}
LOSSES = ("supcon", "info_nce")
KERNEL = "product"  # in the place of a loss


@dataclass(frozen=True)
class Job:
    """What one process measures."""

    isa: str
    n: int
    d: int
    threads: int
    repeats: int


def sweeps(loss: str, n: int, d: int) -> Iterator[tuple[str, Step]]:
    """The two calls of the engine that the loss makes."""
    given = problem(Setting(loss, n, d))
    x, other = given.x.detach(), given.other.detach()
    labelled = takes_labels(loss)
    pairs = Pairs.of(x, other) if labelled else Pairs.paired(x, other)
    scale = 1 / 0.1 if labelled else 1 / 0.07
    near = highest(POS, grad=False)
    neg, pos, sums = lse(NEG, scale, near), lse(POS, scale, near), total(POS, scale, near)
    rows, cols = ((near, neg, pos, sums), ()) if labelled else ((near, sums, neg),) * 2
    plan = plan_of(rows, cols)
    assert plan is not None and cpu_engine.serves(plan), "the terms are compiled"  # noqa: PT018
    made = cpu_engine.planned_forward(pairs, rows, cols, plan)
    slopes = torch.full_like(made.every, 1 / n)
    needs = Wanted(True, not labelled, True)
    yield "forward", lambda: cpu_engine.planned_forward(pairs, rows, cols, plan)
    yield (
        "backward",
        lambda: cpu_engine.planned_backward(
            pairs, rows, cols, (made.every,), [], slopes, made.bits, needs, plan
        ),
    )


def measure(job: Job) -> list[dict[str, object]]:
    torch.set_num_threads(job.threads)
    native_ = extension()
    operations = native_.probe_peak(job.isa, ROUNDS)
    steps: dict[tuple[str, str], Step] = {("peak", ""): lambda: native_.probe_peak(job.isa, ROUNDS)}
    for loss in LOSSES:
        for sweep, step in sweeps(loss, job.n, job.d):
            steps[loss, sweep] = step
    rounds = max(1, 10**9 // (native_.TILE**2 * job.d))  # milliseconds
    if job.threads == 1:
        for sweep in ("forward", "backward"):
            steps[KERNEL, sweep] = partial(
                native_.probe_product, job.isa, job.d, sweep == "backward", rounds
            )
    seconds, failures = take_turns(steps, job.repeats, "cpu", lambda: None)
    if failures:
        raise RuntimeError("; ".join(failures.values()))
    peak = operations / min(seconds.pop(("peak", ""))) / 1e9
    rows = []
    for (loss, sweep), taken in seconds.items():
        times = Times.of(taken)
        if loss == KERNEL:
            work = 2 * rounds * native_.TILE**2 * job.d / 1e9
        else:
            work = PRODUCTS[loss, sweep] * 2 * job.n**2 * job.d / 1e9
        rows.append(
            asdict(job)
            | {"loss": loss, "sweep": sweep}
            | asdict(times)
            | {
                "gflops": work / (times.ms / 1e3),
                "peak_of_one_thread": peak,
                "share": work / (times.ms / 1e3) / (peak * job.threads),
                "best_share": work / min(taken) / (peak * job.threads),
            }
        )
    return rows


def options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--isa", nargs="+", help="instruction sets (default: all that this machine has)")
    add("--n", type=at_least(2), default=4096)
    add("--d", nargs="+", type=at_least(1), default=[64, 128, 512])
    threads = sorted({1, torch.get_num_threads()})
    add("--threads", nargs="+", type=at_least(1), default=threads)
    add("--repeats", type=at_least(2), default=9, help="timed calls of each sweep")
    add("--output", type=Path, default=RESULTS, help="folder for kernel-cpu.json")


def run(options: argparse.Namespace, argv: Sequence[str]) -> None:
    known = extension().isas()
    unknown = set(options.isa or known) - set(known)
    if unknown:
        sys.exit(f"--isa {' '.join(sorted(unknown))}: this machine has {' '.join(known)}")
    conditions = stamp(list(argv), "cpu") | {"n": options.n, "repeats": options.repeats}
    conditions["dtype"] = "float32"
    jobs = [
        Job(isa, options.n, d, threads, options.repeats)
        for isa, d, threads in product(options.isa or known, options.d, options.threads)
    ]
    rows = []
    for job in tqdm(jobs, desc="kernel", leave=False, disable=None):
        try:
            rows += in_own_process("bench.cpu.kernel", json.dumps(asdict(job)), PAIROPS_ISA=job.isa)
        except RuntimeError as error:
            sys.exit(f"{job}: {error}")
    print(f"\nThe native sweeps alone: N={options.n}, float32, {conditions['cpu']}, ", end="")
    print(
        f"load {conditions['load']}, medians of {options.repeats} taken in turns, shares ", end=""
    )
    print("of the peak of one thread × threads\n")
    head = "isa", "D", "threads", "terms of", "sweep", "ms", "GFLOP/s", "peak", "share", "best"
    print(columns(head, [cells(row) for row in rows]))
    print(f"written: {write_figures(options.output, 'kernel-cpu', rows, conditions)}")


def cells(row: dict[str, float]) -> list[object]:
    return [
        *[row[name] for name in ("isa", "d", "threads", "loss", "sweep")],
        number(row["ms"]),
        number(row["gflops"]),
        number(row["peak_of_one_thread"]),
        f"{row['share']:.0%}",
        f"{row['best_share']:.0%}",
    ]


if __name__ == "__main__":
    answer(lambda: measure(Job(**json.loads(sys.argv[1]))))
