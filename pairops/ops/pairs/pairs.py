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
from pairops.ops.distributed.agreement import collective
from pairops.ops.distributed.group import Given, Group
from pairops.ops.terms.tensor_checks import check_embeddings

from .distances import Distance, Measure, Squares
from .relation import Cache, Relation, Scales
from .shards import Shards
from .similarity import at_least_float32, inverse_norm
from .widths import width_of

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
    """Two sets of embeddings and the relation between them; nobody changes them but for the cache.

    `Pairs.of` and `Pairs.paired` make them. x, y and all results are in the caller's order. Neither
    x nor y may change in place as long as their pairs are in use: scales and sorted copies are made
    once.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the rows; with `relation.picked`, what the
            rows are picked from.
        y: (M, D) of the dtype of x, the columns. None: the same set.
        relation: both sets in sorted order, and for each row its positives, itself, and whether it
            counts.
        scales: inverse norms of the rows of x and y; None among them: dot products.
        cache: what is made once of these embeddings; other embeddings need another one.
        complete: True if it is known, without looking, that no row is ignored.
        measure: the distance that tells how near two rows are. None: their similarity does.
        copies_of: (N,) int64, the rows of other pairs that these rows are copies of, if they are.
        shards: with a group, the rows of all ranks that x and y are a part of. None: x and y are
            all.
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
        """The columns: y, or x if it is compared with itself."""
        return self.x if self.y is None else self.y

    @property
    def symmetric(self) -> bool:
        """Whether one set is compared with itself and (j, i) is a positive where (i, j) is.

        A list is directed."""
        return self.y is None and self.relation.entries is None

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and columns (N, M)."""
        picked = self.relation.picked
        return (self.x if picked is None else picked).shape[0], self.other.shape[0]

    def of_one_rank(self, what: str) -> "Pairs":
        """Return these pairs, or raise ValueError if they have a group.

        Args:
            what: the name of the function that has no form for several ranks, for the message.
        """
        if self.shards is not None:
            raise ValueError(
                f"group is given; {what} has no form for several ranks: it must be None"
            )
        return self

    @property
    def batch(self) -> tuple[int, int]:
        """The numbers of rows and columns of all ranks."""
        if self.shards is None:
            return self.shape
        rows, cols = self.shards.sizes
        return sum(rows), sum(cols)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of statistics and accumulators."""
        return torch.float64 if self.x.dtype == torch.float64 else torch.float32

    def at(self, value: float | Tensor) -> float | Tensor:
        """Convert a similarity or a distance into a closeness.

        Args:
            value: a number or a tensor; a similarity, or with a `measure` a distance.

        Returns:
            The closeness of a pair with this similarity or distance.
        """
        return value if self.measure is None else -value

    def squares(self) -> Squares:
        """Return what the distance of these pairs takes of rows and columns.

        In grad mode gradients lead through it, and it is made whenever it is asked for. Where
        nobody follows it, it is made once.
        """
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
        """Convert a closeness into a similarity or a distance.

        Args:
            closeness: a tensor, the closeness of pairs.

        Returns:
            The similarities, or with a `measure` the distances, of pairs as close as this.
        """
        return closeness if self.measure is None else -closeness

    def positives(self) -> Tensor:
        """Count the positives of every row.

        Returns:
            (N,) the numbers; 0 for an ignored row.
        """
        if self.shards is not None:
            return self.shards.positives
        counted = self.cache.positives
        return self.relation.positives() if counted is None else counted

    def counts(self) -> tuple[Tensor, Tensor]:
        """Count the positives and the negatives of every row.

        Returns:
            (N,) and (N,), the numbers; 0 for an ignored row.
        """
        if self.shards is not None:
            return self.shards.positives, self.shards.others - self.shards.positives
        positives = self.positives()
        return positives, self.relation.partners() - positives

    def widened(self) -> "Pairs":
        """Convert the embeddings to the dtype of statistics; the pairs are the same.

        This serves a loss that calls `row_stats` many times: each call's 16-bit gradient would be
        rounded, and their sum once more.
        """
        x, y = at_least_float32(self.x), None if self.y is None else at_least_float32(self.y)
        return replace(self, x=x, y=y, cache=Cache(positives=self.cache.positives))

    def indices(self, axis: int = 0) -> Tensor:
        """Return which rows or columns these are among those of all ranks.

        Args:
            axis: 0 for the rows, 1 for the columns.

        Returns:
            (N,) or (M,) int64.
        """
        rows = torch.arange(self.shape[axis], device=self.x.device)
        return rows if self.shards is None else rows + self.shards.first(axis)

    def of_all(self, axis: int, values: Tensor) -> Tensor:
        """Gather values of the rows or columns of all ranks, in the order of ranks.

        Args:
            axis: 0 for rows, 1 for columns.
            values: (N,) or (M,), one value for each row or column of this rank.

        Returns:
            The values of all ranks.
        """
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
        """Make pairs by label: j is a positive of i if their labels are equal, else a negative.

        Args:
            x: (N, D) float16, bfloat16, float32 or float64.
            labels: (N,) integers, compared exactly; or (N, C), bool or 0 and 1, several labels for
                each row: rows that share one are positives, and a row of zeros has none.
            ref_emb: (M, D) the other set, of the dtype of x. None: x is compared with itself.
            ref_labels: (M,) integers, or (M, C), the labels of `ref_emb`.
            ids: (N,) integers that name the rows of x across both sets. A reference with the id of
                an anchor is that anchor itself (the first one, should several have it) and no pair
                of it.
            ref_ids: (M,) integers that name the rows of `ref_emb`.
            exclude_self: "auto" leaves a row's own pair out when x is compared with itself, when
                `ref_emb` is x by its memory (the same start, shape and strides, as of x.detach()
                and x[:]; of two inputs of a compiled graph the very tensor), and by ids where they
                are given; True says that reference i is anchor i; False keeps every pair.
            ignore_index: a row with this label is neither anchor nor reference. None: no row is
                left out.
            distance: how two rows are compared. "cosine" and "dot" are similarities; "l2",
                "sqeuclidean" and "snr" (signal to noise, Var(x_i − y_j) / Var(x_i) over the
                features) are distances d. A loss treats a distance as the similarity −d, and takes
                its margins and bases as distances. A distance that is 0 within rounding has no
                gradient, and the snr of a row without variance is 0.
            normalize: True compares unit vectors, False rows as they are; a row with a norm below
                1e-12 counts as 0 and gets no gradient. None: True, but for "dot".
            group: a process group, or "auto" for the default process group of torch.distributed if
                there is one. x and `ref_emb` are this rank's rows, and are compared with the rows
                of all ranks. Every rank must call; see docs/distributed.md. None: these rows are
                all.

        Returns:
            The pairs, for `row_stats`.

        Raises:
            ValueError, TypeError: the message names the argument, what it was and must be.
        """
        from .by_label import pairs_by_label

        check_embeddings("x", x)
        return pairs_by_label(
            x, labels, ref_emb=ref_emb, ref_labels=ref_labels, ids=ids, ref_ids=ref_ids,
            exclude_self=exclude_self, ignore_index=ignore_index, distance=distance,
            normalize=normalize, group=Group.of(group),
        )  # fmt: skip

    @staticmethod
    @collective()
    def within(
        x: Tensor,
        values: Tensor,
        width: float,
        *,
        ref_emb: Tensor | None = None,
        ref_values: Tensor | None = None,
        ids: Tensor | None = None,
        ref_ids: Tensor | None = None,
        exclude_self: bool | Literal["auto"] = "auto",
        distance: Distance = "cosine",
        normalize: bool | None = None,
        group: Given = None,
    ) -> "Pairs":
        """Make pairs by number: j is a positive of i if |v_i − v_j| ≤ width, else a negative.

        Args:
            x: (N, D) float16, bfloat16, float32 or float64.
            values: (N,) real numbers v, compared in float64. NaN and infinite numbers are within no
                width: such a row has no positive, and is nobody's.
            width: a finite number, 0 or above.
            ref_emb: (M, D) the other set, of the dtype of x. None: x is compared with itself.
            ref_values: (M,) real numbers, those of `ref_emb`.
            ids: names of the rows of x across both sets, as in `Pairs.of`.
            ref_ids: names of the rows of `ref_emb`, as in `Pairs.of`.
            exclude_self: whether a row's own pair is left out, as in `Pairs.of`.
            distance: how two rows are compared, as in `Pairs.of`.
            normalize: True compares unit vectors, as in `Pairs.of`.
            group: the ranks that compare their rows, as in `Pairs.of`.

        Returns:
            The pairs, for `row_stats`.

        Raises:
            ValueError, TypeError: the message names the argument, what it was and must be.
        """
        from .by_label import pairs_by_label

        check_embeddings("x", x)
        return pairs_by_label(
            x, values, ref_emb=ref_emb, ref_labels=ref_values, ids=ids, ref_ids=ref_ids,
            exclude_self=exclude_self, ignore_index=None, width=width_of(width), distance=distance,
            normalize=normalize, group=Group.of(group), called=("values", "ref_values"),
        )  # fmt: skip

    @staticmethod
    @collective()
    def listed(
        x: Tensor,
        rows: Tensor,
        cols: Tensor,
        *,
        ref_emb: Tensor | None = None,
        ids: Tensor | None = None,
        ref_ids: Tensor | None = None,
        exclude_self: bool | Literal["auto"] = "auto",
        distance: Distance = "cosine",
        normalize: bool | None = None,
        group: Given = None,
    ) -> "Pairs":
        """Make pairs by list: column cols_k is a positive of row rows_k, every other a negative.

        A list is directed: of one set, (i, j) does not make (j, i) a positive too.

        Args:
            x: (N, D) float16, bfloat16, float32 or float64.
            rows: (K,) integers, rows of x; any number of pairs for each row, none for some.
            cols: (K,) integers, rows of the other set. A pair that is given twice counts once. A
                row's own pair is refused; on a GPU, where nobody waits for it, it is left out.
            ref_emb: (M, D) the other set, of the dtype of x. None: x is compared with itself.
            ids: names of the rows of x across both sets, as in `Pairs.of`.
            ref_ids: names of the rows of `ref_emb`, as in `Pairs.of`.
            exclude_self: whether a row's own pair is left out, as in `Pairs.of`.
            distance: how two rows are compared, as in `Pairs.of`.
            normalize: True compares unit vectors, as in `Pairs.of`.
            group: None: lists name rows of one process.

        Returns:
            The pairs, for `row_stats`. Every engine but "cuda" serves them.

        Raises:
            ValueError, TypeError: the message names the argument, what it was and must be.
        """
        from .by_list import pairs_by_list

        check_embeddings("x", x)
        return pairs_by_list(
            x, (rows, cols), ("rows", "cols"), ref_emb=ref_emb, ids=ids, ref_ids=ref_ids,
            exclude_self=exclude_self, distance=distance, normalize=normalize,
            group=Group.of(group),
        )  # fmt: skip

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
        """Make pairs by index: y_i is the one positive of x_i, every other y_j a negative.

        Args:
            x: (N, D) float16, bfloat16, float32 or float64.
            y: (M, D) with M ≥ N, of the dtype of x; rows beyond the N-th are nobody's positive.
            distance: how two rows are compared, as in `Pairs.of`.
            normalize: True compares unit vectors, as in `Pairs.of`.
            group: the ranks that compare their rows, as in `Pairs.of`.

        Returns:
            The pairs, for `row_stats`.

        Raises:
            ValueError, TypeError: the message names the argument, what it was and must be.
        """
        from .by_index import pairs_by_index

        check_embeddings("x", x)
        return pairs_by_index(x, y, distance=distance, normalize=normalize, group=Group.of(group))

    def measured(self, distance: Distance) -> "Pairs":
        """Return the same pairs, compared by this distance.

        Args:
            distance: as in `Pairs.of`.

        Returns:
            The pairs.
        """
        return self if distance in ("cosine", "dot") else replace(self, measure=Measure(distance))
