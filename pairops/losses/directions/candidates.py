"""The candidates of InfoNCE, checked: names, a guide, log q, and negatives from elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pairops.ops.pairs.similarity import at_least_float32
from pairops.ops.terms.checks import flag, plain_number, shown
from pairops.ops.terms.tensor_checks import (
    FLOATS,
    check_embeddings,
    check_finite,
    check_real,
    check_storage,
    number,
    readable,
    whole_numbers,
)

Direction = Literal["xy", "yx", "xx", "yy"]
WAYS = get_args(Direction)


@dataclass(frozen=True)
class Candidates:
    """Which candidates are dropped, how they are corrected, and which come from elsewhere.

    Args:
        margin: a number, or a 0-d tensor without gradient. A candidate with s_ij > s_ii + margin is
            dropped. None: none is.
        names: (N,) and (M,) int64, of the rows of x and of y. A candidate named as the anchor is
            dropped. None: none is.
        guide: (N, E) and (M, E), unit vectors without gradient, and (N,) bars b. A candidate with a
            product g_ij > b_i is dropped. None: none is.
        log_q: (M,) without gradient, subtracted from z of each row of y. None: nothing is.
        own_negatives: (N, K, D), K for each anchor alone. None: there are none.
        queue: (Q, D), which all anchors share, without gradient. None: there is none.
        queue_only: True leaves the rows of y out.
    """

    margin: float | Tensor | None = None
    names: tuple[Tensor, Tensor] | None = None
    guide: tuple[Tensor, Tensor, Tensor] | None = None
    log_q: Tensor | None = None
    own_negatives: Tensor | None = None
    queue: Tensor | None = None
    queue_only: bool = False

    @staticmethod
    def checked(
        x: Tensor,
        y: Tensor,
        ways: Sequence[str],
        *,
        own_negatives: Tensor | None = None,
        false_negatives: float | Tensor | None = None,
        ids: Tensor | None = None,
        ref_ids: Tensor | None = None,
        log_q: Tensor | None = None,
        guide: tuple[Tensor, Tensor] | None = None,
        guide_margin: float = 0.0,
        guide_relative: bool = False,
        queue: Tensor | None = None,
        queue_only: bool = False,
    ) -> "Candidates":
        """Check the arguments of these names of `info_nce_loss`."""
        flag("queue_only", queue_only)
        if len(y) < len(x):
            raise ValueError(
                f"y has {len(y)} rows; it must have at least {len(x)}, one for each of x"
            )
        return Candidates(
            None if false_negatives is None else _constant("false_negatives", false_negatives),
            _names(ids, ref_ids, x, y),
            _guide(guide, guide_margin, guide_relative, x, y),
            None if log_q is None else _log_q(log_q, y),
            None if own_negatives is None else _negatives_of_rows(own_negatives, x, ways),
            _queue(queue, queue_only, x, ways),
            queue_only and queue is not None,
        )


def _constant(name: str, given: float | Tensor) -> float | Tensor:
    value = number(name, given)
    return value.detach() if isinstance(value, Tensor) else value


def _names(
    ids: Tensor | None, ref_ids: Tensor | None, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor] | None:
    if ids is None:
        if ref_ids is not None:
            raise ValueError("ref_ids is given without ids; they must come together")
        return None
    mine = whole_numbers("ids", ids, "x", x)
    if ref_ids is None:
        if len(x) != len(y):
            raise ValueError(
                f"ref_ids is None and y has {len(y)} rows; with ids it must be ({len(y)},), whose "
                f"first {len(x)} are ids"
            )
        return mine, mine
    theirs = whole_numbers("ref_ids", ref_ids, "y", y)
    if readable(mine) and not torch.equal(mine, theirs[: len(mine)]):
        raise ValueError(f"ref_ids begin otherwise than ids; the first {len(mine)} must be ids")
    return mine, theirs


def _guide(
    guide: Any, margin: float, relative: bool, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    margin = plain_number("guide_margin", margin)
    flag("guide_relative", relative)
    if guide is None:
        if (margin or relative) and len(x):
            # A Module is checked by a call without rows; the guide may come with each batch.
            raise ValueError("guide_margin and guide_relative are for a guide, which is None")
        return None
    if not isinstance(guide, (tuple, list)) or len(guide) != 2:
        raise TypeError(
            f"guide is {shown(guide)}; it must be (u, v), embeddings of what x and y embed"
        )
    units = []
    for k, (embeddings, like, name) in enumerate(zip(guide, (x, y), "xy", strict=True)):
        check_embeddings(f"guide[{k}]", embeddings)
        if len(embeddings) != len(like):
            raise ValueError(
                f"guide[{k}] has {len(embeddings)} rows; it must have {len(like)}, as {name} has"
            )
        constant = embeddings.detach().to(like.device, at_least_float32(like[:0]).dtype)
        units.append(torch.nn.functional.normalize(constant))
    u, v = units
    if u.shape[1] != v.shape[1]:
        raise ValueError(f"guide[1] has E {v.shape[1]}; it must be {u.shape[1]} as in guide[0]")
    rated = (u * v[: len(u)]).sum(1)
    bar = rated - (rated.abs() if relative else 1.0) * margin
    return u, v, bar + slack(bar)


def _log_q(log_q: Tensor, y: Tensor) -> Tensor:
    check_real("log_q", log_q)
    check_storage("log_q", log_q)
    if log_q.dtype not in FLOATS or log_q.shape != (len(y),):
        raise ValueError(
            f"log_q is a {log_q.dtype} tensor {tuple(log_q.shape)}; it must be floating-point "
            f"({len(y)},), one for each row of y"
        )
    check_finite("log_q", log_q, None)
    return log_q.detach().to(y.device)


def _negatives_of_rows(given: Tensor, x: Tensor, ways: Sequence[str]) -> Tensor:
    check_real("own_negatives", given)
    if given.ndim != 3 or len(given) != len(x) or given.shape[2] != x.shape[1]:
        raise ValueError(
            f"own_negatives is {tuple(given.shape)}; it must be a tensor "
            f"({len(x)}, K, {x.shape[1]}), K for each row of x"
        )
    if given.dtype != x.dtype or given.device != x.device:
        raise TypeError(
            f"own_negatives are {given.dtype} on {given.device}; they must be {x.dtype} on "
            f"{x.device}, as x is"
        )
    if "xy" not in ways:
        raise ValueError("own_negatives is given; they are negatives in the direction 'xy' alone")
    return given


def _queue(queue: Tensor | None, queue_only: bool, x: Tensor, ways: Sequence[str]) -> Tensor | None:
    if queue is None:
        if queue_only and len(x):
            raise ValueError("queue_only is True and queue is None; it must be given")
        return None
    check_embeddings("queue", queue, like=("x", x))
    if "xy" not in ways:
        raise ValueError("queue is given; it has negatives in the direction 'xy' alone")
    return queue


def checked_directions(given: Any) -> tuple[Direction, ...]:
    """Return directions, each named once."""
    ways = tuple(given) if isinstance(given, (list, tuple)) else ()
    known = ways and all(isinstance(way, str) and way in WAYS for way in ways)
    if not known or len(set(ways)) < len(ways):
        names = ", ".join(map(repr, WAYS))
        value = list(given) if isinstance(given, (list, tuple)) else shown(given)
        raise ValueError(
            f"directions is {value}; it must name one or more of {names}, each once, as in "
            "('xy', 'yx')"
        )
    return ways


def slack(values: Tensor) -> Tensor:
    """Return by how much the same number may differ where another product has computed it."""
    return 8 * torch.finfo(values.dtype).eps * values.abs().clamp(min=1)
