"""The objective of a call: one loss per anchor, weighted and reduced to a number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from pairops.ops.distributed.group import Given, Group
from pairops.ops.pairs.by_index import pairs_by_index
from pairops.ops.pairs.by_label import pairs_by_label
from pairops.ops.pairs.by_list import pairs_by_list
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.widths import width_of
from pairops.ops.row_stats.cuda_mean import cuda_mean
from pairops.ops.row_stats.op import row_stats
from pairops.ops.row_stats.pieces import Piece, losses_of
from pairops.ops.row_stats.small_mean import small_mean
from pairops.ops.row_stats.softplus_mean import softplus_mean, softplus_mean_serves
from pairops.ops.terms.checks import shown
from pairops.ops.terms.functions import one
from pairops.ops.terms.tensor_checks import check_embeddings, check_finite
from pairops.ops.terms.term import NEG, POS, Term, highest, lowest, total

from .keywords import Asked, Paired, Reduction, Value
from .lone_batches import warn_without_positives
from .reduction import average, check_reduction, over_ranks, reduce

__all__ = ["Aux"]

_ASKED = (*Asked.__annotations__, "return_aux")


@dataclass(frozen=True, eq=False)
class Aux:
    """What a loss saw of every anchor: detached, on the device, and never read back.

    Similarities and distances have the caller's sign. They are infinite where an anchor has no such
    pair.

    Args:
        positives: (N,) int64, how many positives an anchor has.
        negatives: (N,) int64, how many negatives an anchor has.
        farthest_positive: (N,) float, the lowest similarity or longest distance of a positive.
        nearest_negative: (N,) float, the highest similarity or shortest distance of a negative.
        mined_positives: (N,) int64, how many positives were mined. None: the loss mines none.
        mined_negatives: (N,) int64, how many negatives were mined. None: the loss mines none.
        log_sum_exps: log-sum-exps (N,) by name, if the loss has any.
    """

    positives: Tensor  # (N,) int64
    negatives: Tensor  # (N,) int64
    farthest_positive: Tensor  # (N,) lowest similarity or longest distance
    nearest_negative: Tensor  # (N,)
    mined_positives: Tensor | None = None  # (N,) int64; None for a loss that mines nothing
    mined_negatives: Tensor | None = None
    log_sum_exps: Mapping[str, Tensor] = field(default_factory=dict)  # (N,) by name, if it has any


def _tensors(aux: Aux) -> tuple[list[Any], list[str]]:
    """Split an Aux into tensors, which torch.func carries through, and names; None is no tensor."""
    seen = {name: value for name, value in vars(aux).items() if value is not None}
    return list(seen.values()), list(seen)


register_pytree_node(
    Aux, _tensors, lambda values, names: Aux(**dict(zip(names, values, strict=True)))
)


@dataclass(frozen=True, eq=False)
class Objective:
    """The pairs of a call, and how the losses of their anchors are weighted and reduced."""

    pairs: Pairs
    weight: Tensor | None = None
    reduction: Reduction = "mean"
    return_aux: bool = False
    group: Group | None = None

    @staticmethod
    def of(
        pairs: Pairs,
        *,
        weight: Tensor | None = None,
        reduction: Reduction = "mean",
        return_aux: bool = False,
        group: Given = None,
    ) -> "Objective":
        """Make an objective of keywords that `split` has checked.

        Args:
            pairs: the pairs of the call.
            weight: (N,) floating point, a factor for each anchor, not negative. None: 1.
            reduction: "mean" over the anchors that are not ignored; "mean_nonzero" over those with
                a loss above 0; "sum"; "none", a loss for each anchor, 0 for an ignored one;
                "mean_pairs", the mean over pairs, of a loss whose text mentions it.
            return_aux: True also returns an `Aux`.
            group: a process group of torch.distributed, or "auto" for the default group if there is
                one. The rows given are this rank's, and the batch is that of all ranks. Every rank
                must call; see docs/distributed.md. None: the rows given are all.

        Returns:
            The objective.
        """
        if weight is not None:
            check_finite("weight", weight, None if pairs.complete else pairs.relation.valid_x)
        return Objective(pairs, weight, reduction, return_aux, Group.of(group))

    @property
    def averages_pairs(self) -> bool:
        return self.reduction == "mean_pairs"

    def total(self, values: Tensor) -> Tensor:
        """Sum `values` over the ranks, if there are several."""
        return over_ranks(values, self.group)

    def highest(self, values: Tensor) -> Tensor:
        """Return the highest of `values` (N,) of all ranks, held constant; −inf without any."""
        top = (
            values.detach().amax(0, keepdim=True)
            if len(values)
            else values.new_full((1,), -torch.inf)
        )
        return (top if self.group is None else self.group.rows(top, (1,) * self.group.size)).amax()

    def warn_without_positives(self) -> None:
        """Warn, once per process, if no row has a positive; for a loss that is then 0."""
        if not self.pairs.relation.all_positive:
            warn_without_positives(self.pairs)

    def value(self, losses: Tensor, **seen: Any) -> Value:
        """Reduce losses (N,); `seen` goes to `answer`."""
        return self.answer(
            reduce(losses, self.pairs, self.weight, self.reduction, self.group), **seen
        )

    def of_pieces(
        self,
        rows: tuple[Term, ...],
        pieces: Sequence[Piece],
        cols: tuple[Term, ...] = (),
        /,
        *,
        below: Term | None = None,
        above: Term | None = None,
        **log_sum_exps: Term,
    ) -> Value:
        """Reduce losses that are sums of pieces of statistics of every anchor.

        Args:
            rows: terms of the rows.
            pieces: the pieces, each of statistics of these terms. With "mean_pairs" each is a pair
                (sums, counts) whose average is taken, and the averages are added up.
            cols: terms of the columns.
            below: a term, as in `answer`.
            above: a term, as in `answer`.
            log_sum_exps: terms by name, as in `answer`.
        """
        pairs = self.pairs
        plain = self.reduction in ("mean", "mean_pairs") and self.weight is None
        plain = plain and self.group is None
        mean = small_mean(pairs, rows, cols, pieces) if plain else None
        if plain and mean is None and not cols and not self.return_aux:
            mean = cuda_mean(pairs, rows, pieces)
        if mean is not None and not self.return_aux:
            return mean
        with torch.set_grad_enabled(torch.is_grad_enabled() and mean is None):
            values = row_stats(pairs, *rows, cols=cols)
        by_term = dict(zip(rows + cols, values, strict=True))
        seen: dict[str, Any] = {}
        if self.return_aux:
            given = {"below": below, "above": above, **log_sum_exps}
            seen = {name: by_term.get(term, term) for name, term in given.items()}  # type: ignore[arg-type]
        if mean is not None:
            return self.answer(mean, **seen)
        if self.averages_pairs:
            averages = [
                (by_term[z.plus], pairs.positives() if z.minus is None else by_term[z.minus])
                for z in pieces
            ]
            return self.mean_pairs(*averages, **seen)
        parts = [(by_term[piece.plus], piece.weight) for piece in pieces]
        only_soft = [piece.shape == "log1p_exp" and piece.minus is None for piece in pieces]
        if plain and all(only_soft) and softplus_mean_serves(pairs, parts):
            divisors = [1 / weight for _, weight in parts if not isinstance(weight, Tensor)]
            return self.answer(softplus_mean(pairs, [z for z, _ in parts], divisors), **seen)
        n = pairs.x.shape[0]
        if cols:  # a column beyond the rows is no anchor
            by_term |= {term: by_term[term][:n] for term in cols}
        return self.value(losses_of(pieces, by_term, pairs), **seen)

    def mean_pairs(self, *parts: tuple[Tensor, Tensor], **seen: Any) -> Value:
        """Add up averages over all pairs of the batch.

        Args:
            parts: (sums over an anchor's pairs, numbers of these pairs), each (N,), of one average.
            seen: what goes to `answer`.
        """
        means = [
            average(sums, counts, self.pairs, self.weight, self.group) for sums, counts in parts
        ]
        return self.answer(torch.stack(means).sum(), **seen)

    def answer(
        self,
        value: Tensor,
        *,
        below: Tensor | None = None,
        above: Tensor | None = None,
        **log_sum_exps: Tensor | Term,
    ) -> Value:
        """Return `value`, with an `Aux` if one is wanted.

        Args:
            value: the reduced loss.
            below: (N,) the window in which positives were mined. None: none were.
            above: (N,) the window in which negatives were mined. None: none were.
            log_sum_exps: statistics (N,), or terms whose statistics are taken only for an `Aux`.
        """
        if not self.return_aux:
            return value
        pairs = self.pairs
        terms: list[Term] = [lowest(POS, grad=False), highest(NEG, grad=False)]
        if below is not None:
            terms.append(total(POS, function=one, below=below))
        if above is not None:
            terms.append(total(NEG, function=one, above=above))
        asked = [term for term in log_sum_exps.values() if isinstance(term, Term)]
        with torch.no_grad():
            far, near, *rest = row_stats(pairs, *terms, *asked)
            counts = iter([count.long() for count in rest[: len(rest) - len(asked)]])
            made = iter(rest[len(rest) - len(asked) :])
            return value, Aux(
                *pairs.counts(),
                pairs.in_units(far),
                pairs.in_units(near),
                None if below is None else next(counts),
                None if above is None else next(counts),
                {
                    name: next(made) if isinstance(given, Term) else given.detach()
                    for name, given in log_sum_exps.items()
                },
            )


def split(
    common: Mapping[str, Any], anchors: Tensor, name: str = "x", *, averages_pairs: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split keywords into those of `Objective.of`, checked, and those of `Pairs`; both have group.

    A loss calls this before anything else: the other ranks do not learn what a rank refuses after
    they have begun.

    Args:
        common: the keywords of the call.
        anchors: (N, D), the anchors, one for each loss.
        name: the name of the argument `anchors`.
        averages_pairs: True if the loss has the reduction "mean_pairs".
    """
    check_embeddings(name, anchors)
    if not common:
        return {}, {}
    asked = {key: common[key] for key in _ASKED if key in common}
    reduction, weight = asked.get("reduction", "mean"), asked.get("weight")
    check_reduction(reduction, weight, (name, anchors), averages_pairs)
    rest = {key: given for key, given in common.items() if key not in asked or key == "group"}
    return asked, rest


def labelled(
    x: Tensor,
    labels: Tensor | None,
    common: Mapping[str, Any],
    *,
    averages_pairs: bool = False,
    **fixed: Any,
) -> Objective:
    """Make the objective of a loss over labels; it decides the keywords `fixed` of `Pairs.of`."""
    asked, pairing = split(common, x, averages_pairs=averages_pairs)
    positives = None
    if "width" in pairing or "positives" in pairing:
        positives = _checked_relation(labels, pairing)
    if positives is None:
        pairs = pairs_by_label(x, labels, **pairing, **fixed)  # type: ignore[arg-type]
    else:
        names = "positives[0]", "positives[1]"
        pairs = pairs_by_list(x, positives, names, **pairing, **fixed)
    return Objective.of(pairs, **asked) if asked else Objective(pairs)


def _checked_relation(
    labels: Tensor | None, pairing: dict[str, Any]
) -> tuple[Tensor, Tensor] | None:
    """Check the width and the list of a call, of which there may be one, and take the list out."""
    positives, width = pairing.pop("positives", None), pairing.get("width")
    if width is not None:
        pairing["width"] = width_of(width)
    if width is None and positives is None:
        return None
    if "ignore_index" in pairing:
        name, are = ("width", "numbers") if positives is None else ("positives", "None")
        raise ValueError(
            f"ignore_index is given with {name}; labels are {are} then, so it must be left out"
        )
    if positives is None:
        return None
    given = {"labels": labels, "width": width, "ref_labels": pairing.get("ref_labels")}
    for name, other in given.items():
        if other is not None:
            raise ValueError(f"{name} is given with positives; it must be None")
        pairing.pop(name, None)
    if not isinstance(positives, (tuple, list)) or len(positives) != 2:
        raise TypeError(
            f"positives is {shown(positives)}; it must be (rows, cols), two integer tensors (K,)"
        )
    return positives[0], positives[1]


def paired(x: Tensor, y: Tensor, common: Paired) -> Objective:
    """Make the objective of a loss over two sets that belong together row by row."""
    asked, comparing = split(common, x)
    pairs = pairs_by_index(x, y, **comparing)
    return Objective.of(pairs, **asked) if asked else Objective(pairs)


def all_negatives(x: Tensor, others: Tensor, **comparing: Any) -> Pairs:
    """Make pairs of the rows of x with another set, all of them negatives."""
    zeros, ones = (
        torch.full(z.shape[:1], k, dtype=torch.int64, device=z.device)
        for k, z in enumerate((x, others))
    )
    return pairs_by_label(x, zeros, ref_emb=others, ref_labels=ones, ignore_index=None, **comparing)


def check_one_for_each(x: Tensor, y: Tensor, name: str = "y") -> None:
    """Refuse two sets where a row of one has no partner in the other."""
    check_embeddings("x", x)
    check_embeddings(name, y, like=("x", x))
    if len(x) != len(y):
        raise ValueError(f"{name} has {len(y)} rows; it must have {len(x)}, one for each of x")


def similar_only(loss: str, pairs: Pairs) -> None:
    """Refuse a distance; for a formula that has no meaning on distances."""
    if pairs.measure is not None:
        raise no_similarity(loss, pairs.measure.name)


def no_similarity(loss: str, distance: str) -> ValueError:
    """Make the error of a distance where a loss compares similarities."""
    return ValueError(
        f"distance is {distance!r}; {loss} compares similarities, so it must be 'cosine' or 'dot'"
    )
