"""Numbers among a loss's arguments: Python's, numpy's, and tensors with one element."""

import inspect
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

import pairops
from pairops import losses
from support.loss_parameters import call, parameters
from support.named_cases import smooth


def _numbers(name: str) -> list[str]:
    """The keywords of a loss that take a number: what they are annotated with says so."""
    known = inspect.signature(getattr(losses, name)).parameters.values()
    return [p.name for p in known if "float" in str(p.annotation)]


EVERY = [(name, keyword) for name in losses.__all__ for keyword in _numbers(name)]


def _loss(name: str, x: Tensor, keyword: str, value: object) -> Any:
    required = parameters(name)[0]
    if keyword in required:  # `call` gives these
        labels = smooth(len(x), x.shape[1])
        return getattr(pairops, name)(x, labels, **{**required, keyword: value})
    guide = {"guide": (x, x.flip(0))} if keyword == "guide_margin" else {}
    return call(name, x, **guide, **{keyword: value})


PLAIN = (
    "smoothing",
    "label_smoothing",
    "guide_margin",
    "width",
)  # numbers that the host has to know


def test_there_are_numbers() -> None:
    assert len(EVERY) > 30


@pytest.mark.parametrize(("name", "keyword"), EVERY)
def test_every_kind_of_number_is_the_number(name: str, keyword: str) -> None:
    x = smooth(12, 5)

    def value(given: object) -> Tensor:
        torch.manual_seed(1)
        result: Tensor = _loss(name, x, keyword, given)
        return result

    expected = value(0.5)
    kinds = [numpy.float32, numpy.float64, numpy.float16, numpy.array, lambda v: numpy.array([v])]
    for kind in kinds:
        assert torch.equal(value(kind(0.5)), expected)
    if keyword not in ("smoothing", "label_smoothing", "debias"):
        assert torch.equal(value(numpy.int64(1)), value(1))
    for wrong in (numpy.bool_(True), numpy.array([0.5, 0.5]), "0.5", True):
        with pytest.raises((TypeError, ValueError), match=f"{keyword} is "):
            value(wrong)


@pytest.mark.parametrize(("name", "keyword"), [e for e in EVERY if e[1] not in PLAIN])
def test_one_element_serves_in_any_shape(name: str, keyword: str) -> None:
    x, found = smooth(12, 5), []
    for shape in ((), (1,), (1, 1)):
        torch.manual_seed(1)
        given = torch.full(shape, 0.5, requires_grad=True)
        value = _loss(name, x, keyword, given)
        if not value.requires_grad:  # a threshold has no gradient
            found.append((value.detach(), torch.zeros(())))
            continue
        (gradient,) = torch.autograd.grad(value, given)
        assert gradient.shape == shape
        found.append((value.detach(), gradient.reshape(())))
    for value, gradient in found[1:]:
        assert torch.equal(value, found[0][0])
        assert torch.equal(gradient, found[0][1])


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 1, 1)])
def test_one_element_serves_in_terms(shape: tuple[int, ...]) -> None:
    pairs = pairops.Pairs.of(smooth(12, 5), torch.arange(12) // 3)
    results = []
    for given in (torch.tensor(0.3), torch.full(shape, 0.3)):
        term = pairops.lse(pairops.NEG, given, pairops.partner(given), above=-given)
        results += pairops.row_stats(pairs, term)
    assert torch.equal(results[0], results[1])


def test_numpy_numbers_serve_elsewhere() -> None:
    two = numpy.int64(2)
    x, labels = smooth(12, 5), torch.arange(12) // 3
    pairs = pairops.Pairs.of(x, labels, ignore_index=two)
    expected = pairops.Pairs.of(x, labels, ignore_index=2)
    (b,) = pairops.row_stats(expected, pairops.lse(pairops.NEG, 0.5, 0.25))
    for kinds in ((numpy.float32, numpy.array), (numpy.float64, numpy.float64)):
        term = pairops.lse(pairops.NEG, kinds[0](0.5), kinds[1](0.25))
        (a,) = pairops.row_stats(pairs, term)
        assert torch.equal(a, b)
    recall = pairops.retrieval.evaluate(x, labels, recall_at=[two]).recall
    assert recall == pairops.retrieval.evaluate(x, labels, recall_at=[2]).recall
    mined = pairops.mine(x, labels, epsilon=numpy.float32(0.25))
    assert all(map(torch.equal, mined, pairops.mine(x, labels, epsilon=0.25)))
    memory = pairops.CrossBatchMemory(pairops.ms_loss, numpy.int64(5), two, warmup=two)
    assert memory.embeddings.shape == (2, 5)
    sizes = pairops.nn.ProxyNCALoss(two, numpy.int32(5), scale=numpy.float32(0.5)).proxies.shape
    assert sizes == (2, 5)


@pytest.mark.parametrize(
    ("dtypes", "written"),
    [
        ((torch.bfloat16, torch.float32), r"write x\.to\(torch\.float32\), say"),
        ((torch.float32, torch.float16), r"write y\.to\(torch\.float32\), say"),
        ((torch.float16, torch.bfloat16), r"write x\.to\(.*32\) and y\.to\(.*32\), say"),
    ],
)
def test_towers_of_different_dtypes_are_told_what_to_write(
    dtypes: tuple[torch.dtype, torch.dtype], written: str
) -> None:
    x, y = (smooth(6, 4, dtype) for dtype in dtypes)
    with pytest.raises(TypeError, match=written):
        pairops.info_nce_loss(x, y)
