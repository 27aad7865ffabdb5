"""The stopwatch: medians of calls that take turns, so that a disturbance disturbs all alike."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeVar

import torch

from bench.contestants import Step, reason

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Times:
    """Milliseconds of one call: the median, and the quartiles around it."""

    ms: float
    ms_q1: float
    ms_q3: float

    @classmethod
    def of(cls, seconds: list[float]) -> Times:
        q1, median, q3 = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(1e3 * median, 1e3 * q1, 1e3 * q3)


def take_turns(
    steps: dict[Key, Step],
    repeats: int,
    device: str,
    after_each: Callable[[], object],
    clock: Callable[[], float] = perf_counter,
) -> tuple[dict[Key, list[float]], dict[Key, str]]:
    """The seconds of every call, and who failed with the reason.

    Within a round everyone is called once, in an order drawn anew: nobody always runs on the
    caches that the same predecessor left. The first round is for warming up and is not kept.
    """
    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    draw = random.Random(0)
    order = list(steps)
    seconds: dict[Key, list[float]] = {key: [] for key in steps}
    failures: dict[Key, str] = {}
    for turn in range(repeats + 1):
        draw.shuffle(order)
        for key in order:
            if key in failures:
                continue
            try:
                wait()
                start = clock()
                steps[key]()
                wait()
                elapsed = clock() - start
            except Exception as error:
                failures[key] = reason(error)
                continue
            if turn > 0:
                seconds[key].append(elapsed)
        after_each()
    return seconds, failures


def on_device(work: Callable[[], object], repeats: int) -> Times:
    """What the GPU spends between two events around each call; the first is for warming up."""
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats + 1)]
    for before, after in marks:
        before.record()
        work()
        after.record()
    torch.cuda.synchronize()
    return Times.of([before.elapsed_time(after) / 1e3 for before, after in marks[1:]])


def captured(step: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of a step, and the tensors into which it writes what the step returns."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results
