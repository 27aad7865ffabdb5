"""Area "ranks": gloo ranks beside one process, and ranks that are not at the same place."""

import contextlib
from random import Random
from typing import Any

import torch

import pairops
from fuzz import losses
from fuzz.finding import Skipped
from fuzz.formulas import REFUSED
from pairops import losses as every
from support import gloo_ranks, loss_parameters
from support.rank_problems import Problem, assert_equal, rows

# Seconds. Only a rank that hangs waits for minutes; on a busy machine others need some of them.
WORLD, TIMEOUT, WAIT, START = 3, 240, 300, 600
IMPORTS = ["from fuzz.ranks import as_one_process, places, remembered"]
MS, SUPCON = "ms(x, labels, group=group)", "supcon(x, labels, group=group)"

_started: gloo_ranks.Ranks | None = None


def draw(random: Random) -> list[str]:
    size = random.choice([2, 3])
    way = random.choices(["value", "order", "engine", "memory", "fails"], [6, 4, 1, 1.5, 1])[0]
    if way == "value":
        return [*IMPORTS, _value(random, size)]
    if way == "memory":
        wrapper = random.choice(["none", "ddp", "ddp"])
        counts = [[random.randint(2, 9) for _ in range(3)] for _ in range(2)]
        return [*IMPORTS, f"remembered({wrapper!r}, {counts})"]
    same = [random.choice([MS, SUPCON, MS[:-1] + ", reduction='sum')"]) for _ in range(3)]
    if way == "order":
        alike = random.random() < 0.4
        turn = random.sample(range(3), 3)
        others = random.sample(range(3), 3)
        taken = [turn if alike or rank else others for rank in range(size)]
        steps = [[f"back(v[{k}])" for k in each] for each in taken]
        differ = any(each != steps[0] for each in steps)
        every_rank = [[*same, *each] for each in steps]
    else:
        k, differ = random.randrange(size), True
        loss = random.choice(["ms", "supcon"])
        wrong = (
            f"under(pairops.engine('dense'), {loss}, x, labels, group=group)"
            if way == "engine"
            else "ms(x, labels[:2], group=group)"
        )
        every_rank = [[wrong] if rank == k else [MS] for rank in range(size)]
    gathered = random.choice([0, 1 << 30])
    return [*IMPORTS, f"places({every_rank}, {differ}, {gathered})"]


def _value(random: Random, size: int) -> str:
    name = random.choice(every.__all__)
    params = dict(random.choice(loss_parameters.parameters(name)))
    if random.random() < 0.3 and name not in loss_parameters.SIMILAR_ONLY:
        params.pop("normalize", None)
        if "negatives" not in params:
            params |= random.choice(losses.DISTANCES)
    if params.get("distance") == "dot":
        params.pop("normalize", None)
    cuts = sorted(random.randint(0, 24) for _ in range(size - 1))
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, 24], strict=True)]
    gathered = random.choice([0, 1 << 30])
    engine = random.choice(["auto", "blockwise"])
    learn = random.random() < 0.3
    return f"as_one_process({name!r}, {params}, {sizes}, {gathered}, {engine!r}, {learn})"


def started() -> gloo_ranks.Ranks:
    """Ranks that answer: new ones after some of them died or hung."""
    global _started
    alive = _started is not None and all(p.is_alive() for p in _started.processes)
    if _started is None or not alive or not _started.whole:
        stop()
        _started = gloo_ranks.Ranks(WORLD, timeout=TIMEOUT)
        # They have imported torch when they answer, which takes its time where others work.
        _started.run(WORLD, "support.rank_functions:call", [{"what": "0"}] * WORLD, START)
    return _started


def stop() -> None:
    global _started
    if _started is not None:
        for process in _started.processes:
            if not _started.whole or not process.is_alive():
                process.kill()
        with contextlib.suppress(Exception):
            _started.stop()
    _started = None


def _run(size: int, function: str, given: list[Any]) -> list[Any]:
    try:
        found: list[Any] = started().run(size, function, given, wait=WAIT)
    except (EOFError, BrokenPipeError, ConnectionError) as error:
        stop()
        raise AssertionError(f"a rank died: {type(error).__name__}") from error
    except AssertionError:
        stop()
        raise
    return found


def as_one_process(
    name: str, params: dict[str, Any], sizes: list[int], gathered: int, engine: str, learn: bool
) -> None:
    """Values and gradients are those of one process with all rows."""
    problem = Problem(name, params)
    if learn:
        problem = problem.learned()
    try:
        one = problem.one()
    except ValueError as error:
        if any(text in str(error) for text in REFUSED):
            raise Skipped(str(error)) from error
        raise
    further = {"gathered": gathered, "engine": engine}
    given = problem.shared(sizes, **further)
    found = _run(len(sizes), "support.rank_functions:step", given)
    for rank, got in enumerate(found):
        assert not isinstance(got, tuple), f"rank {rank}: {got}"
        assert_equal(f"value of rank {rank}", got["value"], one["value"], 1e-10)
    for at, gradient in problem.averaged(found).items():
        assert_equal(f"by {at}", gradient, one[at], 1e-9)


def places(steps: list[list[str]], differ: bool, gathered: int) -> None:
    """Each rank takes its steps. Where they differ, the same error on all; after that, and where
    they do not, the right number."""
    x, labels = rows(12)
    shares = [z.split(12 // len(steps)) for z in (x, labels)]
    given = [
        {
            "x": shares[0][k],
            "labels": shares[1][k],
            "steps": [*mine, SUPCON, "x.grad.norm() if x.grad is not None else x.norm()"],
            "gathered": gathered,
        }
        for k, mine in enumerate(steps)
    ]
    found = _run(len(steps), "support.rank_steps:take", given)
    wrong = [[step for step in got if isinstance(step, tuple)] for got in found]
    assert all(bool(each) == differ for each in wrong), f"errors on each rank: {wrong}"
    if differ:
        first = [each[0][1] for each in wrong]
        named = [text for text in first if "rank" in text]
        # Who fails alone says what failed; the others say who it was.
        assert len(named) >= len(steps) - 1, first
        assert not any("gloo" in text for text in first), first
        return
    one = float(pairops.supcon_loss(x, labels))
    for got in found:
        assert abs(got[-2] - one) < 1e-10 * abs(one), f"{got[-2]} and not {one}"
    leaf = x.clone().requires_grad_()
    calls = {"ms": pairops.ms_loss, "supcon": pairops.supcon_loss}
    names = {**calls, "x": leaf, "labels": labels, "group": None}
    for step in steps[0]:
        if not step.startswith("back"):
            eval(step, names).backward()
    for rank, got in enumerate(found):
        mine = leaf.grad[rank * (12 // len(steps)) :][: 12 // len(steps)]  # type: ignore[index]
        expected = float(len(steps) * mine.norm())
        assert abs(got[-1] - expected) < 1e-9 * expected, f"gradient {got[-1]} and not {expected}"


def remembered(wrapper: str, counts: list[list[int]]) -> None:
    """Each rank's memory holds its own rows, and loses none of them in a wrapper."""
    batches = [[rows(n) for n in mine] for mine in counts]
    given = [{"wrapper": wrapper, "batches": mine} for mine in batches]
    found = _run(2, "support.rank_functions:wrapped", given)
    for rank, ((held, _), mine) in enumerate(zip(found, batches, strict=True)):
        labels = torch.cat([labels for _, labels in mine])
        assert torch.equal(held[: len(labels)], labels), f"rank {rank} holds other rows"
        assert bool((held[len(labels) :] == -100).all()), f"rank {rank} holds more rows"
