"""Pairs by label: both sets sorted once, without an op in an ordinary eager call on a CPU."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from pairops.ops.autograd.node import followed_by_autograd_alone
from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.bindings import extension
from pairops.ops.bindings.devices import float32_level, widest_float
from pairops.ops.distributed.agreement import kind_of
from pairops.ops.distributed.group import Group
from pairops.ops.terms.tensor_checks import check_embeddings, whole_numbers

from .checks import check_exclude_self, compares_units, ignored_label, named, one_key, self_index_of
from .distances import Distance, centred
from .indexing import arange, first_named, inverse_permutation
from .intervals import related
from .pairs import Pairs
from .relation import Cache, Relation, Scales
from .shards import Shards
from .similarity import at_least_float32
from .widths import numbers, sort_by_number

_LAST = torch.iinfo(torch.int64).max


def pairs_by_label(
    x: Tensor,
    labels: Tensor,
    *,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    exclude_self: bool | Literal["auto"] = "auto",
    ignore_index: int | None = -100,
    width: float | None = None,
    distance: Distance = "cosine",
    normalize: bool | None = None,
    group: Group | None = None,
    called: tuple[str, str] = ("labels", "ref_labels"),
) -> Pairs:
    """`Pairs.of`, for a loss that has checked x and agreed with the other ranks; with a width
    `Pairs.within`, whose numbers are the labels. called: the names of both, for errors."""
    if type(labels) is Tensor and labels.ndim == 2 and width is None:
        from .by_list import pairs_by_shared_labels

        return pairs_by_shared_labels(
            x, labels, ref_emb, ref_labels, ignore_index, group,
            {
                "ids": ids, "ref_ids": ref_ids, "exclude_self": exclude_self,
                "distance": distance, "normalize": normalize,
            },
        )  # fmt: skip
    if type(exclude_self) is not str or exclude_self != "auto":
        check_exclude_self(exclude_self)
    if type(ignore_index) is not int or not -_LAST - 1 <= ignore_index <= _LAST:
        ignore_index = ignored_label(ignore_index)
    # What most calls leave as it is needs no check: a small step is mostly calls.
    default = type(distance) is str and distance == "cosine" and normalize is None
    unit = default or compares_units(distance, normalize)
    as_given = labels, ref_labels
    kinds = whole_numbers if width is None else numbers
    labels = kinds(called[0], labels, "x", x)
    if ref_emb is None:
        for name, given in ((called[1], ref_labels), ("ids", ids), ("ref_ids", ref_ids)):
            if given is not None:
                raise ValueError(f"{name} is given without ref_emb; it must come with one")
        self_index, names = arange(x) if group is not None and exclude_self else None, None
    else:
        check_embeddings("ref_emb", ref_emb, like=("x", x))
        if ref_labels is None:
            raise ValueError(f"{called[1]} is None; it must be given with ref_emb")
        ref_labels = kinds(called[1], ref_labels, "ref_emb", ref_emb)
        names = named(x, ref_emb, ids, ref_ids, exclude_self)
        self_index = self_index_of(x, ref_emb, exclude_self) if names is None else None
    if width is not None:
        ignore_index = None
    elif torch.uint64 in [z.dtype for z in as_given if z is not None]:
        theirs = None if as_given[1] is None else as_given[1].to(x.device)
        labels, ref_labels, ignore_index = one_key(as_given[0].to(x.device), theirs, ignore_index)
    elif ignore_index is not None and ignore_index > _LAST:
        raise ValueError(
            f"ignore_index is {ignore_index}; it must be below 2**63, since labels are "
            f"{as_given[0].dtype}"
        )
    if distance == "snr":
        x = centred("x", x, labels, ignore_index, unit)
        if ref_emb is not None:
            ref_emb = centred("ref_emb", ref_emb, ref_labels, ignore_index, unit)
    elif distance in ("l2", "sqeuclidean") and not unit:  # gradients come through s and norms
        x, ref_emb = at_least_float32(x), None if ref_emb is None else at_least_float32(ref_emb)
    scaled = unit and distance != "snr"
    if group is not None:
        alike = fingerprint(x, ref_emb, distance, unit)
        alike |= {"ignore_index": str(ignore_index), "width": str(width)}
        keys = labels, ref_labels
        shards = Shards.of(group, alike, keys, self_index, names, ignore_index, width)
        pairs = pairs_by_keys(x, ref_emb, keys, None, ignore_index, scaled, width=width)
        return replace(pairs, shards=shards).measured(distance)
    if ref_emb is None and width is None:
        known = sort_by_label(x, None, labels, None, ignore_index, bool(exclude_self), scaled)
        pairs = Pairs(x, None, *known, ignore_index is None or known[0].complete)
    else:
        self_index = self_index if names is None else first_named(*names)
        pairs = pairs_by_keys(
            x, ref_emb, (labels, ref_labels), self_index, ignore_index, scaled,
            width=width, exclude_self=ref_emb is None and bool(exclude_self),
        )  # fmt: skip
    return pairs.measured(distance)


def pairs_by_keys(
    x: Tensor,
    y: Tensor | None,
    keys: tuple[Tensor, Tensor | None],
    self_index: Tensor | None,
    ignore_index: int | None,
    scaled: bool,
    *,
    width: float | None = None,
    exclude_self: bool = False,
) -> Pairs:
    """Make pairs by key of arguments that have been checked.

    Args:
        x: (N, D) the rows.
        y: (M, D) the columns. None: the same set.
        keys: (N,) and (M,) integers, or None for the same set: equal keys are positives. With
            a width they are numbers.
        self_index: (N,) int64, the row of y that a row is, or −1. None: no row is in y.
        ignore_index: a row with this key is left out. None: no row is left out.
        scaled: True compares unit vectors.
        width: keys that differ by at most this are positives. None: equal ones are.
        exclude_self: True leaves a row's own pair out, of the same set.
    """
    if width is None:
        known = sort_by_label(x, y, *keys, ignore_index, exclude_self, scaled)
        pairs = Pairs(x, y, *known, ignore_index is None or known[0].complete)
    else:
        pairs = _by_number(x, y, keys, width, exclude_self, scaled)
    if self_index is None or y is None or not y.shape[0]:
        return pairs
    relation, position = pairs.relation, inverse_permutation(pairs.relation.permutation_y)
    self_index = torch.where(self_index < 0, -1, position[self_index.clamp(min=0)])
    self_index = self_index[relation.permutation_x]
    cache = Cache(pairs.cache.prepared)  # with the same embeddings, but other counts
    return replace(pairs, relation=replace(relation, self_index=self_index), cache=cache)


def _by_number(
    x: Tensor,
    y: Tensor | None,
    keys: tuple[Tensor, Tensor | None],
    width: float,
    exclude_self: bool,
    scaled: bool,
) -> Pairs:
    """Sort by ranks, which are labels that nobody shares, and put the intervals of widths in."""
    found = sort_by_number(*keys, width)
    ranks = found.rank_x, None if y is None else found.rank_y
    relation, scales, cache = sort_by_label(x, y, *ranks, None, exclude_self, scaled)
    relation = replace(
        relation,
        pos_begin=found.pos_begin,
        pos_end=found.pos_end,
        all_positive=False,
        overlaps=True,
    )
    return Pairs(x, y, relation, scales, Cache(cache.prepared), complete=True)


def fingerprint(x: Tensor, y: Tensor | None, distance: Distance, unit: bool) -> dict[str, str]:
    """Return a fingerprint of the arguments, which must be the same on all ranks."""
    sets = {name: kind_of(z) for name, z in (("x", x), ("the other set", y)) if z is not None}
    return {**sets, "distance": f"{distance}{' of unit vectors' * unit}"}


def sort_by_label(
    x: Tensor,  # (N, D)
    y: Tensor | None,  # (M, D)
    labels: Tensor | None,  # (N,) contiguous int64
    ref_labels: Tensor | None,  # (M,)
    ignore_index: int | None,
    exclude_self: bool,
    normalize: bool,
) -> tuple[Relation, Scales, Cache]:
    """Return the relation of `Pairs`, its scales, and a cache with the by-products.

    Without y the set is compared with itself, and `exclude_self` says whether a row's own position
    is named. Without labels y_i is the one positive of x_i. There is no gradient.
    """
    if x.is_cpu and extension.native is not None and followed_by_autograd_alone(x, y):
        # CUDA kernels sort rows of a CPU where tests compile them for it, and nowhere else.
        kernels = cuda_kernels.BACKEND
        emulated = kernels is not None and kernels.related == "cpu"
        if not (emulated and cuda_kernels.sorts_labels(x, y)):
            return _sort_on_cpu(x, y, labels, ref_labels, ignore_index, exclude_self, normalize)
    found = torch.ops.pairops.sort_by_label(
        x.detach(), None if y is None else y.detach(),
        labels, ref_labels, ignore_index, exclude_self, normalize, float32_level(),
        widest_float(x.device),
    )  # fmt: skip
    relation, scales, positives, panels = related(found, y, ref_labels, normalize)
    return relation, scales, Cache({"relation": panels} if panels else {}, positives=positives)


def _sort_on_cpu(
    x: Tensor,
    y: Tensor | None,
    labels: Tensor | None,
    ref_labels: Tensor | None,
    ignore_index: int | None,
    exclude_self: bool,
    normalize: bool,
) -> tuple[Relation, Scales, Cache]:
    """Sort without an op, and note the addresses that the engine will ask for."""
    n, long = x.shape[0], torch.int64
    positions = torch.empty((5, n), dtype=long, device="cpu")
    valid_x = valid_y = torch.empty(n, dtype=torch.bool, device="cpu")
    order, valid = positions.data_ptr(), valid_x.data_ptr()
    tensors: tuple[Tensor, ...] = (positions, valid_x)
    outputs, of_y = [order, valid], (order, valid)
    permutation_x, begin, end, self_index, positives = positions.unbind()
    permutation_y = permutation_x
    given: list[int | None] = [None, None]
    if labels is not None:
        given[0] = labels.data_ptr()
    if ref_labels is not None:
        permutation_y = torch.empty_like(ref_labels)
        valid_y = torch.empty_like(ref_labels, dtype=torch.bool)
        tensors += (permutation_y, valid_y)
        of_y = permutation_y.data_ptr(), valid_y.data_ptr()
        outputs += of_y
        given[1] = ref_labels.data_ptr()
    x = x.contiguous()
    of_x = x.data_ptr(), extension.DTYPES[x.dtype], *x.shape
    other, sets = None, [of_x]
    if y is not None:
        y = y.contiguous()
        other = y.data_ptr(), extension.DTYPES[y.dtype], *y.shape
        sets += (other,)
    scale_x = scale_y = None
    at_x = at_y = None
    if normalize:
        scale_x = scale_y = torch.empty(n, dtype=torch.float64, device="cpu")
        at_x = at_y = scale_x.data_ptr()
        outputs += (at_x,)
        if y is not None:
            scale_y = torch.empty(y.shape[0], dtype=torch.float64, device="cpu")
            at_y = scale_y.data_ptr()
            outputs += (at_y,)
    complete, all_positive = extension.native.sort_by_label(
        extension.isa(), sets, given, ignore_index, exclude_self, outputs, torch.get_num_threads()
    )
    # Columns of another set are known to have positives only where they are paired one by one.
    all_positive = all_positive and (y is None or (labels is None and y.shape[0] == n))
    relation = Relation(
        permutation_x,
        permutation_y,
        begin,
        end,
        self_index,
        valid_x,
        valid_y,
        complete,
        all_positive,
    )
    row = 8 * n  # bytes
    intervals = order + row, order + 2 * row, order + 3 * row, None
    relation.addresses = tensors, intervals, (order, valid), of_y
    scales = Scales(scale_x, scale_y, ((scale_x, scale_y), at_x, at_y))
    return relation, scales, Cache(positives=positives, sets=(of_x, other, (x, y)))
