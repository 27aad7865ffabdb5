"""The comparison: memory, guard and time of every contestant, for one loss and one N."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from bench.contestants import GIVEN, YARDSTICK, YARDSTICKS, Contestant, Step, contestants, reason
from bench.guard import truth
from bench.memory.peak import peak_mib
from bench.problems import Problem, Setting, problem
from bench.stopwatch import Times, take_turns


@dataclass
class Row:
    """What one contestant did at one N; what is None was not measured, and `failure` says why.

    to_mm is time over that of the first yardstick, to_mm_out over that of the second. A product
    has no backward pass: no yardstick has a forward time of its own.
    """

    loss: str
    n: int
    contestant: str
    label: str
    ms: float | None = None
    ms_q1: float | None = None
    ms_q3: float | None = None
    forward_ms: float | None = None
    to_mm: float | None = None
    to_mm_out: float | None = None
    forward_to_mm: float | None = None
    forward_to_mm_out: float | None = None
    peak_mib: float | None = None
    value: float | None = None
    truth: float | None = None
    failure: str | None = None


def work(settings: Sequence[Setting], keys: Sequence[str], repeats: int) -> int:
    """How many steps the progress bar counts."""
    return len(settings) * (2 * len(keys) + repeats + 1)


def compare(setting: Setting, keys: Sequence[str], repeats: int, bar: tqdm) -> list[Row]:
    """One row per contestant. Who fails at one stage is not asked again at the next."""
    torch.compiler.reset()
    everyone = contestants()
    entrants = [everyone[key] for key in keys]
    rows = {e.key: Row(setting.loss, setting.n, e.key, e.label) for e in entrants}

    # Memory first: who does not fit fails there in a process of its own, and not in this one.
    for entrant in entrants:
        bar.set_postfix_str(f"N={setting.n} memory of {entrant.label}")
        try:
            rows[entrant.key].peak_mib = peak_mib(entrant.key, setting)
        except RuntimeError as error:
            rows[entrant.key].failure = str(error)
        bar.update()

    entrants = [e for e in entrants if rows[e.key].failure is None]
    steps = agreeing(problem(setting), entrants, rows, bar)
    bar.update(len(keys) - len(entrants))

    bar.set_postfix_str(f"N={setting.n} time")
    seconds, failures = take_turns(steps, repeats, setting.device, bar.update)
    for (key, _), failure in failures.items():
        rows[key].failure = failure
    for (key, part), taken in seconds.items():
        if rows[key].failure is not None:
            continue
        times = Times.of(taken)
        if part == "forward":
            rows[key].forward_ms = times.ms
        else:
            for name, ms in asdict(times).items():
                setattr(rows[key], name, ms)
    for key, ratio in ((YARDSTICK, "to_mm"), (GIVEN, "to_mm_out")):
        yardstick = rows[key].ms if key in rows else None
        for row in rows.values():
            for prefix, ms in (("", row.ms), ("forward_", row.forward_ms)):
                if ms is not None and yardstick is not None:
                    setattr(row, prefix + ratio, ms / yardstick)
    return list(rows.values())


def agreeing(
    given: Problem, entrants: Sequence[Contestant], rows: dict[str, Row], bar: tqdm
) -> dict[tuple[str, str], Step]:
    """(who, "both" or "forward"): the step, of those who give the right loss and gradient."""
    steps = {}
    exact = truth(given)
    for entrant in entrants:
        row = rows[entrant.key]
        bar.set_postfix_str(f"N={row.n} guard of {entrant.label}")
        try:
            step, forward = entrant.step(given), entrant.forward(given)
            if entrant.key not in YARDSTICKS:
                row.truth = exact.value
                row.value, row.failure = exact.objection(step, given.setting.dtype)
            # Without gradients another path may run: the compiler's, or a library's own.
            if forward is not None and row.failure is None:
                row.failure = exact.objection_to_value(forward().item(), given.setting.dtype)
        except Exception as error:
            row.failure = reason(error)
        if row.failure is None:
            steps[entrant.key, "both"] = step
            if forward is not None:
                steps[entrant.key, "forward"] = forward
        bar.update()
    return steps
