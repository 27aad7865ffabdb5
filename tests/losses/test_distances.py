"""Distances at their edges: bad rows, ignored rows, distance 0, rows without variance."""

from typing import Any

import pytest
import torch

import oracle
import pairops
from support.loss_parameters import call
from support.named_cases import smooth


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("distance", ["l2", "sqeuclidean", "snr"])
@pytest.mark.parametrize("name", ["contrastive_loss", "margin_loss", "triplet_loss", "ms_loss"])
def test_a_bad_row_shows_in_distances(name: str, distance: str, bad: float) -> None:
    for normalize in (True, False):
        x = smooth(60, 9)
        x[0, 4] = bad
        x.requires_grad_()
        value = call(name, x, distance=distance, normalize=normalize)
        (gradient,) = torch.autograd.grad(value, x)
        assert not torch.isfinite(value)
        assert not torch.isfinite(gradient[0]).all()


@pytest.mark.parametrize("distance", ["l2", "sqeuclidean", "snr"])
@pytest.mark.parametrize("normalize", [True, False])
def test_what_an_ignored_row_holds_does_not_matter_to_distances(
    distance: str, normalize: bool
) -> None:
    x, labels = smooth(60, 9), torch.randint(0, 6, (60,))
    labels[[3, 44]] = -100
    results = []
    for filler in (0.0, float("nan"), float("inf")):
        mine = x.clone()
        mine[[3, 44]] = filler
        mine.requires_grad_()
        value = pairops.contrastive_loss(mine, labels, distance=distance, normalize=normalize)
        (gradient,) = torch.autograd.grad(value, mine)
        results.append(torch.cat([value.detach()[None], gradient.flatten()]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("distance", ["l2", "sqeuclidean", "snr"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["contrastive_loss", "lifted_structure_loss", "nca_loss"])
def test_no_gradient_at_distance_0(name: str, dtype: torch.dtype, distance: str) -> None:
    """Copies of one row pull nothing anywhere, and are finite beside other rows."""
    params = {"distance": distance}
    for normalize in (True, False):
        copies = smooth(1, 37, dtype).repeat(8, 1).requires_grad_()
        labels = torch.arange(8) // 4
        (gradient,) = torch.autograd.grad(
            getattr(pairops, name)(copies, labels, **params, normalize=normalize), copies
        )
        assert not gradient.any()
        mixed = torch.cat([smooth(8, 37, dtype), copies.detach()]).requires_grad_()
        (gradient,) = torch.autograd.grad(
            getattr(pairops, name)(mixed, torch.arange(16) // 4, **params, normalize=normalize),
            mixed,
        )
        assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("d", [7, 10, 64, 100])
def test_a_row_without_variance_is_at_no_distance_from_anything(d: int, normalize: bool) -> None:
    x = smooth(4, d)
    x[0] = 0.1
    labels = torch.tensor([0, 0, 1, 1])
    given: dict[str, Any] = {"distance": "snr", "normalize": normalize, "neg_margin": 0.5}
    losses = pairops.contrastive_loss(x, labels, **given, reduction="none")
    assert losses[0] == 1.0  # its positive at 0, two negatives nearer than the margin
    assert bool((losses < 100).all())


@pytest.mark.parametrize("normalize", [True, False])
def test_a_row_without_variance_is_pulled_by_its_anchors(normalize: bool) -> None:
    """It is no anchor, but near or far from others it can be."""
    x = smooth(12, 5, torch.float64)
    x[::3] = torch.tensor([0.5, 1.0, -2.0, 0.1])[:, None]
    given: dict[str, Any] = {"distance": "snr", "normalize": normalize}
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    labels = torch.arange(12) // 4
    ours = pairops.binomial_deviance_loss(leaves[0], labels, **given, reduction="sum")
    truth = oracle.binomial_deviance_loss(leaves[1], labels, **given).sum()
    found, expected = torch.autograd.grad(ours, leaves[0]), torch.autograd.grad(truth, leaves[1])
    assert expected[0][::3].abs().amax(1).min() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("engine", ["blockwise", "dense"])
@pytest.mark.parametrize("distance", ["l2", "sqeuclidean", "snr"])
def test_a_slope_by_a_number_is_no_less_exact_under_a_window(distance: str, engine: str) -> None:
    """Also where it is a constant that float32 does not hold, such as minus β."""
    x, labels = smooth(20, 9, torch.float64), torch.arange(20) // 4
    given: dict[str, Any] = {"distance": distance, "alpha": 3.1, "beta": 1.7}
    base = [torch.tensor(0.4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    with pairops.engine(engine):
        ours = pairops.ms_loss(x, labels, base=base[0], **given, reduction="sum")
    truth = oracle.ms_loss(x, labels, base=base[1], **given).sum()
    found, expected = torch.autograd.grad(ours, base[0]), torch.autograd.grad(truth, base[1])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
