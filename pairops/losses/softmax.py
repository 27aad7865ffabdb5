"""The softmax family over labels: an anchor is to find its positives among all references."""

import torch
from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.distributed.group import Given
from pairops.ops.pairs.distances import Distance
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.row_stats.pieces import less_mean, mean_over_positives, per_pair, softplus_of
from pairops.ops.terms.functions import softplus_from
from pairops.ops.terms.tensor_checks import number, whole_numbers
from pairops.ops.terms.term import ALL, NEG, POS, Earlier, highest, lse, total

from .objective.keywords import Labelled, LabelledAloneApart, LabelledApart, Value
from .objective.objective import Objective, labelled, split
from .objective.registration import loss
from .objective.views import rows_of_views
from .several_labels import PositiveWeight, weighted_supcon

__all__ = ["decoupled_softmax_loss", "n_pair_loss", "nca_loss", "nt_xent_loss", "supcon_loss"]


@loss()
def supcon_loss(
    x: Tensor,  # (N, D) or (N, V, D)
    labels: Tensor | None,  # (N,)
    *,
    temperature: float | Tensor = 0.1,
    positive_weight: PositiveWeight = "equal",
    **common: Unpack[Labelled],
) -> Value:
    """ℓ_i = log Σ_{j≠i} e^{s_ij/τ} − 1/|P_i| Σ_p s_ip/τ, 0 for an anchor without positives.

    With a distance d, s is −d. `reduction="mean"` counts anchors without positives, and
    "mean_nonzero" leaves them out.

    Where each row has several labels, A_i, positives may be weighted by how many they share with
    the anchor: the mean is then Σ_p w_ip s_ip/τ over Σ_p w_ip.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings; or (N, V, D), V views of
            each of N: they are rows of their own, and positives of one another.
        labels: (N,) integers, or (N, C) as in `Pairs.of`; rows with equal ones are positives. Of
            views None stands for N different labels.
        temperature: a number above 0 or a 0-d tensor with gradient: τ.
        positive_weight: "equal", w_ip = 1; of labels (N, C) also "shared", the number of labels
            that both have, or "jaccard", that over the number that one of them has. The engines
            "blockwise" and "dense" serve these two.

    Source:
        Khosla et al., Supervised Contrastive Learning, 2020.

    Differs from:
        SupContrast multiplies by τ/τ_base, 1.43 at τ = 0.1 with its default τ_base = 0.07; here
        there is no such factor. SupContrast averages as "mean" does. pytorch-metric-learning
        averages as "mean_nonzero" does, and also returns 0 for a batch without negatives.
    """
    scale = 1 / number("temperature", temperature, positive=True)
    if isinstance(x, Tensor) and x.ndim == 3:
        x, labels = rows_of_views(x, labels, common)
    if type(positive_weight) is not str or positive_weight != "equal":
        return weighted_supcon(x, labels, scale, positive_weight, common)
    objective = labelled(x, labels, common)
    objective.warn_without_positives()
    near = highest(POS, grad=False)
    neg, pos = lse(NEG, scale, near), lse(POS, scale, near)
    sums = total(POS, scale, near)
    # log Σ over all less log Σ over positives, and log Σ over positives less their mean.
    pieces = softplus_of(neg, pos), less_mean(pos, sums)
    return objective.of_pieces((near, neg, pos, sums), pieces, all=lse(ALL, scale, 0.0))


@loss()
def nt_xent_loss(
    x: Tensor,  # (N, D) or (N, V, D)
    labels: Tensor | None,  # (N,)
    *,
    temperature: float | Tensor = 0.07,
    **common: Unpack[Labelled],
) -> Value:
    """ℓ_i = 1/|P_i| Σ_p log(1 + Σ_n e^{(s_in − s_ip)/τ}), 0 for an anchor without positives.

    Each positive competes with the negatives and not with other positives. With a distance d, s is
    −d. `reduction="mean_pairs"` averages over all positive pairs.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings; or (N, V, D), V views of
            each of N: they are rows of their own, and positives of one another.
        labels: (N,) integers, or (N, C) as in `Pairs.of`; rows with equal ones are positives. Of
            views None stands for N different labels.
        temperature: a number above 0 or a 0-d tensor with gradient: τ.

    Source:
        Sohn, 2016; Chen et al., SimCLR, 2020, which has one positive per anchor. With
        reduction="mean_pairs" the loss equals pytorch-metric-learning's NTXentLoss, but for the
        difference below.

    Differs from:
        pytorch-metric-learning adds a tiny number to a probability.
    """
    if isinstance(x, Tensor) and x.ndim == 3:
        x, labels = rows_of_views(x, labels, common)
    return _nt_xent(x, labels, temperature, common)


@loss()
def decoupled_softmax_loss(
    x: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,)
    *,
    temperature: float | Tensor = 0.05,
    **common: Unpack[Labelled],
) -> Value:
    """ℓ_i = 1/|P_i| Σ_p log(1 + Σ_n e^{(s_in − s_ip)/τ}): `nt_xent_loss` against classes.

    The loss is for extreme classification: anchors are queries, the references are embeddings of
    classes, and the positives of a query are all classes that it has. `positives=(rows, cols)`
    lists them, as sparse labels are stored; labels (N, C) with `ref_labels=torch.eye(C)` say the
    same, and labels (N,) with `ref_labels` (C,) that a query has one class. An anchor without
    positives contributes 0, and counts in "mean". With a distance d, s is −d.
    `reduction="mean_pairs"` averages over all positive pairs.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        labels: (N,) integers, or (N, C) as in `Pairs.of`; rows with equal ones are positives.
        temperature: a number above 0 or a 0-d tensor with gradient: τ.

    Source:
        Gupta et al., Dual-Encoders for Extreme Multi-Label Classification (DEXML), 2024.

    Differs from:
        The authors' code draws one positive per query unless it is told not to, and leaves the
        others in the denominator at e^{−100}. Here all positives count, each on its own.
    """
    return _nt_xent(x, labels, temperature, common)


def _nt_xent(
    x: Tensor, labels: Tensor | None, temperature: float | Tensor, common: Labelled
) -> Value:
    scale = 1 / number("temperature", temperature, positive=True)
    objective = labelled(x, labels, common, averages_pairs=True)
    objective.warn_without_positives()
    near = highest(POS, grad=False)
    neg = lse(NEG, scale, near)
    sums = total(POS, -scale, near, Earlier(neg, grad=True), function=softplus_from)
    mean = per_pair(sums) if objective.averages_pairs else mean_over_positives(sums)
    return objective.of_pieces((near, neg, sums), [mean], negative=lse(NEG, scale, 0.0))


@loss()
def nca_loss(
    x: Tensor,  # (N, D)
    labels: Tensor | None,  # (N,)
    *,
    scale: float | Tensor = 1.0,
    distance: Distance = "sqeuclidean",
    **common: Unpack[LabelledApart],
) -> Value:
    """ℓ_i = −log (Σ_p e^{−γ d_ip} / Σ_{j≠i} e^{−γ d_ij}), 0 for an anchor without positives.

    With a similarity s, d is −s.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        labels: (N,) integers, or (N, C) as in `Pairs.of`; rows with equal ones are positives.
        scale: a number above 0 or a 0-d tensor with gradient: γ.
        distance: how two rows are compared, as in `Pairs.of`.

    Source:
        Goldberger et al., Neighbourhood Components Analysis, 2004. With reduction="mean_nonzero"
        the loss equals pytorch-metric-learning's NCALoss, but for the difference below.

    Differs from:
        pytorch-metric-learning's NCALoss is NaN for a batch without positives.
    """
    scale = number("scale", scale, positive=True)
    objective = labelled(x, labels, common, distance=distance)
    objective.warn_without_positives()
    near = highest(POS, grad=False)
    # A difference of the sums over all and over positives would be 0 within rounding.
    pos, neg = lse(POS, scale, near), lse(NEG, scale, near)
    return objective.of_pieces(
        (near, pos, neg), [softplus_of(neg, pos)],
        positive=lse(POS, scale, 0.0), negative=lse(NEG, scale, 0.0),
    )  # fmt: skip


@loss()
def n_pair_loss(
    x: Tensor,  # (N, D)
    labels: Tensor,  # (N,)
    *,
    distance: Distance = "dot",
    **common: Unpack[LabelledAloneApart],
) -> Value:
    """ℓ_a = log Σ_c e^{s_{a,p(c)}} − s_{a,p(a)}: a finds its positive among one of every class.

    The first row of each label that has two rows or more is an anchor a, and the second row its
    positive p. Other rows are treated as ignored: they are 0 with reduction="none", and not counted
    in "mean".

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        labels: (N,) integers.
        distance: how two rows are compared, as in `Pairs.of`.

    Source:
        Sohn, Improved Deep Metric Learning with Multi-class N-pair Loss, 2016. With
        distance="cosine" the loss equals pytorch-metric-learning's NPairsLoss, whose dot product is
        of unit vectors.

    Differs from:
        The paper adds a penalty on norms; here there is none.
    """
    asked, pairing = split(common, x)
    first, second = _first_two(x, labels, pairing.pop("ignore_index", -100), pairing.get("group"))
    pairs = Pairs.of(
        x,
        first,
        ref_emb=x,
        ref_labels=second,
        exclude_self=False,
        ignore_index=-1,
        distance=distance,
        **pairing,
    )
    objective = Objective.of(pairs, **asked)
    objective.warn_without_positives()
    near = highest(POS, grad=False)
    neg, pos = lse(NEG, 1.0, near), total(POS, 1.0, near)
    return objective.of_pieces((near, neg, pos), [softplus_of(neg, pos)], all=lse(ALL, 1.0, 0.0))


def _first_two(
    x: Tensor, labels: Tensor, ignore_index: int | None, group: Given
) -> tuple[Tensor, Tensor]:
    """Find the classes (N,) of the first row of each label, and of the second; −1 for other rows.

    A class is a position in the sorted labels of all ranks.
    """
    whole_numbers("labels", labels, "x", x)
    pairs = Pairs.of(x.detach(), labels, ignore_index=ignore_index, distance="dot", group=group)
    every = pairs.of_all(0, labels.to(x.device, torch.int64))
    ordered, order = torch.sort(every, stable=True)
    begin = torch.searchsorted(ordered, ordered)
    rank = torch.arange(len(every), device=x.device) - begin
    begin, rank = (torch.empty_like(z).scatter(0, order, z)[pairs.indices()] for z in (begin, rank))
    has_positive = pairs.positives() > 0
    first, second = (torch.where(has_positive & (rank == k), begin, -1) for k in (0, 1))
    return first, second
