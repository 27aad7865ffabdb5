"""Checks of distances, labels and ids, and which reference an anchor itself is."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.multiprocessing.reductions import StorageWeakRef

from pairops.ops.bindings.schemas import library
from pairops.ops.terms.checks import count, flag, one_of, shown
from pairops.ops.terms.tensor_checks import whole_numbers

from .distances import Distance
from .indexing import arange

_LAST = torch.iinfo(torch.int64).max
_DISTANCES = get_args(Distance)


def compares_units(distance: Distance, normalize: bool | None) -> bool:
    """Check both arguments, and tell whether this distance compares unit vectors."""
    if type(distance) is not str or distance not in _DISTANCES:
        one_of("distance", distance, _DISTANCES)
    if normalize is None:
        return distance != "dot"
    flag("normalize", normalize, optional=True)
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


def ignored_label(given: int | None) -> int | None:
    """Return `ignore_index` as an int, or None."""
    if given is None:
        return None
    return count("ignore_index", given, -_LAST - 1, 2 * _LAST + 1, optional=True)


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


def check_exclude_self(given: bool | Literal["auto"]) -> None:
    if given is not True and given is not False:
        raise ValueError(f'exclude_self is {shown(given)}; it must be True, False or "auto"')


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
    if exclude_self == "auto" and ref_emb.shape == x.shape:
        if torch.compiler.is_compiling():
            found: Tensor = torch.ops.pairops.self_rows(x, ref_emb)
            return found
        if _same_memory(x, ref_emb):
            return arange(x)
    return None


def _same_memory(x: Tensor, y: Tensor) -> bool:
    """Are these one tensor, such as x and x.detach(): the same start, shape and strides?"""
    try:
        return x.is_set_to(y)
    except RuntimeError:  # torch.vmap has no rule for it
        inner = [_unwrapped(z) for z in (x, y)]
        return inner[0] is not x and _same_memory(*inner)


def _unwrapped(z: Tensor) -> Tensor:
    while is_functorch_wrapped_tensor(z):
        z = get_unwrapped(z)
    return z


def _self_rows(x: Tensor, y: Tensor) -> Tensor:
    """Decide when the graph is traced: later a compiler removes copies, which are not x."""
    rows = arange(x)
    # A tensor of AOTAutograd wraps one that shares its storage with its views.
    inner = [getattr(z, "elem", z) for z in (x, y)]
    first, second = [StorageWeakRef(z.untyped_storage()) for z in inner]
    same = first == second and x.stride() == y.stride()
    return rows if same and x.storage_offset() == y.storage_offset() else torch.full_like(rows, -1)


library.impl("self_rows", _self_rows, "CompositeImplicitAutograd")
