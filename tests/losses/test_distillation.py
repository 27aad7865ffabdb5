"""Distillation: small losses, sharp ones, further rows of y, derivatives."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

import oracle
import pairops
from support.exhaustive import exhaustive_but
from support.loss_comparison import check
from support.named_cases import smooth

DOUBLE = torch.float64
N, D, E = 40, 9, 5
DIVERGENCES: list[Any] = ["kl", "jeffreys"]


def taught(n: int, e: int = E) -> Tensor:
    return torch.cos(torch.arange(n * e) * 1.3).view(n, e)


# Rows, references, and both temperatures: equal, sharp, or one far sharper than the other.
CASES = {
    "square": (N, N, 0.07, 0.07),
    "further_rows": (N, 57, 0.07, 0.1),
    "sharp": (N, N, 0.004, 0.004),
    "sharp_teacher": (N, N, 0.1, 0.002),
    "soft_teacher": (N, N, 0.002, 1.0),
    "one_row": (1, 1, 0.07, 0.07),
    "no_rows": (0, 3, 0.07, 0.07),
}


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(
    ("case", "dtype"),
    exhaustive_but(
        [*[(case, torch.float32) for case in CASES], ("further_rows", torch.bfloat16)],
        lambda case, dtype: dtype == torch.float32,  # noqa: ARG005
    ),
)
def test_is_its_formula(case: str, dtype: torch.dtype, divergence: Any) -> None:
    n, m, temperature, of_teacher = CASES[case]
    given = {
        "temperature": temperature, "teacher_temperature": of_teacher, "divergence": divergence,
    }  # fmt: skip
    u, v = taught(n), taught(m).flip(0)

    def ours(x: Tensor, y: Tensor) -> Tensor:
        return pairops.distillation_loss(x, y, u, v, **given, reduction="none")

    def formula(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
        return oracle.distillation_loss(x, y, u, v, **given, dtype=dtype)

    ran = check([smooth(n, D, dtype), smooth(m, D, dtype)], ours, formula)
    assert set(ran) == {"dense", "blockwise"}


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_keeps_the_digits_of_a_small_loss(divergence: Any) -> None:
    """x is the teacher turned round, but for 1e-3: a loss of 1e-4, where logits are 14."""
    rotation = torch.linalg.qr(smooth(E, E, DOUBLE))[0]
    u, v = smooth(N, E, DOUBLE), smooth(N, E, DOUBLE)
    x, y = (z @ rotation + 1e-3 * smooth(N, E, DOUBLE) for z in (u, v))
    truth = oracle.distillation_loss(x, y, u, v, divergence=divergence)
    found = pairops.distillation_loss(
        x.float(), y.float(), u, v, divergence=divergence, reduction="none"
    )
    assert truth.max() < 1e-2
    assert bool((found > 0).all())
    torch.testing.assert_close(found.double(), truth, rtol=1e-3, atol=1e-9)


def test_has_the_gradient_of_a_cross_entropy() -> None:
    x, y = smooth(N, D, DOUBLE).requires_grad_(), smooth(N, D, DOUBLE).requires_grad_()
    u, v = taught(N).double(), taught(N).double().flip(0)
    targets = torch.softmax(normalize(u) @ normalize(v).T / 0.1, 1)
    expected = cross_entropy(normalize(x) @ normalize(y).T / 0.07, targets)
    entropy = -(targets * targets.log()).sum() / N
    found = pairops.distillation_loss(x, y, u, v, teacher_temperature=0.1)
    torch.testing.assert_close(found, expected - entropy)
    wanted = torch.autograd.grad(expected, (x, y))
    torch.testing.assert_close(torch.autograd.grad(found, (x, y)), wanted)


@pytest.mark.parametrize("engine", ["blockwise", "dense"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_derivatives(divergence: Any, engine: str) -> None:
    """Second ones, and by the temperature; the teacher and its own get none."""
    u = taught(6).double().requires_grad_()
    temperature = torch.tensor(0.4, dtype=DOUBLE, requires_grad=True)
    of_teacher = torch.tensor(0.6, dtype=DOUBLE, requires_grad=True)
    leaves = smooth(6, 4, DOUBLE).requires_grad_(), smooth(6, 4, DOUBLE).requires_grad_()

    def loss(x: Tensor, y: Tensor, temperature: Tensor) -> Tensor:
        return pairops.distillation_loss(
            x, y, u, u.flip(0), temperature=temperature, teacher_temperature=of_teacher,
            divergence=divergence,
        )  # fmt: skip

    with pairops.engine(engine):
        torch.autograd.gradcheck(loss, (*leaves, temperature), fast_mode=True)
        torch.autograd.gradgradcheck(loss, (*leaves, temperature), fast_mode=True)
        value = loss(*leaves, temperature)
        found = torch.autograd.grad(value, (u, of_teacher), allow_unused=True)
        assert found == (None, None)


X, Y, U = smooth(6, 3), smooth(6, 3).flip(0), taught(6)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"teacher_x": U[:5]}, "teacher_x has 5 rows; it must have 6, one for each row of x"),
        ({"teacher_y": U[:5]}, "teacher_y has 5 rows; it must have 6, one for each row of y"),
        ({"teacher_y": U[:, :2]}, "teacher_y has D 2; it must be 5 as in teacher_x"),
        ({"y": Y[:4], "teacher_y": U[:4]}, "y has 4 rows; it must have at least 6"),
        ({"divergence": "js"}, "divergence is 'js'; it must be"),
        ({"teacher_temperature": 0.0}, "teacher_temperature is 0.0; it must be"),
    ],
)
def test_wrong_arguments(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pairops.distillation_loss(**{"x": X, "y": Y, "teacher_x": U, "teacher_y": U, **given})
