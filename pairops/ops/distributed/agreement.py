"""Losses over the rows of several ranks: what all must have been given, and who has failed."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

from .group import Group
from .told import shown

_P = ParamSpec("_P")
_R = TypeVar("_R")


def collective(*whole: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """A loss with the keyword `group`: its ranks are called alike, or an error on each says who has
    what; and where one of them refuses its arguments the others are told.

    whole: names of tensors that every rank has in full, and not rows of its own.
    """

    def of(loss: Callable[_P, _R]) -> Callable[_P, _R]:
        signature = inspect.signature(loss)

        @functools.wraps(loss)
        def called(*args: _P.args, **keywords: _P.kwargs) -> _R:
            given = keywords.get("group")
            if given is None or isinstance(given, Group):  # a loss within a loss has been told of
                return loss(*args, **keywords)
            group = keywords["group"] = Group.of(given, {"loss": shown(loss)})
            if group is None:
                return loss(*args, **keywords)
            with group.reporting():
                group.told |= _told(signature, whole, *args, **keywords)
                return loss(*args, **keywords)

        return called

    return of


def _told(
    signature: inspect.Signature, whole: tuple[str, ...], *args: Any, **keywords: Any
) -> dict[str, str]:
    given = dict(signature.bind(*args, **keywords).arguments)
    given |= given.pop("common", {})
    del given["group"]
    told = {name: shown(value, name in whole) for name, value in given.items()}
    return {**told, "grad mode": str(torch.is_grad_enabled())}
