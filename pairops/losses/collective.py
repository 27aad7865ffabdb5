"""Losses over the rows of several ranks: what all must have been given, and who has failed."""

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from ..group import Group, kind_of
from ..terms import Term

_P = ParamSpec("_P")
_R = TypeVar("_R")


def collective(*whole: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """A loss with the keyword `group`: its ranks are called alike, or an error on each says who has
    what; and where one of them refuses its arguments the others are told.

    whole: names of tensors that every rank has in full, and not rows of its own.
    """

    def of(loss: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(loss)
        def called(*args: _P.args, **keywords: _P.kwargs) -> _R:
            if keywords.get("group") is None:
                return loss(*args, **keywords)
            told = _told(loss, whole, *args, **keywords)
            keywords["group"] = group = Group.of(keywords["group"], told)
            with contextlib.nullcontext() if group is None else group.reporting():
                return loss(*args, **keywords)

        return called

    return of


def _told(
    loss: Callable[..., Any], whole: tuple[str, ...], *args: Any, **keywords: Any
) -> dict[str, str]:
    given = dict(inspect.signature(loss).bind(*args, **keywords).arguments)
    given |= given.pop("common", {})
    del given["group"]
    told = {name: _shown(value, name in whole) for name, value in given.items()}
    modes = {"grad mode": str(torch.is_grad_enabled())}
    return {"loss": getattr(loss, "__name__", repr(loss)), **told, **modes}


def _shown(value: Any, whole: bool) -> str:
    if isinstance(value, Tensor):
        return kind_of(value, whole)
    if isinstance(value, Term):
        numbers = [a for a in value.args if isinstance(a, (int, float))]
        return f"{value.word} {numbers}"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join([_shown(item, whole) for item in value])}]"
    return getattr(value, "__qualname__", None) or repr(value)
