"""The path of a call: how many files of pairops one small step enters, by how many Python calls.

A step is forward and backward on 16 rows of 8 numbers, two of a class, after two steps that load
what is loaded once. Autograd stays on this thread, where Python's profiler sees it. A call counts
if its code lies in the package. A file change is a call into another file than the call before it:
what a reader who follows the step has to turn to.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import pairops
from bench.problems import function, takes_labels
from bench.report import columns
from bench.stamp import stamp

LOSSES = ("ms", "supcon", "info_nce")
ROWS, D = 16, 8
WARM_UPS = 2
PACKAGE = Path(pairops.__file__).parent


def step_of(loss: str) -> Callable[[], None]:
    """Forward and backward of a loss, with a gradient for every embedding."""
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, ROWS, D, generator=random, device="cpu").unbind()
    labels = torch.arange(ROWS, device="cpu") // 2

    def step() -> None:
        other = labels if takes_labels(loss) else y.clone().requires_grad_()
        function(loss)(x.clone().requires_grad_(), other).backward()

    return step


def entered(step: Callable[[], object]) -> list[str]:
    """The file of every call inside pairops, in order."""
    files: list[str] = []
    begin = f"{PACKAGE}/"

    def note(frame: FrameType, event: str, _: object) -> None:
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(begin):
            files.append(path[len(begin) :])

    profiled(step, note)
    return files


def profiled(step: Callable[[], object], note: Callable[[FrameType, str, Any], None]) -> None:
    """Run a step under a profile function, which hears of its backward pass too."""
    before = sys.getprofile()
    with torch.autograd.set_multithreading_enabled(False):
        sys.setprofile(note)
        try:
            step()
        finally:
            sys.setprofile(before)


def path_of(loss: str) -> list[str]:
    """The files that a warm step enters, call by call."""
    step = step_of(loss)
    for _ in range(WARM_UPS):
        step()
    return entered(step)


def cells(loss: str, path: Sequence[str]) -> tuple[object, ...]:
    changes = sum(a != b for a, b in pairwise(path))
    return loss, len(set(path)), len(path), changes


def options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--loss", nargs="+", choices=LOSSES, default=list(LOSSES))
    add("--files", action="store_true", help="also the calls into each file")


def run(options: argparse.Namespace, argv: Sequence[str]) -> None:
    conditions = stamp(list(argv), "cpu")
    paths = {loss: path_of(loss) for loss in options.loss}
    print(f"\nOne step, forward + backward, N={ROWS}, D={D}, inside pairops: ", end="")
    print(f"native {conditions['native_isa'] or 'not built'}, ", end="")
    print(f"Python {conditions['python']}, torch {conditions['torch']}\n")
    head = "loss", "files", "calls", "file changes"
    print(columns(head, [cells(loss, path) for loss, path in paths.items()]))
    if options.files:
        for loss, path in paths.items():
            print(f"\n{loss}: calls into each file\n")
            for file, calls in Counter(path).most_common():
                print(f"{calls:>6}  {file}")
