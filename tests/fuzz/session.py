"""Draws a problem from each of many seeds, runs it, and says what was found."""

import secrets
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

import torch

from fuzz import compiled, functions, losses, memory, ranks, relations, softmaxes, transforms
from fuzz.finding import Skipped
from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.engines import triton_engine
from support.cuda_on_host import build

Draw = Callable[[Random], list[str]]
# An area draws a problem as lines of Python, which raise where something is wrong. The number is
# how often it is its turn: problems of one area take a thousand times as long as those of another.
AREAS: dict[str, tuple[Draw, float]] = {
    "losses": (losses.draw, 60),
    "softmax": (softmaxes.draw, 20),
    "relations": (relations.draw, 30),
    "transforms": (transforms.draw, 16),
    "compiled": (compiled.draw, 0.7),
    "functions": (functions.draw, 10),
    "memory": (memory.draw, 0.4),
    "ranks": (ranks.draw, 6),
}
HEAD = "import torch, pairops"


class Session:
    def __init__(self, only: str | None = None) -> None:
        self.only = only
        self.ran: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        prepare()

    def run(self, seconds: float) -> None:
        """Problems of one seed after the other, the first of which is new each time."""
        first, begin = secrets.randbelow(10**9), time.monotonic()
        print(f"seeds from {first}", flush=True)
        with _progress(seconds) as show:
            seed = first
            while (passed := time.monotonic() - begin) < seconds:
                show(passed, sum(self.ran.values()), sum(self.found.values()))
                self.take(seed)
                seed += 1

    def first(self, count: int) -> None:
        """The problems of the first seeds."""
        for seed in range(count):
            self.take(seed)

    def problem(self, seed: int) -> tuple[str, str]:
        """The area and the text of this seed's problem."""
        chosen = Random(seed)
        weights = [weight for _, weight in AREAS.values()]
        drawn = chosen.choices(list(AREAS), weights)[0]
        area = self.only or drawn
        lines = [HEAD, f"torch.manual_seed({seed})", *AREAS[area][0](chosen)]
        return area, "\n".join(lines)

    def take(self, seed: int) -> None:
        area, text = self.problem(seed)
        begin = time.monotonic()
        self.ran[area] += 1
        try:
            run(text)
        except Skipped:
            self.skipped[area] += 1
        except Exception as error:
            self.found[area] += 1
            only = f"--only {self.only} " if self.only else ""
            _tell(f"FOUND python -m tests.fuzz {only}--seed {seed}   # {area}", text, error)
        self.seconds[area] += time.monotonic() - begin

    def show(self, seed: int) -> None:
        """Take this problem, and print its text and where an error comes from."""
        area, text = self.problem(seed)
        print(f"# {area}\n{text}", flush=True)
        self.ran[area] += 1
        try:
            run(text)
        except Skipped as reason:
            self.skipped[area] += 1
            print(f"skipped: {reason}")
        except Exception:
            self.found[area] += 1
            traceback.print_exc()

    def close(self) -> None:
        ranks.stop()

    def summary(self) -> int:
        """Print what was done, and return the exit status."""
        print(f"{'area':12}{'problems':>9}{'skipped':>9}{'found':>7}{'seconds':>9}")
        for area in self.ran:
            print(
                f"{area:12}{self.ran[area]:9}{self.skipped[area]:9}{self.found[area]:7}"
                f"{self.seconds[area]:9.0f}"
            )
        total = sum(self.found.values())
        print(f"{sum(self.ran.values())} problems, {total} findings")
        return int(total > 0)


def run(text: str) -> None:
    """Take a problem from its text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(text, "<problem>", "exec"), {"__name__": "problem"})


def prepare() -> None:
    """Engines of a GPU that play on the CPU, as the tests have them."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if triton_engine.MISSING is None:
        from support import triton_interpreter

        triton_interpreter.prepare()
    cuda_kernels.BACKEND = cuda_kernels.Backend.of(build.module(), "cpu")


def _tell(head: str, text: str, error: Exception) -> None:
    where = traceback.extract_tb(error.__traceback__)[-1]
    said = f"{type(error).__name__}: {error}"[:1500]
    print(f"\n{head}\n{text}\n# {said}\n# {where.filename}:{where.lineno}\n", flush=True)


class _progress:
    """A bar of seconds, where tqdm is and a terminal looks on."""

    def __init__(self, seconds: float) -> None:
        self.bar: Any = None
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self.bar = tqdm(total=round(seconds), unit="s")

    def __enter__(self) -> Callable[[float, int, int], None]:
        return self._show

    def _show(self, passed: float, problems: int, found: int) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(f"{problems} problems, {found} findings")
            self.bar.update(round(passed) - self.bar.n)

    def __exit__(self, *_: Iterable[object]) -> None:
        if self.bar is not None:
            self.bar.close()
