"""One step of the engine cpu at an N whose matrix no memory holds: seconds, and memory."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter

import torch
from tqdm import tqdm

from bench.contestants import on_engine
from bench.memory.peak import (
    MIB,
    TINY,
    forget_peak,
    hand_back_freed_pages,
    keep_within_what_is_free,
    peak_resident,
)
from bench.options import RESULTS, at_least
from bench.problems import Problem, Setting, losses, problem, takes_labels
from bench.report import number, write_figures
from bench.separate_process import answer, in_separate_process
from bench.stamp import stamp


def once(given: Problem) -> dict[str, float]:
    loss = on_engine("cpu", given.setting.loss)
    start = perf_counter()
    value = loss(given.x, given.other, **given.learned)
    between = perf_counter()
    torch.autograd.grad(value, given.leaves)
    end = perf_counter()
    return {"value": value.item(), "forward_s": between - start, "backward_s": end - between}


def measure(setting: Setting) -> dict[str, float]:
    torch.set_num_threads(setting.threads)
    once(problem(replace(setting, n=TINY)))
    given = problem(setting)
    keep_within_what_is_free()
    # What making the problem left behind would otherwise be reused, and not seen to grow.
    hand_back_freed_pages()
    before = forget_peak()
    row = once(given)
    return row | {"peak_mib": max(0.0, peak_resident() - before)}


def bound(setting: Setting) -> dict[str, float]:
    """MiB: what the step may add, part by part, and one matrix N×N.

    The copies are those that the backward sweep reads: of the columns, as s and as the weights
    need them; where there are two sets, of the rows too.
    """
    one = 4 * setting.n * setting.d / MIB
    labelled = takes_labels(setting.loss)
    parts = {
        "per_row_mib": 64 * setting.n / MIB,
        "constant_mib": 64.0,
        "gradients_mib": one if labelled else 2 * one,
        "copies_mib": 2 * one if labelled else 3 * one,
    }
    return parts | {"bound_mib": sum(parts.values()), "dense_mib": 4 * setting.n**2 / MIB}


def options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--loss", choices=losses(), default="ms")
    add("--n", type=at_least(2), default=131_072)
    add("--d", type=at_least(1), default=128)
    add("--threads", type=at_least(1), default=torch.get_num_threads())
    add("--output", type=Path, default=RESULTS, help="folder for large-cpu.json")


def run(options: argparse.Namespace, argv: Sequence[str]) -> None:
    setting = Setting(options.loss, options.n, options.d, threads=options.threads)
    conditions = stamp(list(argv), "cpu") | {"threads": options.threads}
    title = f"{options.loss}_loss on cpu, N={options.n:,}, D={options.d}, float32"
    row = asdict(setting) | bound(setting)
    try:
        row |= with_a_clock(f"{title}: forward + backward once", setting)
    except RuntimeError as error:
        sys.exit(f"{title}: {error}")
    print(f"\n{title}, {conditions['cpu']}, threads: {options.threads}, ", end="")
    print(f"load {conditions['load']}, one step in a process of its own\n")
    print(f"forward            {number(row['forward_s']):>8} s")
    print(f"backward           {number(row['backward_s']):>8} s")
    print(f"peak memory grew   {number(row['peak_mib']):>8} MiB")
    print(f"its bound          {number(row['bound_mib']):>8} MiB: 64 B per row + 64 MiB + ", end="")
    print(f"gradients {number(row['gradients_mib'])} + copies {number(row['copies_mib'])}")
    print(f"one matrix N×N     {row['dense_mib']:>8,.0f} MiB")
    print(f"written: {write_figures(options.output, 'large-cpu', [row], conditions)}")


def with_a_clock(title: str, setting: Setting) -> dict[str, float]:
    """`measure` in its own process; what it runs tells nothing on its way, so time is shown."""
    with (
        ThreadPoolExecutor(1) as pool,
        tqdm(desc=title, bar_format="{desc}, {elapsed}", leave=False, disable=None) as bar,
    ):
        job = pool.submit(in_separate_process, "bench.cpu.large", json.dumps(asdict(setting)))
        while not job.done():
            bar.refresh()
            wait([job], timeout=1)
        return job.result()


if __name__ == "__main__":
    answer(lambda: measure(Setting(**json.loads(sys.argv[1]))))
