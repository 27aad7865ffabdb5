"""The native kernels' share of the multiply-adds that a core can do, and where the time goes.

Each instruction set, D and number of threads has a process of its own; in it the yardsticks,
forward and backward take turns. The peak is the best of its calls on one thread, times the number
of threads: where two of those share a core it is out of reach. The hot rate is that of torch's own
instruction set. `product` is the micro-kernel on one tile in cache; in the sweeps only the products
of the tiles that are visited are counted, not the norms, exponentials and sums between them. On one
thread `elimination` says what these take.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

from bench.contestants import Step
from bench.cpu.elimination import KERNEL, Key, parts, table, visited
from bench.cpu.elimination import steps as steps_without
from bench.cpu.engine_sweeps import LOSSES, SWEEPS, Sweeps, pairs_of, terms
from bench.options import RESULTS, at_least, extension
from bench.report import columns, number, percent, write_figures
from bench.separate_process import answer, in_separate_process
from bench.stamp import stamp
from bench.stopwatch import Times, take_turns
from bench.yardsticks import (
    HOT,
    PEAK,
    gigaflop,
    hot_product,
    multiply_adds,
    products,
    rates,
)


@dataclass(frozen=True)
class Job:
    """What one process measures."""

    isa: str
    n: int
    d: int
    threads: int
    repeats: int


def kernel_steps(isa: str, d: int) -> tuple[dict[Key, Step], dict[Key, float]]:
    """The micro-kernel at D and at D = 1, which `elimination` needs; and their GFLOP."""
    native = extension()
    found: dict[Key, Step] = {}
    work = {}
    for depth, sweep in product({d, 1}, SWEEPS):
        # Milliseconds; backward multiplies by whole registers.
        rounds = max(1, 10**9 // (native.TILE**2 * max(depth, 32)))
        key = KERNEL, sweep, depth
        found[key] = partial(native.probe_product, isa, depth, sweep == "backward", rounds)
        work[key] = 2 * rounds * native.TILE**2 * depth / 1e9
    return found, work


def measure(job: Job) -> list[dict[str, object]]:
    torch.set_num_threads(job.threads)
    n, d = job.n, job.d
    whole = {loss: Sweeps(pairs_of(loss, n, d), terms(loss)) for loss in LOSSES}
    shares = {loss: visited(sweeps.bits) for loss, sweeps in whole.items()}
    steps: dict[Key, Step] = {}
    work: dict[Key, float] = {}
    for loss, sweeps in whole.items():
        steps[loss, "forward", d], steps[loss, "backward", d] = sweeps.forward, sweeps.backward
        needed = products(loss)
        work[loss, "forward", d] = gigaflop(needed.forward, n, d)
        work[loss, "backward", d] = shares[loss] * gigaflop(needed.backward, n, d)
    if job.threads == 1:
        of_kernel, gigaflop_of_kernel = kernel_steps(job.isa, d)
        steps |= of_kernel | steps_without(whole, n, d)
        work |= gigaflop_of_kernel
    works = {HOT: hot_product("cpu", "float32"), PEAK: multiply_adds(job.isa)}
    steps |= {(key, "", 0): yardstick.step for key, yardstick in works.items()}
    seconds, failures = take_turns(steps, job.repeats, "cpu", lambda: None)
    if failures:
        raise RuntimeError("; ".join(failures.values()))
    reached = rates(works, {key: seconds.pop((key, "", 0)) for key in works}, job.threads)
    times = {key: Times.of(taken) for key, taken in seconds.items()}
    ms = {key: of.ms for key, of in times.items()}
    of_tile = {(s, k): 1e3 * work[KERNEL, s, k] / ms[KERNEL, s, k] for w, s, k in ms if w == KERNEL}
    rows = []
    for loss, sweep in product((*LOSSES, KERNEL) if job.threads == 1 else LOSSES, SWEEPS):
        key = loss, sweep, d
        rate = 1e3 * work[key] / ms[key]
        row = asdict(job) | {"loss": loss, "sweep": sweep} | asdict(times[key])
        row |= {
            "gflops": rate,
            "peak_of_one_thread": reached.peak / job.threads,
            "share": rate / reached.peak,
            "best_share": work[key] / min(seconds[key]) / reached.peak,
            "hot_gflops": reached.hot,
            "of_hot": rate / reached.hot,
            "tiles_visited": shares[loss] if sweep == "backward" and loss in shares else 1.0,
            "parts_ms": None,
        }
        if job.threads == 1 and loss != KERNEL:
            row["parts_ms"] = parts(loss, sweep, n, d, row["tiles_visited"], ms, of_tile)
        rows.append(row)
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
            rows += in_separate_process(
                "bench.cpu.kernel", json.dumps(asdict(job)), PAIROPS_ISA=job.isa
            )
        except RuntimeError as error:
            sys.exit(f"{job}: {error}")
    print(
        f"\nThe sweeps of the engine cpu alone: N={options.n}, float32, {conditions['cpu']}, ",
        end="",
    )
    print(
        f"load {conditions['load']}, medians of {options.repeats} taken in turns, shares ", end=""
    )
    print("of the peak of one thread × threads, and of torch.mm's best rate (hot)\n")
    head = "isa", "D", "threads", "terms of", "sweep", "ms", "GFLOP/s", "peak", "share", "best"
    print(columns([*head, "hot", "of hot"], [cells(row) for row in rows]))
    if 1 in options.threads:
        print("\nWhere the time of a sweep goes on one thread: products and packing by ", end="")
        print("themselves, the other parts by subtraction; visited: share of the tiles\n")
        print(table(rows))
    print(f"written: {write_figures(options.output, 'kernel-cpu', rows, conditions)}")


def cells(row: dict[str, float]) -> list[object]:
    return [
        *[row[name] for name in ("isa", "d", "threads", "loss", "sweep")],
        number(row["ms"]),
        number(row["gflops"]),
        number(row["peak_of_one_thread"]),
        percent(row["share"]),
        percent(row["best_share"]),
        number(row["hot_gflops"]),
        percent(row["of_hot"]),
    ]


if __name__ == "__main__":
    answer(lambda: measure(Job(**json.loads(sys.argv[1]))))
