"""What the ranks of a group tell each other of their arguments: what must be alike on all."""

import functools
from typing import Any

from torch import Tensor

from pairops.ops.terms.term import Term


def kind_of(values: Tensor, whole: bool = False) -> str:
    """What all ranks have in common of a tensor: its shape if it is `whole`, or that of a row."""
    extents = [str(k) for k in values.shape]
    if not whole and extents:
        extents[0] = "·"
    shape = f"({', '.join(extents)})"
    return f"{values.dtype} {shape} on {values.device.type}{' with grad' * values.requires_grad}"


def shown(value: Any, whole: bool = False) -> str:
    """What must be alike on all ranks of an argument; nothing that differs between processes."""
    if isinstance(value, Tensor):
        return kind_of(value, whole)
    if isinstance(value, Term):
        numbers = [a for a in value.args if isinstance(a, (int, float))]
        tensors = [kind_of(z) for z in (*value.vectors(), *value.constants())]
        return f"{value.word} {numbers} {tensors}"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join([shown(item, whole) for item in value])}]"
    if isinstance(value, functools.partial):
        keywords = [f"{name}={shown(given)}" for name, given in value.keywords.items()]
        return f"{shown(value.func)}({', '.join([*map(shown, value.args), *keywords])})"
    if callable(value):
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    return repr(value)
