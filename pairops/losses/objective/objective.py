"""The objective of a call: one loss per anchor, weighted and reduced to what is trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from pairops.ops.distributed.group import Given, Group
from pairops.ops.pairs.checks import check_embeddings
from pairops.ops.pairs.pairs import Pairs, pairs_by_index, pairs_by_label
from pairops.ops.row_stats.op import row_stats
from pairops.ops.row_stats.pieces import Piece, losses_of
from pairops.ops.row_stats.small_mean import small_mean
from pairops.ops.row_stats.softplus_mean import softplus_mean, softplus_mean_serves
from pairops.ops.terms.functions import one
from pairops.ops.terms.term import NEG, POS, Term, highest, lowest, total

from .keywords import Asked, Paired, Reduction, Value
from .reduction import average, check_reduction, over_ranks, reduce

__all__ = ["Aux"]

_ASKED = (*Asked.__annotations__, "return_aux")


@dataclass(frozen=True, eq=False)
class Aux:
    """What a loss saw of every anchor: detached, on the device, and never read back.

    Similarities and distances are as the caller means them; where an anchor has no such pair they
    are infinite.
    """

    positives: Tensor  # (N,) int64
    negatives: Tensor  # (N,) int64
    farthest_positive: Tensor  # (N,) lowest similarity or longest distance
    nearest_negative: Tensor  # (N,)
    mined_positives: Tensor | None = None  # (N,) int64; None for a loss that mines nothing
    mined_negatives: Tensor | None = None
    log_sum_exps: Mapping[str, Tensor] = field(default_factory=dict)  # (N,) by name, if it has any


def _tensors(aux: Aux) -> tuple[list[Any], list[str]]:
    """What torch.func carries through `vmap` and `has_aux`, and its names; it takes no None."""
    seen = {name: value for name, value in vars(aux).items() if value is not None}
    return list(seen.values()), list(seen)


register_pytree_node(
    Aux, _tensors, lambda values, names: Aux(**dict(zip(names, values, strict=True)))
)


@dataclass(frozen=True, eq=False)
class Objective:
    """The pairs of a call, and what is made of the losses of their anchors."""

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
            weight: (N,) a factor for each anchor, not negative. None: 1.
            reduction: "mean" over the anchors that are not ignored; "mean_nonzero", over those with
                a loss above 0; "sum"; "none", a loss for each anchor, 0 for an ignored one; and for
                a loss that adds up over pairs "mean_pairs", the mean over its pairs.
            return_aux: also return an `Aux`.
            group: a process group of torch.distributed, or "auto" for the default group if there is
                one: the rows given are this rank's, and the batch is that of all ranks. Every rank
                must call; see docs/distributed.md. None: the rows given are all.
        """
        return Objective(pairs, weight, reduction, return_aux, Group.of(group))

    @property
    def averages_pairs(self) -> bool:
        return self.reduction == "mean_pairs"

    def total(self, values: Tensor) -> Tensor:
        """`values` summed over the ranks, if there are several."""
        return over_ranks(values, self.group)

    def value(self, losses: Tensor, **seen: Any) -> Value:
        """The losses (N,) reduced. seen: as in `answer`."""
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
        """The sum of pieces of statistics of every anchor, reduced; or of averages over pairs.

        below, above, log_sum_exps: as in `answer`, as terms, of these or of others.
        """
        pairs = self.pairs
        plain = self.reduction in ("mean", "mean_pairs") and self.weight is None
        plain = plain and self.group is None
        mean = small_mean(pairs, rows, cols, pieces) if plain else None
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
            averages = [(by_term[piece.plus], by_term[piece.minus]) for piece in pieces]  # type: ignore[index]
            return self.mean_pairs(*averages, **seen)
        parts = [(by_term[piece.plus], piece.weight) for piece in pieces]
        only_soft = [piece.shape == "log1p_exp" and piece.minus is None for piece in pieces]
        if plain and all(only_soft) and softplus_mean_serves(pairs, parts):
            divisors = [1 / weight for _, weight in parts if not isinstance(weight, Tensor)]
            return self.answer(softplus_mean(pairs, [z for z, _ in parts], divisors), **seen)
        n = pairs.x.shape[0]
        if cols:  # of columns beyond the rows nobody is an anchor
            by_term |= {term: by_term[term][:n] for term in cols}
        return self.value(losses_of(pieces, by_term, pairs), **seen)

    def mean_pairs(self, *parts: tuple[Tensor, Tensor], **seen: Any) -> Value:
        """Of parts (sums over an anchor's pairs, numbers of these), each (N,): their averages over
        all pairs of the batch, added up. seen: as in `answer`."""
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
        """`value`, with an `Aux` if one is wanted.

        below, above: (N,) windows in which positives and negatives were mined.  log_sum_exps:
        statistics (N,), or terms that tell what is to be made of the pairs then.
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
    """Keywords of `Objective.of`, checked, and those of `Pairs`. Both have the group.

    Checked before anything else: what a rank refuses after the others have begun, they are not told
    of.  anchors: (N, D), one for each loss; the argument `name`.  averages_pairs: does the loss
    have the reduction "mean_pairs"?
    """
    check_embeddings(name, anchors)
    if not common:
        return {}, {}
    asked = {name: common[name] for name in _ASKED if name in common}
    reduction, weight = asked.get("reduction", "mean"), asked.get("weight")
    check_reduction(reduction, weight, len(anchors), averages_pairs)
    rest = {name: given for name, given in common.items() if name not in asked or name == "group"}
    return asked, rest


def labelled(
    x: Tensor,
    labels: Tensor,
    common: Mapping[str, Any],
    *,
    averages_pairs: bool = False,
    **fixed: Any,
) -> Objective:
    """The objective of a loss over labels. fixed: keywords of `Pairs.of` that the loss decides."""
    asked, pairing = split(common, x, averages_pairs=averages_pairs)
    pairs = pairs_by_label(x, labels, **pairing, **fixed)
    return Objective.of(pairs, **asked) if asked else Objective(pairs)


def paired(x: Tensor, y: Tensor, common: Paired) -> Objective:
    """The objective of a loss over two sets that belong together row by row."""
    asked, comparing = split(common, x)
    pairs = pairs_by_index(x, y, **comparing)
    return Objective.of(pairs, **asked) if asked else Objective(pairs)


def check_one_for_each(x: Tensor, y: Tensor) -> None:
    """For two sets of which neither may have a row without a partner."""
    check_embeddings("x", x)
    check_embeddings("y", y, like=("x", x))
    if len(x) != len(y):
        raise ValueError(f"y has {len(y)} rows; it must have {len(x)}, one for each of x")


def similar_only(loss: str, pairs: Pairs) -> None:
    """For a formula that has no meaning on distances."""
    if pairs.measure is not None:
        raise ValueError(
            f"distance is {pairs.measure.name!r}; {loss} compares similarities, so it must be "
            "'cosine' or 'dot'"
        )
