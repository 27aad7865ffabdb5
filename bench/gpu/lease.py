"""A short lease of a GPU: a clock, and processes that measure and may crash or hang."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryFile
from threading import Thread
from time import monotonic
from typing import Any

import torch

from bench.contestants import reason
from bench.problems import Setting

Row = dict[str, Any]

ROOT = Path(__file__).parents[2]
AT, ROW = "@at", "@row"  # how a process begins a line that is for the one that began it
LOST = 75  # its exit status where nothing can be computed on its GPU any more

# With it the CUDA engine takes its sweeps for compute capability 9.0.
HOPPER = {"PAIROPS_HOPPER": "1"}
# A check of the first call would be timed with it, and might leave out who is to be seen.
UNCHECKED = {"PAIROPS_CHECK": "0"}


class Clock:
    """A lease of a GPU is short: past the limit no measurement begins."""

    def __init__(self, seconds: float) -> None:
        self._end = monotonic() + seconds

    def left(self) -> float:
        return self._end - monotonic()

    def spent(self) -> bool:
        return self.left() < 0

    def at_most(self, seconds: float) -> Clock:
        """A clock of a part of the lease."""
        return Clock(min(seconds, self.left()))


def with_hopper(device: str) -> bool:
    """Are the sweeps for 9.0 to be asked for beside those that run without a word?"""
    asked = all(os.environ.get(name) == value for name, value in HOPPER.items())
    return device == "cuda" and not asked and torch.cuda.get_device_capability() == (9, 0)


def called(who: str) -> str:
    """What the rows of an engine are called in this process."""
    asked = all(os.environ.get(name) == value for name, value in HOPPER.items())
    return "cuda, hopper" if who == "cuda" and asked else who


# ── settings, one after the other, in the process that measures ──


def settings(
    options: argparse.Namespace, clock: Clock
) -> Iterator[tuple[argparse.Namespace, Setting]]:
    """From number `first` on, told to who began this process before each.

    With `alone` a setting is one contestant's: a crash then costs no row of another.
    """
    parties = [[who] for who in options.who] if options.alone else [options.who]
    everything = product(options.dtype, options.d, options.n, options.loss, parties)
    for number, (dtype, d, n, loss, party) in enumerate(everything):
        if number < (options.first or 0):
            continue
        if clock.spent():
            return
        setting = Setting(loss, n, d, 4, dtype, options.device, torch.get_num_threads())
        if options.first is not None:
            at = asdict(setting) | ({"who": called(*party)} if options.alone else {})
            print(AT, json.dumps([number, at]), flush=True)
        yield argparse.Namespace(**vars(options) | {"who": party}), setting
        if options.device == "cuda" and lost():
            sys.exit(LOST)


def lost() -> bool:
    """After an illegal address, say, whatever this process asks of its GPU is an error."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def each(
    measure: Callable[[argparse.Namespace, Setting], Iterator[Row]],
    options: argparse.Namespace,
    clock: Clock,
) -> Iterator[Row]:
    """The rows of every setting; a failure is a row."""
    for of_party, setting in settings(options, clock):
        try:
            yield from measure(of_party, setting)
        except Exception as error:
            yield {**asdict(setting), "failure": reason(error)}


def at_most(options: argparse.Namespace, setting: Setting, limit: int) -> Setting | None:
    """The setting with no more than `limit` rows; None if an earlier N has led to the same."""
    small = min(setting.n, limit)
    first = next(n for n in options.n if min(n, limit) == small)
    return replace(setting, n=small) if setting.n == first else None


# ── and in the process that began it ──


def rows_of(
    command: Callable[[int], Sequence[str]],
    clock: Clock,
    patience: float,
    environment: Mapping[str, str],
) -> Iterator[Row]:
    """What the processes report; where one crashes or is silent too long, one follows that begins
    after that setting. None measures for longer than that past the end of the clock.

    command: from the number of the first setting.
    """
    first = 0
    while not clock.spent():
        process = subprocess.Popen(
            command(first),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=ROOT,
            env=os.environ | environment,
            start_new_session=True,
        )
        at, last, why = None, "", None
        try:
            for line in lines_of(process, patience, clock):
                kind, _, said = line.partition(" ")
                if kind == ROW:
                    yield json.loads(said)
                elif kind == AT:
                    at = json.loads(said)
                else:
                    print(line, end="", flush=True)
                    last = line.strip() or last
            code = process.wait(10)
            if code == 0:
                return
            if code != LOST:
                why = f"ended with status {code}: {last}"
        except TimeoutError as error:
            why = str(error)
        finally:
            end(process)
        number, setting = at or (None, {})
        if why is not None:
            print(why, flush=True)
            yield {**setting, "environment": dict(environment), "failure": why}
        if number is None:
            return
        first = number + 1


def lines_of(process: subprocess.Popen[str], patience: float, clock: Clock) -> Iterator[str]:
    """TimeoutError where it lives and says nothing for that long, or is that late."""
    lines: SimpleQueue[str | None] = SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                lines.put(line)
        lines.put(None)

    Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=max(min(patience, clock.left() + patience), 0.0))
        except Empty:
            if process.poll() is None:
                why = "its time was up" if clock.spent() else f"silent for {patience:.0f} s"
                raise TimeoutError(f"{why}, and ended") from None
            return  # what it began holds its output open
        if line is None:
            return
        yield line


def finish(
    command: Sequence[str], seconds: float, environment: Mapping[str, str]
) -> tuple[int | None, str]:
    """The exit status, None if it took longer and was ended, and all that it wrote."""
    with TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | environment,
            start_new_session=True,
        )
        try:
            code = process.wait(max(seconds, 1.0))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
        output.seek(0)
        return code, output.read()


def finish_together(
    runs: Sequence[tuple[Sequence[str], Mapping[str, str]]], seconds: float
) -> Iterator[tuple[int, int | None, str]]:
    """What is not timed may share the GPU: of each run its number and what `finish` gives, as they
    end.

    runs: commands and environments.
    """
    with ThreadPoolExecutor(len(runs)) as pool:
        begun = {
            pool.submit(finish, command, seconds, environment): number
            for number, (command, environment) in enumerate(runs)
        }
        for ended in as_completed(begun):
            yield begun[ended], *ended.result()


def end(process: subprocess.Popen[Any]) -> None:
    """With all that it began. Where a GPU hangs, the end may not come: nobody waits for it then."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
