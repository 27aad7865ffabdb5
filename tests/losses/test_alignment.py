"""alignment_loss: as its authors have it, rows that coincide, and what it refuses."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import pairops
from support.named_cases import smooth
from support.on_cpu import device as device

DOUBLE = torch.float64


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
def test_as_its_authors_have_it(alpha: float) -> None:
    x, y = (smooth(30, 9, DOUBLE).requires_grad_() for _ in range(2))
    ours = pairops.alignment_loss(x, y, alpha=alpha)
    theirs = (normalize(x) - normalize(y)).norm(p=2, dim=1).pow(alpha).mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    for found, expected in zip(
        torch.autograd.grad(ours, [x, y]), torch.autograd.grad(theirs, [x, y]), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, DOUBLE])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_rows_that_coincide(alpha: float, dtype: torch.dtype) -> None:
    """The first two pairs: one row twice, and a multiple of it. Zeros are at no distance either."""
    x, y = smooth(6, 9, dtype), smooth(6, 9, dtype)
    y[0], y[1] = x[0], 2 * x[1]
    x[2] = y[2] = 0
    for z in (x, y):
        z.requires_grad_()
    value = pairops.alignment_loss(x, y, alpha=alpha, reduction="none")
    assert value[:3].tolist() == [0, 0, 0]
    assert bool((value[3:] > 0.1).all())
    first = torch.autograd.grad(value.sum(), [x, y], create_graph=True)
    for gradient in (*first, *torch.autograd.grad(sum(z.square().sum() for z in first), [x, y])):
        assert bool(gradient.isfinite().all())
        assert not gradient[:3].any()
        assert bool(gradient[3:].any(1).all())


def test_that_of_its_authors_is_nan_where_rows_coincide() -> None:
    x = smooth(4, 3, DOUBLE).requires_grad_()
    theirs = (x - x.detach()).norm(p=2, dim=1).pow(0.5).mean()
    assert torch.autograd.grad(theirs, x)[0].isnan().all()


def test_derivatives_of_two_orders() -> None:
    x, y = (smooth(5, 3, DOUBLE).requires_grad_() for _ in range(2))
    alpha = torch.tensor(1.5, dtype=DOUBLE, requires_grad=True)

    def loss(x: Tensor, y: Tensor, alpha: Tensor) -> Tensor:
        return pairops.alignment_loss(x, y, alpha=alpha)

    assert torch.autograd.gradcheck(loss, (x, y, alpha))
    assert torch.autograd.gradgradcheck(loss, (x, y, alpha))


def test_a_bad_row_shows() -> None:
    x, y = smooth(6, 9), smooth(6, 9)
    x[2, 3] = float("nan")
    losses = pairops.alignment_loss(x, y, reduction="none")
    assert losses.isnan().tolist() == [k == 2 for k in range(6)]


@pytest.mark.parametrize("distance", ["cosine", "dot"])
def test_a_similarity_is_refused(distance: str) -> None:
    x = torch.ones(4, 3)
    with pytest.raises(
        ValueError, match=f"distance is '{distance}'; alignment_loss compares distances"
    ):
        pairops.alignment_loss(x, x, distance=distance)  # type: ignore[arg-type]
