"""Checks of embeddings, distances, labels and ids, and which reference an anchor itself is."""

import warnings
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .distances import Distance
from .indexing import arange

_LAST = torch.iinfo(torch.int64).max
_DISTANCES = get_args(Distance)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_embeddings(name: str, x: Tensor, like: tuple[str, Tensor] | None = None) -> None:
    if type(x) is not Tensor and not isinstance(x, Tensor):
        raise TypeError(f"{name} is {type(x).__name__}; it must be a tensor (N, D)")
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} is {x.dtype}; it must be float16, bfloat16, float32 or float64")
    if x.ndim != 2:
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
            widest = torch.promote_types(x.dtype, other.dtype)
            casts = [
                f"{n}.to({widest})"
                for n, z in ((other_name, other), (name, x))
                if z.dtype != widest
            ]
            raise TypeError(f"{refused}; write {' and '.join(casts)}, say")


def compares_units(distance: Distance, normalize: bool | None) -> bool:
    """Check both arguments, and return whether this distance compares unit vectors."""
    if distance not in _DISTANCES:
        raise ValueError(f"distance is {distance!r}; it must be one of {', '.join(_DISTANCES)}")
    if normalize is None:
        return distance != "dot"
    if not isinstance(normalize, bool):
        raise TypeError(f"normalize is {type(normalize).__name__}; it must be a bool or None")
    if distance == "cosine" and not normalize:
        raise ValueError(
            "normalize is False and distance is 'cosine'; for products of embeddings as they are "
            "distance must be 'dot'"
        )
    if distance == "dot" and normalize:
        raise ValueError(
            "normalize is True and distance is 'dot'; for products of unit vectors distance must "
            "be 'cosine'"
        )
    return normalize


def whole_numbers(name: str, values: Tensor, owner: str, x: Tensor) -> Tensor:
    """Check `values`, and return them as int64 on the device of x; uint64 keeps its bits."""
    known = type(values) is Tensor and values.dtype == torch.int64 and values.device == x.device
    if known and values.shape == x.shape[:1]:
        return values.contiguous()
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} is {type(values).__name__}; it must be an integer tensor (N,)")
    wrapped = type(values) is not Tensor and is_traceable_wrapper_subclass(values)
    if wrapped and not is_traceable_wrapper_subclass(x):
        raise TypeError(
            f"{name} is {type(values).__name__}, which has no memory of its own; it must be a "
            f"plain tensor, as {owner} is"
        )
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


def is_number(values: Tensor, number: int) -> Tensor:
    """Return (N,) bool: True where an integer, of any type, equals `number`."""
    unsigned = values.dtype == torch.uint64
    bits = values.view(torch.int64) if unsigned else values.long()
    if not (0 <= number < 2**64 if unsigned else -_LAST - 1 <= number <= _LAST):
        return torch.zeros_like(bits, dtype=torch.bool)
    return bits == (number - 2**64 if number > _LAST else number)


def as_index(values: Tensor) -> Tensor:
    """Return integers of any type as int64; greater ones become the greatest int64."""
    if values.dtype != torch.uint64:
        return values.long()
    bits = values.view(torch.int64)
    return torch.where(bits < 0, _LAST, bits)


def one_key(
    first: Tensor, second: Tensor | None, ignore_index: int | None
) -> tuple[Tensor, Tensor | None, int | None]:
    """Return int64 keys of integers (N,) and (M,) of any type, and the key to be ignored.

    Two keys are equal exactly if the numbers are. The bits serve as keys, unless one set alone is
    uint64: then only 0 to 2⁶³ − 1 can be in both.
    """
    sets = [z for z in (first, second) if z is not None]
    unsigned = [z.dtype == torch.uint64 for z in sets]
    keys = [z.view(torch.int64) if z.dtype == torch.uint64 else z.long() for z in sets]
    if all(unsigned) and ignore_index is not None:
        # A negative number is none of them, whatever its bits.
        ignore_index = None if ignore_index < 0 else ignore_index - 2**64 * (ignore_index > _LAST)
    elif any(unsigned) and not all(unsigned):
        keys = [torch.where(key < 0, -1 - k, key) for k, key in enumerate(keys)]
        if ignore_index is not None:
            keys = [
                torch.where(is_number(z, ignore_index), -3, key)
                for z, key in zip(sets, keys, strict=True)
            ]
            ignore_index = -3
    keys = [key.contiguous() for key in keys]
    return keys[0], keys[1] if second is not None else None, ignore_index


def named(
    x: Tensor,
    ref_emb: Tensor,
    ids: Tensor | None,
    ref_ids: Tensor | None,
    exclude_self: bool | Literal["auto"],
) -> tuple[Tensor, Tensor] | None:
    """Return the names of anchors and references, if an anchor is to be found by its name."""
    if (ids is None) != (ref_ids is None):
        given, missing = ("ids", "ref_ids") if ref_ids is None else ("ref_ids", "ids")
        raise ValueError(f"{missing} is None; it must be given with {given}")
    if ids is None or ref_ids is None:
        return None
    mine = whole_numbers("ids", ids, "x", x)
    theirs = whole_numbers("ref_ids", ref_ids, "ref_emb", ref_emb)
    if torch.uint64 in (ids.dtype, ref_ids.dtype):
        mine, known, _ = one_key(ids.to(x.device), ref_ids.to(x.device), None)
        theirs = mine[:0] if known is None else known
    if exclude_self is True:
        raise ValueError(
            "exclude_self is True, which says that reference i is anchor i, but ids are given; "
            'it must be "auto" or False with them'
        )
    return None if exclude_self is False else (mine, theirs)


def self_index_of(
    x: Tensor, ref_emb: Tensor, exclude_self: bool | Literal["auto"]
) -> Tensor | None:
    """Return (N,) the index of the reference that is anchor i itself; None if no anchor is one."""
    if exclude_self is True and ref_emb.shape[0] < x.shape[0]:
        raise ValueError(
            f"exclude_self=True says that reference i is anchor i, but ref_emb has "
            f"{ref_emb.shape[0]} rows and x has {x.shape[0]}"
        )
    if exclude_self is True or (exclude_self == "auto" and ref_emb is x):
        return arange(x)
    return None
