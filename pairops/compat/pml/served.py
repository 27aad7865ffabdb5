"""What is served of a pytorch-metric-learning loss: references, distances, reducers, miners."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_metric_learning import distances, reducers
from torch import Tensor

from pairops.ops.pairs.checks import one_key

from .tuples import EveryPair

AVERAGE, DIVISOR = reducers.AvgNonZeroReducer, reducers.DivisorReducer
MEAN, SUM, PER_ANCHOR = reducers.MeanReducer, reducers.SumReducer, reducers.PerAnchorReducer
AGGREGATION = PER_ANCHOR().aggregation_func  # a mean over the pairs of an anchor
REDUCTIONS = {MEAN: "mean", SUM: "sum", AVERAGE: "mean_nonzero"}  # of losses of anchors


@dataclass(frozen=True)
class Batch:
    """What a loss is called with."""

    x: Tensor  # (N, D)
    labels: Tensor  # (N,)
    ref_emb: Tensor  # (M, D)
    ref_labels: Tensor  # (M,)
    same_rows: bool  # is reference i anchor i, and left out?
    listed: EveryPair | None = None  # the pairs in place of labels

    def pairing(self) -> dict[str, Any]:
        """Keywords of `Pairs.of`."""
        if self.listed is not None:
            return self.listed.pairing(self.x, self.ref_emb)
        if self.same_rows and self.ref_emb is self.x:
            return {"ignore_index": None}
        return {
            "ref_emb": self.ref_emb,
            "ref_labels": self.ref_labels,
            "exclude_self": self.same_rows,
            "ignore_index": None,
        }

    def counts(self) -> tuple[Tensor, Tensor]:
        """(N,) numbers of positives and of negatives."""
        if self.listed is not None:
            return self.listed.counts(len(self.x))
        labels, names, _ = one_key(self.labels, self.ref_labels, None)
        assert names is not None, "there are two sets"
        names = names.sort().values
        after = torch.searchsorted(names, labels, right=True)
        positives = after - torch.searchsorted(names, labels) - int(self.same_rows)
        return positives, len(names) - int(self.same_rows) - positives

    def unless_lone(self, values: Tensor) -> Tensor:
        """0 in place of all if there is at most one pair on each side: losses over pairs take that
        for none."""
        if len(self.x) * (len(self.ref_emb) - 1) > 2:  # one side has two
            return values
        return torch.where(at_most_one(*self.counts()), 0, values)

    def reduced(self, value: Tensor) -> dict[str, Any]:
        """A number that reducers are to leave as it is."""
        value = value.to(self.x.dtype)
        return {"losses": value, "indices": None, "reduction_type": "already_reduced"}

    def of_anchors(self, losses: Tensor) -> dict[str, Any]:
        """One number per anchor, (N,) or (N, 1)."""
        indices = torch.arange(len(losses), device=losses.device)
        losses = losses.to(self.x.dtype)
        return {"losses": losses, "indices": indices, "reduction_type": "element"}

    def of_tuples(self, reducer: Any, sums: Tensor, counts: Tensor) -> dict[str, Any]:
        """Of pairs or triplets: sums over those of each anchor, and their numbers, (N,)."""
        if type(reducer) is PER_ANCHOR:
            return self.of_anchors(sums / counts.clamp(min=1))
        total = sums.sum()
        return self.reduced(total / counts.sum().clamp(min=1) if type(reducer) is MEAN else total)


class Served:
    """A loss whose `compute_loss` is that of pairops; the class beside it has the rest."""

    reduces: tuple[type, ...] = ()  # (): any, since a reducer gets one number per anchor
    distances: tuple[str, ...] = ("cosine", "dot", "l2", "sqeuclidean", "snr")
    mines: tuple[type, ...] = ()
    miner: Any = None
    alone = False  # does it refuse references?
    lists = False  # may a list of all pairs stand in place of labels?

    def parts(self, batch: Batch) -> dict[str, Any]:
        """Return what reducers get, by the name of a part.

        Args:
            batch: what the loss was called with.
        """
        raise NotImplementedError

    def compute_loss(
        self: Any, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Any, of_ref: Any
    ) -> dict[str, Any]:
        """Return what reducers get; `forward` of pytorch-metric-learning calls it.

        Args:
            embeddings: (N, D) floating point.
            labels: (N,) integers.
            indices_tuple: None, or all pairs, each a positive or a negative; labels are not read.
            ref_emb: (M, D) the references, or `embeddings` themselves.
            of_ref: (M,) integers, the labels of the references, or `labels` themselves.

        Raises:
            ValueError, TypeError: the message names what is not served.
        """
        listed = None
        if indices_tuple is not None:
            if not self.lists or self.miner is not None:
                with_miner = " with a miner" if self.lists else ""
                raise ValueError(
                    f"indices_tuple is given; for {type(self).__name__}{with_miner} it must be None"
                )
            listed = EveryPair.of(indices_tuple, len(embeddings), len(ref_emb), embeddings.device)
        elif labels is None:
            instead = "unless indices_tuple has all pairs, " if self.lists else ""
            raise ValueError(
                f"labels is None; {instead}it must be a tensor (N,): labels are required for "
                f"{type(self).__name__}"
            )
        if self.alone and not (ref_emb is embeddings and of_ref is labels):
            raise ValueError(
                f"ref_emb or ref_labels is given; for {type(self).__name__} both must be None: it "
                "compares with proxies, or with the batch alone"
            )
        self.check()
        parts: dict[str, Any] = self.parts(
            Batch(embeddings, labels, ref_emb, of_ref, of_ref is labels, listed)
        )
        return parts

    def check(self: Any) -> None:
        """Raise ValueError or TypeError if the distance, a reducer or the miner is not served."""
        name = type(self).__name__
        mine = compared(self.distance)
        if mine["distance"] not in self.distances:
            served = ", ".join(self.distances)
            raise ValueError(f"distance of {name} is {mine['distance']}; it must be {served}")
        used = [self.reducer]
        if isinstance(self.reducer, reducers.MultipleReducers):
            of_regularizers = self.all_regularization_loss_names()
            parts = [part for part in self.sub_loss_names() if part not in of_regularizers]
            used = [self.reducer_of(part) for part in parts]
        for reducer in used:
            if self.reduces and type(reducer) not in self.reduces:
                refuse(f"reducer of {name}", reducer, self.reduces)
            custom = getattr(reducer, "aggregation_func", AGGREGATION)
            if custom is not AGGREGATION:
                raise ValueError(f"aggregation_func is {custom}; it must be {AGGREGATION}")
        if self.miner is None:
            return
        if type(self.miner) not in self.mines:
            refuse(f"miner for {name}", self.miner, self.mines)
        theirs = compared(self.miner.distance)
        if theirs != mine:
            raise ValueError(f"miner.distance is {theirs}; it must be {mine} as in the loss")

    def reducer_of(self: Any, part: str) -> Any:
        """Return the reducer of a part of the loss.

        Args:
            part: its name.
        """
        if not isinstance(self.reducer, reducers.MultipleReducers):
            return self.reducer
        return dict(self.reducer.reducers).get(part, self.reducer.default_reducer)

    def of(self: Any, function: Callable[..., Any], batch: Batch, **given: Any) -> Any:
        """Call a function of pairops, for one number per anchor unless a reduction is given.

        Args:
            function: a loss of pairops.
            batch: what the loss was called with.
            given: arguments of the function.

        Returns:
            What the function returns.
        """
        common = {"reduction": "none", **compared(self.distance), **batch.pairing()}
        labels = batch.labels if batch.listed is None else None
        return function(batch.x, labels, **{**common, **given})


class OfAnchors(Served):
    """A loss that is one number per anchor."""

    column = False  # does it have the shape (N, 1) for reducers?

    def value(self, batch: Batch, reduction: str) -> Tensor:
        """Return the loss, reduced; (N,) with reduction "none".

        Args:
            batch: what the loss was called with.
            reduction: a reduction of pairops.
        """
        raise NotImplementedError

    def parts(self: Any, batch: Batch) -> dict[str, Any]:
        reduction = REDUCTIONS.get(type(self.reducer_of("loss")), "none")
        found = self.value(batch, reduction)
        if reduction != "none":
            return {"loss": batch.reduced(found)}
        return {"loss": batch.of_anchors(found.unsqueeze(1) if self.column else found)}


def mean_nonzero(losses: Tensor) -> Tensor:
    """A NaN counts, so it shows."""
    return losses.sum() / (~(losses <= 0)).sum().clamp(min=1)


def at_most_one(positives: Tensor, negatives: Tensor) -> Tensor:
    """Is there at most one pair on each side? Losses over pairs take that for none."""
    return (positives.sum() <= 1) & (negatives.sum() <= 1)


def refuse(name: str, found: Any, served: tuple[type, ...]) -> None:
    names = ", ".join(kind.__name__ for kind in served) or "None"
    raise ValueError(f"{name} is {type(found).__name__}; it must be {names}")


def compared(distance: Any) -> dict[str, Any]:
    """The keywords of pairops that say the same as a distance."""
    kind = type(distance)
    known = (
        distances.CosineSimilarity,
        distances.DotProductSimilarity,
        distances.LpDistance,
        distances.SNRDistance,
    )
    if kind not in known:
        refuse("distance", distance, known)
    powers = (1, 2) if kind is distances.LpDistance else (1,)
    for name, served in (("p", (2,)), ("power", powers)):
        value = getattr(distance, name)
        if value not in served:
            must = " or ".join(map(str, served))
            raise ValueError(f"{name} of {kind.__name__} is {value}; it must be {must}")
    unit = bool(distance.normalize_embeddings)
    if kind is distances.LpDistance:
        return {"distance": "l2" if distance.power == 1 else "sqeuclidean", "normalize": unit}
    if kind is distances.SNRDistance:
        return {"distance": "snr", "normalize": unit}
    return {"distance": "cosine" if unit else "dot"}
