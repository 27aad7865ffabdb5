"""Gated pairs: classes and partner classes, references, rows that are ignored, the gate's slope."""

from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import pairops
from support.exhaustive import exhaustive_but
from support.gloo_ranks import Ranks
from support.loss_comparison import check
from support.named_cases import smooth
from support.on_cpu import device as device
from support.rank_problems import GATHERED, RING, Problem
from support.rank_problems import check as check_ranks

DOUBLE = torch.float64
N, M, D = 40, 57, 9


def classes(n: int, seed: int = 0, most: int = 6) -> Tensor:
    return torch.randint(most, (n,), generator=torch.Generator().manual_seed(seed))


def ignoring(labels: Tensor, *rows: int, label: int = -100) -> Tensor:
    labels = labels.clone()
    labels[list(rows)] = label
    return labels


NAMES = torch.randperm(N + M, generator=torch.Generator().manual_seed(2))
# Classes, partner classes, keywords of the library, and what the oracle is told besides.
CASES: dict[str, tuple[Tensor, Tensor, dict[str, Any], dict[str, Any]]] = {
    "one_set": (classes(N), classes(N, 1), {}, {}),
    "both_classes_are_one": (classes(N), classes(N), {}, {}),
    "itself_is_kept": (classes(N), classes(N), {"exclude_self": False}, {"own": -torch.ones(N)}),
    "unknown_partners": (classes(N), classes(N, 1, 12), {}, {}),
    "two_classes": (classes(N, most=2), 1 - classes(N, most=2), {}, {}),
    "two_sets": (classes(N), classes(N, 1), {"ref_labels": classes(M, 2, 8)}, {}),
    "small_integers": (
        classes(N).to(torch.uint8), classes(N, 1).to(torch.int16),
        {"ref_labels": classes(M, 2).to(torch.int32)}, {},
    ),
    "ignored_rows": (ignoring(classes(N), 0, 7), ignoring(classes(N, 1), 3, 7, 30), {}, {}),
    "another_ignore_index": (
        classes(N), classes(N, 1), {"ref_labels": classes(M, 2), "ignore_index": 3}, {},
    ),
    "nothing_ignored": (ignoring(classes(N), 0), classes(N, 1), {"ignore_index": None}, {}),
    "named_by_ids": (
        classes(N), classes(N),
        {"ref_labels": classes(M, 2), "ids": NAMES[:N], "ref_ids": NAMES.flip(0)[:M]},
        {"own": torch.where(N + M - 1 - torch.arange(N) < M, N + M - 1 - torch.arange(N), -1)},
    ),
    "references_begin_with_the_anchors": (
        classes(N), classes(N),
        {"ref_labels": torch.cat([classes(N), classes(M - N, 2)]), "exclude_self": True},
        {"own": torch.arange(N)},
    ),
    "no_references": (classes(N), classes(N), {"ref_labels": classes(0)}, {}),
}  # fmt: skip
KEPT = ("one_set", "both_classes_are_one", "two_sets", "ignored_rows", "named_by_ids")


def gates(n: int, dtype: torch.dtype) -> Tensor:
    return smooth(n, D, torch.float32).sigmoid().to(dtype)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("case", "dtype", "distance"),
    exhaustive_but(
        [
            *[(case, torch.float32, distance) for case in CASES for distance in ("cosine", "dot")],
            *[("ignored_rows", z, "cosine") for z in (torch.float16, torch.bfloat16, DOUBLE)],
            *[("two_sets", z, "cosine") for z in (torch.float16, torch.bfloat16, DOUBLE)],
        ],
        lambda case, _, distance: distance == "cosine" or case in KEPT,
    ),
)
def test_values_and_gradients(case: str, dtype: torch.dtype, distance: Any) -> None:
    mine, partners, given, told = CASES[case]
    tensors = [smooth(N, D, dtype), gates(N, dtype)]
    if "ref_labels" in given:
        tensors.append(smooth(len(given["ref_labels"]), D, dtype))
    for_oracle = {k: given[k] for k in ("ref_labels", "ignore_index") if k in given} | told
    params = {"temperature": 0.2 if distance == "cosine" else 3.0, "distance": distance}

    def other(y: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return {"ref_emb": y[0]} if y else {}

    def ours(x: Tensor, gate: Tensor, *y: Tensor) -> Tensor:
        whole = {**params, **given, **other(y), "reduction": "none"}
        return pairops.hydra_loss(x, gate, mine, partners, **whole)

    def formula(x: Tensor, gate: Tensor, *y: Tensor, dtype: torch.dtype) -> Tensor:
        whole = {**params, **for_oracle, **other(y), "dtype": dtype}
        return oracle.hydra_loss(x, gate, mine, partners, **whole)

    ran = check(tensors, ours, formula)
    assert {"dense", "blockwise"} <= set(ran)
    assert "cpu" not in ran


def loss_of(x: Tensor, gate: Tensor, temperature: Tensor, **given: Any) -> Tensor:
    n = len(x)
    loss: Tensor = pairops.hydra_loss(
        x, gate, torch.arange(n) % 3, (torch.arange(n) + 1) % 3, temperature=temperature, **given
    )
    return loss


@pytest.mark.parametrize("engine", ["blockwise", "dense"])
def test_derivatives(engine: str) -> None:
    """By the gate and the temperature too, and second ones."""
    leaves = [
        smooth(7, 4, DOUBLE),
        gates(7, DOUBLE)[:, :4].contiguous(),
        torch.tensor(0.3).double(),
    ]
    leaves = [z.requires_grad_() for z in leaves]
    with pairops.engine(engine):
        torch.autograd.gradcheck(loss_of, leaves, fast_mode=True)
        torch.autograd.gradgradcheck(loss_of, leaves, fast_mode=True)
        expected = torch.autograd.grad(loss_of(*leaves), leaves)
        still = [z.detach() for z in leaves]
        torch.testing.assert_close(torch.func.grad(loss_of, (0, 1, 2))(*still), expected)


@pytest.mark.parametrize("engine", ["blockwise", "dense"])
@pytest.mark.parametrize("filler", [float("nan"), float("inf"), 1e30])
def test_what_ignored_rows_hold_does_not_matter(filler: float, engine: str) -> None:
    labels, partners = ignoring(classes(N), 3, 21), ignoring(classes(N, 1), 5)
    x, gate = smooth(N, D), gates(N, torch.float32)
    found = []
    for fill in (0.0, filler):
        mine, its = x.clone(), gate.clone()
        mine[[3, 21]] = its[[3, 21, 5]] = fill
        leaves = [mine.requires_grad_(), its.requires_grad_()]
        with pairops.engine(engine):
            value = pairops.hydra_loss(*leaves, labels, partners)
        found.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert not found[0][1][[3, 21]].any()
    assert not found[0][2][[3, 21, 5]].any()
    assert found[0][1][5].any(), "as a reference it counts"


def test_of_its_own_class_nothing_counts() -> None:
    """Neither in the value nor in a gradient; and only where the partner class is another."""
    x, gate, y = smooth(1, D, DOUBLE), gates(1, DOUBLE), smooth(6, D, DOUBLE)
    y[2] = 1e3 * x[0]  # far the nearest
    theirs = torch.tensor([1, 1, 0, 2, 2, 2])
    y.requires_grad_()
    mine, partners = torch.tensor([0]), torch.tensor([1])
    for engine in ("blockwise", "dense"):
        with pairops.engine(engine):
            given = {"ref_emb": y, "ref_labels": theirs}
            value = pairops.hydra_loss(x, gate, mine, partners, **given)
            (slope,) = torch.autograd.grad(value, y)
            assert slope.isfinite().all()
            assert slope.any(1).tolist() == [True, True, False, True, True, True]
            # As a negative, of a class that nobody has named, it counts.
            assert pairops.hydra_loss(x, gate, mine + 7, partners, **given) > value + 1
            # Without anything else there is no negative.
            alone = {"ref_emb": y[:3], "ref_labels": theirs[:3]}
            assert pairops.hydra_loss(x, gate, mine, partners, **alone) == 0


@pytest.mark.parametrize("reduction", ["mean", "mean_nonzero", "mean_pairs", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_reductions(weighted: bool, reduction: Any) -> None:
    labels, partners, _, _ = CASES["ignored_rows"]
    leaves = [smooth(N, D, DOUBLE).requires_grad_(), gates(N, DOUBLE).requires_grad_()]
    given = {"weight": torch.rand(N, dtype=DOUBLE) if weighted else None, "reduction": reduction}
    value = pairops.hydra_loss(*leaves, labels, partners, **given)
    if reduction == "mean_pairs":
        expected = oracle.hydra_loss(*leaves, labels, partners, **given)
    else:
        losses = oracle.hydra_loss(*leaves, labels, partners)
        expected = oracle.reduce(losses, ignored=(labels == -100) | (partners == -100), **given)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    found, wanted = (torch.autograd.grad(z.sum(), leaves) for z in (value, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_references_that_are_the_anchors_themselves() -> None:
    """By their memory, as for every loss: then a row is no reference of its own."""
    x, gate, labels = smooth(N, D), gates(N, torch.float32), classes(N)
    alone = pairops.hydra_loss(x, gate, labels, labels)
    for y, same in ((x, True), (x.detach(), True), (x.clone(), False)):
        value = pairops.hydra_loss(x, gate, labels, labels, ref_emb=y, ref_labels=labels)
        assert torch.equal(value, alone) == same


def test_what_it_saw() -> None:
    labels, partners, _, _ = CASES["ignored_rows"]
    x, gate = smooth(N, D, DOUBLE), gates(N, DOUBLE)
    value, aux = pairops.hydra_loss.with_aux(x, gate, labels, partners, temperature=0.2)
    assert torch.equal(value, pairops.hydra_loss(x, gate, labels, partners, temperature=0.2))
    unit = torch.nn.functional.normalize
    s = torch.einsum("id,ijd->ij", unit(gate * x), unit(gate[:, None] * x, dim=2))
    there = (labels != -100) & (partners != -100)
    counted = there[:, None] & (labels != -100) & ~torch.eye(N, dtype=torch.bool)
    positive = counted & (partners[:, None] == labels)
    negative = counted & ~positive & (labels[:, None] != labels)
    assert torch.equal(aux.positives, positive.sum(1))
    assert torch.equal(aux.negatives, negative.sum(1))
    farthest = s.masked_fill(~positive, torch.inf).amin(1)
    nearest = s.masked_fill(~negative, -torch.inf).amax(1)
    torch.testing.assert_close(aux.farthest_positive[there], farthest[there])
    torch.testing.assert_close(aux.nearest_negative[there], nearest[there])
    log_sums = (s / 0.2).masked_fill(~negative, -torch.inf).logsumexp(1)
    torch.testing.assert_close(aux.log_sum_exps["negative"][there], log_sums[there])


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("gathered", [RING, GATHERED], ids=["ring", "gathered"])
def test_references_over_ranks(ranks: Ranks, gathered: int) -> None:
    """Classes are told apart by those of all ranks."""
    problem = Problem("hydra_loss", {})
    x, gate, labels, partners = problem.args
    problem.args = x, gate, ignoring(labels, 2), ignoring(partners, 9)
    ref_emb = torch.cat([x[3:20], smooth(14, x.shape[1], DOUBLE)])
    problem.keywords = {
        "ref_emb": ref_emb, "ref_labels": torch.cat([labels[3:20], classes(14) + 100]),
        "ids": torch.arange(24), "ref_ids": torch.arange(31) + 3, "reduction": "mean_pairs",
    }  # fmt: skip
    problem.leaves = [0, 1, "ref_emb"]
    problem.apart = {at: [3, 0, 17, 11] for at in ("ref_emb", "ref_labels", "ref_ids")}
    check_ranks(ranks, problem, 1e-12, layouts=["uneven", "empty"], gathered=gathered)


X, G, C = smooth(6, 5), smooth(6, 5), torch.arange(6) // 2


@pytest.mark.parametrize(
    ("args", "given", "error", "says"),
    [
        ((X, G[:5], C, C), {}, ValueError, "gate has 5 rows; it must have 6, one for each of x"),
        ((X, G[:, :4], C, C), {}, ValueError, "gate has D 4; it must be 5 as in x"),
        ((X, G.double(), C, C), {}, TypeError, "gate has dtype torch.float64; it must be torch.fl"),
        ((X, G, C.float(), C), {}, TypeError, "labels is torch.float32; it must be an integer"),
        ((X, G, C, C[:3]), {}, ValueError, r"partner_labels has shape \(3,\); it must be \(6,\)"),
        (
            (X, G, C.to(torch.uint64), C), {}, TypeError,
            r"labels is torch.uint64; it must fit int64: write labels.long\(\)",
        ),
        ((X, G, C, C), {"ids": C}, ValueError, "ids is given without ref_emb"),
        ((X, G, C, C), {"ref_emb": X}, ValueError, "ref_labels is None; it must be given with"),
        ((X, G, C, C), {"ref_labels": C}, ValueError, "ref_labels is given without ref_emb"),
        ((X, G, C, C), {"normalize": False}, ValueError, "normalize is False and distance is 'cos"),
        ((X, G, C, C), {"ignore_index": 2**63}, ValueError, "ignore_index is .* below 2..63"),
        ((X, G, C, C), {"width": 1.0}, TypeError, r"hydra_loss\(\) has no keyword 'width'"),
    ],
)  # fmt: skip
def test_wrong_arguments(
    args: tuple[Any, ...], given: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        pairops.hydra_loss(*args, **given)
