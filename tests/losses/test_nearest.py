"""NNCLR and the soft triplet loss against their oracle, on every engine, and what else they say."""

from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import pairops
from support.engine_names import HERE
from support.exhaustive import exhaustive_but
from support.loss_comparison import check
from support.named_cases import CASES, smaller, smooth

DOUBLE = torch.float64


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("distance", ["cosine", "dot", "l2"])
@pytest.mark.parametrize(("n", "q"), [(40, 60), (40, 1), (1, 20), (0, 3)])
def test_nnclr_on_every_engine(n: int, q: int, distance: Any) -> None:
    queue, given = smooth(q, 9), {"distance": distance, "temperature": 0.3}

    def ours(x: Tensor, y: Tensor) -> Tensor:
        return pairops.nnclr_loss(x, y, queue, **given, reduction="none")

    def formula(x: Tensor, y: Tensor, **more: Any) -> Tensor:
        return oracle.nnclr_loss(x, y, queue, **given, **more)

    ran = check([smooth(n, 9), smooth(n, 9)], ours, formula)
    assert set(ran) >= {"cpu", "blockwise", "dense", "triton", "chunked"} & set(HERE)


def test_a_queue_of_the_rows_themselves_is_info_nce_of_constant_rows() -> None:
    x, y = smooth(30, 9, DOUBLE).requires_grad_(), smooth(30, 9, DOUBLE).requires_grad_()
    queue = torch.cat([3 * x, y]).detach()[torch.randperm(60)]
    ours = pairops.nnclr_loss(x, y, queue, symmetric=False)
    expected = pairops.info_nce_loss(x.detach(), y, temperature=0.1, symmetric=False)
    torch.testing.assert_close(ours, expected)
    found, wanted = (torch.autograd.grad(z, y)[0] for z in (ours, expected))
    torch.testing.assert_close(found, wanted)
    assert torch.autograd.grad(ours, x, allow_unused=True) == (None,)
    both = pairops.nnclr_loss(x, y, queue)
    other = pairops.info_nce_loss(y.detach(), x, temperature=0.1, symmetric=False)
    torch.testing.assert_close(both, (expected + other) / 2)


def test_the_queue_has_another_dtype_and_gets_no_gradient() -> None:
    x, y = smooth(12, 9, torch.bfloat16), smooth(12, 9, torch.bfloat16)
    queue = smooth(20, 9).requires_grad_()
    value = pairops.nnclr_loss(x.requires_grad_(), y, queue)
    assert value.dtype == torch.float32
    assert torch.autograd.grad(value, queue, allow_unused=True, retain_graph=True) == (None,)
    torch.testing.assert_close(value, pairops.nnclr_loss(x, y, queue.bfloat16()))


@pytest.mark.parametrize(
    ("queue", "says"),
    [
        (torch.ones(0, 5), "queue has 0 rows; it must have at least 1"),
        (torch.ones(3, 4), "queue has D 4; it must be 5 as in x"),
        (torch.ones(3, 5, dtype=torch.int64), "queue is torch.int64; it must be float16"),
        ([1.0], r"queue is list; it must be a tensor \(N, D\)"),
    ],
)
def test_a_bad_queue(queue: Any, says: str) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        pairops.nnclr_loss(torch.ones(6, 5), torch.ones(6, 5), queue)


def taught(n: int, e: int = 7) -> Tensor:
    return torch.cos(torch.arange(n * e) * 1.3).view(n, e)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    "name",
    exhaustive_but(
        list(CASES), lambda name: name in ("square", "ragged", "some_alone", "ignored_rows")
    ),
)
def test_soft_triplets_on_every_engine(name: str) -> None:
    case = smaller(CASES[name](smooth))
    keywords, other = dict(case.keywords), case.keywords.get("ref_emb")
    keywords.pop("ref_emb", None)
    given: dict[str, Any] = {} if "distance" in keywords else {"normalize": False}
    if other is not None:
        given["ref_teacher"] = taught(len(other)).flip(0)
    known = {k: keywords[k] for k in ("ignore_index", "ref_labels", "distance") if k in keywords}

    def references(y: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return {} if other is None else {"ref_emb": y[0] if y else other}

    def ours(x: Tensor, *y: Tensor) -> Tensor:
        return pairops.soft_triplet_loss(
            x, case.labels, taught(len(x)), **given, **keywords, **references(y), reduction="none"
        )

    def formula(x: Tensor, *y: Tensor, **more: Any) -> Tensor:
        told = {**given, **known, **case.oracle, **references(y), **more}
        return oracle.soft_triplet_loss(x, case.labels, taught(len(x)), **told)

    ran = check([case.x] if other is None or not case.y_grad else [case.x, other], ours, formula)
    assert set(ran) >= {"cpu", "blockwise", "dense", "triton", "chunked"} & set(HERE)


def test_soft_triplets_of_lists_widths_and_several_labels() -> None:
    x, teacher = smooth(30, 9, DOUBLE), taught(30).to(DOUBLE)
    several = torch.rand(30, 6) < 0.25
    rows, cols = torch.randint(30, (2, 50)).unique(dim=1)
    rows, cols = rows[rows != cols], cols[rows != cols]
    for labels, given in (
        (several, {}),
        (None, {"positives": (rows, cols)}),
        (torch.rand(30), {"width": 0.1}),
    ):
        ours = pairops.soft_triplet_loss(x, labels, teacher, reduction="none", **given)  # type: ignore[arg-type]
        expected = oracle.soft_triplet_loss(x, labels, teacher, ignore_index=None, **given)
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
        assert ours.any()


def test_a_teacher_that_is_x_leaves_its_entropy() -> None:
    """The teacher is constant: its embeddings get no gradient, and at p = q none reaches x."""
    x = smooth(30, 9, DOUBLE).requires_grad_()
    labels = torch.arange(30) % 5
    value = pairops.soft_triplet_loss(x, labels, x)
    (gradient,) = torch.autograd.grad(value, x)
    assert value > 0
    assert float(gradient.abs().max()) < 1e-12
    teacher = taught(30).requires_grad_()
    value = pairops.soft_triplet_loss(x, labels, teacher)
    assert torch.autograd.grad(value, teacher, allow_unused=True) == (None,)


@pytest.mark.usefixtures("small_tiles")
def test_what_the_teacher_says_of_ignored_rows_does_not_matter() -> None:
    x, labels = smooth(30, 9), torch.arange(30) % 5
    labels[[3, 17]] = -100
    found = []
    for filler in (0.0, float("nan"), float("inf")):
        teacher = taught(30)
        teacher[[3, 17]] = filler
        leaf = x.clone().requires_grad_()
        value = pairops.soft_triplet_loss(leaf, labels, teacher)
        found.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    for each in found[1:]:
        assert all(map(torch.equal, each, found[0]))


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"teacher": torch.ones(5, 3)}, "teacher has 5 rows; it must have 6, one for each row of"),
        ({"teacher": torch.ones(6)}, r"teacher has shape \(6,\); it must be \(N, D\)"),
        ({"teacher": torch.ones(6, 3).long()}, "teacher is torch.int64; it must be float16"),
        ({"ref_teacher": torch.ones(4, 3)}, "ref_teacher is given without ref_emb"),
        (
            {"ref_emb": torch.ones(4, 5), "ref_labels": torch.zeros(4).long()},
            "ref_teacher is None; it must be given with ref_emb",
        ),
        (
            {
                "ref_emb": torch.ones(4, 5),
                "ref_labels": torch.zeros(4).long(),
                "ref_teacher": torch.ones(4, 2),
            },
            "ref_teacher has D 2; it must be 3 as in teacher",
        ),
        (
            {
                "ref_emb": torch.ones(4, 5),
                "ref_labels": torch.zeros(4).long(),
                "ref_teacher": torch.ones(3, 3),
            },
            "ref_teacher has 3 rows; it must have 4, one for each row of ref_emb",
        ),
    ],
)
def test_a_bad_teacher(keywords: dict[str, Any], says: str) -> None:
    given = {"teacher": torch.ones(6, 3), **keywords}
    with pytest.raises((ValueError, TypeError), match=says):
        pairops.soft_triplet_loss(torch.ones(6, 5), torch.arange(6) // 2, **given)
