"""What an error about an argument says to write instead, and what is accepted without a word."""

from fractions import Fraction
from typing import Any

import numpy
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import pairops
from pairops.ops.terms.checks import count
from pairops.ops.terms.tensor_checks import check_embeddings, check_storage, number
from support.named_cases import smooth

X, LABELS = smooth(6, 5), torch.arange(6) // 2


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ({"labels": [0, 0, 1, 1, 2, 2]}, r"write labels=torch\.as_tensor\(labels\)"),
        ({"labels": LABELS.numpy()}, r"write labels=torch\.as_tensor\(labels\)"),
        ({"x": X.tolist()}, r"write x=torch\.as_tensor\(x\)"),
        ({"weight": [1.0] * 6}, r"write weight=torch\.as_tensor\(weight\)"),
        ({"x": X.view(3, 2, 5)}, r"\(B, views, D\) write x\.flatten\(0, 1\).*interleave\(2\)"),
        ({"x": X.to_sparse()}, r"not served; write x\.to_dense\(\)"),
        ({"x": X.to("meta")}, "x is on meta, where there are no values"),
        ({"alpha": 1e-320}, "above 0, at least 1.18e-38: of less float32 holds no reciprocal"),
        ({"base": 10**400}, "base is an int of 1329 bits; it must be a finite number"),
        ({"weight": torch.full((6,), torch.inf)}, "weight has the value inf; it must be finite"),
        ({"weight": torch.full((6,), torch.nan)}, "weight has the value nan; it must be finite"),
    ],
)
def test_what_to_write_instead(given: dict[str, Any], written: str) -> None:
    with pytest.raises((TypeError, ValueError), match=written):
        pairops.ms_loss(**{"x": X, "labels": LABELS, **given})


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_a_nested_tensor_is_told_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"not served; write torch\.cat\(x\.unbind\(\)\)"):
        pairops.ms_loss(torch.nested.nested_tensor([X]), LABELS)


def test_a_dtensor_is_told_what_to_write() -> None:
    class DTensor(torch.Tensor):
        """Known by its name: torch's own is not imported."""

    for name, given in (("x", (X.as_subclass(DTensor), LABELS)),
                        ("labels", (X, LABELS.as_subclass(DTensor)))):  # fmt: skip
        with pytest.raises(TypeError, match=rf"{name} is a DTensor.*write {name}\.to_local\(\)"):
            pairops.ms_loss(*given)


def test_tensors_without_memory_stand_for_those_of_their_device() -> None:
    with FakeTensorMode():
        x = torch.empty(6, 5)
        check_embeddings("x", x)
        check_storage("x", x)
        assert isinstance(number("margin", torch.tensor(0.5)), torch.Tensor)


def test_numbers_are_taken_as_what_they_are() -> None:
    least = torch.finfo(torch.float32).tiny
    for given in (1, 0.5, Fraction(1, 3), numpy.float32(0.5), numpy.array(2), least):
        assert number("scale", given, positive=True) == float(given)  # type: ignore[arg-type]
    assert number("margin", None, default=2.0) == 2.0
    assert [number("margin", z) for z in (-1.0, 0, 1e308)] == [-1.0, 0.0, 1e308]
    for wrong in (least / 2, 0, -1, numpy.nan, 10**400, -(10**400)):
        with pytest.raises(ValueError, match=r"scale is .*; it must be a finite number above 0"):
            number("scale", wrong, positive=True)
    assert count("rows", numpy.int64(3), 1) == 3
    with pytest.raises(ValueError, match="rows is an int of 10001 bits; it must be at most"):
        count("rows", 2**10000)


@pytest.mark.parametrize(
    ("function", "near"),
    [
        (pairops.mine, "epsilo"),
        (pairops.retrieval.evaluate, "recall"),
        (pairops.retrieval.first_ranks, "tie"),
        (pairops.retrieval.average_precisions, "progres"),
    ],
)
def test_an_unknown_keyword_is_refused_in_the_name_of_who_was_called(
    function: Any, near: str
) -> None:
    said = rf"{function.__name__}\(\) has no keyword '{near}'; did you mean '{near}.*'"
    with pytest.raises(TypeError, match=said):
        function(X, LABELS, **{near: 1})


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("MultiSimilarityLoss", r"write pairops\.nn\.MSLoss\(epsilon=None\), or import pairops.co"),
        ("CircleLoss", r"write pairops\.nn\.CircleLoss"),
        ("SphereFaceLoss", r"a loss of pytorch-metric-learning; pairops\.pair_loss makes"),
        ("anchor_info_nce_loss", r"write pairops\.info_nce_loss\(x, anchor\.detach\(\)"),
        ("quality_weighted_info_nce_loss", r"weight=len\(x\) \* torch\.softmax"),
        ("supcon", "did you mean 'supcon_loss'"),
    ],
)
def test_a_name_that_is_looked_for_is_told_what_to_write(name: str, written: str) -> None:
    with pytest.raises(AttributeError, match=rf"pairops has no '{name}'.*{written}"):
        getattr(pairops, name)
    assert not hasattr(pairops, "__wrapped__")


def test_packages_that_are_not_imported_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pairops, "compat", raising=False)  # another test may have imported it
    with pytest.raises(AttributeError, match=r"write import pairops\.compat\.pml"):
        pairops.compat  # noqa: B018


def test_no_loss_of_the_other_library_goes_without_an_answer() -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    named = [n for n in dir(losses) if n.endswith("Loss") and n != "CrossBatchMemory"]
    assert len(named) > 30
    for name in named:
        with pytest.raises(AttributeError, match=f"pairops has no '{name}'(, a loss of|; write)"):
            getattr(pairops, name)
