"""Losses with a teacher: small losses, teachers of every kind, blocks of rows, derivatives."""

from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import pairops
from pairops.losses import teacher_similarities
from support.gloo_ranks import Ranks
from support.loss_comparison import check
from support.named_cases import smooth
from support.on_cpu import device as device
from support.rank_problems import GATHERED, Problem
from support.rank_problems import check as check_ranks

DOUBLE = torch.float64
N, D, E = 40, 9, 5


def taught(n: int, e: int = E) -> Tensor:
    return torch.cos(torch.arange(n * e) * 1.3).view(n, e)


def against_one_another() -> Tensor:
    """Each of two halves has the other for its opposite, but for a row that is 0."""
    u = torch.zeros(N, 2)
    u[: N // 2, 0], u[N // 2 :, 0] = 1, -1
    u[3] = 0
    return u


TEACHERS = {
    "wide": taught(N, 3 * D),
    "one_number": taught(N, 1),
    "all_alike": torch.ones(N, E),
    "opposed": against_one_another(),
    "bfloat16": taught(N).bfloat16(),
    "float64": taught(N).double(),
}


@pytest.fixture(params=[1 << 20, 100], ids=["at-once", "blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_similarities, "_ENTRIES", request.param)


@pytest.mark.usefixtures("small_tiles", "blocks")
@pytest.mark.parametrize("teacher", list(TEACHERS))
def test_cwcl(teacher: str) -> None:
    u = TEACHERS[teacher]

    def ours(x: Tensor, y: Tensor) -> Tensor:
        return pairops.cwcl_loss(x, y, u, reduction="none")

    def formula(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
        return oracle.cwcl_loss(x, y, u, dtype=dtype)

    assert "cpu" in check([smooth(N, D), smooth(N, D)], ours, formula, ["cpu", "blockwise"])


def test_cwcl_is_exact_where_it_is_small() -> None:
    """A teacher to whom a row is like none of the others, which are far from its partner."""
    x = torch.tensor([[1.0, 0.2], [-1.0, 0.1]])
    y = torch.tensor([[1.0, 0.21], [-1.0, 0.1]])
    u = torch.tensor([[1.0], [-1.0]])

    def ours(x: Tensor, y: Tensor) -> Tensor:
        return pairops.cwcl_loss(x, y, u, temperature=0.1, reduction="none")

    def formula(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
        return oracle.cwcl_loss(x, y, u, temperature=0.1, dtype=dtype)

    assert 0 < formula(x, y, dtype=DOUBLE).max() < 1e-7
    check([x, y], ours, formula, ["cpu", "blockwise"])
    torch.testing.assert_close(ours(x, y).double(), formula(x, y, dtype=DOUBLE), rtol=1e-5, atol=0)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("case", ["one_set", "two_sets", "dot", "one_row", "no_references"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, DOUBLE])
def test_gram_matching(case: str, dtype: torch.dtype) -> None:
    n, m = (1, 1) if case == "one_row" else (N, 0 if case == "no_references" else 57)
    u, v = taught(n), taught(m).flip(0)
    params: dict[str, Any] = {"distance": "dot"} if case == "dot" else {}
    tensors = [smooth(n, D, dtype)]
    if case != "one_set":
        tensors.append(smooth(m, D, dtype))

    def given(y: tuple[Tensor, ...]) -> dict[str, Any]:
        return {**params, **({"ref_emb": y[0], "ref_teacher": v} if y else {})}

    def ours(x: Tensor, *y: Tensor) -> Tensor:
        return pairops.gram_matching_loss(x, u, **given(y), reduction="none")

    def formula(x: Tensor, *y: Tensor, dtype: torch.dtype) -> Tensor:
        return oracle.gram_matching_loss(x, u, **given(y), dtype=dtype)

    check(tensors, ours, formula, ["blockwise"])


def test_gram_matching_is_exact_where_x_fits() -> None:
    """x is the teacher turned round, but for 1e-4: each square is 1e-8, and float32 adds 1e-7."""
    rotation = torch.linalg.qr(smooth(E, E, DOUBLE))[0]
    u = smooth(N, E, DOUBLE)
    x = (u @ rotation + 1e-4 * smooth(N, E, DOUBLE)).float()

    def ours(x: Tensor) -> Tensor:
        return pairops.gram_matching_loss(x, u, reduction="none")

    def formula(x: Tensor, dtype: torch.dtype) -> Tensor:
        return oracle.gram_matching_loss(x, u, dtype=dtype)

    truth = formula(x, dtype=DOUBLE)
    assert truth.max() < 1e-7
    check([x], ours, formula, ["blockwise"])
    torch.testing.assert_close(ours(x).double(), truth, rtol=1e-6, atol=0)


def test_gram_matching_is_not_below_0() -> None:
    x = smooth(N, D, DOUBLE).requires_grad_()
    losses = pairops.gram_matching_loss(x, x.detach().clone(), reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    assert bool(((losses >= 0) & (losses < 1e-15)).all())
    assert bool((gradient.abs() < 1e-14).all())


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("name", ["cwcl_loss", "gram_matching_loss"])
def test_derivatives(name: str) -> None:
    """Second ones, of torch.func too; the teacher gets none."""
    x, y = smooth(7, 4, DOUBLE).requires_grad_(), smooth(7, 4, DOUBLE).requires_grad_()
    u = taught(7).double().requires_grad_()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        if name == "cwcl_loss":
            return pairops.cwcl_loss(x, y, u, temperature=0.5)
        return pairops.gram_matching_loss(x, u, ref_emb=y, ref_teacher=u.flip(0))

    torch.autograd.gradcheck(loss, (x, y), fast_mode=True)
    torch.autograd.gradgradcheck(loss, (x, y), fast_mode=True)
    assert torch.autograd.grad(loss(x, y), u, allow_unused=True) == (None,)
    expected = torch.autograd.grad(loss(x, y), (x, y))
    torch.testing.assert_close(torch.func.grad(loss, (0, 1))(x.detach(), y.detach()), expected)


@pytest.mark.xdist_group("ranks")
def test_one_set_over_ranks(ranks: Ranks) -> None:
    problem = Problem("gram_matching_loss", {})
    problem.keywords = {}
    problem.leaves = [0]
    check_ranks(ranks, problem, 1e-12, layouts=["uneven", "empty"], gathered=GATHERED)


X, Y, U = smooth(6, 3), smooth(6, 3).flip(0), taught(6)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: pairops.cwcl_loss(X, Y[:5], U), ValueError, "y has 5 rows; it must have 6"),
        (
            lambda: pairops.cwcl_loss(X, Y, U[:5]), ValueError,
            "teacher has 5 rows; it must have 6, one for each row of x",
        ),
        (
            lambda: pairops.cwcl_loss(X, Y, U.long()), TypeError,
            "teacher is torch.int64; it must be float16",
        ),
        (
            lambda: pairops.cwcl_loss(X, Y, U, distance="l2"), ValueError,
            "distance is 'l2'; cwcl_loss compares similarities",
        ),
        (
            lambda: pairops.gram_matching_loss(X, U, ref_teacher=U), ValueError,
            "ref_teacher is given without ref_emb",
        ),
        (
            lambda: pairops.gram_matching_loss(X, U, ref_emb=Y), ValueError,
            "ref_teacher is None; it must be given with ref_emb",
        ),
        (
            lambda: pairops.gram_matching_loss(X, U, ref_emb=Y, ref_teacher=U[:4]), ValueError,
            "ref_teacher has 4 rows; it must have 6, one for each row of ref_emb",
        ),
        (
            lambda: pairops.gram_matching_loss(X, U, ref_emb=Y, ref_teacher=U[:, :2]), ValueError,
            "ref_teacher has D 2; it must be 5 as in teacher",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments(call: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call()
