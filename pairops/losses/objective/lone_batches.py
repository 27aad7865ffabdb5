"""A warning, once per process, about a batch that trains nothing: no row of it has a positive.

A CPU answers at once whether a row has one. A GPU is never waited for: the answer is copied to the
host, and a later call that finds it there looks at it. At first every call asks, then fewer do.
"""

import sys
import warnings
from typing import Any

import torch
from torch import Tensor

from pairops.ops.bindings.devices import on_device
from pairops.ops.pairs.pairs import Pairs

_SELDOM = 1024  # at most so many calls on a GPU from one question to the next


class _Watch:
    """The state of the watch: the question on its way, and whether the warning was given."""

    def __init__(self) -> None:
        self.warned = False
        self.calls, self.next = 0, 1  # calls on a GPU, and the number of the one that asks
        # the answer on the host, and the event of its arrival
        self.asked: tuple[Tensor, Any] | None = None


_watch = _Watch()


def warn_without_positives(pairs: Pairs) -> None:
    """Warn if no row has a positive, which is not known yet.

    With several ranks nothing is said, since each knows the positives of its rows alone.
    """
    if _watch.warned or pairs.shards is not None:
        return
    # Only an ordinary eager call makes a relation with addresses.
    if pairs.relation.addresses is None and torch.compiler.is_compiling():
        return
    device = pairs.x.device.type
    if device == "cpu" and pairs.x.shape[0]:
        try:
            lone = not pairs.positives().max()
        except RuntimeError:  # values cannot be read within torch.vmap or a trace
            return
        if lone:
            _warn("this batch")
    elif device == "cuda" and not torch.cuda.is_current_stream_capturing():
        _without_waiting(pairs)


def _without_waiting(pairs: Pairs) -> None:
    if _watch.asked is not None:
        some, ready = _watch.asked
        if not ready.query():
            return
        _watch.asked = None
        if not some:
            _warn("an earlier batch")
            return
    _watch.calls += 1
    if _watch.calls < _watch.next or not pairs.x.shape[0]:
        return
    _watch.next = _watch.calls + min(_watch.calls, _SELDOM)
    _watch.asked = _asked(pairs)


def _asked(pairs: Pairs) -> tuple[Tensor, Any]:
    """Ask whether any row has a positive; return the host's copy, and the event of its arrival."""
    with on_device(pairs.x):
        some = torch.empty((), dtype=torch.bool, pin_memory=True)
        some.copy_(pairs.positives().any(), non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
    return some, ready


def _warn(batch: str) -> None:
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(
        f"no row of {batch} has a positive: the loss is 0 and trains nothing. Are two rows of a "
        "batch ever of one class? This is said once",
        stacklevel=level,
    )
    _watch.warned = True


def _is_ours(module: str) -> bool:
    """Tell whether a module is part of the library or of torch, not of the user's program."""
    return module.partition(".")[0] in ("pairops", "torch")
