"""Retrieval metrics against a full sort with explicit ties, and against pytorch-metric-learning."""

import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from torch import Tensor

import pairops
from pairops.retrieval import Retrieval, average_precisions, evaluate, first_ranks, metrics, ranking
from support.engine_names import HERE
from support.term_problems import any_problem

TIES = ["pessimistic", "optimistic"]


@pytest.fixture(params=[name for name in HERE if name != "cuda"])  # it does not count
def counting_engine(request: pytest.FixtureRequest) -> Iterator[None]:
    with pairops.engine(request.param):
        yield


@pytest.fixture(params=["counted", "in strips"])
def small_strips(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to the ranks of all positives, of which the number of these decides."""
    monkeypatch.setattr(metrics, "_COUNTED", 0 if request.param == "in strips" else 100)
    for name, value in (("_ROWS", 13), ("_COLS", 16), ("_ROOM", 100), ("_AT_ONCE", 40)):
        monkeypatch.setattr(ranking, name, value)


def whole(n: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Small whole numbers: dot products are exact in every dtype, and many are equal."""
    return torch.randint(-2, 3, (n, d)).to(dtype)


def oracle(
    x: Tensor,
    labels: Tensor,
    ties: str = "pessimistic",
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
) -> list[tuple[int, float, float]]:
    """(rank of the first hit, average precision at R, R-precision) of every row, by sorting."""
    same = ref_emb is None
    y, y_labels = (x, labels) if same else (ref_emb, ref_labels)
    result = []
    for i in range(len(x)):
        label = int(labels[i])
        own = i if same else None
        if ids is not None:
            named = [j for j in range(len(y)) if int(ref_ids[j]) == int(ids[i])]
            own = named[0] if named else None
        rivals = []
        for j in range(len(y)):
            if j == own or int(y_labels[j]) == -100 or label == -100:
                continue
            s = float(x[i].double() @ y[j].double())
            hit = int(y_labels[j]) == label
            rivals.append((-s, hit if ties == "pessimistic" else not hit, hit))
        hits = [hit for *_, hit in sorted(rivals)]
        r = sum(hits)
        places = [k for k, hit in enumerate(hits, 1) if hit]
        early = [k for k in places if k <= r]
        precision = sum((n + 1) / k for n, k in enumerate(early))
        result.append((places[0], precision / r, len(early) / r) if r else (0, 0.0, 0.0))
    return result


def means(rows: list[tuple[int, float, float]], counted: list[bool], cutoffs: Any) -> Retrieval:
    rows = [row for row, yes in zip(rows, counted, strict=True) if yes]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else math.nan

    return Retrieval(
        {k: mean([0 < first <= k for first, *_ in rows]) for k in cutoffs},
        mean([1 / first if first else 0.0 for first, *_ in rows]),
        mean([precision for _, precision, _ in rows]),
        mean([share for *_, share in rows]),
        len(rows),
    )


def assert_close(ours: Retrieval, truth: Retrieval) -> None:
    assert ours.queries == truth.queries
    assert ours.recall == pytest.approx(truth.recall, abs=1e-12, nan_ok=True)
    for name in ("mrr", "map_at_r", "r_precision"):
        mine, theirs = getattr(ours, name), getattr(truth, name)
        assert mine == pytest.approx(theirs, abs=1e-12, nan_ok=True), name


DOT: dict[str, Any] = {"distance": "dot"}


@pytest.mark.usefixtures("counting_engine", "small_tiles", "small_strips")
@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("m", [0, 61])
def test_every_engine_counts_what_a_sort_finds(m: int, ties: str) -> None:
    x, labels, other = any_problem(50, m, 3, 9, same=m == 0, named=True)
    x = whole(50, 3)
    if m:
        other["ref_emb"] = whole(m, 3)
    labels[:2] = torch.tensor([77, 78])  # lone
    truth = oracle(x, labels, ties, **other)
    first, precision, share = zip(*truth, strict=True)
    assert first_ranks(x, labels, ties=ties, **DOT, **other).tolist() == list(first)
    found = average_precisions(x, labels, ties=ties, **DOT, **other)
    torch.testing.assert_close(found[0], torch.tensor(precision, dtype=torch.float64))
    torch.testing.assert_close(found[1], torch.tensor(share, dtype=torch.float64))
    for lone in ("skip", "zero"):
        kept = [f > 0 or (lone == "zero" and y != -100) for f, y in zip(first, labels, strict=True)]
        ours = evaluate(x, labels, ties=ties, lone=lone, recall_at=[1, 3, 200], **DOT, **other)
        assert_close(ours, means(truth, kept, [1, 3, 200]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(0, 40), m=st.integers(0, 40), d=st.integers(1, 4), classes=st.integers(1, 12),
    same=st.booleans(), named=st.booleans(), ties=st.sampled_from(TIES),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    counted=st.sampled_from([0, 100]), rows=st.integers(1, 20), cols=st.integers(1, 50),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_on_anything(
    n: int, m: int, d: int, classes: int, same: bool, named: bool, ties: str,
    dtype: torch.dtype, counted: int, rows: int, cols: int, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    x, labels, other = any_problem(n, m, d, classes, same, named)
    x = whole(n, d, dtype)
    if other:
        other["ref_emb"] = whole(len(other["ref_emb"]), d, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_COUNTED", counted)
        patch.setattr(ranking, "_ROWS", rows)
        patch.setattr(ranking, "_COLS", cols)
        patch.setattr(ranking, "_AT_ONCE", 3 * cols)
        ours = evaluate(x, labels, ties=ties, **DOT, **other)  # type: ignore[arg-type]
    truth = oracle(x, labels, ties, **other)
    assert_close(ours, means(truth, [first > 0 for first, *_ in truth], (1, 2, 4, 8)))


@pytest.mark.usefixtures("small_strips")
@pytest.mark.parametrize("m", [0, 150])
def test_as_pytorch_metric_learning(m: int) -> None:
    """Whose own default needs faiss; cosines of random numbers, of which none are equal."""
    x, labels = torch.randn(200, 8), torch.randint(0, 30, (200,))
    labels[:3] = torch.tensor([100, 101, 102])
    y, ref_labels = (torch.randn(m, 8), torch.randint(0, 30, (m,))) if m else (x, labels)
    names = ("precision_at_1", "mean_average_precision_at_r", "r_precision", "mean_reciprocal_rank")
    calculator = AccuracyCalculator(
        include=names, knn_func=CustomKNN(CosineSimilarity()), device=torch.device("cpu")
    )
    theirs = calculator.get_accuracy(x, labels, y, ref_labels, ref_includes_query=not m)
    other = {"ref_emb": y, "ref_labels": ref_labels} if m else {}
    ours = evaluate(x, labels, **other)  # type: ignore[arg-type]
    mine = (ours.recall[1], ours.map_at_r, ours.r_precision, ours.mrr)
    assert [theirs[name] for name in names] == pytest.approx(mine, abs=1e-6)
    assert ours.queries < 200


@pytest.mark.parametrize("ties", TIES)
def test_order_and_place_of_rows_do_not_matter(ties: str) -> None:
    """Rows in another order; the same rows as references by name."""
    x, labels = whole(90, 3), torch.randint(0, 12, (90,))
    truth = evaluate(x, labels, ties=ties, **DOT)
    order, names = torch.randperm(90), torch.arange(90)
    assert_close(evaluate(x[order], labels[order], ties=ties, **DOT), truth)
    apart = {
        "ref_emb": x[order],
        "ref_labels": labels[order],
        "ids": names,
        "ref_ids": names[order],
    }
    assert_close(evaluate(x, labels, ties=ties, **DOT, **apart), truth)
    parts = [
        evaluate(x[k::3], labels[k::3], ties=ties, lone="zero", **DOT,
                 **{**apart, "ids": names[k::3]})
        for k in range(3)
    ]  # fmt: skip
    together = evaluate(x, labels, ties=ties, lone="zero", **DOT)
    assert sum(p.mrr for p in parts) / 3 == pytest.approx(together.mrr)
    assert sum(p.map_at_r for p in parts) / 3 == pytest.approx(together.map_at_r)


@pytest.mark.usefixtures("small_strips")
@pytest.mark.parametrize("distance", ["l2", "sqeuclidean"])
def test_distances_rank_as_they_are(distance: str) -> None:
    """Queries of unit length among references that are not: neither cosines nor products."""
    x, y = whole(30, 3), whole(80, 3)
    labels, ref_labels = torch.randint(0, 6, (30,)), torch.randint(0, 6, (80,))
    # −‖x − y‖² = 2 (<x, y> − ½‖y‖²) − ‖x‖², as products of one dimension more
    longer = torch.cat([x, torch.ones(30, 1)], 1), torch.cat([y, -(y * y).sum(1, True) / 2], 1)
    ours = evaluate(x, labels, ref_emb=y, ref_labels=ref_labels, distance=distance, normalize=False)
    truth = oracle(longer[0], labels, ref_emb=longer[1], ref_labels=ref_labels)
    assert_close(ours, means(truth, [first > 0 for first, *_ in truth], (1, 2, 4, 8)))


def test_labels_of_64_bits_are_compared_exactly() -> None:
    x = torch.eye(4)[[0, 0, 1, 1]]
    labels = torch.tensor([2**63 - 1, 2**63 - 1, 2**63 - 2, 2**62])
    assert first_ranks(x, labels).tolist() == [1, 1, 0, 0]


@pytest.mark.usefixtures("small_strips")
@pytest.mark.parametrize("ties", TIES)
def test_a_nan_is_never_near(ties: str) -> None:
    x, labels = torch.randn(40, 3), torch.arange(40) // 4
    clean = first_ranks(x, labels, ties=ties)
    x[5] = torch.nan
    ranks_, (precision, share) = (
        f(x, labels, ties=ties) for f in (first_ranks, average_precisions)
    )
    assert ranks_[4:8].tolist() == [41] * 4
    assert bool((precision[4:8] == 0).all())
    assert bool((share[4:8] == 0).all())
    other = torch.cat([torch.arange(4), torch.arange(8, 40)])
    assert bool((ranks_[other] > 1).all())
    assert bool((ranks_[other] >= clean[other]).all())
    alone = first_ranks(torch.full((2, 3), torch.nan), torch.zeros(2, dtype=torch.int64))
    assert alone.tolist() == [3, 3]
    assert evaluate(torch.full((2, 3), torch.nan), torch.zeros(2).long()).map_at_r == 0


def test_nothing_to_find() -> None:
    empty = evaluate(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert empty.queries == 0
    assert math.isnan(empty.mrr)
    lone = torch.arange(3)
    assert math.isnan(evaluate(torch.eye(3), lone).recall[1])
    counted = evaluate(torch.eye(3), lone, lone="zero")
    assert (counted.recall[1], counted.mrr, counted.map_at_r, counted.queries) == (0, 0, 0, 3)
    assert evaluate(torch.eye(3), lone, map_at_r=False).map_at_r is None
    x = torch.eye(3).requires_grad_()
    assert not first_ranks(x, lone).requires_grad
    with torch.autocast("cpu"):
        assert first_ranks(x[[0, 0, 1]], lone // 2).tolist() == [1, 1, 0]


def test_progress_is_shown_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics, "_COUNTED", 0)
    x, labels = torch.randn(8, 3), torch.arange(8) // 2
    for progress in (None, False):
        evaluate(x, labels, progress=progress)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setitem(sys.modules, "tqdm", None)
    evaluate(x, labels)
    with pytest.raises(ImportError, match="progress is True, which needs tqdm"):
        evaluate(x, labels, progress=True)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"recall_at": ()}, "recall_at is empty; it must hold at least one number"),
        ({"recall_at": (1, 0)}, "recall_at\\[1\\] is 0; it must be at least 1"),
        ({"recall_at": (1.5,)}, "recall_at\\[0\\] is float; it must be an int"),
        ({"recall_at": (True,)}, "recall_at\\[0\\] is bool; it must be an int"),
        ({"recall_at": 1}, "recall_at is int; it must be a sequence of numbers"),
        ({"ties": "random"}, "ties is 'random'; it must be one of pessimistic, optimistic"),
        ({"lone": None}, "lone is None; it must be one of skip, zero"),
        ({"map_at_r": 1}, "map_at_r is int; it must be a bool"),
        ({"progress": 1}, "progress is int; it must be a bool or None"),
        ({"ref_labels": torch.zeros(4).long()}, "ref_labels is given without ref_emb"),
    ],
)
def test_bad_input_is_named(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        evaluate(torch.eye(4), torch.zeros(4, dtype=torch.int64), **keywords)


def test_more_references_than_a_count_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_MOST", 3)
    labels = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(
        ValueError, match="there are 4 references; 3 at most are counted in float32"
    ):
        evaluate(torch.eye(4), labels)
    evaluate(torch.eye(4, dtype=torch.float64), labels)


def test_ties_at_0_where_tiny_numbers_are_flushed() -> None:
    assert torch.set_flush_denormal(True)
    try:
        ranks_found = first_ranks(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        collapsed = evaluate(torch.zeros(80, 3), torch.arange(80) % 2)
    finally:
        torch.set_flush_denormal(False)
    assert ranks_found.tolist() == [3, 3, 3, 3]
    assert collapsed.recall[1] == 0
