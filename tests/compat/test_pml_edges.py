"""pairops.compat.pml at the edges: small batches, self pairs, dtypes, sharing; what it refuses."""

import ast
import copy
import importlib
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

from pairops.compat import pml
from support.named_cases import smooth
from support.pml_parity import (
    ALONE,
    AT_MOST_ONE_PAIR_IS_NONE,
    CLASSES,
    DOUBLE,
    batch,
    build,
    result,
    same,
)
from support.project import ROOT

MEAN, NONZERO = reducers.MeanReducer, reducers.AvgNonZeroReducer


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
    "a loss": (
        lambda: pml.convert(losses.TupletMarginLoss()),
        "loss is TupletMarginLoss.*; TupletMarginLoss stays that library's, since .*circle_loss$",
    ),
    "a loss that is a call": (
        lambda: pml.convert(losses.CosFaceLoss(6, 8)),
        r"in place of CosFaceLoss write pairops\.arcface_loss\(x, labels, W\.T, margin=0\.0",
    ),
    "a subclass": (
        lambda: pml.convert(Mine()),
        "loss is Mine.*; in place of a loss derived from",
    ),
    "no loss": (lambda: pml.convert(miners.BatchHardMiner()), "loss is BatchHardMiner.*Loss$"),
    "a memory": (
        lambda: pml.convert(losses.CrossBatchMemory(losses.SupConLoss(), 8)),
        r"loss is CrossBatchMemory.*write CrossBatchMemory\(convert\(loss\), D\)",
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


def test_refused_when_called() -> None:
    x, labels = batch()
    with pytest.raises(ValueError, match="labels is None; unless indices_tuple has all pairs, it"):
        pml.convert(build("SupConLoss"))(x)
    with pytest.raises(ValueError, match=r"labels is None; it must be .* required for NCALoss"):
        pml.convert(build("NCALoss"))(x)
    with pytest.raises(
        ValueError, match="ref_emb or ref_labels is given; for NPairsLoss both must"
    ):
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


def test_another_version_is_refused_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    package = importlib.import_module("pytorch_metric_learning")
    for version in ("3.0.0", "1.7.3", "20.1"):
        monkeypatch.setattr(package, "__version__", version)
        says = rf"pytorch-metric-learning is {version}; .* it must be 2\.9 .*-learning<3'"
        with pytest.raises(ImportError, match=says):
            importlib.reload(pml)
    monkeypatch.delattr(package, "__version__")
    with pytest.raises(ImportError, match="is of a version that it does not say; for pairops"):
        importlib.reload(pml)
    assert pml.convert(build("SupConLoss")).miner is None  # what was there is as it was


def test_it_stands_on_what_is_public() -> None:
    """Neither modules beside those that 2.9 documents, nor names with an underscore."""
    for file in (ROOT / "pairops" / "compat" / "pml").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and "pytorch_metric" in (node.module or ""):
                assert node.module == "pytorch_metric_learning"
                assert {a.name for a in node.names} <= {"distances", "losses", "miners", "reducers"}
            if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr):
                assert node.attr == "_penalty", f"{file.name}, line {node.lineno}"


def test_pairops_alone_does_not_import_it() -> None:
    told = (
        "import pairops, pairops.compat, sys; assert 'pytorch_metric_learning' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", told], check=True)
