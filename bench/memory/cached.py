"""A step through a network with `cached_step`, beside the plain step: seconds and peak memory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import pairops
from bench.memory.peak import (
    TINY,
    forget_peak,
    hand_back_freed_pages,
    keep_within_what_is_free,
    peak_resident,
)
from bench.options import RESULTS, at_least
from bench.report import number, write_figures
from bench.separate_process import answer, in_separate_process
from bench.stamp import stamp

D, WIDTH = 64, 1024


def measure(way: str, n: int, chunk_size: int, threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    parts = [nn.Linear(D, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU()]
    network = nn.Sequential(*parts, nn.Linear(WIDTH, D))

    def step(inputs: torch.Tensor) -> Any:
        labels = torch.arange(len(inputs)) // 4
        if way == "cached":
            pair = network, inputs
            return pairops.cached_step(
                lambda x: pairops.ms_loss(x, labels), pair, chunk_size=chunk_size
            )
        value = pairops.ms_loss(network(inputs), labels)
        value.backward()
        return value

    step(torch.randn(TINY, D))  # loads what is loaded once, and makes the gradients
    inputs = torch.randn(n, D)
    keep_within_what_is_free()
    hand_back_freed_pages()
    before, start, busy = forget_peak(), perf_counter(), process_time()
    value = step(inputs).item()
    times = {"s": perf_counter() - start, "processor_s": process_time() - busy}
    return {"value": value, **times, "peak_mib": max(0.0, peak_resident() - before)}


def options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--n", nargs="+", type=at_least(2), default=[2048, 8192, 32_768, 65_536])
    add("--chunk-size", type=at_least(1), default=1024)
    add("--threads", type=at_least(1), default=torch.get_num_threads())
    add("--output", type=Path, default=RESULTS, help="folder for cached-cpu.json")


def run(options: argparse.Namespace, argv: Sequence[str]) -> None:
    conditions = stamp(list(argv), "cpu") | {"threads": options.threads}
    rows: list[dict[str, Any]] = []
    jobs = list(product(options.n, ("plain", "cached")))
    for n, way in tqdm(jobs, desc="cached_step", unit="step", leave=False, disable=None):
        row = {"n": n, "way": way, "chunk_size": options.chunk_size}
        given = map(str, (n, options.chunk_size, options.threads))
        rows.append(row | in_separate_process("bench.memory.cached", way, *given))
    print(
        f"\nms_loss over a network {D}-{WIDTH}-{WIDTH}-{D}, float32, {conditions['cpu']}, ", end=""
    )
    print(f"threads: {options.threads}, load {conditions['load']}, chunks of ", end="")
    print(f"{options.chunk_size}; one step each, in a process of its own\n")
    print(f"{'N':>7}  {'step':6}  {'s':>6}  {'of processors':>13}  {'peak MiB':>8}")
    for row in rows:
        s, busy, peak = (number(row[name]) for name in ("s", "processor_s", "peak_mib"))
        print(f"{row['n']:>7}  {row['way']:6}  {s:>6}  {busy:>13}  {peak:>8}")
    print(f"\nwritten: {write_figures(options.output, 'cached-cpu', rows, conditions)}")


if __name__ == "__main__":
    answer(lambda: measure(sys.argv[1], *map(int, sys.argv[2:])))
