"""Losses of ranks: what the named cases do not ask of them."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import oracle
import pairops
from pairops.losses import soft_topk
from support.engine_names import HERE
from support.loss_comparison import check
from support.loss_parameters import NOT_COMPILED
from support.named_cases import smooth

DOUBLE = torch.float64
Given = dict[str, Any]
NAMES = ["smooth_ap_loss", "fast_ap_loss", "soft_topk_loss"]


def same(ours: Tensor, truth: Tensor, *leaves: Tensor) -> None:
    """Values, gradients and second derivatives in float64."""
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-12)
    found = []
    for value in (ours, truth):
        first = torch.autograd.grad(value.sum(), leaves, create_graph=True)
        square = torch.stack([(z * z).sum() for z in first]).sum()
        second = torch.autograd.grad(square, leaves, materialize_grads=True)
        found.append([*first, *second])
    for mine, other in zip(*found, strict=True):
        assert other.abs().max() > 1e-6, "there is nothing to compare"
        torch.testing.assert_close(
            mine, other, rtol=1e-8, atol=1e-8 * float(other.detach().abs().max())
        )


def with_a_lone_row(n: int = 30) -> tuple[Tensor, Tensor]:
    labels = torch.arange(n) % 5
    labels[3] = 9
    return smooth(n, 7, DOUBLE).requires_grad_(), labels


@pytest.mark.usefixtures("small_tiles", "small_triton_tiles")
@pytest.mark.parametrize("name", NAMES)
def test_on_every_engine(name: str) -> None:
    """Their functions of a pair have a translation to Triton."""
    labels = torch.arange(40) % 7
    ran = check(
        [smooth(40, 9)],
        lambda x: getattr(pairops, name)(x, labels, reduction="none"),
        lambda x, dtype: getattr(oracle, name)(x, labels, dtype=dtype),
    )
    serving = ["dense", "blockwise", "triton", "chunked", *["cpu"] * (name not in NOT_COMPILED)]
    assert set(ran) >= set(serving) & set(HERE)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("distance", ["cosine", "dot", "l2"])
def test_smooth_ap_with_the_query_itself(distance: str) -> None:
    x, labels = with_a_lone_row()
    x.data[7] = 0
    given: Given = {"include_self": True, "temperature": 0.2, "distance": distance}
    check(
        [x.detach().float()],
        lambda x: pairops.smooth_ap_loss(x, labels, **given, reduction="none"),
        lambda x, dtype: oracle.smooth_ap_loss(x, labels, **given, dtype=dtype),
        ("dense", "blockwise", "cpu"),
    )
    if distance != "l2":  # whose slope at 0 the oracle does not differentiate twice
        ours = pairops.smooth_ap_loss(x, labels, **given, reduction="none")
        same(ours, oracle.smooth_ap_loss(x, labels, **given), x)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"exclude_self": False}, "exclude_self is given and include_self is True; leave it out"),
        ({"ref_emb": smooth(4, 3), "ref_labels": torch.arange(4)}, "ref_emb is given and include_"),
        ({"positives": (torch.tensor([0]), torch.tensor([1]))}, r"list the pairs \(i, i\) too"),
    ],
)
def test_the_query_is_itself_in_one_set_alone(given: Given, error: str) -> None:
    labels = None if "positives" in given else torch.arange(6) // 2
    with pytest.raises(ValueError, match=error):
        pairops.smooth_ap_loss(smooth(6, 3), labels, include_self=True, **given)


def related(way: str) -> tuple[Tensor | None, Given, Given]:
    """Labels, and what else the library and the oracle are told, of 24 rows and 18 references."""
    y = smooth(18, 7, DOUBLE).requires_grad_()
    shared = (torch.rand(42, 5) < 0.3).long()
    mine, theirs = shared[:24], shared[24:]
    numbers = torch.linspace(0, 3, 42, dtype=DOUBLE)[torch.randperm(42)]
    if way == "several labels":
        both: Given = {"ref_emb": y, "ref_labels": theirs}
        return mine, both, both
    if way == "a width":
        both = {"ref_emb": y, "ref_labels": numbers[24:], "width": 0.4}
        return numbers[:24], both, both
    both = {"ref_emb": y, "positives": ((mine[:, None] & theirs).any(2)).nonzero(as_tuple=True)}
    return None, both, both


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("way", ["several labels", "a width", "a list"])
@pytest.mark.parametrize("name", NAMES)
def test_positives_said_otherwise(name: str, way: str) -> None:
    labels, mine, theirs = related(way)
    x = smooth(24, 7, DOUBLE).requires_grad_()
    ours = getattr(pairops, name)(x, labels, **mine, reduction="none")
    same(ours, getattr(oracle, name)(x, labels, **theirs), x, mine["ref_emb"])


def test_a_small_loss_keeps_its_digits() -> None:
    """Where classes are far apart, 1 − AP would be 0 or rounding, and its gradient with it."""
    labels = torch.arange(40) // 4
    x = torch.nn.functional.one_hot(labels, 10).double() + 0.04 * smooth(40, 10, DOUBLE)
    results = []
    for dtype in (torch.float32, DOUBLE):
        leaf = x.float().to(dtype).requires_grad_()
        value = pairops.smooth_ap_loss(leaf, labels, temperature=0.04)
        results.append([value.detach(), *torch.autograd.grad(value, leaf)])
    assert 1e-12 < results[1][0] < 1e-7
    for found, truth in zip(*results, strict=True):
        assert (found - truth).abs().max() < 1e-4 * truth.abs().max()


def test_the_gradient_of_a_precision_that_is_nearly_0_keeps_its_digits() -> None:
    """Of 4,001 references one is a positive, and most are before it."""
    x, y = smooth(3, 16), smooth(4001, 16)
    labels, theirs = torch.zeros(3, dtype=torch.int64), torch.ones(4001, dtype=torch.int64)
    theirs[0] = 0
    y[0] = -x.sum(0)
    gradients = []
    for dtype in (torch.float32, DOUBLE):
        leaf = x.to(dtype).requires_grad_()
        given: Given = {"ref_emb": y.to(dtype), "ref_labels": theirs, "temperature": 1.0}
        value = pairops.smooth_ap_loss(leaf, labels, **given)
        gradients += torch.autograd.grad(value, leaf)
    assert (gradients[0] - gradients[1]).abs().max() < 1e-5 * gradients[1].abs().max()


@pytest.mark.parametrize("bins", [1, 10])
def test_bins_without_a_pair(bins: int) -> None:
    x = torch.tensor([[1, 0.02], [1, 0.1], [-1, 0.2], [-1, 0.05]], dtype=DOUBLE).requires_grad_()
    labels = torch.tensor([0, 0, 1, 0])
    ours = pairops.fast_ap_loss(x, labels, bins=bins, reduction="none")
    same(ours, oracle.fast_ap_loss(x, labels, bins=bins), x)


@pytest.mark.parametrize("n", [0, 1, 3, 5, 6, 7])
def test_with_no_more_than_k_references_all_are_among_the_nearest_k(n: int) -> None:
    x = smooth(n, 4).requires_grad_()
    losses = pairops.soft_topk_loss(x, torch.zeros(n).long(), reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    assert bool((losses > 0).all()) == (n > 6 or n == 0)
    assert bool(gradient.any()) == (n > 6)
    assert bool(gradient.isfinite().all())


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("engine", ["auto", "blockwise", "dense"])
def test_a_threshold_has_its_derivatives_also_by_what_is_learned(engine: str) -> None:
    x, labels = with_a_lone_row()
    alpha, temperature = (torch.tensor(v, dtype=DOUBLE, requires_grad=True) for v in (1.5, 0.1))
    given: Given = {"k": 3, "alpha": alpha, "temperature": temperature}
    with pairops.engine(engine):
        ours = pairops.soft_topk_loss(x, labels, **given, reduction="none")
        same(ours, oracle_topk(x, labels, **given), x, alpha, temperature)


def oracle_topk(x: Tensor, labels: Tensor, **given: Any) -> Tensor:
    found: Tensor = oracle.soft_topk_loss(x, labels, **given)
    return found


def spread(kind: str, n: int) -> Tensor:
    """(20, n) similarities."""
    s = 2 * torch.rand(20, n, dtype=DOUBLE) - 1
    if kind == "in clusters":
        s = 0.4 * torch.randint(-1, 2, (20, n)) + 0.01 * s
    if kind == "ties":
        s = 0.25 * torch.randint(-2, 3, (20, n)).double()
    if kind == "a gap":
        s = 0.1 * s
        s[:, :5] += 0.8
    if kind == "one far off":
        s = 0.2 * s
        s[:, 0] = 1
    return s


@pytest.mark.parametrize("kind", ["even", "in clusters", "ties", "a gap", "one far off"])
@pytest.mark.parametrize("n", [6, 400])
@pytest.mark.parametrize("scale", [1.0, 40.0, 200.0])
def test_the_search_ends_at_the_threshold(kind: str, n: int, scale: float) -> None:
    """What it finds in all of its steps is what it finds where it may stop before."""
    s = spread(kind, n)
    eye = torch.eye(n, dtype=DOUBLE)
    pairs = pairops.Pairs.of(
        s, torch.zeros(20).long(), ref_emb=eye, ref_labels=torch.zeros(n).long(), distance="dot"
    )
    references = torch.full((20,), n)
    for k in (1, 5):
        base, slope = soft_topk._threshold(pairs, k, scale, references)
        z = scale * (s - base[:, None])
        tail, near = torch.sigmoid(-z.abs()), z > 0
        excess = (tail * ~near).sum(1) - (tail * near).sum(1) + (near.sum(1) - k)
        bell = scale * (torch.sigmoid(z) * torch.sigmoid(-z)).sum(1)
        # In units of 1 / scale, by which the threshold counts.
        assert (scale * excess.abs() / bell).max() < 1e-9
        torch.testing.assert_close(slope, bell)
        with mock.patch.object(soft_topk, "followed_by_autograd_alone", return_value=False):
            further, _ = soft_topk._threshold(pairs, k, scale, references)
        assert (scale * (further - base).abs()).max() < 1e-9


def test_the_threshold_in_a_gap_keeps_its_digits() -> None:
    """The k nearest are far from the rest: Σ σ is k in float32 wherever the threshold is."""
    x, labels = smooth(8, 12), torch.arange(8) % 2
    y = torch.cat([x[0] + 0.1 * smooth(5, 12), -x[0] + 0.5 * smooth(20, 12)])
    theirs = torch.arange(25) % 2
    results = []
    for dtype in (torch.float32, DOUBLE):
        leaf = x.to(dtype).requires_grad_()
        values = pairops.soft_topk_loss(
            leaf[:1], labels[:1], ref_emb=y.to(dtype), ref_labels=theirs, temperature=0.1
        )
        results.append([values.detach(), *torch.autograd.grad(values, leaf)])
    for found, truth in zip(*results, strict=True):
        assert (found - truth).abs().max() < 1e-5 * truth.abs().max()


def test_soft_topk_over_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the search ends when it has found the threshold."""
    calls = []
    count: Callable[..., Any] = soft_topk.row_stats

    def counted(*given: Any) -> Any:
        calls.append(given)
        return count(*given)

    monkeypatch.setattr(soft_topk, "row_stats", counted)
    pairops.soft_topk_loss(smooth(200, 16), torch.arange(200) % 20)
    assert len(calls) <= 5 + 10
