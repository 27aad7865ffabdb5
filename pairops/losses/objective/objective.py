"""What a loss is asked for besides its formula: weights, a reduction, a look at its statistics."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypedDict

import torch
from torch import Tensor

from pairops.ops.pairs.checks import check_embeddings
from pairops.ops.terms.functions import one
from pairops.ops.distributed.group import Given, Group
from pairops.ops.pairs.pairs import Comparing, Pairing, Pairs, Relating
from pairops.ops.row_stats.op import row_stats
from pairops.ops.terms.term import NEG, POS, Term, highest, lowest, total
from .scalars import Reduction, average, check_reduction, over_ranks, reduce

__all__ = ["Asked", "Aux"]

# A Tensor; with return_aux=True a tuple (Tensor, Aux).
Value: TypeAlias = Any


class Asked(TypedDict, total=False):
    """The keywords that every loss has.

    weight: (N,) a factor per anchor, not negative.  reduction: see `pairops.losses.reduction`.
    return_aux: also return an `Aux`.  group: True, for the default one, or a process group of
    torch.distributed: the rows given are this rank's, and the batch is that of all ranks; see
    `docs/distributed.md`.
    """

    weight: Tensor | None
    reduction: Reduction
    return_aux: bool
    group: Given


class Labelled(Pairing, Asked, total=False):
    """The keywords of a loss over labels: these, and those of `Pairs.of`."""


class LabelledApart(Relating, Asked, total=False):
    """The same of a loss that has a distance of its own."""

    normalize: bool | None


class LabelledAlone(Comparing, Asked, total=False):
    """The same of a loss whose sets are its own arguments: no references, nobody is left out."""

    ignore_index: int | None


class Paired(Comparing, Asked, total=False):
    """The keywords of a loss over two sets that belong together row by row."""


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
        """Of keywords that `split` has checked."""
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
        **log_sum_exps: Tensor,
    ) -> Value:
        """`value`, with an `Aux` if one is wanted.

        below, above: (N,) windows in which positives and negatives were mined.
        """
        if not self.return_aux:
            return value
        pairs = self.pairs
        terms: list[Term] = [lowest(POS, grad=False), highest(NEG, grad=False)]
        if below is not None:
            terms.append(total(POS, function=one, below=below))
        if above is not None:
            terms.append(total(NEG, function=one, above=above))
        with torch.no_grad():
            far, near, *mined = row_stats(pairs, *terms)
            counts = iter([count.long() for count in mined])
            return value, Aux(
                *pairs.counts(),
                pairs.in_units(far),
                pairs.in_units(near),
                None if below is None else next(counts),
                None if above is None else next(counts),
                {name: statistic.detach() for name, statistic in log_sum_exps.items()},
            )


def split(
    common: Mapping[str, Any], anchors: Tensor, name: str = "x", *, averages_pairs: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords of `Objective.of`, checked, and those of `Pairs`. Both have the group.

    Checked before anything else: what a rank refuses after the others have begun, they are not told
    of.  anchors: (N, D), one for each loss; the argument `name`.  averages_pairs: does the loss
    have the reduction "mean_pairs"?
    """
    asked = {name: common[name] for name in Asked.__annotations__ if name in common}
    check_embeddings(name, anchors)
    reduction, weight = asked.get("reduction", "mean"), asked.get("weight")
    check_reduction(reduction, weight, len(anchors), averages_pairs)
    return_aux = asked.get("return_aux", False)
    if not isinstance(return_aux, bool):
        raise TypeError(f"return_aux is {type(return_aux).__name__}; it must be a bool")
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
    return Objective.of(Pairs.of(x, labels, **pairing, **fixed), **asked)


def paired(x: Tensor, y: Tensor, common: Paired) -> Objective:
    """The objective of a loss over two sets that belong together row by row."""
    asked, comparing = split(common, x)
    return Objective.of(Pairs.paired(x, y, **comparing), **asked)


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


def threshold(value: float | Tensor, pairs: Pairs) -> Tensor:
    """A number as the window of a term; no gradient reaches it there."""
    if isinstance(value, Tensor):
        return value
    return torch.full((), value, dtype=pairs.dtype, device=pairs.x.device)
