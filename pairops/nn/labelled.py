"""Losses over labels as Modules, with pytorch-metric-learning's names and defaults."""

from typing import TypeAlias

from torch import Tensor
from typing_extensions import Unpack

from pairops.losses import (
    circle_loss,
    contrastive_loss,
    lifted_structure_loss,
    ms_loss,
    n_pair_loss,
    nca_loss,
    nt_xent_loss,
    supcon_loss,
    triplet_loss,
)
from pairops.losses.objective.keywords import Reduction, Value
from pairops.losses.triplet import Mining
from pairops.ops.pairs.distances import Distance

from .module import Arguments, Call, Common, no_tuples

Number: TypeAlias = float | Tensor


class LabelledLoss(Arguments):
    """Any loss over labels: LabelledLoss(pairops.mlcd_loss, scale=32.0)."""

    _self_by_labels = True  # does exclude_self="auto" look at the labels?

    def forward(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor,  # (N,)
        indices_tuple: None = None,
        ref_emb: Tensor | None = None,  # (M, D)
        ref_labels: Tensor | None = None,  # (M,)
        **call: Unpack[Call],
    ) -> Value:
        """The function of embeddings and labels.

        indices_tuple: None; it is here for callers that pass it.  ref_emb, ref_labels and further
        keywords: as in `Pairs.of` and `ms_loss`, but for exclude_self="auto". Of references without
        ids it is pytorch-metric-learning's rule here: reference i is anchor i, and no pair of it,
        if `ref_labels` is the very tensor `labels`, as two views of one batch are passed.

        Differs from the function, which looks at embeddings: there "auto" leaves the pairs (i, i)
        out if `ref_emb` is the very tensor x, and keeps those of two views. Differs from
        pytorch-metric-learning where the labels lie on another device than the embeddings: it
        compares the copies that it makes, and keeps all pairs.
        """
        no_tuples(indices_tuple)
        named = call.get("ids") is not None or call.get("ref_ids") is not None
        asked = named or call.get("exclude_self", "auto") != "auto"
        if self._self_by_labels and ref_emb is not None and not asked:
            call["exclude_self"] = ref_labels is labels
        return self.of(embeddings, labels, ref_emb=ref_emb, ref_labels=ref_labels, **call)


class MultiSimilarityLoss(LabelledLoss):
    """`pairops.ms_loss`, which mines its pairs if `epsilon` is a number.

    epsilon=0.1 is pytorch-metric-learning's loss with its MultiSimilarityMiner.
    """

    def __init__(
        self,
        alpha: Number = 2.0,
        beta: Number = 50.0,
        base: Number = 0.5,
        *,
        epsilon: float | None = None,
        distance: Distance = "cosine",
        reduction: Reduction = "mean",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            ms_loss,
            alpha=alpha,
            beta=beta,
            base=base,
            epsilon=epsilon,
            distance=distance,
            reduction=reduction,
            **common,
        )


class ContrastiveLoss(LabelledLoss):
    """`pairops.contrastive_loss`. Of similarities the margins must be given: 1 and 0, say."""

    def __init__(
        self,
        pos_margin: Number = 0.0,
        neg_margin: Number = 1.0,
        *,
        distance: Distance = "l2",
        reduction: Reduction = "mean_pairs",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            contrastive_loss,
            pos_margin=pos_margin,
            neg_margin=neg_margin,
            distance=distance,
            reduction=reduction,
            **common,
        )


class SignalToNoiseRatioContrastiveLoss(ContrastiveLoss):
    """`pairops.contrastive_loss` of the signal-to-noise distance."""

    def __init__(
        self,
        pos_margin: Number = 0.0,
        neg_margin: Number = 1.0,
        *,
        reduction: Reduction = "mean_pairs",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(pos_margin, neg_margin, distance="snr", reduction=reduction, **common)


class TripletMarginLoss(LabelledLoss):
    """`pairops.triplet_loss` over all triplets.

    With mining="hard" the reduction must be another one: "mean_nonzero", say.
    """

    def __init__(
        self,
        margin: Number = 0.05,
        *,
        smooth_loss: bool = False,
        mining: Mining = "all",
        distance: Distance = "l2",
        reduction: Reduction = "mean_pairs",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            triplet_loss,
            margin=margin,
            soft=smooth_loss,
            mining=mining,
            distance=distance,
            reduction=reduction,
            **common,
        )


class LiftedStructureLoss(LabelledLoss):
    """`pairops.lifted_structure_loss` in its original form."""

    def __init__(
        self,
        neg_margin: Number = 1.0,
        pos_margin: Number = 0.0,
        *,
        distance: Distance = "l2",
        reduction: Reduction = "mean_pairs",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            lifted_structure_loss,
            form="original",
            neg_margin=neg_margin,
            pos_margin=pos_margin,
            distance=distance,
            reduction=reduction,
            **common,
        )


class GeneralizedLiftedStructureLoss(LabelledLoss):
    """`pairops.lifted_structure_loss` in its generalised form."""

    def __init__(
        self,
        neg_margin: Number = 1.0,
        pos_margin: Number = 0.0,
        *,
        distance: Distance = "l2",
        reduction: Reduction = "mean",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            lifted_structure_loss,
            form="generalised",
            neg_margin=neg_margin,
            pos_margin=pos_margin,
            distance=distance,
            reduction=reduction,
            **common,
        )


class CircleLoss(LabelledLoss):
    """`pairops.circle_loss`."""

    def __init__(
        self,
        m: Number = 0.4,
        gamma: Number = 80.0,
        *,
        distance: Distance = "cosine",
        reduction: Reduction = "mean_nonzero",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            circle_loss, margin=m, gamma=gamma, distance=distance, reduction=reduction, **common
        )


class NTXentLoss(LabelledLoss):
    """`pairops.nt_xent_loss`."""

    def __init__(
        self,
        temperature: Number = 0.07,
        *,
        distance: Distance = "cosine",
        reduction: Reduction = "mean_pairs",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            nt_xent_loss,
            temperature=temperature,
            distance=distance,
            reduction=reduction,
            **common,
        )


class SupConLoss(LabelledLoss):
    """`pairops.supcon_loss`."""

    def __init__(
        self,
        temperature: Number = 0.1,
        *,
        distance: Distance = "cosine",
        reduction: Reduction = "mean_nonzero",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            supcon_loss, temperature=temperature, distance=distance, reduction=reduction, **common
        )


class NCALoss(LabelledLoss):
    """`pairops.nca_loss`. Of references both libraries leave out the pairs (i, i) if `ref_emb` is
    the very tensor `embeddings`."""

    _self_by_labels = False

    def __init__(
        self,
        softmax_scale: Number = 1.0,
        *,
        distance: Distance = "sqeuclidean",
        reduction: Reduction = "mean_nonzero",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            nca_loss, scale=softmax_scale, distance=distance, reduction=reduction, **common
        )


class NPairsLoss(Arguments):
    """`pairops.n_pair_loss` of unit vectors."""

    def __init__(
        self,
        *,
        distance: Distance = "cosine",
        reduction: Reduction = "mean",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(n_pair_loss, distance=distance, reduction=reduction, **common)

    def forward(
        self,
        embeddings: Tensor,  # (N, D)
        labels: Tensor,  # (N,)
        indices_tuple: None = None,
        *,
        weight: Tensor | None = None,  # (N,)
    ) -> Value:
        """The function of embeddings and labels. indices_tuple: None."""
        no_tuples(indices_tuple)
        return self.of(embeddings, labels, weight=weight)
