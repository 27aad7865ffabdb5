"""Several labels for each row: rows that share one are positives."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import pairops
from pairops import Pairs
from pairops.ops.pairs import shared_labels
from support.engine_names import HERE
from support.exhaustive import exhaustive_but
from support.loss_comparison import check
from support.named_cases import smooth
from support.on_cpu import device as device


def several(n: int, classes: int, share: float) -> Tensor:
    """(n, classes) bool; the first row has none."""
    generator = torch.Generator().manual_seed(n)
    labels = torch.rand(n, classes, generator=generator) < share
    labels[:1] = False
    return labels


# Labels of the anchors and of the references, or None for one set.
CASES: dict[str, tuple[Tensor, Tensor | None]] = {
    "one set": (several(40, 12, 0.15), None),
    "two sets": (several(40, 12, 0.15), several(57, 12, 0.15)),
    "whole numbers": (several(30, 9, 0.2).long(), several(20, 9, 0.2).long()),
    "floating-point": (several(30, 9, 0.2).bfloat16(), None),
    "one label each": (torch.nn.functional.one_hot(torch.arange(30) % 7), None),
    "everything": (torch.ones(9, 2, dtype=torch.bool), None),
    "nothing": (torch.zeros(9, 2, dtype=torch.bool), None),
    "no label at all": (torch.zeros(9, 0, dtype=torch.bool), None),
    "one row": (torch.ones(1, 3, dtype=torch.bool), several(6, 3, 0.5)),
    "no references": (several(6, 3, 0.5), torch.zeros(0, 3, dtype=torch.bool)),
}


def sets(name: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [smooth(len(z), 9, dtype) for z in CASES[name] if z is not None]


def other(name: str, y: tuple[Tensor, ...]) -> dict[str, Any]:
    return {"ref_emb": y[0], "ref_labels": CASES[name][1]} if y else {}


@pytest.mark.parametrize("name", CASES)
def test_who_is_a_positive_of_whom(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows are compared at once."""
    labels, theirs = CASES[name]
    theirs_too = labels if theirs is None else theirs
    mask = (labels != 0).double() @ (theirs_too != 0).double().T > 0
    if theirs is None:
        mask.fill_diagonal_(False)
    x, *y = sets(name)
    for at_once in (1, 100, 1 << 22):
        monkeypatch.setattr(shared_labels, "_AT_ONCE", at_once)
        pairs = Pairs.of(x, labels, **other(name, tuple(y)))
        assert pairs.positives().tolist() == mask.sum(1).tolist()
        every = [torch.arange(length) for length in pairs.shape]
        assert pairs.relation.positive(*every).tolist() == mask.tolist()


LOSSES: list[tuple[str, dict[str, Any]]] = [
    ("supcon_loss", {"temperature": 0.2}),
    ("ms_loss", {"epsilon": None}),
    ("nt_xent_loss", {"temperature": 0.5}),
    ("decoupled_softmax_loss", {"temperature": 0.3}),
    ("triplet_loss", {"mining": "hard", "distance": "l2"}),
]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("loss", "case"),
    exhaustive_but(
        itertools.product(LOSSES, ["one set", "two sets", "floating-point", "one row"]),
        lambda loss, case: case == "two sets" or loss[0] == "supcon_loss",
    ),
)
def test_losses(loss: tuple[str, dict[str, Any]], case: str) -> None:
    name, params = loss

    def ours(x: Tensor, *y: Tensor) -> Tensor:
        given = {**params, **other(case, y)}
        return getattr(pairops, name)(x, CASES[case][0], reduction="none", **given)

    def formula(x: Tensor, *y: Tensor, dtype: torch.dtype) -> Tensor:
        given = {**params, **other(case, y)}
        return getattr(oracle, name)(x, CASES[case][0], dtype=dtype, **given)

    ran = check(sets(case), ours, formula)
    assert set(ran) == set(HERE) - {"cuda"}


@pytest.mark.filterwarnings("ignore:.*dynamic shape operator:UserWarning")
def test_compiled_in_one_graph() -> None:
    """Where the number of pairs that share a label is a result."""
    (x, y), (labels, theirs) = sets("two sets", torch.float64), CASES["two sets"]

    def loss(x: Tensor, labels: Tensor) -> Tensor:
        return pairops.supcon_loss(x, labels, ref_emb=y, ref_labels=theirs)

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for given in (labels, labels.flip(0), several(40, 12, 0.4)):
        ours, eager = x.clone().requires_grad_(), x.clone().requires_grad_()
        compiled(ours, given).backward()
        loss(eager, given).backward()
        torch.testing.assert_close(ours.grad, eager.grad)


def test_transforms() -> None:
    (x, y), (labels, theirs) = sets("two sets", torch.float64), CASES["two sets"]

    def loss(x: Tensor) -> Tensor:
        return pairops.supcon_loss(x, labels, ref_emb=y, ref_labels=theirs)

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), gradient)
    few = x[:6].clone().requires_grad_()
    torch.autograd.gradgradcheck(lambda z: loss(torch.cat([z, x[6:]])), (few,), atol=1e-5)
    by_sample = torch.func.vmap(loss)(torch.stack([x, -x]))
    torch.testing.assert_close(by_sample, torch.stack([loss(x), loss(-x)]))


def test_a_list_that_may_fill_the_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_labels, "MANY", 3)
    x, labels = smooth(12, 4), torch.ones(12, 2)
    with pytest.warns(UserWarning, match="132 pairs share a label, 11 for each row; .* 0 MiB"):
        pairops.supcon_loss(x, labels)


X, LABELS = torch.ones(6, 3), torch.ones(6, 2)


@pytest.mark.parametrize(
    ("labels", "keywords", "says"),
    [
        (LABELS[:5], {}, r"labels has shape \(5, 2\); it must be \(6, 2\), one row for each of x"),
        (2 * LABELS, {}, "labels has the value 2.0; .* all must be 0 or 1"),
        (LABELS * torch.nan, {}, "labels has the value nan"),
        (LABELS.to(torch.complex64), {}, "labels is torch.complex64"),
        (LABELS, {"ref_emb": X + 1}, "ref_labels is None; it must be given with ref_emb"),
        (LABELS, {"ref_labels": LABELS}, "ref_labels is given without ref_emb"),
        (
            LABELS, {"ref_emb": X + 1, "ref_labels": torch.ones(6, 3)},
            r"ref_labels has shape \(6, 3\); it must be \(6, 2\), .* one column for each of labels",
        ),
        (LABELS, {"ignore_index": 1}, "ignore_index is given with several labels"),
        (LABELS[:, :1], {}, r"labels has shape \(6, 1\); it must be \(6,\), or of dtype bool"),
        (LABELS, {"width": 1.0}, r"labels has shape \(6, 2\); it must be \(6,\)"),
    ],
)  # fmt: skip
def test_bad_arguments(labels: Tensor, keywords: dict[str, Any], says: str) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        pairops.supcon_loss(X, labels, **keywords)


def test_what_takes_one_label_for_each_row() -> None:
    x, labels = smooth(6, 3), several(6, 2, 0.7)
    for call in (pairops.retrieval.evaluate, pairops.retrieval.first_ranks, pairops.n_pair_loss):
        with pytest.raises(ValueError, match=r"labels has shape \(6, 2\); it must be"):
            call(x, labels)


def test_vmap_over_labels_is_refused_by_name() -> None:
    x, labels = smooth(6, 3), several(6, 4, 0.4)
    with pytest.raises(ValueError, match=r"labels \(N, C\) differ from sample to sample"):
        torch.vmap(pairops.supcon_loss)(torch.stack([x, x]), torch.stack([labels, ~labels]))
