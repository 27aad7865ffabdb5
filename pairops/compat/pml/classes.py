"""The losses of pytorch-metric-learning, each as a function of pairops and how it is averaged."""

from typing import Any

import torch
from pytorch_metric_learning import losses, miners
from torch import Tensor

from pairops import losses as ours

from .served import (
    AVERAGE,
    DIVISOR,
    MEAN,
    PER_ANCHOR,
    REDUCTIONS,
    SUM,
    Batch,
    OfAnchors,
    Served,
    at_most_one,
    mean_nonzero,
)

# A margin that no pair comes up to.
_FAR = 1e30


class MultiSimilarityLoss(OfAnchors, losses.MultiSimilarityLoss):
    """pytorch-metric-learning's loss, computed by `pairops.ms_loss`."""

    lists = True
    column = True
    mines = (miners.MultiSimilarityMiner,)

    def value(self: Any, batch: Batch, reduction: str) -> Tensor:
        given = {"alpha": self.alpha, "beta": self.beta, "base": self.base, "epsilon": None}
        given["reduction"] = reduction
        if self.miner is None:
            return batch.unless_lone(self.of(ours.ms_loss, batch, **given))
        if batch.same_rows != (batch.ref_emb is batch.x):
            raise ValueError(
                f"ref_labels is labels: {batch.same_rows}, and ref_emb is embeddings: "
                f"{not batch.same_rows}; "
                "with a miner both must be so, or neither"
            )
        given["epsilon"] = self.miner.epsilon
        values: Tensor
        values, seen = self.of(ours.ms_loss.with_aux, batch, **given)
        return torch.where(at_most_one(seen.mined_positives, seen.mined_negatives), 0, values)


class GeneralizedLiftedStructureLoss(OfAnchors, losses.GeneralizedLiftedStructureLoss):
    """pytorch-metric-learning's loss, computed by `pairops.lifted_structure_loss`."""

    lists = True
    column = True

    def value(self: Any, batch: Batch, reduction: str) -> Tensor:
        given = {"pos_margin": self.pos_margin, "neg_margin": self.neg_margin}
        given |= {"form": "generalised", "reduction": reduction}
        return batch.unless_lone(self.of(ours.lifted_structure_loss, batch, **given))


class CircleLoss(OfAnchors, losses.CircleLoss):
    """pytorch-metric-learning's loss, computed by `pairops.circle_loss`."""

    lists = True
    column = True
    distances = ("cosine",)

    def value(self: Any, batch: Batch, reduction: str) -> Tensor:
        given = {"margin": self.m, "gamma": self.gamma, "reduction": reduction}
        return batch.unless_lone(self.of(ours.circle_loss, batch, **given))


class SupConLoss(OfAnchors, losses.SupConLoss):
    """pytorch-metric-learning's loss, computed by `pairops.supcon_loss`."""

    lists = True

    def value(self: Any, batch: Batch, reduction: str) -> Tensor:
        given = {"temperature": self.temperature, "reduction": reduction}
        values = self.of(ours.supcon_loss, batch, **given)
        positives, negatives = batch.counts()
        a_side_is_empty = (positives.sum() == 0) | (negatives.sum() == 0)
        return torch.where(a_side_is_empty | at_most_one(positives, negatives), 0, values)


class NTXentLoss(Served, losses.NTXentLoss):
    """pytorch-metric-learning's loss, computed by `pairops.nt_xent_loss`."""

    lists = True
    reduces = (MEAN, SUM, PER_ANCHOR)

    def parts(self: Any, batch: Batch) -> dict[str, Any]:
        values = self.of(ours.nt_xent_loss, batch, temperature=self.temperature)
        positives, _ = batch.counts()
        sums = batch.unless_lone(values * positives)
        return {"loss": batch.of_tuples(self.reducer_of("loss"), sums, positives)}


class LiftedStructureLoss(Served, losses.LiftedStructureLoss):
    """pytorch-metric-learning's loss, computed by `pairops.lifted_structure_loss`."""

    reduces = (MEAN, SUM)

    def parts(self: Any, batch: Batch) -> dict[str, Any]:
        for name, same in (("ref_emb", batch.ref_emb is batch.x), ("ref_labels", batch.same_rows)):
            if not same:
                raise ValueError(
                    f"{name} is given; for LiftedStructureLoss it must be None, since "
                    "pytorch-metric-learning takes reference p for anchor p when it collects the "
                    "negatives of a positive"
                )
        margins = {"pos_margin": self.pos_margin, "neg_margin": self.neg_margin}
        sums = self.of(ours.lifted_structure_loss, batch, form="original", **margins)
        positives, _ = batch.counts()
        sums = batch.unless_lone(sums)
        return {"loss": batch.of_tuples(self.reducer_of("loss"), sums, positives)}


class ContrastiveLoss(Served, losses.ContrastiveLoss):
    """pytorch-metric-learning's loss, computed by `pairops.contrastive_loss`."""

    lists = True
    reduces = (AVERAGE, MEAN, SUM, PER_ANCHOR)

    def parts(self: Any, batch: Batch) -> dict[str, Any]:
        margins = {"pos_margin": self.pos_margin, "neg_margin": self.neg_margin}
        if all(type(self.reducer_of(part)) is AVERAGE for part in ("pos_loss", "neg_loss")):
            given = {**margins, "reduction": "mean_pairs"}
            value = batch.unless_lone(self.of(ours.contrastive_loss, batch, **given))
            return {"pos_loss": batch.reduced(value)}
        # Each side on its own: the margin of the other is out of reach.
        far = -_FAR if self.distance.is_inverted else _FAR
        positives, negatives = batch.counts()
        result = {}
        for part, counts, other, out in (
            ("pos_loss", positives, "neg_margin", -far),
            ("neg_loss", negatives, "pos_margin", far),
        ):
            reducer, given = self.reducer_of(part), {**margins, other: out}
            if type(reducer) is AVERAGE:
                value = self.of(ours.contrastive_loss, batch, **given, reduction="mean_pairs")
                result[part] = batch.reduced(batch.unless_lone(value))
            else:
                sums = batch.unless_lone(self.of(ours.contrastive_loss, batch, **given))
                result[part] = batch.of_tuples(reducer, sums, counts)
        return result


class SignalToNoiseRatioContrastiveLoss(ContrastiveLoss, losses.SignalToNoiseRatioContrastiveLoss):
    """pytorch-metric-learning's loss, computed by `pairops.contrastive_loss` at "snr"."""

    distances = ("snr",)


class TripletMarginLoss(Served, losses.TripletMarginLoss):
    """pytorch-metric-learning's loss, computed by `pairops.triplet_loss`."""

    lists = True
    reduces = (AVERAGE, MEAN, SUM)
    mines = (miners.BatchHardMiner, miners.TripletMarginMiner)

    def check(self: Any) -> None:
        super().check()
        if self.swap:
            raise ValueError(f"swap is {self.swap}; it must be False")
        if self.triplets_per_anchor != "all":
            raise ValueError(
                f"triplets_per_anchor is {self.triplets_per_anchor!r}; it must be 'all'"
            )
        if isinstance(self.miner, miners.BatchHardMiner):
            for name in ("allowed_pos_range", "allowed_neg_range"):
                if getattr(self.miner, name) is not None:
                    raise ValueError(f"{name} is {getattr(self.miner, name)}; it must be None")
        elif self.miner is not None:
            if self.miner.type_of_triplets != "all":
                raise ValueError(
                    f"type_of_triplets is {self.miner.type_of_triplets!r}; it must be 'all'"
                )
            if self.miner.margin < self.margin:
                raise ValueError(
                    f"miner.margin is {self.miner.margin}; it must be at least {self.margin}, that "
                    "of the loss"
                )
            if self.smooth_loss or type(self.reducer_of("loss")) is MEAN:
                raise ValueError(
                    "TripletMarginMiner with smooth_loss or MeanReducer averages over what it "
                    "mined; it must be None, or the reducer AvgNonZeroReducer or SumReducer"
                )

    def parts(self: Any, batch: Batch) -> dict[str, Any]:
        reducer = self.reducer_of("loss")
        given = {"margin": self.margin, "soft": self.smooth_loss}
        if isinstance(self.miner, miners.BatchHardMiner):
            values = self.of(ours.triplet_loss, batch, **given, mining="hard")
            if type(reducer) is AVERAGE:
                return {"loss": batch.reduced(mean_nonzero(values))}
            positives, negatives = batch.counts()
            mined = ((positives > 0) & (negatives > 0)).long()
            return {"loss": batch.of_tuples(reducer, values, mined)}
        given["mining"] = "all"
        if type(reducer) is AVERAGE:
            value = self.of(ours.triplet_loss, batch, **given, reduction="mean_pairs")
            return {"loss": batch.reduced(value)}
        values = self.of(ours.triplet_loss, batch, **given)
        positives, negatives = batch.counts()
        return {"loss": batch.of_tuples(reducer, values, positives * negatives)}


class MarginLoss(Served, losses.MarginLoss):
    """pytorch-metric-learning's loss, computed by `pairops.margin_loss`."""

    lists = True
    reduces = (DIVISOR, MEAN, SUM)

    def check(self: Any) -> None:
        super().check()
        if self.triplets_per_anchor != "all":
            raise ValueError(
                f"triplets_per_anchor is {self.triplets_per_anchor!r}; it must be 'all'"
            )

    def parts(self: Any, batch: Batch) -> dict[str, Any]:
        positives, negatives = batch.counts()
        triplets = positives * negatives
        dtype = torch.promote_types(batch.x.dtype, torch.float32)
        beta = self.beta.to(batch.x.device, dtype)
        one = len(beta) == 1
        if not one and batch.listed is not None:
            raise ValueError(
                f"indices_tuple is given and beta has {len(beta)} entries, one for each class; "
                "with a list of pairs it must be one number"
            )
        given = {"beta": beta[0] if one else beta, "margin": self.margin, "triplets": True}
        reducer = self.reducer_of("margin_loss")
        if type(reducer) is DIVISOR:
            value = self.of(ours.margin_loss, batch, **given, reduction="mean_pairs")
            result = {"margin_loss": batch.reduced(value)}
        else:
            sums = self.of(ours.margin_loss, batch, **given)
            result = {"margin_loss": batch.of_tuples(reducer, sums, triplets)}
        if self.learn_beta and self.nu:
            penalty = self.nu * beta[0] if one else self.nu * beta[batch.labels] * triplets
            result["beta_reg_loss"] = self._penalty(batch, penalty, triplets, given)
        return result

    def _penalty(
        self: Any, batch: Batch, penalty: Tensor, triplets: Tensor, given: dict[str, Any]
    ) -> dict[str, Any]:
        """ν β, or of classes the sum over triplets that the reducer divides."""
        if penalty.dim() == 0:
            return batch.reduced(torch.where(triplets.sum() > 0, penalty, 0))
        reducer = self.reducer_of("beta_reg_loss")
        if type(reducer) is not DIVISOR:
            return batch.of_tuples(reducer, penalty, triplets)
        # The divisor is what a mean of pairs differs by from their sum.
        with torch.no_grad():
            total, mean = (
                self.of(ours.margin_loss, batch, **given, reduction=reduction)
                for reduction in ("sum", "mean_pairs")
            )
            share = torch.where(total > 0, mean / total, 0)
        return batch.reduced(penalty.sum() * share)


class NPairsLoss(Served, losses.NPairsLoss):
    """pytorch-metric-learning's loss, computed by `pairops.n_pair_loss`."""

    reduces = (MEAN, SUM, AVERAGE)
    alone = True

    def parts(self: Any, batch: Batch) -> dict[str, Any]:
        reduction = REDUCTIONS[type(self.reducer_of("loss"))]
        return {"loss": batch.reduced(self.of(ours.n_pair_loss, batch, reduction=reduction))}
