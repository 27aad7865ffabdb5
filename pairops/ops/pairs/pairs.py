"""Pairs: two sets of embeddings, their scales, and who is a positive of whom.

Rows and columns are sorted by label once. Then the positives of row i are the columns [begin_i,
end_i), a mask is two integers per row, and most tiles of the matrix hold negatives only. Pairing by
index (CLIP, SigLIP) is the same with begin_i = i, end_i = i + 1.
"""

from dataclasses import dataclass, field, replace
from typing import Literal, TypedDict

import torch
from torch import Tensor

from pairops.ops.autograd.node import followed_by_autograd_alone
from pairops.ops.distributed.agreement import collective, kind_of
from pairops.ops.distributed.group import Given, Group
from pairops.ops.terms.plain_numbers import plain_int

from .checks import check_embeddings, compares_units, named, one_key, self_index_of, whole_numbers
from .distances import Distance, Measure, Squares, centred
from .indexing import arange, first_named, inverse_permutation
from .intervals import sort_by_label
from .relation import Cache, Relation, Scales
from .shards import Shards
from .similarity import at_least_float32, inverse_norm

_LAST = torch.iinfo(torch.int64).max


class Relating(TypedDict, total=False):
    """The keywords of `Pairs.of` that say who is a pair, and who is positive."""

    ref_emb: Tensor | None
    ref_labels: Tensor | None
    ids: Tensor | None
    ref_ids: Tensor | None
    exclude_self: bool | Literal["auto"]
    ignore_index: int | None


class Comparing(TypedDict, total=False):
    """The keywords that say how two rows are compared."""

    distance: Distance
    normalize: bool | None


class Pairing(Relating, Comparing, total=False):
    """The keywords of `Pairs.of`."""


@dataclass(eq=False)
class Pairs:
    """Two sets of embeddings and the relation between them; but for the cache nobody changes them.

    x, y and all results are in the caller's order. Neither x nor y may change in place as long as
    their pairs are in use: scales and sorted copies are made once.
    """

    x: Tensor  # (N, D)
    y: Tensor | None  # (M, D); None: the same set
    relation: Relation
    scales: Scales
    cache: Cache = field(default_factory=Cache)  # other embeddings need another one
    complete: bool = False  # True: no row is ignored, as is known without looking
    measure: Measure | None = None  # the distance; None: a similarity
    copies_of: Tensor | None = None  # (N,) int64: the rows of other pairs that these are copies of
    shards: Shards | None = None  # with `group`: x and y are the rows of this rank alone

    @property
    def other(self) -> Tensor:
        return self.x if self.y is None else self.y

    @property
    def shape(self) -> tuple[int, int]:
        return self.x.shape[0], self.other.shape[0]

    def of_one_rank(self, what: str) -> "Pairs":
        """Return these pairs; ValueError if they have a group, which `what` cannot serve."""
        if self.shards is not None:
            raise ValueError(
                f"group is given; {what} has no form for several ranks: it must be None"
            )
        return self

    @property
    def batch(self) -> tuple[int, int]:
        """The shape, with the rows and columns of all ranks."""
        if self.shards is None:
            return self.shape
        rows, cols = self.shards.sizes
        return sum(rows), sum(cols)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of statistics and accumulators."""
        return torch.float64 if self.x.dtype == torch.float64 else torch.float32

    def at(self, value: float | Tensor) -> float | Tensor:
        """Return the closeness that `value`, a similarity or a distance, stands for."""
        return value if self.measure is None else -value

    def squares(self) -> Squares:
        """Return squared norms for the distance; made once only where no gradient leads through."""
        assert self.measure is not None, "a similarity takes nothing else"
        given = self.measure, self.x, self.y, self.relation, self.scales, self.dtype
        if torch.is_grad_enabled() or not followed_by_autograd_alone(self.x, self.y):
            return Squares.of(*given)
        key, made = self.measure.key, self.cache.squares
        if key not in made:
            made[key] = Squares.of(*given)
        found: Squares = made[key]
        return found

    def in_units(self, closeness: Tensor) -> Tensor:
        """Return the similarities or distances of pairs as close as this."""
        return closeness if self.measure is None else -closeness

    def positives(self) -> Tensor:
        """Return (N,) the number of positives of each row; 0 for an ignored row."""
        if self.shards is not None:
            return self.shards.positives
        counted = self.cache.positives
        return self.relation.positives() if counted is None else counted

    def counts(self) -> tuple[Tensor, Tensor]:
        """Return (N,) numbers of positives and of negatives of each row; 0 for an ignored row."""
        if self.shards is not None:
            return self.shards.positives, self.shards.others - self.shards.positives
        positives = self.positives()
        return positives, self.relation.partners() - positives

    def widened(self) -> "Pairs":
        """Return the same pairs with embeddings in the dtype of statistics.

        A loss that calls `row_stats` many times needs it: each call's 16-bit gradient would be
        rounded, and their sum once more.
        """
        x, y = at_least_float32(self.x), None if self.y is None else at_least_float32(self.y)
        return replace(self, x=x, y=y, cache=Cache(positives=self.cache.positives))

    def indices(self, axis: int = 0) -> Tensor:
        """Return the indices of the rows (axis 0) or columns (1) among those of all ranks."""
        rows = arange(self.x if axis == 0 else self.other)
        return rows if self.shards is None else rows + self.shards.first(axis)

    def of_all(self, axis: int, values: Tensor) -> Tensor:
        """Gather `values` of the rows (axis 0) or columns (1) of all ranks, in rank order."""
        if self.shards is None:
            return values
        every: Tensor = self.shards.group.rows(values, self.shards.sizes[axis])
        return every

    def with_differentiable_scales(self) -> "Pairs":
        """Return the same pairs with scales that carry a gradient to x and y."""
        if self.scales.x is None:
            return self
        valid_x, valid_y = self.relation.valid_x, self.relation.valid_y
        of_x = of_y = inverse_norm(torch.where(valid_x.unsqueeze(1), self.x, 0))
        if self.y is not None:
            of_y = inverse_norm(torch.where(valid_y.unsqueeze(1), self.y, 0))
        return replace(self, scales=Scales(of_x, of_y))

    @staticmethod
    @collective()
    def of(
        x: Tensor,
        labels: Tensor,
        *,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        ids: Tensor | None = None,
        ref_ids: Tensor | None = None,
        exclude_self: bool | Literal["auto"] = "auto",
        ignore_index: int | None = -100,
        distance: Distance = "cosine",
        normalize: bool | None = None,
        group: Given = None,
    ) -> "Pairs":
        """Pairs by label: j is a positive of i if their labels are equal, else a negative.

        x: (N, D) float16, bfloat16, float32 or float64.

        labels: (N,) integers, compared exactly.

        ref_emb, ref_labels: (M, D) and (M,); the other set. Without them x is compared with itself.

        ids, ref_ids: (N,) and (M,) integers that name rows across the sets; a reference with the id
        of an anchor is that anchor itself (the first one, should several have it) and no pair of
        it.

        exclude_self: "auto" leaves a row's own pair out when x is compared with itself, when
        ref_emb is the very tensor x, and by ids where they are given; True says that reference i is
        anchor i; False keeps every pair.

        ignore_index: a row with this label is neither anchor nor reference.

        distance: "cosine" and "dot" are similarities; "l2", "sqeuclidean" and "snr" (signal to
        noise, Var(x_i − y_j) / Var(x_i) over the features) are distances, d. What a loss says of
        similarities it then says of −d, and its margins and bases are distances. A distance that is
        0 within rounding has no gradient, and the snr of a row without variance is 0.

        normalize: compare unit vectors, as all distances but "dot" do unless told otherwise; a row
        with a norm below 1e-12 counts as 0 and gets no gradient.

        group: True or a process group of torch.distributed: x and ref_emb are this rank's rows, and
        are compared with the rows of all ranks. Every rank must call; see docs/distributed.md.
        """
        check_embeddings("x", x)
        return pairs_by_label(
            x, labels, ref_emb=ref_emb, ref_labels=ref_labels, ids=ids, ref_ids=ref_ids,
            exclude_self=exclude_self, ignore_index=ignore_index, distance=distance,
            normalize=normalize, group=Group.of(group),
        )  # fmt: skip

    @staticmethod
    def between(
        x: Tensor,
        y: Tensor | None,
        keys: tuple[Tensor, Tensor | None],
        self_index: Tensor | None,
        ignore_index: int | None,
        scaled: bool,
    ) -> "Pairs":
        """Make pairs by key, unchecked. self_index: (N,) the row of y that a row is, or −1."""
        known = sort_by_label(x, y, *keys, ignore_index, False, scaled)
        pairs = Pairs(x, y, *known, ignore_index is None or known[0].complete)
        if self_index is None or y is None or not y.shape[0]:
            return pairs
        relation, position = pairs.relation, inverse_permutation(pairs.relation.permutation_y)
        self_index = torch.where(self_index < 0, -1, position[self_index.clamp(min=0)])
        self_index = self_index[relation.permutation_x]
        cache = Cache(pairs.cache.prepared)  # with the same embeddings, but other counts
        return replace(pairs, relation=replace(relation, self_index=self_index), cache=cache)

    @staticmethod
    @collective()
    def paired(
        x: Tensor,
        y: Tensor,
        *,
        distance: Distance = "cosine",
        normalize: bool | None = None,
        group: Given = None,
    ) -> "Pairs":
        """Pairs by index: y_i is the one positive of x_i, every other y_j a negative.

        y: (M, D) with M ≥ N; rows beyond the N-th are nobody's positive.  distance, normalize,
        group: as in `Pairs.of`.
        """
        check_embeddings("x", x)
        return pairs_by_index(x, y, distance=distance, normalize=normalize, group=Group.of(group))

    def _measured(self, distance: Distance) -> "Pairs":
        return self if distance in ("cosine", "dot") else replace(self, measure=Measure(distance))


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
    distance: Distance = "cosine",
    normalize: bool | None = None,
    group: Group | None = None,
) -> Pairs:
    """Make `Pairs.of` for a loss that has checked x and agreed with the other ranks."""
    if exclude_self != "auto" and not isinstance(exclude_self, bool):
        raise ValueError(f'exclude_self is {exclude_self!r}; it must be True, False or "auto"')
    if ignore_index is not None and type(ignore_index) is not int:
        kind, whole = type(ignore_index).__name__, plain_int(ignore_index)
        if whole is None:
            raise TypeError(f"ignore_index is {kind}; it must be an int or None")
        ignore_index = whole
    if ignore_index is not None and not -_LAST - 1 <= ignore_index <= 2 * _LAST + 1:
        raise ValueError(f"ignore_index is {ignore_index}; it must fit in 64 bits")
    unit = compares_units(distance, normalize)
    as_given = labels, ref_labels
    labels = whole_numbers("labels", labels, "x", x)
    if ref_emb is None:
        for name, given in (("ref_labels", ref_labels), ("ids", ids), ("ref_ids", ref_ids)):
            if given is not None:
                raise ValueError(f"{name} is given without ref_emb; it must come with one")
        self_index, names = arange(x) if group is not None and exclude_self else None, None
    else:
        check_embeddings("ref_emb", ref_emb, like=("x", x))
        if ref_labels is None:
            raise ValueError("ref_labels is None; it must be given with ref_emb")
        ref_labels = whole_numbers("ref_labels", ref_labels, "ref_emb", ref_emb)
        names = named(x, ref_emb, ids, ref_ids, exclude_self)
        self_index = self_index_of(x, ref_emb, exclude_self) if names is None else None
    if torch.uint64 in [z.dtype for z in as_given if z is not None]:
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
        fingerprint = _fingerprint(x, ref_emb, distance, unit)
        fingerprint["ignore_index"], keys = str(ignore_index), (labels, ref_labels)
        shards = Shards.of(group, fingerprint, keys, self_index, names, ignore_index)
        pairs = Pairs.between(x, ref_emb, keys, None, ignore_index, scaled)
        return replace(pairs, shards=shards)._measured(distance)
    if ref_emb is None:
        known = sort_by_label(x, None, labels, None, ignore_index, bool(exclude_self), scaled)
        pairs = Pairs(x, None, *known, ignore_index is None or known[0].complete)
    else:
        self_index = self_index if names is None else first_named(*names)
        pairs = Pairs.between(x, ref_emb, (labels, ref_labels), self_index, ignore_index, scaled)
    return pairs._measured(distance)


def pairs_by_index(
    x: Tensor,
    y: Tensor,
    *,
    distance: Distance = "cosine",
    normalize: bool | None = None,
    group: Group | None = None,
) -> Pairs:
    """Make `Pairs.paired` for a loss that has checked x and agreed with the other ranks."""
    check_embeddings("y", y, like=("x", x))
    if y.shape[0] < x.shape[0]:
        raise ValueError(
            f"y has {y.shape[0]} rows; it must have at least {x.shape[0]}, one for each of x"
        )
    unit = compares_units(distance, normalize)
    if distance == "snr":
        x, y = centred("x", x, None, None, unit), centred("y", y, None, None, unit)
    elif distance in ("l2", "sqeuclidean") and not unit:
        x, y = at_least_float32(x), at_least_float32(y)
    # Columns without a partner need a permutation of their own, as labels give.
    apart = x.shape[0] != y.shape[0]
    of_x, of_y = (arange(x), arange(y)) if apart else (None, None)
    known = sort_by_label(x, y, of_x, of_y, None, False, unit and distance != "snr")
    pairs = Pairs(x, y, *known, complete=True)
    if group is not None:
        shards = Shards.by_index(group, _fingerprint(x, y, distance, unit), x, y)
        pairs = replace(pairs, shards=shards)
    return pairs._measured(distance)


def _fingerprint(x: Tensor, y: Tensor | None, distance: Distance, unit: bool) -> dict[str, str]:
    """Return a fingerprint of the arguments, which must be the same on all ranks."""
    sets = {name: kind_of(z) for name, z in (("x", x), ("the other set", y)) if z is not None}
    return {**sets, "distance": f"{distance}{' of unit vectors' * unit}"}
