"""From losses of anchors to one number: reductions, weights, batches without a side, bad rows."""

from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import pairops
from pairops import losses
from support.loss_parameters import DISTANT_ONLY, LABELLED, ONE_SET, call, on_engines
from support.named_cases import smooth

DOUBLE = torch.float64
AVERAGING: list[tuple[str, dict[str, Any]]] = [
    ("contrastive_loss", {}),
    ("contrastive_loss", {"distance": "l2"}),
    ("contrastive_loss", {"distance": "snr", "neg_margin": 2.0}),
    ("margin_loss", {}),
    ("margin_loss", {"triplets": True}),
    ("binomial_deviance_loss", {}),
    ("triplet_loss", {"mining": "all"}),
    ("triplet_loss", {"mining": "all", "soft": True, "distance": "l2"}),
    ("triplet_loss", {"mining": "semihard"}),
    ("lifted_structure_loss", {"form": "original"}),
    ("nt_xent_loss", {}),
    ("decoupled_softmax_loss", {}),
]


def some_alone_some_ignored() -> tuple[Tensor, Tensor]:
    x = smooth(60, 9, DOUBLE).requires_grad_()
    labels = torch.cat([torch.arange(30), torch.arange(30, 33).repeat(10)])
    labels[[4, 40]] = -100
    return x, labels


def assert_same(ours: Tensor, theirs: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for mine, other in zip(
        torch.autograd.grad(ours.sum(), leaves),
        torch.autograd.grad(theirs.sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("reduction", ["mean", "mean_nonzero", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LABELLED)
def test_reductions(name: str, weighted: bool, reduction: str) -> None:
    """Of what an engine found, whichever it was."""
    x, labels = some_alone_some_ignored()
    weight = torch.rand(60, dtype=DOUBLE).requires_grad_() if weighted else None
    ignored = labels == -100
    if name in ONE_SET:
        ignored = ~torch.isin(torch.arange(60), oracle.n_pairs(labels)[0])
    assert_same(
        getattr(pairops, name)(x, labels, weight=weight, reduction=reduction),
        oracle.reduce(
            getattr(oracle, name)(x, labels),
            weight=weight,
            reduction=reduction,
            ignored=ignored,
        ),
        [x] if weight is None else [x, weight],
    )


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("name", "params"), AVERAGING)
def test_averages_over_pairs(name: str, params: dict[str, Any], weighted: bool) -> None:
    x, labels = some_alone_some_ignored()
    y, ref_labels = smooth(40, 9, DOUBLE), torch.arange(40) % 35
    weight = torch.rand(60, dtype=DOUBLE).requires_grad_() if weighted else None
    for other in ({}, {"ref_emb": y, "ref_labels": ref_labels}):
        given = {**params, **other, "weight": weight, "reduction": "mean_pairs"}
        assert_same(
            getattr(pairops, name)(x, labels, **given),
            getattr(oracle, name)(x, labels, **given),
            [x] if weight is None else [x, weight],
        )


@pytest.mark.parametrize(("name", "params"), AVERAGING)
@pytest.mark.parametrize("n", [0, 1, 2])
def test_the_average_of_no_pairs_is_0(name: str, params: dict[str, Any], n: int) -> None:
    x = smooth(n, 9).requires_grad_()
    params = {k: v for k, v in params.items() if k != "neg_margin"} | {"reduction": "mean_pairs"}
    value = getattr(pairops, name)(x, torch.zeros(n, dtype=torch.int64), **params)
    (gradient,) = torch.autograd.grad(value, x)
    assert bool(torch.isfinite(value))
    assert bool(torch.isfinite(gradient).all())
    assert value == 0 or n == 2


def test_only_what_has_pairs_to_average_over_averages() -> None:
    x, labels = smooth(6, 5), torch.arange(6)
    for name in LABELLED:
        if name not in dict(AVERAGING):
            with pytest.raises(ValueError, match="reduction is 'mean_pairs'; it must be one of"):
                getattr(pairops, name)(x, labels, reduction="mean_pairs")
    with pytest.raises(ValueError, match="reduction is 'mean_pairs'"):
        pairops.triplet_loss(x, labels, mining="hard", reduction="mean_pairs")


@pytest.mark.parametrize("distance", ["cosine", "l2", "snr"])
@pytest.mark.parametrize("epsilon", [0.1, None])
def test_aux(epsilon: float | None, distance: str) -> None:
    x, labels = some_alone_some_ignored()
    for other in ({}, {"ref_emb": smooth(40, 9, DOUBLE), "ref_labels": torch.arange(40) % 35}):
        given: dict[str, Any] = {"distance": distance, "epsilon": epsilon, **other}
        value, aux = pairops.ms_loss.with_aux(x, labels, **given)
        assert torch.equal(value, pairops.ms_loss(x, labels, **given))
        expected = oracle.aux(x, labels, **given)
        for field in expected._fields:
            found, naive = getattr(aux, field), getattr(expected, field)
            assert (found is None) == (naive is None)
            if naive is not None:
                assert found.dtype == naive.dtype
                assert not found.requires_grad
                torch.testing.assert_close(found, naive)
        assert set(aux.log_sum_exps) == {"positive", "negative"}


@pytest.mark.parametrize("name", losses.__all__)
def test_every_loss_has_an_aux(name: str) -> None:
    x = smooth(20, 5).requires_grad_()
    value, aux = call(name, x, aux=True)
    assert torch.equal(value, call(name, x))
    n = 6 if name == "proxy_anchor_loss" else 20
    assert aux.positives.shape == aux.negatives.shape == aux.nearest_negative.shape == (n,)
    for statistic in aux.log_sum_exps.values():
        assert not statistic.requires_grad
    with pytest.raises(TypeError, match=f"no keyword 'return_aux'; write {name}.with_aux"):
        call(name, x, return_aux=True)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("distance", ["cosine", "dot"])
@pytest.mark.parametrize(("name", "engine"), on_engines(losses.__all__))
def test_a_bad_row_shows(name: str, engine: str, distance: str, bad: float) -> None:
    """NaN or Inf in a row reaches the loss and that row's gradient, with mining on too."""
    x = smooth(60, 9)
    x[0, 4] = bad
    x.requires_grad_()
    if name in DISTANT_ONLY:
        distance = {"cosine": "l2", "dot": "sqeuclidean"}[distance]
    with pairops.engine(engine):
        value = call(name, x, distance=distance)
        (gradient,) = torch.autograd.grad(value, x)
    assert not torch.isfinite(value)
    assert not torch.isfinite(gradient[0]).all()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("name", "engine"), on_engines(LABELLED))
def test_what_an_ignored_row_holds_does_not_matter(name: str, engine: str) -> None:
    x, labels = smooth(60, 9), torch.randint(0, 6, (60,))
    labels[[3, 44]] = -100
    results = []
    for filler in (0.0, 1.0, float("nan"), float("inf")):
        mine = x.clone()
        mine[[3, 44]] = filler
        mine.requires_grad_()
        with pairops.engine(engine):
            value = getattr(pairops, name)(mine, labels)
            (gradient,) = torch.autograd.grad(value, mine)
        assert bool((gradient[[3, 44]] == 0).all())
        results.append((value.detach(), gradient))
    for value, gradient in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize(("name", "engine"), on_engines(LABELLED))
def test_whole_batches_without_a_side(name: str, engine: str) -> None:
    """A batch without positives, or negatives, counts where its formula says; with a gradient."""
    x = smooth(12, 9).requires_grad_()
    for labels in (torch.arange(12), torch.zeros(12, dtype=torch.int64)):
        with pairops.engine(engine):
            value = getattr(pairops, name)(x, labels)
            (gradient,) = torch.autograd.grad(value, x)
        expected = oracle.reduce(getattr(oracle, name)(x.detach(), labels))
        assert bool(value != 0) == bool(expected != 0)
        assert bool(torch.isfinite(gradient).all())
        assert bool((gradient != 0).any()) == bool(value != 0)


@pytest.mark.usefixtures("engine")
def test_unmined_negatives_count_for_an_anchor_without_positives() -> None:
    x = smooth(12, 9)
    assert pairops.ms_loss(x, torch.arange(12), epsilon=None) > 0
    assert pairops.ms_loss(x, torch.arange(12)) == 0


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("reduction", ["mean", "mean_nonzero", "sum", "none"])
@pytest.mark.usefixtures("open_engine")
def test_the_weight_of_an_ignored_anchor_does_not_matter(name: str, reduction: str) -> None:
    x, labels, weight = smooth(20, 5), torch.arange(20) % 4, torch.ones(20)
    labels[3], weight[3] = -100, torch.nan
    weight.requires_grad_()
    value = getattr(pairops, name)(x, labels, weight=weight, reduction=reduction)
    (gradient,) = torch.autograd.grad(value.sum(), weight)
    assert bool(torch.isfinite(value).all())
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize(("name", "params"), AVERAGING)
def test_the_weight_of_an_ignored_anchor_does_not_matter_to_averages(
    name: str, params: dict[str, Any]
) -> None:
    x, labels, weight = smooth(20, 5), torch.arange(20) % 4, torch.ones(20)
    labels[3], weight[3] = -100, torch.nan
    given = {**params, "reduction": "mean_pairs"}
    assert bool(torch.isfinite(getattr(pairops, name)(x, labels, weight=weight, **given)))


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, -100, 2], [0] * 6, [-100] * 6])
def test_a_learned_temperature_of_tal_loss_outlives_rows_without_a_side(labels: list[int]) -> None:
    temperature = torch.tensor(0.1, requires_grad=True)
    x, y = smooth(6, 5), smooth(6, 5)
    pairops.tal_loss(x, y, torch.tensor(labels), temperature=temperature).backward()
    assert temperature.grad is not None
    assert bool(torch.isfinite(temperature.grad))


def test_classes_of_bytes() -> None:
    beta, x = torch.rand(200), smooth(4, 5)
    labels = torch.tensor([156, 156, 3, 3], dtype=torch.uint8)
    ours, theirs = (pairops.margin_loss(x, z, beta=beta) for z in (labels, labels.long()))
    assert torch.equal(ours, theirs)
