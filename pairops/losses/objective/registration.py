"""The decorator of every loss: its whole signature, its errors, its ranks, its place in LOSSES."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, cast

from torch import Tensor

from pairops.ops.distributed.agreement import collective
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.signatures import (
    Keyword,
    keywords_of,
    publish,
    shared_names,
    unknown_keyword,
)

from .objective import Aux, Objective

__all__ = ["LOSSES", "Loss", "loss"]

P = ParamSpec("P")

WIDTH = Keyword(
    None,
    "a finite number, 0 or above, with which labels and `ref_labels` are real numbers: rows are "
    "positives of each other if theirs differ by at most this, as in `Pairs.within`. None: if "
    "their labels are equal.",
)
POSITIVES = Keyword(
    None,
    "(rows, cols), two (K,) integer tensors in place of labels, which must be None: reference "
    "cols_k is a positive of anchor rows_k, and every other a negative, as in `Pairs.listed`.",
)
RELATED_BY = {"width": WIDTH, "positives": POSITIVES}
SHARED = keywords_of(Pairs.within) | keywords_of(Pairs.of) | RELATED_BY | keywords_of(Objective.of)

# Sections of a loss's docstring, where it has none of its own.
_COMMON = {
    "Returns": "float32, or float64 of float64 embeddings: 0-d, or one number for each anchor with "
    'reduction="none".',
    "Raises": "ValueError, TypeError: the message names the argument, what it was and must be.",
}
_WITH_AUX = f"The loss, and what it saw of every anchor. The loss is {_COMMON['Returns']}"


class Loss(Protocol[P]):
    """A loss: call it for its value, or `with_aux` for the value and what it saw."""

    __name__: str
    __qualname__: str

    def __call__(self, *args: P.args, **keywords: P.kwargs) -> Tensor: ...

    def with_aux(self, *args: P.args, **keywords: P.kwargs) -> tuple[Tensor, Aux]:
        """Return the loss, and an `Aux` of every anchor's pairs."""


# Every loss by its name; `pairops.nn`, the tables of the documentation and the tests follow it.
LOSSES: dict[str, Loss[...]] = {}


def loss(*replicated: str, registered: bool = True) -> Callable[[Callable[P, Any]], Loss[P]]:
    """Make a loss of a function over `**common: Unpack[...]`.

    Args:
        replicated: names of tensors that every rank of a group has in full.
        registered: False for a function that cannot be called with tensors alone.
    """

    def made(function: Callable[P, Any]) -> Loss[P]:
        name = function.__name__
        explicit = function.__code__.co_varnames
        count = function.__code__.co_argcount + function.__code__.co_kwonlyargcount
        known = frozenset(explicit[:count]) | frozenset(shared_names(function))

        def check(keywords: dict[str, Any]) -> None:
            for keyword in keywords:
                if keyword not in known:
                    hint = f"write {name}.with_aux(...)" if keyword == "return_aux" else ""
                    raise unknown_keyword(name, keyword, known, hint)

        agreeing = collective(*replicated)(function)
        called = collective(*replicated, check=check)(function)

        @functools.wraps(function)
        def with_aux(*args: P.args, **keywords: P.kwargs) -> Any:
            check(keywords)
            keywords["return_aux"] = True
            return agreeing(*args, **keywords)

        with_aux.__qualname__ = f"{name}.with_aux"
        publish(called, function, SHARED, Tensor, _COMMON)
        publish(with_aux, function, SHARED, tuple[Tensor, Aux], {**_COMMON, "Returns": _WITH_AUX})
        publish(function, function, SHARED, Tensor, _COMMON)  # what tools for pages read
        called.with_aux = with_aux  # type: ignore[attr-defined]
        done = cast(Loss[P], called)
        if registered:
            LOSSES[name] = done
        return done

    return made
