"""Codes whose similarities are to be those of label vectors."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

import oracle
import pairops
from support.exhaustive import exhaustive, exhaustive_but
from support.gloo_ranks import Ranks
from support.loss_comparison import check
from support.named_cases import smooth
from support.on_cpu import device as device
from support.rank_problems import GATHERED, RING, Problem
from support.rank_problems import check as check_ranks

DOUBLE = torch.float64
N, M, D = 40, 57, 9


def vectors(n: int, classes: int = 7) -> Tensor:
    """(n, classes) bool; the first row is 0."""
    labels = torch.rand(n, classes, generator=torch.Generator().manual_seed(n)) < 0.3
    labels[:1] = False
    return labels


# Label vectors of the codes and of the references, or None for one set.
CASES: dict[str, tuple[Tensor, Tensor | None]] = {
    "one_set": (vectors(N), None),
    "two_sets": (vectors(N), vectors(M)),
    "real_numbers": (torch.randn(N, 5), torch.randn(M, 5)),
    "whole_numbers": (vectors(N).long(), vectors(M).long()),
    "one_column": (torch.ones(N, 1, dtype=torch.bool), None),
    "one_row": (vectors(1), None),
    "one_row_against_many": (vectors(3)[2:], vectors(M)),
    "no_rows": (vectors(0), None),
    "no_references": (vectors(N), vectors(0)),
}
PARAMS: list[dict[str, Any]] = [
    {},
    {"scale": 0.6, "rectified": False},
    {"scale": float(D), "rectified": False, "distance": "dot"},
]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("case", "dtype", "params"),
    exhaustive_but(
        [
            *[(case, torch.float32, params) for case in CASES for params in PARAMS],
            *[("two_sets", z, PARAMS[0]) for z in (torch.float16, torch.bfloat16, DOUBLE)],
        ],
        lambda case, _, params: not params or case == "two_sets",
    ),
)
def test_label_vectors(case: str, dtype: torch.dtype, params: dict[str, Any]) -> None:
    labels, theirs = CASES[case]
    tensors = [smooth(len(labels), D, dtype)]
    if theirs is not None:
        tensors.append(smooth(len(theirs), D, dtype))

    def given(y: tuple[Tensor, ...]) -> dict[str, Any]:
        return {**params, **({"ref_emb": y[0], "ref_labels": theirs} if y else {})}

    def ours(x: Tensor, *y: Tensor) -> Tensor:
        return pairops.hashing_loss(x, labels, **given(y), reduction="none")

    def formula(x: Tensor, *y: Tensor, dtype: torch.dtype) -> Tensor:
        return oracle.hashing_loss(x, labels, **given(y), dtype=dtype)

    assert set(check(tensors, ours, formula)) == {"dense", "blockwise"}


def test_classes_are_vectors_with_one_1() -> None:
    x, y = smooth(N, D, DOUBLE), smooth(M, D, DOUBLE)
    labels, theirs = torch.arange(N) % 6, torch.arange(M) % 7
    for params in PARAMS:
        of_classes = pairops.hashing_loss(x, labels, ref_emb=y, ref_labels=theirs, **params)
        rows = {"ref_emb": y, "ref_labels": one_hot(theirs, 7), **params}
        of_vectors = pairops.hashing_loss(x, one_hot(labels, 7), **rows)
        torch.testing.assert_close(of_vectors, of_classes, rtol=1e-12, atol=1e-12)


def test_itself_is_left_out_where_it_is_known() -> None:
    x, labels = smooth(N, D, DOUBLE), vectors(N)
    labels[:, 0] |= ~labels.any(1)
    alone = pairops.hashing_loss(x, labels)
    kept = pairops.hashing_loss(x, labels, exclude_self=False)
    torch.testing.assert_close(alone * (N - 1) / N, kept)  # its own pair meets the target
    again = pairops.hashing_loss(x, labels, ref_emb=x.detach(), ref_labels=labels)
    torch.testing.assert_close(again, alone)
    two = pairops.hashing_loss(x, labels, ref_emb=x.clone(), ref_labels=labels)
    torch.testing.assert_close(two, kept)


@pytest.mark.parametrize("engine", ["blockwise", "dense"])
def test_derivatives(engine: str) -> None:
    """Second ones, and by the scale; label vectors get none."""
    x, scale = smooth(6, 4, DOUBLE).requires_grad_(), torch.tensor(0.7).double().requires_grad_()
    labels = torch.rand(6, 3, dtype=DOUBLE, requires_grad=True)

    def loss(x: Tensor, scale: Tensor) -> Tensor:
        return pairops.hashing_loss(x, labels, scale=scale)

    with pairops.engine(engine):
        torch.autograd.gradcheck(loss, (x, scale), fast_mode=True)
        torch.autograd.gradgradcheck(loss, (x, scale), fast_mode=True)
        assert torch.autograd.grad(loss(x, scale), labels, allow_unused=True) == (None,)
        expected = torch.autograd.grad(loss(x, scale), (x, scale))
        found = torch.func.grad(loss, (0, 1))(x.detach(), scale.detach())
        torch.testing.assert_close(found, expected)


@exhaustive
def test_label_vectors_in_one_graph() -> None:
    """Of any size, of one set and of two."""
    torch._dynamo.reset()

    def loss(x: Tensor, labels: Tensor, *y: Tensor) -> Tensor:
        other = {"ref_emb": y[0], "ref_labels": labels.flip(0)} if y else {}
        value: Tensor = pairops.hashing_loss(x, labels, **other)
        return value

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (20, 33):
        for sets in ([smooth(n, 4)], [smooth(n, 4), smooth(n, 4)]):
            leaves = [z.requires_grad_() for z in sets]
            found, expected = (
                torch.autograd.grad(f(leaves[0], vectors(n), *leaves[1:]), leaves)
                for f in (compiled, loss)
            )
            torch.testing.assert_close(found, expected)


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("gathered", [RING, GATHERED], ids=["ring", "gathered"])
@pytest.mark.parametrize("one_set", [True, False], ids=["one-set", "two-sets"])
def test_label_vectors_over_ranks(ranks: Ranks, one_set: bool, gathered: int) -> None:
    """No pair is listed, so that rows of all ranks are compared."""
    problem = Problem("hashing_loss", {})
    problem.args = problem.args[0], vectors(24)
    if not one_set:
        problem.keywords = {"ref_emb": smooth(31, 6, DOUBLE), "ref_labels": vectors(31)}
        problem.leaves = [0, "ref_emb"]
        problem.apart = {at: [3, 0, 17, 11] for at in ("ref_emb", "ref_labels")}
    check_ranks(ranks, problem, 1e-12, layouts=["uneven", "empty"], gathered=gathered)


X, V = smooth(6, 3), vectors(6)


@pytest.mark.parametrize(
    ("labels", "given", "error", "says"),
    [
        (V[:5], {}, ValueError, r"labels has shape \(5, 7\); it must be \(6, C\), one row"),
        (V[:, :0], {}, ValueError, r"labels has shape \(6, 0\); C must be at least 1"),
        (V / 0.0, {}, ValueError, "labels has the value (nan|inf); it must be finite"),
        (V.to(torch.complex64), {}, TypeError, "labels is torch.complex64; it must be a real"),
        (V, {"ref_emb": X + 1}, ValueError, "ref_labels is None; it must be given with ref_emb"),
        (V, {"ref_labels": V}, ValueError, "ref_labels is given without ref_emb"),
        (
            V, {"ref_emb": X + 1, "ref_labels": V[:, :3]}, ValueError,
            r"ref_labels has shape \(6, 3\); it must be \(6, 7\), .* one column for each of labels",
        ),
        (
            V, {"ref_emb": X + 1, "ref_labels": torch.arange(6)}, ValueError,
            r"ref_labels has shape \(6,\); it must be \(6, 7\)",
        ),
        (V, {"ignore_index": 3}, ValueError, "ignore_index is given with label vectors"),
        (V, {"rectified": 1}, TypeError, "rectified is int; it must be a bool"),
        (V, {"width": 1.0}, ValueError, r"labels has shape \(6, 7\); it must be \(6,\)"),
        (torch.arange(6), {"distance": "l2"}, ValueError, "hashing_loss compares similarities"),
    ],
)  # fmt: skip
def test_wrong_arguments(
    labels: Tensor, given: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        pairops.hashing_loss(X, labels, **given)
