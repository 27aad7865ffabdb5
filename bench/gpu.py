"""Everything that only a GPU can show, by one command and in one file: tests, rate, time, memory,
error, reproducibility, and the neighbours of every tile shape that the Triton engine may take."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from time import monotonic
from typing import Any
from unittest import mock

import torch
from tqdm import tqdm

from bench import rivals_on_gpu
from bench.comparison import compare, work
from bench.contestants import contestants, reason
from bench.options import RESULTS, at_least
from bench.problems import Setting, problem, takes_labels
from bench.report import table, write_figures
from bench.stamp import stamp, version
from bench.stopwatch import Times, take_turns
from pairops.triton_kernels import configurations

PARTS = ("tests", "speed", "memory", "errors", "bits", "shapes")
ON_GPU = ("triton", "chunked")
DENSE = ("blockwise", "hand", "compiled", "pml")
PACKAGES = ("triton", "siglip-kernel", "inf-cl", "cut-cross-entropy", "pytorch-metric-learning")


def options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add("--loss", nargs="+", default=["ms", "supcon", "info_nce", "siglip"])
    add("--n", nargs="+", type=at_least(2), default=[1024, 16_384, 65_536])
    add("--d", nargs="+", type=at_least(1), default=[64, 128, 256, 512, 768])
    add("--dtype", nargs="+", default=["bfloat16", "float32"])
    add("--repeats", type=at_least(2), default=20)
    add("--minutes", type=float, default=25.0, help="no new measurement begins after that")
    add("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal, at small N")
    add("--output", type=Path, default=RESULTS, help="folder for gpu-NAME.json")


def run(options: argparse.Namespace, argv: Sequence[str]) -> None:
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("bench gpu: torch sees no GPU here; --device cpu rehearses it")
    conditions = stamp(list(argv), options.device) | {"versions": {p: version(p) for p in PACKAGES}}
    if options.device == "cuda":
        conditions |= {"driver": driver(), "capability": torch.cuda.get_device_capability()}
    name = str(conditions["gpu"] or "rehearsal").lower().replace(" ", "-")
    rows: list[dict[str, Any]] = []
    clock = Clock(60 * options.minutes)
    for part in options.parts:
        print(f"\n{part}", flush=True)
        for row in PART[part](options, clock):
            rows.append({"part": part, **row})
            # Written again after every row: a lease may end at any moment.
            path = write_figures(options.output, f"gpu-{name}", rows, conditions)
    print(f"\nwritten: {path}" if rows else "\nnothing was measured")


class Clock:
    """A lease of a GPU is short: past the limit no measurement begins."""

    def __init__(self, seconds: float) -> None:
        self._end = monotonic() + seconds

    def spent(self) -> bool:
        return monotonic() > self._end


def driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()


def settings(options: argparse.Namespace) -> Iterator[Setting]:
    for dtype, d, n, loss in product(options.dtype, options.d, options.n, options.loss):
        yield Setting(loss, n, d, 4, dtype, options.device, torch.get_num_threads())


def tests(options: argparse.Namespace, clock: Clock) -> Iterator[dict[str, Any]]:  # noqa: ARG001
    """The suite, but for its slow tests, with the GPU as the default device."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--maxfail=50", "-m", "not slow", "tests"],
        env=os.environ | {"PAIROPS_TEST_DEVICE": options.device},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout[-4000:])
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    yield {"returncode": done.returncode, "last": done.stdout.splitlines()[-1:], "failed": failed}


def speed(options: argparse.Namespace, clock: Clock) -> Iterator[dict[str, Any]]:
    """Forward and backward beside every rival, and the rate as a share of that of torch.mm."""
    for setting in settings(options):
        if clock.spent():
            return
        given = problem(setting)
        rate = rate_of_mm(setting, options.repeats)
        steps: dict[Any, Any] = {}
        failures: dict[Any, str] = {}
        everyone = contestants()
        entrants = {key: everyone[key] for key in (*ON_GPU, *DENSE)} | rivals_on_gpu.RIVALS
        for key, entrant in entrants.items():
            try:
                step = entrant.step(given)
                step()
            except NotImplementedError:  # it has no such loss
                continue
            except Exception as error:
                failures[key] = reason(error)
                continue
            steps[key] = step
        seconds, failed = take_turns(steps, options.repeats, options.device, lambda: None)
        useful = 6 * setting.n**2 * setting.d
        for key, taken in seconds.items():
            if key in failed:
                continue
            times = Times.of(taken)
            row = {**asdict(setting), "who": key, **asdict(times), "mm_tflops": rate / 1e12}
            row["share_of_mm"] = useful / (times.ms / 1e3) / rate
            print(
                f"{setting.loss:>9} {setting.dtype} N={setting.n} D={setting.d} {key:<16} "
                f"{times.ms:9.3f} ms  {row['share_of_mm']:.3f} of torch.mm's rate",
                flush=True,
            )
            yield row
        for key, why in {**failures, **failed}.items():
            yield {**asdict(setting), "who": key, "failure": why}


def rate_of_mm(setting: Setting, repeats: int) -> float:
    """FLOP per second of torch.mm, 8192³ (on a rehearsal 256³), in the dtype of the setting."""
    size = 8192 if setting.device == "cuda" else 256
    a, b = torch.randn(2, size, size, device=setting.device).to(getattr(torch, setting.dtype))
    seconds, _ = take_turns({"mm": lambda: torch.mm(a, b)}, repeats, setting.device, lambda: None)
    return 2 * size**3 / (Times.of(seconds["mm"]).ms / 1e3)


def memory(options: argparse.Namespace, clock: Clock) -> Iterator[dict[str, Any]]:
    """Growth of the peak, beside 64 B·N + 64 MiB, two working copies and the gradients."""
    keys = [*ON_GPU, *DENSE]
    for setting in settings(options):
        if clock.spent():
            return
        with tqdm(total=work([setting], keys, 2), leave=False, disable=None) as bar:
            rows = compare(setting, keys, 2, bar)
        print(table(rows), flush=True)
        size = getattr(torch, setting.dtype).itemsize
        sets = 1 if takes_labels(setting.loss) else 2
        allowed = 64 + (64 * setting.n + 3 * sets * size * setting.n * setting.d) / 2**20
        for row in rows:
            yield {**asdict(setting), **asdict(row), "allowed_mib": allowed}


def errors(options: argparse.Namespace, clock: Clock) -> Iterator[dict[str, Any]]:
    """Errors of value and gradients against float64, relative to the largest entry."""
    for setting in settings(options):
        if clock.spent():
            return
        small = replace(setting, n=min(setting.n, 4096))
        given = problem(small)
        exact = given.in_float64()
        _, truth = contestants()["dense"].step(exact)()
        for level in ("highest", "high", "medium") if small.dtype == "float32" else ("highest",):
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision(level)
            try:
                for who in (*ON_GPU, "dense"):
                    try:
                        _, found = contestants()[who].step(given)()
                    except Exception as error:
                        yield {
                            **asdict(small),
                            "who": who,
                            "level": level,
                            "failure": reason(error),
                        }
                        continue
                    worst = max(
                        float((a.double() - b).abs().max() / b.abs().max())
                        for a, b in zip(found, truth, strict=True)
                    )
                    print(
                        f"{small.loss:>9} {small.dtype} {level:>7} N={small.n} D={small.d} "
                        f"{who:<9} {worst:.2e}"
                    )
                    yield {**asdict(small), "who": who, "level": level, "gradient_error": worst}
            finally:
                torch.set_float32_matmul_precision(before)


def bits(options: argparse.Namespace, clock: Clock) -> Iterator[dict[str, Any]]:
    """Twenty runs of one step: are all gradients the same, bit by bit?"""
    for setting in settings(options):
        if clock.spent():
            return
        given = problem(setting)
        for who in ON_GPU:
            step = contestants()[who].step(given)
            try:
                _, first = step()
                same = all(
                    torch.equal(a, b)
                    for _ in range(19)
                    for a, b in zip(first, step()[1], strict=True)
                )
            except Exception as error:
                yield {**asdict(setting), "who": who, "failure": reason(error)}
                continue
            print(
                f"{setting.loss:>9} {setting.dtype} N={setting.n} D={setting.d} {who:<9} "
                f"{'equal' if same else 'DIFFERENT'}"
            )
            yield {**asdict(setting), "who": who, "twenty_runs_equal": same}


def shapes(options: argparse.Namespace, clock: Clock) -> Iterator[dict[str, Any]]:
    """Time of the Triton engine with every shape near that of the table."""
    choose = configurations.choose
    for setting in settings(options):
        if setting.loss != options.loss[0] or setting.n != max(options.n):
            continue
        given = problem(setting)
        for changed in neighbours():
            if clock.spent():
                return

            def other(*call: Any, changed: Any = changed) -> configurations.Configuration:
                return replace(choose(*call), **changed)

            with mock.patch.object(configurations, "choose", other):
                try:
                    step = contestants()["triton"].step(given)
                    seconds, failed = take_turns({0: step}, 5, options.device, lambda: None)
                except Exception as error:
                    yield {**asdict(setting), **changed, "failure": reason(error)}
                    continue
            if failed:
                yield {**asdict(setting), **changed, "failure": failed[0]}
                continue
            times = Times.of(seconds[0])
            print(
                f"{setting.dtype} N={setting.n} D={setting.d} {changed} {times.ms:.3f} ms",
                flush=True,
            )
            yield {**asdict(setting), **changed, **asdict(times)}


def neighbours() -> list[dict[str, int]]:
    return [
        {"rows": rows, "cols": cols, "warps": warps, "stages": stages}
        for rows, cols in ((64, 32), (64, 64), (128, 32), (128, 64), (128, 128))
        for warps in (4, 8)
        for stages in (1, 2, 3)
    ]


PART = {
    "tests": tests,
    "speed": speed,
    "memory": memory,
    "errors": errors,
    "bits": bits,
    "shapes": shapes,
}
