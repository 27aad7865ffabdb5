"""The comparison: memory, guard and time of every contestant, for one loss and one N."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

from bench.contestants import Contestant, Step, contestants, reason
from bench.cpu.comparison_report import Row, blockwise_to_dense, table, write
from bench.guard import TOLERANCE, truth
from bench.memory.peak import peak_mib
from bench.options import RESULTS, at_least
from bench.problems import Problem, Setting, losses, problem
from bench.stamp import stamp
from bench.stopwatch import Times, take_turns
from bench.yardsticks import Rates, gigaflop, products, rates, yardsticks

D = Setting.d
YARDSTICK = "yardstick"  # in the place of "both" or "forward"


def work(settings: Sequence[Setting], keys: Sequence[str], repeats: int) -> int:
    """How many steps the progress bar counts."""
    return len(settings) * (2 * len(keys) + repeats + 1)


def compare(
    setting: Setting, keys: Sequence[str], repeats: int, bar: tqdm
) -> tuple[list[Row], Rates]:
    """One row per contestant. Who fails at one stage is not asked again at the next."""
    torch.compiler.reset()
    everyone = contestants()
    entrants = [everyone[key] for key in keys]
    rows = {e.key: Row(setting.loss, setting.n, e.key, e.label) for e in entrants}

    # Memory first: who does not fit fails there in a process of its own, and not in this one.
    for entrant in entrants:
        bar.set_postfix_str(f"N={setting.n} memory of {entrant.label}")
        try:
            rows[entrant.key].peak_mib = peak_mib(entrant.key, setting)
        except RuntimeError as error:
            rows[entrant.key].failure = str(error)
        bar.update()

    entrants = [e for e in entrants if rows[e.key].failure is None]
    steps = agreeing(problem(setting), entrants, rows, bar)
    bar.update(len(keys) - len(entrants))

    bar.set_postfix_str(f"N={setting.n} time")
    works = yardsticks(setting)
    steps |= {(key, YARDSTICK): work.step for key, work in works.items()}
    seconds, failures = take_turns(steps, repeats, setting.device, bar.update)
    for (key, part), failure in failures.items():
        if part == YARDSTICK:
            raise RuntimeError(f"{key}: {failure}")
        rows[key].failure = failure
    reached = rates(works, {key: seconds.pop((key, YARDSTICK)) for key in works}, setting.threads)
    needed = products(setting.loss)
    for (key, part), taken in seconds.items():
        row = rows[key]
        if row.failure is not None:
            continue
        times = Times.of(taken)
        if part == "forward":
            row.forward_ms = times.ms
            work = gigaflop(needed.forward, setting.n, setting.d)
            row.forward_of_hot, row.forward_of_peak = shares(work, times, reached)
        else:
            row.ms, row.ms_q1, row.ms_q3 = times.ms, times.ms_q1, times.ms_q3
            work = gigaflop(needed.both, setting.n, setting.d)
            row.of_hot, row.of_peak = shares(work, times, reached)
    return list(rows.values()), reached


def shares(work: float, times: Times, reached: Rates) -> tuple[float, float | None]:
    """Of the hot rate and of the peak, for so many GFLOP."""
    rate = work / (times.ms / 1e3)
    return rate / reached.hot, None if reached.peak is None else rate / reached.peak


def agreeing(
    given: Problem, entrants: Sequence[Contestant], rows: dict[str, Row], bar: tqdm
) -> dict[tuple[str, str], Step]:
    """(who, "both" or "forward"): the step, of those who give the right loss and gradient."""
    steps: dict[tuple[str, str], Step] = {}
    exact = truth(given)
    for entrant in entrants:
        row = rows[entrant.key]
        bar.set_postfix_str(f"N={row.n} guard of {entrant.label}")
        try:
            step, forward = entrant.step(given), entrant.forward(given)
            row.truth = exact.value
            row.value, row.failure = exact.objection(step, given.setting.dtype)
            # Without gradients another path may run: the compiler's, or a library's own.
            if row.failure is None:
                row.failure = exact.objection_to_value(forward().item(), given.setting.dtype)
        except Exception as error:
            row.failure = reason(error)
        if row.failure is None:
            steps[entrant.key, "both"] = step
            steps[entrant.key, "forward"] = forward
        bar.update()
    return steps


def options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--loss", nargs="+", choices=losses(), default=["ms"])
    sizes = [256, 512, 1024, 2048, 4096]
    add("--n", nargs="+", type=at_least(2), default=sizes, help="batch sizes")
    add("--d", nargs="+", type=at_least(1), default=[D], help="dimensions of the embedding")
    add("--per-class", type=at_least(1), default=4, help="embeddings of each class")
    add("--dtype", choices=list(TOLERANCE), default="float32")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--threads", type=at_least(1), default=torch.get_num_threads())
    add("--repeats", type=at_least(2), default=15, help="timed calls of each contestant at each N")
    add("--contestants", nargs="+", choices=list(contestants()), default=list(contestants()))
    add("--no-compile", action="store_true", help="without torch.compile: saves a minute per N")
    add(
        "--output",
        type=Path,
        default=RESULTS,
        help=f"folder for LOSS-DEVICE[-dD].json and .png; no suffix for D={D}",
    )


def run(options: argparse.Namespace, argv: Sequence[str]) -> None:
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch sees no GPU here")
    torch.set_num_threads(options.threads)
    keys = [key for key in contestants() if key in options.contestants]
    if options.no_compile and "compiled" in keys:
        keys.remove("compiled")
    conditions = stamp(list(argv), options.device) | {
        name: getattr(options, name) for name in ("per_class", "dtype", "device", "repeats")
    }
    conditions["tolerance_of_loss"], conditions["tolerance_of_gradient"] = TOLERANCE[options.dtype]
    for loss, d in product(options.loss, options.d):
        settings = [
            Setting(loss, n, d, options.per_class, options.dtype, options.device, options.threads)
            for n in sorted(options.n)
        ]
        rows: list[Row] = []
        reached: dict[int, Rates] = {}
        total = work(settings, keys, options.repeats)
        with tqdm(total=total, desc=f"{loss} D={d}", leave=False, disable=None) as bar:
            for setting in settings:
                of_all, reached[setting.n] = compare(setting, keys, options.repeats, bar)
                rows += of_all
        print(f"\n{loss}_loss, forward + backward, and forward alone (fwd): D={d}, ", end="")
        print(f"{options.dtype}, {conditions['gpu'] or conditions['cpu']}, ", end="")
        print(f"threads: {options.threads}, load {conditions['load']}, ", end="")
        print(f"medians of {options.repeats} taken in turns; of hot, of FMA: ", end="")
        print(f"{products(loss).both:g} products N×N×D in that time, over the best rate ", end="")
        print("of torch.mm and over the peak of multiply-adds\n")
        print(table(rows, reached))
        print(f"\n{blockwise_to_dense(rows)}")
        name = f"{loss}-{options.device}" + ("" if d == D else f"-d{d}")
        for path in write(options.output, name, rows, conditions | {"d": d}, reached):
            print(f"written: {path}")
