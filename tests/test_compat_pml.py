"""pairops.compat.pml against pytorch-metric-learning itself in float64; edge cases, refusals."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import smooth
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch import Tensor

from pairops.compat import pml

DOUBLE = torch.float64
CLASSES = [name for name in pml.__all__ if name != "convert"]
PROXIES = {"num_classes": 6, "embedding_size": 8}
ALONE = ["NPairsLoss", "ProxyAnchorLoss", "ProxyNCALoss"]
AT_MOST_ONE_PAIR_IS_NONE = [
    name for name in CLASSES if issubclass(getattr(losses, name), losses.GenericPairLoss)
]
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


def build(name: str, **given: Any) -> Any:
    torch.manual_seed(3)
    return getattr(losses, name)(**given, **(PROXIES if name.startswith("Proxy") else {})).double()


def batch(n: int = 24) -> tuple[Tensor, Tensor]:
    x, labels = 0.7 * smooth(n, 8, DOUBLE), torch.randint(0, 5, (n,))
    labels[0] = 5  # alone
    return x.requires_grad_(), labels


def result(loss: Any, *given: Any) -> list[Tensor]:
    """The loss and its gradients by embeddings and parameters."""
    value = loss(*given)
    assert value.requires_grad
    leaves = [z for z in (*given, *loss.parameters()) if torch.is_tensor(z) and z.requires_grad]
    found = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    found = [torch.zeros_like(z) if g is None else g for g, z in zip(found, leaves, strict=True)]
    return [value.detach().reshape(()), *found]


def same(loss: Any, x: Tensor, labels: Tensor, *refs: Any, miner: Any = None) -> None:
    """Ours and theirs agree. refs: embeddings and labels."""
    tuples = None if miner is None else miner(x, labels, *refs)
    expected = result(loss, x, labels, tuples, *refs)
    found = result(pml.convert(loss, miner), x, labels, None, *refs)
    # Their softplus is the identity above 20, and so 2e-9 off.
    rtol = 1e-7 if isinstance(loss, losses.CircleLoss) else 1e-10
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol / 100)


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


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    "labels",
    [[], [3], [3, 3], [3, 4], [3, 3, 3, 3], [1, 2, 3, 4], [1, 1, 2]],
    ids=lambda labels: "".join(map(str, labels)) or "none",
)
def test_small_batches(name: str, labels: list[int]) -> None:
    if name == "NCALoss" and len(labels) == len(set(labels)) > 1:
        value = pml.convert(build(name))(batch(len(labels))[0], torch.tensor(labels))
        assert value == 0  # theirs is NaN
        return
    if not labels and name not in AT_MOST_ONE_PAIR_IS_NONE:
        x = torch.zeros(0, 8, dtype=DOUBLE, requires_grad=True)
        value = pml.convert(build(name))(x, torch.zeros(0).long())
        assert torch.isfinite(value)
        return
    x = smooth(len(labels), 8, DOUBLE).requires_grad_()
    same(build(name), x, torch.tensor(labels, dtype=torch.int64))


@pytest.mark.parametrize("name", sorted({*AT_MOST_ONE_PAIR_IS_NONE} - {"LiftedStructureLoss"}))
def test_one_positive_and_one_negative_pair_are_none(name: str) -> None:
    x, y = (smooth(n, 8, DOUBLE).requires_grad_() for n in (1, 2))
    loss = pml.convert(build(name))
    assert loss(x, torch.tensor([1]), None, y, torch.tensor([1, 2])) == 0
    same(build(name), x, torch.tensor([1]), y, torch.tensor([1, 2]))
    more = smooth(3, 8, DOUBLE).requires_grad_()
    same(build(name), x, torch.tensor([1]), more, torch.tensor([1, 2, 2]))


def test_one_mined_pair_on_each_side_is_none() -> None:
    """Of the row whose nearest negative comes closest to its farthest positive nothing else is
    mined if epsilon is so much."""
    x, labels = batch()
    with torch.no_grad():
        unit = torch.nn.functional.normalize(x)
        s, same_label = unit @ unit.T, labels[:, None] == labels
        near = s.masked_fill(same_label, -2).amax(1)
        far = s.masked_fill(~same_label | torch.eye(24, dtype=torch.bool), 2).amin(1)
    epsilon = 1e-6 - float((near - far).max())
    miner = miners.MultiSimilarityMiner(epsilon)
    assert [len(side) for side in miner(x, labels)] == [1, 1, 1, 1]
    same(build("MultiSimilarityLoss"), x, labels, miner=miner)
    loss = pml.convert(build("MultiSimilarityLoss"), miner)
    assert loss(x, labels) == 0
    miner.epsilon += 0.1
    assert loss(x, labels) > 0


@pytest.mark.parametrize("name", sorted({*CLASSES} - {*ALONE, "LiftedStructureLoss"}))
def test_what_is_the_same_object_decides_about_self_pairs(name: str) -> None:
    loss, (x, labels) = build(name), batch()
    for y in (x, x.detach().clone()):
        for ref_labels in (labels, labels.clone()):
            same(loss, x, labels, y, ref_labels)
    same(loss, x, labels, x[:9].detach(), labels[:9])


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_loss_has_the_dtype_of_the_embeddings(name: str, dtype: torch.dtype) -> None:
    loss, (x, labels) = pml.convert(build(name)), batch()
    value = loss(x.to(dtype), labels.to(torch.int32))
    assert value.dtype == dtype
    expected = build(name)(x.to(dtype).double(), labels)
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)


def test_parameters_are_shared_and_the_original_stays_as_it_is() -> None:
    loss = build("ProxyAnchorLoss")
    converted = pml.convert(loss)
    assert converted.proxies is loss.proxies
    assert isinstance(converted, losses.ProxyAnchorLoss)
    converted.proxies = torch.nn.Parameter(torch.ones(6, 8, dtype=DOUBLE))
    assert loss.proxies is not converted.proxies
    assert type(loss) is losses.ProxyAnchorLoss
    x, _ = batch()
    logits = torch.nn.functional.normalize(x).sum(1, keepdim=True) / 8**0.5
    torch.testing.assert_close(converted.get_logits(x), logits.expand(24, 6))


def test_classes_are_made_as_theirs_are() -> None:
    loss = pml.TripletMarginLoss(0.2, distance=distances.CosineSimilarity(), reducer=MEAN())
    x, labels = batch()
    expected = losses.TripletMarginLoss(0.2, distance=loss.distance, reducer=MEAN())(x, labels)
    torch.testing.assert_close(loss(x, labels), expected)
    loss.margin = 0.5
    expected = losses.TripletMarginLoss(0.5, distance=loss.distance, reducer=MEAN())(x, labels)
    torch.testing.assert_close(loss(x, labels), expected)
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), pml.convert(loss)):
        torch.testing.assert_close(again(x, labels), expected)


def test_the_wrapper_for_many_processes_takes_it() -> None:
    assert DistributedLossWrapper(pml.convert(build("SupConLoss"))).loss is not None


def test_a_nan_shows() -> None:
    x, labels = batch()
    x.data[3] = torch.nan
    value, gradient = result(pml.convert(build("SupConLoss")), x, labels)
    assert value.isnan()
    assert gradient[3].isnan().any()


class Mine(losses.ContrastiveLoss):
    pass


LP = distances.LpDistance
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a loss": (lambda: pml.convert(losses.TupletMarginLoss()), "loss is TupletMarginLoss"),
    "a subclass": (lambda: pml.convert(Mine()), "loss is Mine"),
    "a memory": (
        lambda: pml.convert(losses.CrossBatchMemory(losses.SupConLoss(), 8)),
        "loss is CrossBatchMemory",
    ),
    "p": (lambda: pml.convert(build("SupConLoss", distance=LP(p=1))), "p of LpDistance is 1"),
    "power": (
        lambda: pml.convert(build("SupConLoss", distance=LP(power=3))),
        "power of LpDistance is 3; it must be 1 or 2",
    ),
    "a distance": (
        lambda: pml.convert(build("SupConLoss", distance=distances.BatchedDistance(LP()))),
        "distance is BatchedDistance",
    ),
    "a distance of proxies": (
        lambda: pml.convert(build("ProxyAnchorLoss", distance=LP())),
        "distance of ProxyAnchorLoss is l2; it must be cosine, dot",
    ),
    "a reducer of pairs": (
        lambda: pml.convert(build("NTXentLoss", reducer=NONZERO())),
        "reducer of NTXentLoss is AvgNonZeroReducer; it must be MeanReducer, SumReducer, PerAnch",
    ),
    "a threshold of triplets": (
        lambda: pml.convert(build("TripletMarginLoss", reducer=reducers.ThresholdReducer(low=0.1))),
        "reducer of TripletMarginLoss is ThresholdReducer",
    ),
    "an aggregation": (
        lambda: pml.convert(
            build("NTXentLoss", reducer=reducers.PerAnchorReducer(aggregation_func=torch.sum))
        ),
        "aggregation_func is",
    ),
    "swap": (lambda: pml.convert(build("TripletMarginLoss", swap=True)), "swap is True"),
    "samples": (
        lambda: pml.convert(build("MarginLoss", triplets_per_anchor=5)),
        "triplets_per_anchor is 5",
    ),
    "a miner": (
        lambda: pml.convert(build("SupConLoss"), miners.MultiSimilarityMiner()),
        "miner for SupConLoss is MultiSimilarityMiner; it must be None",
    ),
    "a miner of another distance": (
        lambda: pml.convert(
            build("MultiSimilarityLoss"), miners.MultiSimilarityMiner(distance=LP())
        ),
        "miner.distance is",
    ),
    "hard triplets": (
        lambda: pml.convert(
            build("TripletMarginLoss"), miners.TripletMarginMiner(type_of_triplets="hard")
        ),
        "type_of_triplets is 'hard'",
    ),
    "too few triplets": (
        lambda: pml.convert(
            build("TripletMarginLoss", margin=0.3), miners.TripletMarginMiner(margin=0.2)
        ),
        "miner.margin is 0.2; it must be at least 0.3",
    ),
    "an average over what is mined": (
        lambda: pml.convert(
            build("TripletMarginLoss", smooth_loss=True), miners.TripletMarginMiner()
        ),
        "TripletMarginMiner with smooth_loss",
    ),
    "a range": (
        lambda: pml.convert(
            build("TripletMarginLoss"), miners.BatchHardMiner(allowed_pos_range=(0, 1))
        ),
        r"allowed_pos_range is \(0, 1\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    make, says = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=says):
        make()


@pytest.mark.parametrize("name", CLASSES)
def test_lists_of_tuples_are_refused(name: str) -> None:
    x, labels = batch()
    with pytest.raises(ValueError, match="indices_tuple is a tuple; it must be None"):
        pml.convert(build(name))(x, labels, (torch.arange(3),) * 3)


def test_refused_when_called() -> None:
    x, labels = batch()
    with pytest.raises(ValueError, match="labels are required"):
        pml.convert(build("SupConLoss"))(x)
    with pytest.raises(ValueError, match="ref_emb is not supported"):
        pml.convert(build("NPairsLoss"))(x, labels, None, *batch())
    with pytest.raises(ValueError, match="ref_emb is given; for LiftedStructureLoss it must be"):
        pml.convert(build("LiftedStructureLoss"))(x, labels, None, *batch())
    with pytest.raises(ValueError, match="ref_labels is given"):
        pml.convert(build("LiftedStructureLoss"))(x, labels, None, x, labels.clone())
    mined = pml.convert(build("MultiSimilarityLoss"), miners.MultiSimilarityMiner())
    with pytest.raises(ValueError, match="with a miner both must be so"):
        mined(x, labels, None, x.clone(), labels)
    loss = pml.convert(build("SupConLoss"))
    loss.distance = LP(power=3)
    with pytest.raises(ValueError, match="power of LpDistance is 3"):
        loss(x, labels)


def test_pairops_alone_does_not_import_it() -> None:
    told = (
        "import pairops, pairops.compat, sys; assert 'pytorch_metric_learning' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", told], check=True)
