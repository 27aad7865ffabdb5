"""A step over several ranks: all rows gathered at once beside a ring of blocks, and one process."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.multiprocessing import get_context
from tqdm import tqdm

import pairops
from bench.options import RESULTS, at_least
from bench.report import number, write_figures
from bench.stamp import stamp

WAYS = {"gathered": 1 << 62, "ring": 0}  # bytes per rank below which all rows are gathered


def step(loss: str, x: torch.Tensor, labels: torch.Tensor, way: str) -> float:
    """Seconds of forward and backward."""
    begin = perf_counter()
    x.grad = None
    if way == "one process":
        getattr(pairops, loss)(x, labels).backward()
    else:
        with mock.patch("pairops.ops.row_stats.ring_blocks.GATHERED", WAYS[way]):
            getattr(pairops, loss)(x, labels, group="auto").backward()
    return perf_counter() - begin


def rank_of(rank: int, store: str, options: argparse.Namespace, pipe: Any) -> None:
    """One rank, with one thread; the first sends the medians of interleaved steps."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=options.ranks
    )
    torch.manual_seed(rank)
    for n, d in product(options.n, options.d):
        x = torch.randn(n, d).requires_grad_()
        labels = torch.randint(0, max(1, n // 8), (n,))
        ways = [*WAYS, "one process"]  # of the last each its own rows: n² pairs for ranks·n²
        times: dict[str, list[float]] = {way: [] for way in ways}
        for repeat in range(options.repeats + 1):
            for way in ways:
                dist.barrier()
                seconds = step(options.loss, x, labels, way)
                if repeat:  # the first loads what is loaded once
                    times[way].append(seconds)
        if rank == 0:
            found = {way: 1e3 * median(seconds) for way, seconds in times.items()}
            pipe.send({"n": n, "d": d, "block_kib": n * d * 4 / 1024, **found})
    dist.destroy_process_group()


def options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--ranks", type=at_least(2), default=2)
    add("--loss", choices=("supcon_loss", "ms_loss"), default="supcon_loss")
    add("--n", nargs="+", type=at_least(2), default=[128, 512, 2048, 8192], help="rows of a rank")
    add("--d", nargs="+", type=at_least(1), default=[64, 512])
    add("--repeats", type=at_least(1), default=7)
    add("--output", type=Path, default=RESULTS, help="folder for ring-cpu.json")


def run(options: argparse.Namespace, argv: Sequence[str]) -> None:
    conditions = stamp(list(argv), "cpu") | {"ranks": options.ranks, "loss": options.loss}
    context = get_context("spawn")
    here, there = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        given = (str(Path(folder) / "store"), options, there)
        processes = [
            context.Process(target=rank_of, args=(rank, *given), daemon=True)
            for rank in range(options.ranks)
        ]
        for process in processes:
            process.start()
        there.close()
        count = len(options.n) * len(options.d)
        shown = tqdm(range(count), desc="ring", unit="size", leave=False, disable=None)
        rows = [here.recv() for _ in shown]
        for process in processes:
            process.join()
    print(
        f"\n{options.loss}, float32, {options.ranks} ranks of one thread on {conditions['cpu']}, "
        f"gloo, load {conditions['load']}; ms of forward and backward\n"
    )
    print(
        f"{'rows':>6} {'D':>5} {'KiB':>7} {'gathered':>9} {'ring':>9} {'ring/gathered':>14}", end=""
    )
    print(f" {'one rank alone':>15}")
    for row in rows:
        ratio = row["ring"] / row["gathered"]
        shown_ms = [number(row[way]) for way in ("gathered", "ring")]
        print(
            f"{row['n']:>6} {row['d']:>5} {row['block_kib']:>7.0f} {shown_ms[0]:>9} "
            f"{shown_ms[1]:>9} {ratio:>14.2f} {number(row['one process']):>15}"
        )
    print(f"\nwritten: {write_figures(options.output, 'ring-cpu', rows, conditions)}")
