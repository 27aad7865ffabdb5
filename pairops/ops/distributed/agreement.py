"""Fingerprints of arguments, so that ranks can check that all were called alike."""

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from .allocation import if_refused
from .group import Group

_P = ParamSpec("_P")
_R = TypeVar("_R")


def collective(
    *whole: str,
    apart: Collection[str] = (),
    check: Callable[[dict[str, Any]], None] | None = None,
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """A loss with the keyword `group`: its ranks are called alike, or an error on each says who has
    what; and where one of them refuses its arguments the others are told.

    whole: names of tensors that every rank has in full, and not rows of its own.  apart: names of
    arguments in which ranks may differ.  check: raises for keywords that the loss does not have.
    """

    def of(loss: Callable[_P, _R]) -> Callable[_P, _R]:
        signature = inspect.signature(loss)

        @functools.wraps(loss)
        def called(*args: _P.args, **keywords: _P.kwargs) -> _R:
            if check is not None and keywords:
                check(keywords)
            given: Any = keywords.get("group")
            try:
                if given is None or isinstance(
                    given, Group
                ):  # the loss around this one has checked
                    return loss(*args, **keywords)
                group = keywords["group"] = Group.of(given, {"loss": shown(loss)})
                if group is None:
                    return loss(*args, **keywords)
                with group.reporting():
                    alike = _fingerprint(signature, whole, *args, **keywords)
                    group.fingerprint |= {k: v for k, v in alike.items() if k not in apart}
                    return loss(*args, **keywords)
            except RuntimeError as error:
                if_refused(error)
                raise

        return called

    return of


def _fingerprint(
    signature: inspect.Signature, whole: tuple[str, ...], *args: Any, **keywords: Any
) -> dict[str, str]:
    given = dict(signature.bind(*args, **keywords).arguments)
    given |= given.pop("common", {})
    del given["group"]
    return {name: shown(value, name in whole) for name, value in given.items()}


def kind_of(values: Tensor, whole: bool = False) -> str:
    """Return a tensor's fingerprint: dtype and shape, of a row if it is not `whole`."""
    extents = [str(k) for k in values.shape]
    if not whole and extents:
        extents[0] = "·"
    shape = f"({', '.join(extents)})"
    return f"{values.dtype} {shape} on {values.device.type}{' with grad' * values.requires_grad}"


def shown(value: Any, whole: bool = False) -> str:
    """Return an argument's fingerprint, without anything that differs between processes."""
    if isinstance(value, Tensor):
        return kind_of(value, whole)
    if hasattr(value, "describe"):  # a term, whose class is not imported here
        return str(value.describe(kind_of))
    if isinstance(value, (tuple, list)):
        return f"[{', '.join([shown(item, whole) for item in value])}]"
    if isinstance(value, functools.partial):
        keywords = [f"{name}={shown(given)}" for name, given in value.keywords.items()]
        return f"{shown(value.func)}({', '.join([*map(shown, value.args), *keywords])})"
    if callable(value):
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    return repr(value)
