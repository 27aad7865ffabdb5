"""Losses of several labels for each row: classes of queries, and positives that are weighted."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

import oracle
import pairops
from oracle.rows import closeness
from support.engine_names import HERE, WIDE
from support.exhaustive import exhaustive, exhaustive_but
from support.loss_comparison import check
from support.named_cases import smooth
from support.on_cpu import device as device

DOUBLE = torch.float64
QUERIES, CLASSES = 40, 57


def several(n: int, classes: int, share: float = 0.15) -> Tensor:
    """(n, classes) bool; the first row has none."""
    labels = torch.rand(n, classes, generator=torch.Generator().manual_seed(n)) < share
    labels[:1] = False
    return labels


# ── queries against embeddings of classes, of which each has several ──


def decoupled(s: Tensor, mine: Tensor) -> Tensor:
    """DEXML: 1/|P| sum_P softplus(lse_N - s_p), by its definition."""
    rest = torch.cat([s[~mine], s.new_full((1,), -torch.inf)]).logsumexp(0)
    above = rest - s[mine]
    return torch.logaddexp(above, torch.zeros_like(above)).sum() / max(int(mine.sum()), 1)


def clusters(s: Tensor, mine: Tensor) -> Tensor:
    """MLCD: log(1 + sum_N e^s) + log(1 + sum_P e^-s)."""
    nothing = s.new_zeros(1)
    return torch.cat([s[~mine], nothing]).logsumexp(0) + torch.cat([-s[mine], nothing]).logsumexp(0)


OF_CLASSES: dict[str, tuple[Any, dict[str, Any], float]] = {
    "decoupled_softmax_loss": (decoupled, {"temperature": 0.2}, 5.0),
    "mlcd_loss": (clusters, {"scale": 8.0}, 8.0),
}
# How the classes of queries are told: as sparse labels are stored, or as rows of 0 and 1.
WAYS: dict[str, Any] = {
    "listed": lambda has: {"labels": None, "positives": tuple(has.nonzero().unbind(1))},
    "rows": lambda has: {"labels": has, "ref_labels": torch.eye(has.shape[1])},
}


def against_classes(name: str, has: Tensor, x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    one, _, scale = OF_CLASSES[name]
    s = scale * closeness(x, y, dtype=dtype)
    return torch.stack([one(s_i, mine) for s_i, mine in zip(s, has, strict=True)])


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    "dtype", exhaustive_but([torch.float32, DOUBLE, torch.bfloat16], lambda z: z != DOUBLE)
)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OF_CLASSES)
def test_queries_with_several_classes(name: str, way: str, dtype: torch.dtype) -> None:
    has = several(QUERIES, CLASSES)
    has[1:, 0] = True  # every query but the first has one at least
    assert has[1:].sum(1).max() > 5
    given = {**OF_CLASSES[name][1], **WAYS[way](has), "reduction": "none"}

    def ours(x: Tensor, y: Tensor) -> Tensor:
        return getattr(pairops, name)(x, ref_emb=y, **given)

    def formula(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
        return against_classes(name, has, x, y, dtype)

    ran = check([smooth(QUERIES, 19, dtype), smooth(CLASSES, 19, dtype)], ours, formula)
    # Compiled for a CPU and served on a GPU, but for lists on `cuda`.
    assert set(ran) == {e for e in HERE if e != "cuda" and (e in WIDE or dtype != DOUBLE)}


@pytest.mark.parametrize("name", OF_CLASSES)
def test_a_query_without_classes_counts(name: str) -> None:
    has = several(QUERIES, CLASSES)
    x, y = smooth(QUERIES, 9, DOUBLE), smooth(CLASSES, 9, DOUBLE)
    losses = against_classes(name, has, x, y, DOUBLE)
    for way in WAYS.values():
        given = {**OF_CLASSES[name][1], **way(has), "ref_emb": y}
        value = getattr(pairops, name)(x, **given)
        torch.testing.assert_close(value, losses.mean(), rtol=1e-12, atol=1e-12)
    if name == "decoupled_softmax_loss":
        assert losses[0] == 0
        pairs = pairops.decoupled_softmax_loss(x, **given, reduction="mean_pairs")
        counts = has.sum(1)
        expected = (losses * counts).sum() / counts.sum()
        torch.testing.assert_close(pairs, expected, rtol=1e-12, atol=1e-12)


# ── positives weighted by the labels that they share ──

WEIGHTS = ["shared", "jaccard"]
# Labels of the anchors and of the references, or None for one set.
CASES: dict[str, tuple[Tensor, Tensor | None]] = {
    "one_set": (several(40, 12), None),
    "two_sets": (several(40, 12), several(57, 12)),
    "floating_point": (several(30, 9, 0.3).bfloat16(), None),
    "one_label_each": (one_hot(torch.arange(30) % 7), None),
    "everything": (torch.ones(9, 2, dtype=torch.bool), None),
    "nothing": (torch.zeros(9, 2, dtype=torch.bool), None),
    "one_row": (torch.ones(1, 3, dtype=torch.bool), several(6, 3, 0.5)),
    "no_references": (several(6, 3, 0.5), torch.zeros(0, 3, dtype=torch.bool)),
}


def of_case(case: str, dtype: torch.dtype, *, d: int = 9) -> tuple[list[Tensor], Any]:
    """Embeddings, and the keywords that go with the second of them."""
    labels, theirs = CASES[case]
    x = smooth(len(labels), d, dtype)
    if theirs is None:
        return [x], lambda _: {}
    return [x, smooth(len(theirs), d, dtype)], lambda y: {"ref_emb": y[0], "ref_labels": theirs}


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.filterwarnings("ignore:no row of this batch")
@pytest.mark.parametrize(
    ("case", "dtype", "temperature"),
    [
        *[(case, torch.float32, 0.2) for case in CASES],
        *[("two_sets", dtype, 0.2) for dtype in (torch.bfloat16, torch.float16, DOUBLE)],
        ("one_set", torch.float32, 1e-3),
    ],
)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_weighted(weight: str, case: str, dtype: torch.dtype, temperature: float) -> None:
    tensors, other = of_case(case, dtype)
    given = {"temperature": temperature, "positive_weight": weight}

    def ours(x: Tensor, *y: Tensor) -> Tensor:
        labels = CASES[case][0]
        return pairops.supcon_loss(x, labels, **given, **other(y), reduction="none")

    def formula(x: Tensor, *y: Tensor, dtype: torch.dtype) -> Tensor:
        return oracle.supcon_loss(x, CASES[case][0], dtype=dtype, **given, **other(y))

    assert set(check(tensors, ours, formula)) == {"dense", "blockwise"}


def test_of_one_label_each_all_weights_are_equal() -> None:
    (x,), _ = of_case("one_label_each", DOUBLE)
    labels = CASES["one_label_each"][0]
    equal = pairops.supcon_loss(x, labels, reduction="none")
    for weight in WEIGHTS:
        weighted = pairops.supcon_loss(x, labels, positive_weight=weight, reduction="none")
        torch.testing.assert_close(weighted, equal, rtol=1e-12, atol=1e-12)
    plain = pairops.supcon_loss(x, labels.argmax(1), reduction="none")
    torch.testing.assert_close(plain, equal, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_weighted_by_ids_and_reduced(weight: str) -> None:
    """Two sets whose rows are partly one another; weights of anchors; what was seen."""
    (x, y), _ = of_case("two_sets", DOUBLE)
    labels, theirs = CASES["two_sets"]
    assert theirs is not None
    y, theirs = torch.cat([y[:17], x]), torch.cat([theirs[:17], labels])
    ids, ref_ids = torch.arange(40) + 100, torch.cat([torch.arange(17), torch.arange(40) + 100])
    given = {"ref_emb": y, "ref_labels": theirs, "positive_weight": weight}
    factors = torch.rand(40, dtype=DOUBLE)
    losses = oracle.supcon_loss(x, labels, own=torch.arange(40) + 17, **given)
    for reduction in ("mean", "mean_nonzero", "sum", "none"):
        value, aux = pairops.supcon_loss.with_aux(
            x, labels, ids=ids, ref_ids=ref_ids, reduction=reduction, weight=factors, **given
        )
        expected = oracle.reduce(losses, weight=factors, reduction=reduction)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    _, equal = pairops.supcon_loss.with_aux(
        x, labels, ids=ids, ref_ids=ref_ids, ref_emb=y, ref_labels=theirs
    )
    for name in ("positives", "negatives", "farthest_positive", "nearest_negative"):
        assert torch.equal(getattr(aux, name), getattr(equal, name))
    torch.testing.assert_close(aux.log_sum_exps["all"], equal.log_sum_exps["all"])


def weighted_loss(weight: str, y: Tensor, x: Tensor, t: Tensor) -> Tensor:
    labels, theirs = CASES["two_sets"]
    given = {"ref_emb": y, "ref_labels": theirs, "temperature": t, "positive_weight": weight}
    return pairops.supcon_loss(x, labels[: len(x)], **given)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_derivatives_of_the_weighted(weight: str) -> None:
    """Second ones and by torch.func, of embeddings and of the temperature."""
    (x, y), _ = of_case("two_sets", DOUBLE, d=4)
    loss = functools.partial(weighted_loss, weight, y)
    t = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    few = x[:5].clone().requires_grad_()
    for engine in ("blockwise", "dense"):
        with pairops.engine(engine):
            torch.autograd.gradcheck(loss, (few, t), fast_mode=True)
            torch.autograd.gradgradcheck(loss, (few, t), fast_mode=True)
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(loss(leaf, t), (leaf, t))
    torch.testing.assert_close(torch.func.grad(loss, (0, 1))(x, t.detach()), expected)


@exhaustive
@pytest.mark.filterwarnings("ignore:.*dynamic shape operator:UserWarning")
@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_weighted_in_one_graph(weight: str) -> None:
    (x, y), _ = of_case("two_sets", DOUBLE, d=4)
    loss = functools.partial(weighted_loss, weight, y)
    t = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    leaf = x.clone().requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(leaf, t), (leaf, t))
    torch.testing.assert_close(found, torch.autograd.grad(loss(leaf, t), (leaf, t)))


@pytest.mark.parametrize(
    ("labels", "given", "says"),
    [
        (torch.arange(6), {"positive_weight": "shared"}, "is 'shared'; it must be 'equal' but for"),
        (
            None,
            {"positive_weight": "jaccard", "positives": (torch.arange(2), torch.arange(2) + 1)},
            r"is 'jaccard'; it must be 'equal' but for labels \(N, C\)",
        ),
        (
            torch.ones(6, 2),
            {"positive_weight": "shared", "width": 1.0},
            r"is 'shared'; it must be 'equal' but for labels \(N, C\)",
        ),
        (
            torch.ones(6, 2),
            {"positive_weight": "iou"},
            "is 'iou'; it must be one of equal, shared, jaccard",
        ),
    ],
)
def test_what_may_not_be_weighted(labels: Any, given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"positive_weight {says}"):
        pairops.supcon_loss(smooth(6, 3), labels, **given)
