"""The launches of an engine: beside torch's own CUDA, on other streams, in CUDA graphs, on a second
GPU; and what they cost where N is small: of the GPU's time, and of the host's."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from torch.profiler import ProfilerActivity, profile

from bench.contestants import Step, contestants, reason
from bench.gpu.lease import Row, at_most, called
from bench.gpu.parts import engines, equal, failed, say
from bench.guard import truth
from bench.problems import Problem, Setting, problem
from bench.stopwatch import Times, captured, on_device, take_turns

SMALL = 512
PROFILED = 5  # steps
ON_GPU = {"kernel", "gpu_memset", "gpu_memcpy"}  # the profiler's categories of what a GPU does


def launch(options: argparse.Namespace, setting: Setting) -> Iterator[Row]:
    """Checks at N = 512."""
    small = at_most(options, setting, SMALL)
    if small is None:
        return
    given = problem(small)
    for who in engines(options):
        for check in CHECKS if small.device == "cuda" else (beside_torch,):
            name = check.__name__
            try:
                verdict = check(who, given)
            except Exception as error:
                yield {**failed(small, who, f"{name}: {reason(error)}"), "check": name}
                continue
            say(small, who, f"{name}: {verdict}")
            yield {**asdict(small), "who": called(who), "check": name, "verdict": verdict}


def step_of(who: str, given: Problem) -> Step:
    return contestants()[who].step(given)


def verdict_on(same: bool) -> str:
    return "equal" if same else "DIFFERENT"


def beside_torch(who: str, given: Problem) -> str:
    """Between products of torch's own, on one stream, by two CUDA runtimes in one process."""
    before = given.x.detach() @ given.x.detach().T
    result = step_of(who, given)()
    after = given.x.detach() @ given.x.detach().T
    _, complaint = truth(given).objection(lambda: result, given.setting.dtype)
    return complaint or verdict_on(torch.equal(before, after))


def stream(who: str, given: Problem) -> str:
    """Another stream, which is busy with what the step reads, gives the same bits."""
    step = step_of(who, given)
    expected = step()
    kept = given.x.detach().clone()
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    busy = torch.randn(4096, 4096, device=given.x.device)
    with torch.cuda.stream(aside), torch.no_grad():
        given.x.zero_()
        for _ in range(20):
            busy @ busy
        given.x.copy_(kept)
        with torch.enable_grad():
            result = step()
    torch.cuda.current_stream().wait_stream(aside)
    torch.cuda.synchronize()
    return verdict_on(equal(expected, result))


def graph(who: str, given: Problem) -> str:
    """Captured and replayed over other numbers, a step gives the bits that it gives without."""
    step = step_of(who, given)
    replayed, results = captured(step)
    value, gradients = results
    kept = given.x.detach().clone()
    try:
        for x in (kept, kept.flip(0)):
            with torch.no_grad():
                given.x.copy_(x)
                for z in (value, *gradients):
                    z.fill_(torch.nan)
            replayed.replay()
            if not equal(step(), results):
                return verdict_on(False)
    finally:
        with torch.no_grad():
            given.x.copy_(kept)
    return verdict_on(True)


def second_device(who: str, given: Problem) -> str:
    """A GPU that is not the current one gives the same bits."""
    if torch.cuda.device_count() < 2:
        return "there is one GPU"
    there = step_of(who, problem(replace(given.setting, device="cuda:1")))()
    value, gradients = there
    here = value.to(given.x.device), tuple(g.to(given.x.device) for g in gradients)
    return verdict_on(equal(step_of(who, given)(), here))


CHECKS: tuple[Callable[[str, Problem], str], ...] = (beside_torch, stream, graph, second_device)


def costs(options: argparse.Namespace, setting: Setting) -> Iterator[Row]:
    """At N = 512: kernels and their time, a graph's time, what the host spends with it and without,
    and time by the clock as eager torch's over ours."""
    small = at_most(options, setting, SMALL)
    if small is None:
        return
    given = problem(small)
    steps = {}
    for who in (*engines(options), "hand"):
        try:
            step = step_of(who, given)
            step()
        except Exception as error:
            yield failed(small, who, reason(error))
        else:
            steps[who] = step
    seconds, failures = take_turns(steps, options.repeats, small.device, lambda: None)
    times = {who: Times.of(seconds[who]) for who in steps if who not in failures}
    for who, of_wall in times.items():
        if who not in options.who:
            continue
        row: Row = {**asdict(small), "who": called(who), **asdict(of_wall)}
        if "hand" in times:
            row["eager_to_this"] = times["hand"].ms / of_wall.ms
        row["host_us"] = host_us(steps[who], options.repeats, small.device)
        if small.device == "cuda":
            row |= gpu_time(steps[who], options.repeats)
        say(small, who, ", ".join(f"{k} {row[k]:.4g}" for k in FIGURES if k in row))
        yield row


FIGURES = ("ms", "eager_to_this", "host_us", "kernels", "kernels_us", "graph_us", "graph_host_us")


def host_us(step: Step, repeats: int, device: str) -> float:
    """The median time until the host may go on, which is not until the GPU is done."""
    taken = []
    for _ in range(repeats):
        start = perf_counter()
        step()
        taken.append(perf_counter() - start)
        if device == "cuda":
            torch.cuda.synchronize()
    return 1e6 * median(taken)


def gpu_time(step: Step, repeats: int) -> Row:
    row: Row = {}
    try:
        replayed, _ = captured(step)
        row["graph_us"] = 1e3 * on_device(replayed.replay, repeats).ms
        row["graph_host_us"] = host_us(replayed.replay, repeats, "cuda")
    except Exception as error:
        row["graph_failure"] = reason(error)
    try:
        row |= profiled(step)
    except Exception as error:
        row["profiler_failure"] = reason(error)
    return row


def profiled(step: Step) -> Row:
    """Of one step: how often the GPU was asked for something, for how long, and for what."""
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        for _ in range(2):  # the first starts the profiler
            torch.cuda.synchronize()
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
                for _ in range(PROFILED):
                    step()
                torch.cuda.synchronize()
        record.export_chrome_trace(str(trace))
        return summary(json.loads(trace.read_text())["traceEvents"])


def summary(events: list[Row]) -> Row:
    ours = [e for e in events if e.get("cat") in ON_GPU]
    spent: Counter[str] = Counter()
    for event in ours:
        spent[event["name"][:80]] += event["dur"] / PROFILED
    return {
        "kernels": len(ours) / PROFILED,
        "kernels_us": sum(spent.values()),
        "longest_us": dict(spent.most_common(12)),
    }
