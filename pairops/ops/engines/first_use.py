"""The first call of each kernel on a GPU where its engine has not passed a check: compared with
torch, and remembered.

`sampled_rows` compares. The comparison is enqueued behind the kernel, with an event; a later call
looks whether the event has passed, and only then reads what was found. So nothing waits for the
device. An engine whose results differ is left out from then on; ranks of a group leave it out
together.
"""

import contextlib
import functools
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pairops.ops.bindings.devices import float32_level
from pairops.ops.distributed.header import AMBIENT
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.similarity import no_autocast
from pairops.ops.terms.levels import numbered
from pairops.ops.terms.recipe import pack
from pairops.ops.terms.term import Term, Wanted

from . import passed, sampled_calls
from .bounded import is_bounded
from .sampled_rows import Comparison

ENABLED = os.environ.get("PAIROPS_CHECK", "1") != "0"
AMBIENT["PAIROPS_CHECK"] = lambda: str(ENABLED)

DEVICE = "cuda"  # the type of device whose kernels are checked; tests check those of a CPU

WRONG: dict[str, str] = {}  # engine → why it is left out
AGREED: dict[str, str] = {}  # the same, as all ranks of a group know it


class _Waiting(NamedTuple):
    engine: str
    call: str
    names: list[str]
    numbers: Tensor  # (comparisons, 3)
    event: Any


class _Body(threading.local):
    """Whether this thread is in the body of an op, which a compiled graph may have called."""

    entered = False


_body = _Body()
_lock = threading.Lock()
_seen: set[Any] = set()  # the keys of kernels that were checked
_waiting: list[_Waiting] = []
_engines: list[str] = []  # those that are checked, the same on all ranks
# By process group, the calls that have come once, and those that all ranks know the outcome of.
_of_groups: weakref.WeakKeyDictionary[Any, tuple[set[Any], set[Any]]] = weakref.WeakKeyDictionary()

_Backward = Callable[..., tuple[Tensor, Tensor, list[Tensor]]]


def checked_forward(engine: str) -> Callable[[Any], Any]:
    """Decorate `Engine.forward` of this engine, or one that takes more and returns more."""
    _engines.append(engine)

    def of(forward: Callable[..., Any]) -> Any:
        @functools.wraps(forward)
        def called(pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term], *more: Any) -> Any:
            found = forward(pairs, rows, cols, *more)
            if ENABLED and pairs.x.device.type == DEVICE:
                _check(
                    engine,
                    "forward",
                    (pairs, rows, cols),
                    lambda rows, cols: sampled_calls.of_statistics(pairs, rows, cols, found[0]),
                )
            return found

        return called

    return of


def checked_backward(engine: str) -> Callable[[_Backward], _Backward]:
    """Decorate `Engine.backward` of this engine, or one that also takes a plan and a factor."""

    def of(backward: _Backward) -> _Backward:
        @functools.wraps(backward)
        def called(
            pairs: Pairs,
            rows: Sequence[Term],
            cols: Sequence[Term],
            statistics: Sequence[Tensor],
            cotangents: Sequence[Tensor],
            tile_masks: Tensor | None,
            needs: Wanted,
            *more: Any,
        ) -> tuple[Tensor, Tensor, list[Tensor]]:
            found = backward(pairs, rows, cols, statistics, cotangents, tile_masks, needs, *more)
            if ENABLED and pairs.x.device.type == DEVICE and (needs.x or needs.y):
                _check(
                    engine,
                    "backward",
                    (pairs, rows, cols),
                    lambda rows, cols: sampled_calls.of_gradients(
                        pairs, rows, cols, statistics, cotangents, needs, found[:2], *more[1:]
                    ),
                    needs.x,
                    needs.y,
                )
            return found

        return called

    return of


@contextlib.contextmanager
def in_body() -> Iterator[None]:
    """Within this context nothing is checked."""
    before, _body.entered = _body.entered, True
    try:
        yield
    finally:
        _body.entered = before


def reason_against(engine: str, group: bool) -> str | None:
    """Return why this engine is left out, or None. group: of a call with a group."""
    if not torch.compiler.is_compiling() and _waiting:
        look()
    return (AGREED if group else WRONG).get(engine)


def agree(pairs: Pairs, call: tuple[Any, ...]) -> None:
    """Exchange outcomes with the ranks of the group of these pairs: at its second call of a kind
    and, where one of them is not known yet, at the next ones. Later calls follow them.

    call: what else is the same on all ranks.
    """
    if not ENABLED or pairs.x.device.type != DEVICE or pairs.shards is None:
        return
    group = pairs.shards.group
    call = (*call, pairs.x.dtype, pairs.x.shape[1], torch.is_grad_enabled())
    come, known = _of_groups.setdefault(group.process_group, (set(), set()))
    if call not in come:
        come.add(call)
        return
    if call in known:
        return
    look()
    names = sorted(set(_engines))
    mine = sum(1 << k for k, name in enumerate(names) if name in WRONG)
    waiting, wrong = group.agree({}, len(_waiting), mine)
    if not any(waiting):
        known.add(call)
    for k, name in enumerate(names):
        ranks = [rank for rank, mask in enumerate(wrong) if mask >> k & 1]
        if ranks and name not in AGREED:
            AGREED[name] = WRONG.get(name) or _reason(f"on rank {ranks[0]}")
            if name not in WRONG:
                _warn(name, f"rank {ranks[0]} of the group found wrong results of it")


def look() -> None:
    """Read what was found by comparisons that the device has made meanwhile."""
    if _capturing():  # then not even an event may be asked
        return
    with _lock:
        ready: list[_Waiting] = []
        rest: list[_Waiting] = []
        for z in _waiting:
            (ready if z.event.query() else rest).append(z)
        _waiting[:] = rest
    for z in ready:
        _judge(z)


def _check(
    engine: str,
    sweep: str,
    of: tuple[Pairs, Sequence[Term], Sequence[Term]],
    compare: Callable[[Sequence[Term], Sequence[Term]], list[Comparison]],
    *needs: bool,
) -> None:
    """Enqueue a comparison at the first call of a kernel. sweep: which pass it is.  needs: which
    gradients it makes."""
    pairs, rows, cols = of
    x, relation, level = pairs.x, pairs.relation, float32_level()
    if engine in _passed(x.device) or engine in WRONG or _body.entered or _capturing():
        return
    # Below "highest" the rule promises nothing of float32.
    if type(x) not in _PLAIN or not all(pairs.shape) or (x.dtype, level) in _UNPROMISED:
        return
    rows, cols = numbered(rows, cols, "rows"), numbered(cols, rows, "cols")
    recipe, *_ = pack(rows, cols)
    bounded = tuple([is_bounded(term) for term in (*rows, *cols)])
    sets = pairs.y is None, relation.entries is None, pairs.scales.x is None
    kind = engine, sweep, recipe, bounded, x.dtype, x.shape[1], level, x.device
    key = (*kind, *sets, *needs)
    if key in _seen:
        return
    _seen.add(key)
    try:
        with torch.no_grad(), no_autocast(x.device.type):
            found = compare(rows, cols)
            outcomes = torch.stack([z.numbers for z in found])
    except torch.OutOfMemoryError:  # whoever has so little left is served, unchecked
        return
    n, m = pairs.shape
    call = f"{sweep} of {recipe} for {x.dtype} of shape ({n}, {x.shape[1]}) and {m} columns"
    event = _event(x.device)
    with _lock:
        _waiting.append(_Waiting(engine, call, [z.what for z in found], outcomes, event))


_PLAIN = Tensor, torch.nn.Parameter
_UNPROMISED = (torch.float32, "high"), (torch.float32, "medium")


@functools.cache
def _passed(device: torch.device) -> frozenset[str]:
    return passed.of(device)


def _capturing() -> bool:
    return DEVICE == "cuda" and torch.cuda.is_current_stream_capturing()


class _Passed:
    """An event of a CPU, where everything has happened already."""

    def query(self) -> bool:
        return True


def _event(device: torch.device) -> Any:
    if device.type != "cuda":
        return _Passed()
    with torch.cuda.device(device):
        event = torch.cuda.Event()
        event.record()
    return event


def _read(numbers: Tensor) -> list[list[float]]:
    """Return numbers whose event has passed: on a stream of their own nothing is left to wait for,
    whatever else the device has to do."""
    stream = torch.cuda.Stream(numbers.device) if numbers.is_cuda else None
    with torch.cuda.stream(stream):  # None: nothing happens
        found: list[list[float]] = numbers.tolist()
    return found


def _judge(found: _Waiting) -> None:
    for name, (error, allowed, rows) in zip(found.names, _read(found.numbers), strict=True):
        # A NaN is no number that is allowed.
        if rows and not error <= allowed and found.engine not in WRONG:
            said = (
                f"in the {found.call}, {name} differs from torch by {error:.2g} in {rows:.0f} "
                f"sampled rows, where {allowed:.2g} is allowed"
            )
            WRONG[found.engine] = _reason(said)
            _warn(found.engine, said)


def _reason(said: str) -> str:
    return f"its results were wrong when it was first used ({said}); PAIROPS_CHECK=0 uses it anyway"


def _warn(engine: str, said: str) -> None:
    warnings.warn(
        f"the engine {engine!r} is left out from now on, since its results are wrong here: {said}. "
        "`python -m pairops --check` checks all of its kernels; PAIROPS_CHECK=0 checks none.",
        RuntimeWarning,
        stacklevel=2,
    )
