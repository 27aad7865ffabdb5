"""Recall@1, and all metrics of `pairops.retrieval`, beside the product N×N×D alone, and memory."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from time import process_time

import torch
from tqdm import tqdm

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
from bench.stopwatch import take_turns
from pairops.retrieval import Retrieval, evaluate

_ROWS, _COLS = 2048, 4096  # of a block of torch.mm: of five shapes none was 3% faster at D = 128


@dataclass(frozen=True)
class Gallery:
    """Embeddings around a centre for each class; every one a query and a reference."""

    n: int
    d: int
    per_class: int
    noise: float
    threads: int
    repeats: int

    def embeddings(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        draw = torch.Generator().manual_seed(0)
        labels = torch.arange(n) // self.per_class
        x = torch.randn(n, self.d, generator=draw).mul_(self.noise)
        centres = torch.randn(n // self.per_class + 1, self.d, generator=draw)
        for part, of_part in zip(x.split(4096), labels.split(4096), strict=True):
            part += centres[of_part]
        return x, labels


def multiply(x: torch.Tensor) -> None:
    """x xᵀ block by block into the same block, of which nobody reads anything."""
    block = x.new_empty(_ROWS, _COLS)
    for rows in x.split(_ROWS):
        for cols in x.split(_COLS):
            torch.mm(rows, cols.T, out=block[: len(rows), : len(cols)])


def work(name: str, x: torch.Tensor, labels: torch.Tensor) -> Callable[[], Retrieval | None]:
    return {
        "product": lambda: multiply(x),
        "recall": lambda: evaluate(x, labels, recall_at=(1,), map_at_r=False, progress=False),
        "all": lambda: evaluate(x, labels, progress=False),
    }[name]


def time(gallery: Gallery) -> dict[str, object]:
    """Seconds, and what they are of the product's in the same round; and seconds of processors,
    which mean something where others compute too."""
    torch.set_num_threads(gallery.threads)
    x, labels = gallery.embeddings(gallery.n)
    busy: dict[str, list[float]] = {"product": [], "recall": [], "all": []}

    def timed(name: str) -> Callable[[], None]:
        step = work(name, x, labels)

        def call() -> None:
            before = process_time()
            step()
            busy[name].append(process_time() - before)

        return call

    seconds, failures = take_turns({k: timed(k) for k in busy}, gallery.repeats, "cpu", list)
    for name, reason in failures.items():
        raise RuntimeError(f"{name}: {reason}")
    row: dict[str, object] = {f"{k}_s": statistics.median(taken) for k, taken in seconds.items()}
    row |= {f"{k}_processor_s": statistics.median(taken) for k, taken in busy.items()}
    for name in ("recall", "all"):
        ratios = [a / b for a, b in zip(seconds[name], seconds["product"], strict=True)]
        row[f"{name}_to_product"] = statistics.median(ratios)
        row[f"{name}_to_product_each"] = ratios
    return row


def memory(gallery: Gallery, name: str) -> dict[str, object]:
    """MiB by which one call raises the peak, and the peak of all that the process holds."""
    torch.set_num_threads(gallery.threads)
    work(name, *gallery.embeddings(TINY))()
    x, labels = gallery.embeddings(gallery.n)
    keep_within_what_is_free()
    hand_back_freed_pages()
    before = forget_peak()
    found = work(name, x, labels)()
    peak = peak_resident()
    assert found is not None
    grew = {f"{name}_peak_mib": max(0.0, peak - before), f"{name}_process_mib": peak}
    return grew | ({"found": asdict(found)} if name == "all" else {})


def options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--n", nargs="+", type=at_least(2), default=[50_000, 200_000])
    add("--d", type=at_least(1), default=128)
    add("--per-class", type=at_least(1), default=4, help="embeddings of each class")
    add("--noise", type=float, default=2.0, help="of a row, where centres have 1")
    add("--threads", type=at_least(1), default=torch.get_num_threads())
    add("--repeats", type=at_least(1), default=3, help="timed calls of each, in turns")
    add("--output", type=Path, default=RESULTS, help="folder for retrieval-cpu.json")


def run(options: argparse.Namespace, argv: Sequence[str]) -> None:
    conditions = stamp(list(argv), "cpu") | {"threads": options.threads}
    rows = []
    for n in options.n:
        gallery = Gallery(
            n, options.d, options.per_class, options.noise, options.threads, options.repeats
        )
        title = f"retrieval, N={n:,}, D={options.d}, float32"
        try:
            row = asdict(gallery) | with_a_clock(title, gallery)
        except RuntimeError as error:
            sys.exit(f"{title}: {error}")
        rows.append(row)
        print(f"\n{title}, {options.per_class} a class, {conditions['cpu']}, ", end="")
        print(f"threads: {options.threads}, load {conditions['load']}, ", end="")
        print(f"medians of {options.repeats} taken in turns\n")
        product = (
            f"{number(row['product_s']):>8} s, {number(row['product_processor_s'])} s of processors"
        )
        print(f"torch.mm, N×N×D    {product}")
        for name, label in (("recall", "Recall@1"), ("all", "all metrics")):
            print(f"{label:<18} {number(row[f'{name}_s']):>8} s = ", end="")
            print(f"{row[f'{name}_to_product']:.2f} of that, ", end="")
            print(f"{number(row[f'{name}_processor_s'])} s of processors; memory grew by ", end="")
            print(f"{number(row[f'{name}_peak_mib'])} MiB to ", end="")
            print(f"{number(row[f'{name}_process_mib'])} MiB, with torch and the embeddings")
    print(f"\nwritten: {write_figures(options.output, 'retrieval-cpu', rows, conditions)}")


def with_a_clock(title: str, gallery: Gallery) -> dict[str, object]:
    """Times and memory, each in a process of its own; what these run tells nothing on its way."""
    row: dict[str, object] = {}
    given = json.dumps(asdict(gallery))
    with (
        ThreadPoolExecutor(1) as pool,
        tqdm(desc=title, bar_format="{desc}, {elapsed}", leave=False, disable=None) as bar,
    ):
        for part in ("time", "recall", "all"):
            job = pool.submit(in_separate_process, "bench.cpu.retrieval", part, given)
            while not job.done():
                bar.refresh()
                wait([job], timeout=1)
            row |= job.result()
    return row


if __name__ == "__main__":
    part, gallery = sys.argv[1], Gallery(**json.loads(sys.argv[2]))
    answer(lambda: time(gallery) if part == "time" else memory(gallery, part))
