"""The benchmark of a GPU, by one command and into one file: launches, rate, memory, error,
reproducibility, tile shapes, tests, and what the sanitizer says of the CUDA kernels.

On a GPU every part runs in a process of its own, and on Hopper in a second one, with the CUDA
engine alone, told to take its sweeps for Hopper. Rows are written as they come.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from bench.contestants import reason
from bench.gpu import launch, lease, parts, sanitizer
from bench.gpu.lease import Clock, Row
from bench.gpu.parts import EVERYONE
from bench.options import RESULTS, at_least
from bench.report import write_figures
from bench.stamp import stamp, version
from pairops.ops.bindings import extension

PACKAGES = ("triton", "siglip-kernel", "inf-cl", "cut-cross-entropy", "pytorch-metric-learning")


def options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--parts", nargs="+", choices=PART, default=list(PART))
    add("--who", nargs="+", choices=EVERYONE, default=list(EVERYONE), metavar="WHO")
    add("--loss", nargs="+", default=["ms", "supcon", "info_nce", "siglip"])
    add("--n", nargs="+", type=at_least(2), default=[1024, 16_384, 65_536])
    add("--d", nargs="+", type=at_least(1), default=[64, 128, 256, 512, 768, 1024])
    add("--dtype", nargs="+", default=["bfloat16", "float32", "float16"])
    add("--repeats", type=at_least(2), default=20)
    add("--minutes", type=float, default=25.0, help="no new measurement begins after that")
    add("--patience", type=float, default=150.0, help="seconds; who is silent for longer hangs")
    add("--pytest", default="", help="words for the tests, as one: '-n 8 -k cuda'")
    add("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal, at small N")
    add("--output", type=Path, default=RESULTS, help="folder for gpu-NAME.json")
    add("--name", help="the GPU's, if it is not given")
    # Given to a process that reports to the one that began it.
    add("--first", type=int, default=None, help=argparse.SUPPRESS)


def run(options: argparse.Namespace, argv: Sequence[str]) -> None:
    clock = Clock(60 * options.minutes)
    if options.first is not None:
        for row in PART[options.parts[0]](options, clock):
            print(lease.ROW, json.dumps(row), flush=True)
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("bench gpu: torch sees no GPU here; --device cpu rehearses it")
    conditions = stamp(list(argv), options.device) | {"versions": {p: version(p) for p in PACKAGES}}
    if extension.native is not None:
        conditions["build"] = extension.native.features()
    if options.device == "cuda":
        conditions |= {"driver": driver(), "capability": torch.cuda.get_device_capability()}
    name = options.name or str(conditions["gpu"] or "rehearsal").lower().replace(" ", "-")
    rows: list[Row] = []
    for part in options.parts:
        print(f"\n{part}", flush=True)
        for row in rows_of(part, options, clock):
            rows.append({"part": part, **row})
            # Written again after every row: a lease may end at any moment.
            path = write_figures(options.output, f"gpu-{name}", rows, conditions)
    print(f"\nwritten: {path}" if rows else "\nnothing was measured")


def driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()


def rows_of(part: str, options: argparse.Namespace, clock: Clock) -> Iterator[Row]:
    """Of the part as it is, then with the CUDA engine's sweeps for Hopper."""
    if options.device == "cpu" or part in WHOLE:
        try:
            yield from PART[part](options, clock)
        except Exception as error:
            yield {"failure": reason(error)}
        return
    yield from lease.rows_of(partial(command, part, options, clock), clock, options.patience, {})
    if "cuda" in options.who and part != "shapes" and lease.with_hopper(options.device):
        alone = argparse.Namespace(**vars(options) | {"who": ["cuda"]})
        again = partial(command, part, alone, clock)
        yield from lease.rows_of(again, clock, options.patience, lease.HOPPER)


def command(part: str, options: argparse.Namespace, clock: Clock, first: int) -> list[str]:
    words = [sys.executable, "-m", "bench", "gpu", "--parts", part, "--first", str(first)]
    words += ["--device", options.device, "--repeats", str(options.repeats)]
    words += ["--minutes", str(clock.left() / 60)]
    for name in ("who", "loss", "n", "d", "dtype"):
        words += [f"--{name}", *map(str, getattr(options, name))]
    return words


def tests(options: argparse.Namespace, clock: Clock) -> Iterator[Row]:
    """The suite, but for its slow tests, with the GPU as the default device; what names the CUDA
    engine once more with its sweeps for Hopper."""
    words = shlex.split(options.pytest)
    once_more = [] if "-k" in words else ["-k", "cuda"]
    runs = [(words, {})]
    if lease.with_hopper(options.device):
        runs.append(([*words, *once_more], lease.HOPPER))
    for done, (more, environment) in enumerate(runs):
        command = [sys.executable, "-m", "pytest", "-q", "--maxfail=50"]
        command += ["-m", "not slow and not exhaustive", "tests"]
        code, output = lease.finish(
            [*command, *more],
            clock.left() / (len(runs) - done),
            {"PAIROPS_TEST_DEVICE": options.device, **environment},
        )
        print(output[-4000:], flush=True)
        lines = output.splitlines()
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        yield {"environment": environment, "returncode": code, "last": lines[-1:], "failed": failed}


# What needs no setting; the other parts may be run from any setting on.
WHOLE = {"tests": tests, "sanitizer": sanitizer.sanitizer}
BY_SETTING = {
    "launch": launch.launch,
    "speed": parts.speed,
    "memory": parts.memory,
    "errors": parts.errors,
    "bits": parts.bits,
    "shapes": parts.shapes,
}
PART = {name: partial(lease.each, measure) for name, measure in BY_SETTING.items()} | WHOLE
