"""Which of the references an anchor itself is: by place, or by name."""

from typing import Literal

from torch import Tensor

from .checks import whole_numbers
from .indexing import arange


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
