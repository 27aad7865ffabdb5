"""Checks of embeddings, labels and ids, and which reference an anchor itself is."""

import warnings
from typing import Literal

import torch
from torch import Tensor

from .indexing import arange

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_embeddings(name: str, x: Tensor, like: tuple[str, Tensor] | None = None) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is {type(x).__name__}; it must be a tensor (N, D)")
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} is {x.dtype}; it must be float16, bfloat16, float32 or float64")
    if x.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be (N, D)")
    if x.shape[1] == 0 and x.shape[0] > 0:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; D must be at least 1")
    if like is None:
        return
    other_name, other = like
    for what, mine, theirs in (
        ("dtype", x.dtype, other.dtype),
        ("device", x.device, other.device),
        ("D", x.shape[1], other.shape[1]),
    ):
        if mine != theirs:
            refused = f"{name} has {what} {mine}; it must be {theirs} as in {other_name}"
            if what != "dtype":
                raise ValueError(refused)
            wide = torch.promote_types(x.dtype, other.dtype)
            casts = [
                f"{n}.to({wide})" for n, z in ((other_name, other), (name, x)) if z.dtype != wide
            ]
            raise TypeError(f"{refused}; write {' and '.join(casts)}, say")


def whole_numbers(name: str, values: Tensor, owner: str, x: Tensor) -> Tensor:
    """`values` as int64 on the device of x, checked."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} is {type(values).__name__}; it must be an integer tensor (N,)")
    if values.is_floating_point() or values.is_complex():
        hint = " (and without requires_grad)" if values.requires_grad else ""
        raise TypeError(f"{name} is {values.dtype}; it must be an integer tensor{hint}")
    if values.shape != x.shape[:1]:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}; it must be ({x.shape[0]},), "
            f"one for each row of {owner}"
        )
    if values.device != x.device:
        warnings.warn(
            f"{name} is on {values.device} and {owner} on {x.device}: it is copied at every call",
            stacklevel=4,
        )
    return values.to(x.device, torch.int64).contiguous()


def named(
    x: Tensor,
    ref_emb: Tensor,
    ids: Tensor | None,
    ref_ids: Tensor | None,
    exclude_self: bool | Literal["auto"],
) -> tuple[Tensor, Tensor] | None:
    """The names by which an anchor is to be found among the references, if it is."""
    if (ids is None) != (ref_ids is None):
        given, missing = ("ids", "ref_ids") if ref_ids is None else ("ref_ids", "ids")
        raise ValueError(f"{missing} is None; it must be given with {given}")
    if ids is None or ref_ids is None:
        return None
    ids = whole_numbers("ids", ids, "x", x)
    ref_ids = whole_numbers("ref_ids", ref_ids, "ref_emb", ref_emb)
    if exclude_self is True:
        raise ValueError(
            "exclude_self is True, which says that reference i is anchor i, but ids are given; "
            'it must be "auto" or False with them'
        )
    return None if exclude_self is False else (ids, ref_ids)


def own_of(x: Tensor, ref_emb: Tensor, exclude_self: bool | Literal["auto"]) -> Tensor | None:
    """(N,) index of the reference that anchor i itself is; None: no anchor is one."""
    if exclude_self is True and ref_emb.shape[0] < x.shape[0]:
        raise ValueError(
            f"exclude_self=True says that reference i is anchor i, but ref_emb has "
            f"{ref_emb.shape[0]} rows and x has {x.shape[0]}"
        )
    if exclude_self is True or (exclude_self == "auto" and ref_emb is x):
        return arange(x)
    return None
