"""The softmax family over labels: an anchor is to find its positives among all references."""

import torch
from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.distributed.agreement import collective
from pairops.ops.distributed.group import Given
from pairops.ops.pairs.distances import Distance
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.row_stats.op import row_stats
from pairops.ops.row_stats.pieces import less_mean, softplus_of
from pairops.ops.terms.functions import softplus_from
from pairops.ops.terms.term import ALL, NEG, POS, Earlier, highest, lse, total

from .objective.keywords import Labelled, LabelledAlone, LabelledApart, Value
from .objective.lone_batches import warn_without_positives
from .objective.objective import Objective, labelled, split
from .objective.scalars import number

__all__ = ["decoupled_softmax_loss", "n_pair_loss", "nca_loss", "nt_xent_loss", "supcon_loss"]


@collective()
def supcon_loss(
    x: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    *,
    temperature: float | Tensor = 0.1,
    **common: Unpack[Labelled],
) -> Value:
    """ℓ_i = log Σ_{j≠i} e^{s_ij/τ} − 1/|P_i| Σ_p s_ip/τ, 0 for an anchor without positives.

    temperature: τ above 0; a number or a 0-d tensor with gradient. Of distances s is −d. Other
    arguments, errors and the returned dtype: as in `ms_loss`.

    Source: Khosla et al., Supervised Contrastive Learning, 2020. SupContrast multiplies by τ/τ_base
    (1.43 at its defaults of another τ); here there is no such factor. "mean" counts anchors without
    positives, as SupContrast does; "mean_nonzero" leaves them out, as pytorch-metric-learning does,
    which also returns 0 for a batch without negatives.
    """
    scale = 1 / number("temperature", temperature, positive=True)
    objective = labelled(x, labels, common)
    pairs = objective.pairs
    warn_without_positives(pairs)
    near = highest(POS, grad=False)
    neg, pos = lse(NEG, scale, near), lse(POS, scale, near)
    sums = total(POS, scale, near)
    # log Σ over all less the log Σ over positives, and of several of these less their mean.
    pieces = softplus_of(neg, pos), less_mean(pos, sums)
    return objective.of_pieces((near, neg, pos, sums), pieces, all=lse(ALL, scale, 0.0))


@collective()
def nt_xent_loss(
    x: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    *,
    temperature: float | Tensor = 0.07,
    **common: Unpack[Labelled],
) -> Value:
    """ℓ_i = 1/|P_i| Σ_p log(1 + Σ_n e^{(s_in − s_ip)/τ}), 0 for an anchor without positives.

    Each positive competes with the negatives and not with other positives.

    temperature: τ above 0; a number or a 0-d tensor with gradient. Of distances s is −d.
    reduction="mean_pairs": the average over all positive pairs. Other arguments, errors and the
    returned dtype: as in `ms_loss`.

    Source: Sohn, 2016; Chen et al., SimCLR, 2020, which has one positive per anchor. With
    reduction="mean_pairs" equal to pytorch-metric-learning's NTXentLoss, but for the tiny number
    that it adds to a probability.
    """
    scale = 1 / number("temperature", temperature, positive=True)
    objective = labelled(x, labels, common, averages_pairs=True)
    pairs = objective.pairs
    warn_without_positives(pairs)
    near, positives = highest(POS, grad=False), pairs.positives()
    neg = lse(NEG, scale, near)
    against = Earlier(neg, grad=True)
    _, _, sums = row_stats(
        pairs, near, neg, total(POS, -scale, near, against, function=softplus_from)
    )
    negative = lse(NEG, scale, 0.0)
    if objective.averages_pairs:
        return objective.mean_pairs((sums, positives), negative=negative)
    return objective.value(sums / positives.clamp(min=1), negative=negative)


@collective()
def decoupled_softmax_loss(
    x: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    *,
    temperature: float | Tensor = 0.05,
    **common: Unpack[Labelled],
) -> Value:
    """ℓ_i = 1/|P_i| Σ_p log(1 + Σ_n e^{(s_in − s_ip)/τ}): `nt_xent_loss` against classes.

    Extreme classification: the references are class embeddings, `ref_emb` (C, D) and `ref_labels`
    (C,), of which several may have one label. Arguments, errors and the returned dtype: as in
    `nt_xent_loss`.

    Source: Gupta et al., Dual-Encoders for Extreme Multi-Label Classification (DEXML), 2024. Its
    code draws one positive per query unless it is told not to, and leaves the others in the
    denominator at e^{−100}; here all count, each on its own.
    """
    return nt_xent_loss(x, labels, temperature=temperature, **common)


@collective()
def nca_loss(
    x: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    *,
    scale: float | Tensor = 1.0,
    distance: Distance = "sqeuclidean",
    **common: Unpack[LabelledApart],
) -> Value:
    """ℓ_i = −log (Σ_p e^{−γ d_ip} / Σ_{j≠i} e^{−γ d_ij}), 0 for an anchor without positives.

    scale: γ above 0; a number or a 0-d tensor with gradient. Of similarities −d is s. Other
    arguments, errors and the returned dtype: as in `ms_loss`.

    Source: Goldberger et al., Neighbourhood Components Analysis, 2004. With
    reduction="mean_nonzero" equal to pytorch-metric-learning's NCALoss, which is NaN for a batch
    without positives.
    """
    scale = number("scale", scale, positive=True)
    objective = labelled(x, labels, common, distance=distance)
    pairs = objective.pairs
    warn_without_positives(pairs)
    near = highest(POS, grad=False)
    # Not the difference of two sums of which one holds the other: it would be 0 within rounding.
    pos, neg = lse(POS, scale, near), lse(NEG, scale, near)
    return objective.of_pieces(
        (near, pos, neg), [softplus_of(neg, pos)],
        positive=lse(POS, scale, 0.0), negative=lse(NEG, scale, 0.0),
    )  # fmt: skip


@collective()
def n_pair_loss(
    x: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    **common: Unpack[LabelledAlone],
) -> Value:
    """ℓ_a = log Σ_c e^{s_{a,p(c)}} − s_{a,p(a)}: a finds its positive among one of every class.

    Of each label with two rows or more the first is an anchor a, the second its positive p. Other
    rows are as if ignored: 0 with reduction="none", and not counted in "mean".

    distance: "dot" unless told otherwise.  weight, reduction, return_aux, ignore_index, normalize,
    errors and the returned dtype: as in `ms_loss`.

    Source: Sohn, Improved Deep Metric Learning with Multi-class N-pair Loss, 2016, without its
    penalty on norms. With distance="cosine" equal to pytorch-metric-learning's NPairsLoss, whose
    dot product is of unit vectors.
    """
    asked, pairing = split({"distance": "dot", **common}, x)
    first, second = _first_two(x, labels, pairing.pop("ignore_index", -100), pairing.get("group"))
    pairs = Pairs.of(
        x,
        first,
        ref_emb=x,
        ref_labels=second,
        exclude_self=False,
        ignore_index=-1,
        **pairing,
    )
    objective = Objective.of(pairs, **asked)
    warn_without_positives(pairs)
    near = highest(POS, grad=False)
    neg, pos = lse(NEG, 1.0, near), total(POS, 1.0, near)
    return objective.of_pieces((near, neg, pos), [softplus_of(neg, pos)], all=lse(ALL, 1.0, 0.0))


def _first_two(
    x: Tensor, labels: Tensor, ignore_index: int | None, group: Given
) -> tuple[Tensor, Tensor]:
    """(N,) the class of the first row of each label, and of the second; −1 for all other rows.

    The classes are places in the order of labels, of all ranks.
    """
    pairs = Pairs.of(x.detach(), labels, ignore_index=ignore_index, distance="dot", group=group)
    every = pairs.of_all(0, labels.to(x.device, torch.int64))
    ordered, order = torch.sort(every, stable=True)
    begin = torch.searchsorted(ordered, ordered)
    rank = torch.arange(len(every), device=x.device) - begin
    begin, rank = (torch.empty_like(z).scatter(0, order, z)[pairs.indices()] for z in (begin, rank))
    has_positive = pairs.positives() > 0
    first, second = (torch.where(has_positive & (rank == k), begin, -1) for k in (0, 1))
    return first, second
