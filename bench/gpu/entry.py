"""The benchmark of a GPU, by one command and into one file: checks, launches, rate, memory, error,
reproducibility, tile shapes, tests, and what the sanitizer says of the CUDA kernels.

On a GPU every part runs in a process of its own, and on Hopper in a second one, with the CUDA
engine alone, told to take its sweeps for Hopper. Rows are written as they come, and what was
predicted of them beside. `--first-run` takes eight minutes for what it would be worst not to know.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TextIO, cast

import torch
from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile

from bench.contestants import reason
from bench.gpu import launch, lease, long_sums, parts, predictions, sanitizer, tasks
from bench.gpu.lease import Clock, Row
from bench.gpu.parts import EVERYONE
from bench.gpu.tasks import Task
from bench.options import RESULTS, at_least
from bench.report import write_figures
from bench.stamp import stamp, version
from pairops.ops.bindings import extension

PACKAGES = (
    "triton",
    "memeff",
    "siglip-kernel",
    "inf-cl",
    "cut-cross-entropy",
    "pytorch-metric-learning",
)


CHECK = 100.0  # seconds: Triton compiles, and every kernel is run


def options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    first = (
        f"{tasks.MINUTES:.0f} minutes, for chosen parts at chosen sizes, whatever the next six say"
    )
    add("--first-run", action="store_true", help=first)
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
    add("--alone", action="store_true", help=argparse.SUPPRESS)


def run(options: argparse.Namespace, argv: Sequence[str]) -> None:
    if options.first is not None:
        for row in PART[options.parts[0]](options, Clock(60 * options.minutes)):
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
    if options.first_run:
        chosen, name = tasks.first_run(options.device), f"{name}-first-run"
        options.patience = min(options.patience, tasks.PATIENCE)
        # What still measures when the clock ends has that long to come to its own end.
        clock = Clock(60 * min(options.minutes, tasks.MINUTES) - options.patience)
    else:
        chosen, clock = tasks.everything(options, WHOLE), Clock(60 * options.minutes)
    rows: list[Row] = []
    bar = tqdm(chosen, leave=False, disable=None)
    with contextlib.redirect_stdout(cast(TextIO, DummyTqdmFile(sys.stdout))):
        for task in bar:
            bar.set_description(task.part)
            print(f"\n{task.part}", *task.environment, flush=True)
            for row in rows_of(task, options, clock):
                row = {"part": task.part, **row}
                rows.append(row | predictions.beside(task.part, row))
                # Written again after every row: a lease may end at any moment.
                path = write_figures(options.output, f"gpu-{name}", rows, conditions)
    if options.first_run:
        print("", predictions.table(rows), sep="\n")
    print(f"\nwritten: {path}" if rows else "\nnothing was measured")


def driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()


def rows_of(task: Task, options: argparse.Namespace, clock: Clock) -> Iterator[Row]:
    """In a process of its own, but for a rehearsal of the parts that are asked for by name."""
    own = argparse.Namespace(**vars(options) | task.changes)
    if clock.spent():
        yield {"failure": "the lease was over before it began"}
    elif task.part in WHOLE or (own.device == "cpu" and not own.first_run):
        try:
            yield from PART[task.part](own, clock.at_most(task.seconds))
        except Exception as error:
            yield {"failure": reason(error)}
    else:
        limited = clock.at_most(task.seconds)
        words = partial(command, task.part, own, limited)
        environment = lease.UNCHECKED | task.environment
        yield from lease.rows_of(words, limited, own.patience, environment)


def command(part: str, options: argparse.Namespace, clock: Clock, first: int) -> list[str]:
    words = [sys.executable, "-m", "bench", "gpu", "--parts", part, "--first", str(first)]
    words += ["--device", options.device, "--repeats", str(options.repeats)]
    words += ["--minutes", str(clock.left() / 60)]
    words += ["--alone"] if options.alone else []
    for name in ("who", "loss", "n", "d", "dtype"):
        words += [f"--{name}", *map(str, getattr(options, name))]
    return words


def check(options: argparse.Namespace, clock: Clock) -> Iterator[Row]:
    """What `python -m pairops --check` says, of both kinds of sweeps."""
    hopper = lease.with_hopper(options.device)
    environments = ({}, lease.HOPPER) if hopper else ({},)
    words = [sys.executable, "-m", "pairops", "--check", "--json"]
    runs = [(words, environment) for environment in environments]
    for number, code, output in lease.finish_together(runs, min(CHECK, clock.left())):
        row = {"environment": environments[number], "returncode": code, **said(code, output)}
        print(row.get("failure") or f"passed: {row['passed']}, {row['counts']}", flush=True)
        yield row


def said(code: int | None, output: str) -> Row:
    """A check's report, of which kernels that passed are counted; a warning may stand before it."""
    if "unrecognized arguments: --check" in output:
        return {"failure": "this pairops has no `python -m pairops --check`"}
    start = 0 if output.startswith("{") else output.find("\n{") + 1
    try:
        report, _ = json.JSONDecoder().raw_decode(output, start)
    except ValueError:
        how = "took too long and was ended" if code is None else f"ended with status {code}"
        return {"failure": f"{how}, without a report: {output.strip()[-200:]}"}
    kernels = report.pop("kernels")
    counts = Counter(f"{kernel['engine']} {kernel['outcome']}" for kernel in kernels)
    rest = [kernel for kernel in kernels if kernel["outcome"] != "passed"]
    return {**report, "counts": dict(counts), "not_passed": rest}


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
WHOLE = {"check": check, "sanitizer": sanitizer.sanitizer, "tests": tests}
BY_SETTING = {
    "launch": launch.launch,
    "costs": launch.costs,
    "rate": parts.rate,
    "speed": parts.speed,
    "memory": parts.memory,
    "errors": parts.errors,
    "long_sums": long_sums.long_sums,
    "bits": parts.bits,
    "shapes": parts.shapes,
}
PART = {name: partial(lease.each, measure) for name, measure in BY_SETTING.items()} | WHOLE
