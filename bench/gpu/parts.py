"""The parts of `bench gpu` that every setting has: rate, memory, error, bits, and tile shapes."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from time import perf_counter
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench.contestants import Contestant, Step, contestants, reason
from bench.gpu.lease import Row, at_most, called
from bench.gpu.rivals import RIVALS
from bench.memory import peak as memory_peak
from bench.problems import Setting, problem, takes_labels
from bench.stopwatch import Times, captured, on_device, take_turns
from bench.yardsticks import hot_product
from pairops.ops.engines.triton import tile_configs

ON_GPU = ("cuda", "triton", "chunked")
DENSE = ("blockwise", "hand", "compiled", "pml")
EVERYONE = (*ON_GPU, *DENSE, *RIVALS)

SLOW = 0.25  # seconds; who takes longer is timed three times


def engines(options: argparse.Namespace) -> list[str]:
    return [key for key in ON_GPU if key in options.who]


def entrants(options: argparse.Namespace) -> dict[str, Contestant]:
    everyone = contestants() | RIVALS
    return {key: everyone[key] for key in EVERYONE if key in options.who}


def say(setting: Setting, who: str, what: str) -> None:
    print(
        f"{setting.loss:>9} {setting.dtype} N={setting.n} D={setting.d} {called(who):<20} {what}",
        flush=True,
    )


def failed(setting: Setting, who: str, why: str) -> Row:
    say(setting, who, why)
    return {**asdict(setting), "who": called(who), "failure": why}


def speed(options: argparse.Namespace, setting: Setting) -> Iterator[Row]:
    """Forward and backward beside every rival, and the rate as a share of that of torch.mm: by the
    clock on the wall, and for our engines in a CUDA graph, where only the GPU's time counts."""
    torch.compiler.reset()
    given = problem(setting)
    rate = rate_of_mm(setting, options.repeats)
    quick: dict[str, Step] = {}
    slow: dict[str, Step] = {}
    for key, entrant in entrants(options).items():
        try:
            step = entrant.step(given)
            step()
            seconds, no = take_turns({key: step}, 1, setting.device, lambda: None)
        except NotImplementedError:  # it has no such loss
            continue
        except Exception as error:
            yield failed(setting, key, reason(error))
            continue
        if key in no:
            yield failed(setting, key, no[key])
        else:
            (slow if seconds[key][0] > SLOW else quick)[key] = step
    for steps, repeats in ((quick, options.repeats), (slow, 3)):
        taken, failures = take_turns(steps, repeats, setting.device, lambda: None)
        for key, why in failures.items():
            yield failed(setting, key, why)
        for key in taken.keys() - failures.keys():
            times = Times.of(taken[key])
            row = {**asdict(setting), "who": called(key), **asdict(times), "mm_tflops": rate / 1e12}
            row["share_of_mm"] = share(setting, times.ms, rate)
            if key in ON_GPU and setting.device == "cuda":
                row |= in_a_graph(setting, steps[key], repeats, rate)
            on_gpu = row.get("graph_share_of_mm", row["share_of_mm"])
            say(setting, key, f"{times.ms:9.3f} ms  {on_gpu:.3f} of torch.mm's rate")
            yield row


def share(setting: Setting, ms: float, rate: float) -> float:
    return 6 * setting.n**2 * setting.d / (ms / 1e3) / rate


def in_a_graph(setting: Setting, step: Step, repeats: int, rate: float) -> Row:
    try:
        graph, _ = captured(step)
        times = on_device(graph.replay, repeats)
    except Exception as error:
        return {"graph_failure": reason(error)}
    return {"graph_ms": times.ms, "graph_share_of_mm": share(setting, times.ms, rate)}


def rate_of_mm(setting: Setting, repeats: int) -> float:
    """FLOP per second of torch.mm, in the dtype of the setting: the median of the GPU's times."""
    product = hot_product(setting.device, setting.dtype)
    product.step()
    if setting.device == "cuda":
        return 1e9 * product.gigaflop / (on_device(product.step, repeats).ms / 1e3)
    start = perf_counter()
    product.step()
    return 1e9 * product.gigaflop / (perf_counter() - start)


def rate(options: argparse.Namespace, setting: Setting) -> Iterator[Row]:
    """Of torch.mm alone, which is cuBLAS's on a GPU."""
    firsts = (options.loss[0], options.n[0], options.d[0])
    if (setting.loss, setting.n, setting.d) == firsts:
        tflops = rate_of_mm(setting, options.repeats) / 1e12
        print(f"torch.mm {setting.dtype} {tflops:.4g} TFLOP/s", flush=True)
        yield {"who": "torch.mm", "dtype": setting.dtype, "mm_tflops": tflops}


def memory(options: argparse.Namespace, setting: Setting) -> Iterator[Row]:
    """Growth of the peak by a step, beside what it may be: 64 B·N + 64 MiB, and of each set the
    gradient and two working copies, in its dtype; `wide`: one of the two in float32."""
    torch.compiler.reset()
    size = getattr(torch, setting.dtype).itemsize
    entries = (1 if takes_labels(setting.loss) else 2) * setting.n * setting.d
    fixed = 64 * 2**20 + 64 * setting.n
    allowed = (fixed + 3 * size * entries) / 2**20
    wide = (fixed + (2 * size + 4) * entries) / 2**20
    for key, entrant in entrants(options).items():
        try:
            peak = peak_mib(entrant, setting)
        except NotImplementedError:
            continue
        except Exception as error:
            yield failed(setting, key, reason(error))
            continue
        say(setting, key, f"{peak:9.1f} MiB of {allowed:.1f}, {wide:.1f} with one in float32")
        row = {**asdict(setting), "who": called(key), "peak_mib": peak}
        yield {**row, "allowed_mib": allowed, "allowed_wide_mib": wide}


def peak_mib(entrant: Contestant, setting: Setting) -> float:
    """CUDA's allocator keeps an exact record; of memory on the CPU only a fresh process has one."""
    if setting.device == "cpu":
        return memory_peak.peak_mib(entrant.key, setting)
    gc.collect()
    torch.cuda.empty_cache()
    return memory_peak.growth(entrant, setting)


def errors(options: argparse.Namespace, setting: Setting) -> Iterator[Row]:
    """Errors of value and gradients against float64, relative to the largest entry, and the rule of
    the tests: at most twice those of dense torch, plus 4ε."""
    small = at_most(options, setting, 4096)
    if small is None:
        return
    given = problem(small)
    value, gradients = contestants()["dense"].step(given.in_float64())()
    truth = (value, *gradients)
    four_eps = 4 * torch.finfo(torch.float32).eps
    for level in ("highest", "high", "medium") if small.dtype == "float32" else ("highest",):
        with float32_at(level):
            of_dense = errors_of(contestants()["dense"].step(given), truth)
            for who in (*engines(options), "dense"):
                try:
                    found = errors_of(contestants()[who].step(given), truth)
                except Exception as error:
                    yield {**failed(small, who, reason(error)), "level": level}
                    continue
                pairs = zip(found, of_dense, strict=True)
                within = all(e <= 2 * d + four_eps for e, d in pairs)
                worst = max(found[1:])
                verdict = "" if within else "BEYOND THE RULE"
                say(small, who, f"{level:>7}  {found[0]:.2e}  {worst:.2e}  {verdict}")
                row = {**asdict(small), "who": called(who), "level": level}
                row |= {"value_error": found[0], "gradient_error": worst, "within_rule": within}
                yield row


def errors_of(step: Callable[[], Any], truth: tuple[Tensor, ...]) -> list[float]:
    value, gradients = step()
    return [
        float((a.double() - b).abs().max() / b.abs().max())
        for a, b in zip((value, *gradients), truth, strict=True)
    ]


@contextmanager
def float32_at(level: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(level)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def bits(options: argparse.Namespace, setting: Setting) -> Iterator[Row]:
    """Twenty runs of one step: are value and gradients the same, bit by bit?"""
    given = problem(setting)
    for who in engines(options):
        step = contestants()[who].step(given)
        try:
            first = step()
            same = all(equal(first, step()) for _ in range(19))
        except Exception as error:
            yield failed(setting, who, reason(error))
            continue
        say(setting, who, "equal" if same else "DIFFERENT")
        yield {**asdict(setting), "who": called(who), "twenty_runs_equal": same}


def equal(first: Any, second: Any) -> bool:
    """Of two results of a step."""
    ours, theirs = ((value, *gradients) for value, gradients in (first, second))
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def shapes(options: argparse.Namespace, setting: Setting) -> Iterator[Row]:
    """Time of the Triton engine with every shape near that of the table."""
    if setting.loss != options.loss[0] or setting.n != max(options.n):
        return
    choose = tile_configs.choose
    given = problem(setting)
    for changed in neighbours():

        def other(*call: Any, changed: Any = changed) -> tile_configs.Configuration:
            return replace(choose(*call), **changed)

        with mock.patch.object(tile_configs, "choose", other):
            step = contestants()["triton"].step(given)
            seconds, failures = take_turns({0: step}, 5, options.device, lambda: None)
        if failures:
            yield {**failed(setting, "triton", failures[0]), **changed}
            continue
        times = Times.of(seconds[0])
        say(setting, "triton", f"{changed} {times.ms:.3f} ms")
        yield {**asdict(setting), **changed, **asdict(times)}


def neighbours() -> list[dict[str, int]]:
    return [
        {"rows": rows, "cols": cols, "warps": warps, "stages": stages, "pieces": cols // 16}
        for rows, cols in ((64, 32), (64, 64), (128, 32), (128, 64), (128, 128))
        for warps in (4, 8)
        for stages in (1, 2, 3)
    ]
