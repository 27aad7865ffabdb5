"""pairops.compat.pml against pytorch-metric-learning itself: numbers and gradients in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_metric_learning import distances, miners, reducers, regularizers

from pairops.compat import pml
from support.on_cpu import device as device
from support.pml_parity import ALONE, CLASSES, DOUBLE, batch, build, same

COMPARED: dict[str, Callable[[], Any]] = {
    "cosine": distances.CosineSimilarity,
    "dot": lambda: distances.DotProductSimilarity(normalize_embeddings=False),
    "unit dot": distances.DotProductSimilarity,
    "l2": distances.LpDistance,
    "l2 of rows": lambda: distances.LpDistance(normalize_embeddings=False),
    "squares": lambda: distances.LpDistance(power=2),
    "squares of rows": lambda: distances.LpDistance(power=2, normalize_embeddings=False),
    "snr": distances.SNRDistance,
    "snr of rows": lambda: distances.SNRDistance(normalize_embeddings=False),
}
MEAN, SUM, NONZERO = reducers.MeanReducer, reducers.SumReducer, reducers.AvgNonZeroReducer
PER_ANCHOR = [reducers.PerAnchorReducer, lambda: reducers.PerAnchorReducer(NONZERO())]
OF_ANCHORS = [
    MEAN,
    SUM,
    NONZERO,
    *PER_ANCHOR,
    lambda: reducers.ThresholdReducer(low=0.2),
    lambda: reducers.ThresholdReducer(high=1.5),
    lambda: reducers.ClassWeightedReducer(torch.linspace(0.5, 2, 6, dtype=DOUBLE)),
]
REDUCED: dict[str, list[Callable[[], Any]]] = {
    "CircleLoss": OF_ANCHORS,
    "ContrastiveLoss": [MEAN, SUM, NONZERO, *PER_ANCHOR],
    "GeneralizedLiftedStructureLoss": OF_ANCHORS,
    "LiftedStructureLoss": [MEAN, SUM],
    "MarginLoss": [MEAN, SUM],
    "MultiSimilarityLoss": OF_ANCHORS,
    "NCALoss": [MEAN, SUM, NONZERO],
    "NPairsLoss": [MEAN, SUM, NONZERO],
    "NTXentLoss": [MEAN, SUM, *PER_ANCHOR],
    "ProxyNCALoss": [MEAN, SUM, NONZERO],
    "SignalToNoiseRatioContrastiveLoss": [MEAN, SUM, *PER_ANCHOR],
    "SupConLoss": OF_ANCHORS,
    "TripletMarginLoss": [MEAN, SUM, NONZERO],
}
FURTHER: dict[str, list[dict[str, Any]]] = {
    "MultiSimilarityLoss": [{"alpha": 1, "beta": 20, "base": 0.3}],
    "CircleLoss": [{"m": 0.25, "gamma": 256}],
    "ContrastiveLoss": [{"pos_margin": 0.2, "neg_margin": 1.2}],
    "LiftedStructureLoss": [{"pos_margin": 0.2, "neg_margin": 1.2}],
    "GeneralizedLiftedStructureLoss": [{"pos_margin": 0.2, "neg_margin": 1.2}],
    "TripletMarginLoss": [{"margin": 0.3, "smooth_loss": True}],
    "MarginLoss": [
        {"nu": 0.1, "learn_beta": learn, "num_classes": classes, "reducer": reducer}
        for learn in (True, False)
        for classes in (None, 6)
        for reducer in (None, MEAN(), SUM())
    ],
    "ProxyAnchorLoss": [{"weight_regularizer": regularizers.LpRegularizer()}],
    "ProxyNCALoss": [{"softmax_scale": 3, "weight_regularizer": regularizers.LpRegularizer()}],
}


@pytest.mark.parametrize(
    ("name", "given"), [(name, given) for name in CLASSES for given in [{}, *FURTHER.get(name, [])]]
)
def test_has_its_numbers(name: str, given: dict[str, Any]) -> None:
    loss = build(name, **given)
    same(loss, *batch())
    if name in ALONE or name == "LiftedStructureLoss":
        return
    (x, labels), (y, ref_labels) = batch(), batch(40)
    same(loss, x, labels, y, ref_labels)


@pytest.mark.parametrize("kind", COMPARED)
@pytest.mark.parametrize(
    "name",
    sorted({*CLASSES} - {"CircleLoss", "ProxyAnchorLoss", "SignalToNoiseRatioContrastiveLoss"}),
)
def test_distances(name: str, kind: str) -> None:
    same(build(name, distance=COMPARED[kind]()), *batch())


@pytest.mark.parametrize(
    ("name", "k"), [(name, k) for name, kinds in REDUCED.items() for k in range(len(kinds))]
)
def test_reducers(name: str, k: int) -> None:
    loss = build(name, reducer=REDUCED[name][k]())
    same(loss, *batch())
    if name not in (*ALONE, "LiftedStructureLoss") and not isinstance(
        loss.reducer, reducers.PerAnchorReducer
    ):
        same(loss, *batch(), *batch(20))


def test_a_reducer_for_each_side() -> None:
    sides = {"pos_loss": MEAN(), "neg_loss": NONZERO()}
    same(build("ContrastiveLoss", reducer=reducers.MultipleReducers(sides)), *batch())
    sides = {"neg_loss": reducers.PerAnchorReducer()}
    same(build("ContrastiveLoss", reducer=reducers.MultipleReducers(sides)), *batch())


def test_a_reducer_of_a_regularizer_may_be_any() -> None:
    given = {"embedding_regularizer": regularizers.LpRegularizer()}
    apart = reducers.MultipleReducers({"embedding_reg_loss": reducers.ThresholdReducer(low=0)})
    same(build("ContrastiveLoss", reducer=apart, **given), *batch())


def test_do_nothing_gets_one_number_per_anchor() -> None:
    for name in ("MultiSimilarityLoss", "SupConLoss"):
        loss, (x, labels) = build(name, reducer=reducers.DoNothingReducer()), batch()
        found, expected = (each(x, labels)["loss"] for each in (pml.convert(loss), loss))
        assert found["reduction_type"] == expected["reduction_type"]
        torch.testing.assert_close(found["indices"], expected["indices"])
        torch.testing.assert_close(found["losses"], expected["losses"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CLASSES)
def test_regularizers(name: str) -> None:
    given = {"embedding_regularizer": regularizers.LpRegularizer(), "embedding_reg_weight": 0.3}
    same(build(name, **given), *batch())
    same(build(name, **given), *batch(1))


@pytest.mark.parametrize(
    ("name", "given", "miner"),
    [
        ("MultiSimilarityLoss", {}, miners.MultiSimilarityMiner()),
        ("MultiSimilarityLoss", {"reducer": SUM()}, miners.MultiSimilarityMiner(epsilon=-0.2)),
        ("TripletMarginLoss", {}, miners.BatchHardMiner()),
        ("TripletMarginLoss", {"smooth_loss": True, "reducer": MEAN()}, miners.BatchHardMiner()),
        ("TripletMarginLoss", {}, miners.TripletMarginMiner()),
        ("TripletMarginLoss", {"reducer": SUM()}, miners.TripletMarginMiner(margin=0.05)),
    ],
)
def test_miners(name: str, given: dict[str, Any], miner: Any) -> None:
    loss = build(name, **given)
    same(loss, *batch(), miner=miner)
    same(loss, *batch(), *batch(40), miner=miner)
    same(loss, *batch(1), miner=miner)
    for labels in (torch.arange(24), torch.zeros(24).long()):
        same(loss, batch()[0], labels, miner=miner)


def test_miners_of_distances() -> None:
    for kind in (distances.LpDistance, distances.SNRDistance):
        miner = miners.MultiSimilarityMiner(distance=kind())
        same(build("MultiSimilarityLoss", distance=kind()), *batch(), miner=miner)
    miner = miners.BatchHardMiner(distance=distances.CosineSimilarity())
    same(build("TripletMarginLoss", distance=miner.distance), *batch(), miner=miner)
