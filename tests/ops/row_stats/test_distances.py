"""How distances travel: pairs name one, and whoever needs squared norms makes them of x and y."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pairops
from pairops import ALL, NEG, POS, Earlier, Pairs, highest, lowest, lse, row_stats, total
from pairops.ops.engines import ENGINES, dense, terms_for_engine
from pairops.ops.engines.blockwise import engine as blockwise_engine
from pairops.ops.pairs.distances import Measure, Squares
from pairops.ops.row_stats.backward import of_terms
from pairops.ops.terms.functions import affine, softplus
from pairops.ops.terms.term import Term, Wanted
from support.engine_names import WIDE
from support.term_problems import DOUBLE, problem, results

MEASURES = ["l2", "sqeuclidean", "snr"]


@pytest.mark.parametrize("key", ["", *MEASURES, "snr of columns"])
def test_a_measure_is_what_its_key_says(key: str) -> None:
    measure = Measure.of(key)
    assert (measure is None) == (key == "")
    if measure is not None:
        assert measure.key == key
        assert measure.turned().turned() == measure
        assert (measure.turned() != measure) == measure.directed


class Recorder(TorchDispatchMode):
    """The arguments of the ops that are called within this context, by the names of schemas."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __torch_dispatch__(
        self, op: Any, _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if op.namespace == "pairops":
            names = [known.name for known in op._schema.arguments]
            self.calls.append((op.__name__, dict(zip(names, args, strict=False))))
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("measure", [*MEASURES, "snr of columns"])
def test_ops_are_told_the_name_of_a_distance_and_no_tensor_of_it(
    measure: str, normalize: bool
) -> None:
    x, labels, _ = problem(20)
    bound = torch.full((20,), -1.0, dtype=DOUBLE)
    distance: Any = measure.partition(" ")[0]
    pairs = Pairs.of(x.requires_grad_(), labels, distance=distance, normalize=normalize)
    pairs = replace(pairs, measure=Measure.of(measure))
    with Recorder() as recorder:
        row_stats(pairs, lse(NEG, 2.0, 0.1, above=bound))[0].sum().backward()
    assert [name for name, _ in recorder.calls] == [
        "row_stats.default",
        "row_stats_backward.default",
    ]
    for _, given in recorder.calls:
        assert given["measure"] == measure
        assert given["recipe"] == "lse:neg:affine>"
        assert given["numbers"] == [2.0, 0.1]
        assert [torch.equal(z, bound) for z in given["vectors"]] == [True]


@pytest.mark.parametrize("distance", MEASURES)
def test_squares_are_made_once_for_both_passes(distance: Any) -> None:
    """Of an ordinary step; a gradient leads through those of one that is differentiated again."""
    x, labels, _ = problem(20)
    x.requires_grad_()
    for again in (False, True):
        with (
            mock.patch.object(Squares, "of", side_effect=Squares.of) as made,
            pairops.engine("blockwise"),
        ):
            value = pairops.ms_loss(x, labels, distance=distance, normalize=False, base=1.0)
            assert made.call_count == 1
            torch.autograd.grad(value, x, create_graph=again)
            assert (made.call_count > 1) == again


def test_squares_carry_a_gradient_in_grad_mode_alone() -> None:
    x, labels, _ = problem(6)
    for normalize in (True, False):
        pairs = Pairs.of(x.requires_grad_(), labels, distance="l2", normalize=normalize)
        assert pairs.squares().a.requires_grad == (not normalize)
        with torch.no_grad():
            assert not pairs.squares().a.requires_grad
            assert pairs.squares() is pairs.squares()


# ── An engine that takes distances ──


class Whole:
    """An engine that takes distances: of terms of closeness, with whole gradients by x and y."""

    NAME = "whole"
    TAKES_EARLIER = "nowhere"
    TAKES_DISTANCES = True
    DEVICE: str | None = None

    def __init__(self) -> None:
        self.told: list[Term] = []
        self.weighed: list[Term] = []

    def missing(self) -> str | None:
        return None

    def declines(self, _pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]) -> str | None:
        self.told += [*rows, *cols]
        return None

    def prepare(self, _pairs: Pairs) -> list[Tensor]:
        return []

    def forward(
        self, pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        self.told += [*rows, *cols]
        values, arguments, _ = dense.forward(
            pairs, *terms_for_engine(ENGINES["dense"], pairs, rows, cols)
        )
        return (
            values,
            arguments,
            torch.ones(self.tile_masks_shape(pairs, rows, cols), dtype=torch.uint8),
        )

    def backward(
        self,
        pairs: Pairs,
        rows: Sequence[Term],
        cols: Sequence[Term],
        statistics: Sequence[Tensor],
        cotangents: Sequence[Tensor],
        bits: Tensor | None,
        needs: Wanted,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        terms = (*rows, *cols)
        self.weighed += terms
        assert bits is not None
        assert len(bits) == sum(term.has_tile_mask for term in terms)
        assert needs.args is not None
        of_term = [sum(z.has_grad for z in term.operands()) for term in terms]
        assert [len(flags) for flags in needs.args] == of_term
        dx, dy, by_term = of_terms(
            pairs, rows, cols, "blockwise", statistics, [], None, cotangents, needs
        )
        none = pairs.x.new_empty(0)
        flat = [slope for k in range(len(terms)) for slope in by_term[k]]
        return none if dx is None else dx, none if dy is None else dy, flat

    def tile_masks_shape(
        self, _pairs: Pairs, rows: Sequence[Term], cols: Sequence[Term]
    ) -> tuple[int | torch.SymInt, ...]:
        return (sum(term.has_tile_mask for term in (*rows, *cols)), 1)


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Whole:
    engine = Whole()
    monkeypatch.setitem(ENGINES, engine.NAME, engine)
    return engine


def every_way(u: Tensor, v: Tensor, base: float) -> tuple[list[Term], list[Term]]:
    """Windows, earlier terms with and without gradient, extremes, vectors; rows and columns."""
    far = lowest(POS, grad=False)
    neg = lse(NEG, 2.0, u, above=far)
    rows = [
        far,
        neg,
        total(NEG, 0.5, Earlier(neg, grad=True), function=affine, below=u.detach() - base),
        highest(NEG, 1.0, u, function=affine, below=u.detach() - base),
        lowest(POS),
        total(ALL, 0.3, pairops.partner(v), function=softplus),
    ]
    return rows, [lse(POS, -1.0, base), highest(NEG, above=v.detach() - 2 * base)]


@pytest.mark.parametrize("as_op", [False, True])
@pytest.mark.parametrize("m", [0, 23])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("distance", MEASURES)
def test_an_engine_that_takes_distances_is_told_plain_terms_and_believed(
    whole: Whole, distance: Any, normalize: bool, m: int, as_op: bool
) -> None:
    x, labels, other = problem(31, m, classes=5)
    labels[4] = -100
    u, v = torch.rand(31, dtype=DOUBLE), torch.rand(m or 31, dtype=DOUBLE)
    found = []
    for engine in ("whole", "dense"):
        leaves = [z.clone().requires_grad_() for z in (x, u, v)]
        keywords = dict(other)
        if m:
            leaves.append(other["ref_emb"].clone().requires_grad_())
            keywords["ref_emb"] = leaves[-1]

        def run(leaves: list[Tensor] = leaves, given: Any = keywords) -> tuple[Tensor, ...]:
            pairs = Pairs.of(leaves[0], labels, **given, distance=distance, normalize=normalize)
            rows, cols = every_way(leaves[1], leaves[2], 1.0)
            return row_stats(pairs, *rows, cols=cols)

        with pairops.engine(engine):
            if as_op:
                with Recorder():
                    found.append(results(run, leaves))
            else:
                found.append(results(run, leaves))
    for ours, truth in zip(*found, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9)
    names = {"identity", "affine", "softplus"}
    assert {term.function.name for term in whole.told} == names
    assert any(term.has_tile_mask for term in whole.told)
    # The gradients of extremes go to one pair per owner, in torch, whatever the engine.
    assert whole.weighed
    assert not any(term.extreme for term in whole.weighed)


def test_nothing_is_added_to_what_such_an_engine_returns(
    whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backward(pairs: Pairs, *_rest: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
        return torch.full_like(pairs.x, 2.5), pairs.x.new_empty(0), []

    monkeypatch.setattr(whole, "backward", backward)
    x, labels, _ = problem(12)
    x.requires_grad_()
    with pairops.engine("whole"):
        pairs = Pairs.of(x, labels, distance="l2", normalize=False)
        row_stats(pairs, lse(NEG, 1.0, 0.0))[0].sum().backward()
    assert x.grad is not None
    assert bool((x.grad == 2.5).all())


def test_only_the_gradients_by_squares_that_are_wanted_are_asked_for() -> None:
    """Never by those of unit vectors or by windows, and only by those of a set that has one."""
    asked = []
    backward = blockwise_engine.backward

    def watch(*call: Any) -> Any:
        asked.append(call[-1].args)
        return backward(*call)

    x, labels, other = problem(9, 7)
    bound = torch.full((9,), -9.0, dtype=DOUBLE)
    for distance, normalize, sets, expected in (
        ("l2", True, "xy", [False, False, False]),
        ("l2", False, "xy", [True, True, False]),
        ("l2", False, "x", [True, False, False]),
        ("l2", False, "y", [False, True, False]),
        ("snr", True, "x", [True, False, True, False]),
        ("snr", True, "y", [False, True, False, False]),
    ):
        y = other["ref_emb"].clone().requires_grad_("y" in sets)
        pairs = Pairs.of(
            x.clone().requires_grad_("x" in sets), labels, ref_emb=y,
            ref_labels=other["ref_labels"], distance=distance, normalize=normalize,
        )  # fmt: skip
        with mock.patch.object(blockwise_engine, "backward", watch), pairops.engine("blockwise"):
            row_stats(pairs, total(ALL, 1.0, 0.0, above=bound))[0].sum().backward()
        assert asked.pop() == [expected]
    assert not asked


# ── Gradients ──


def closeness(x: Tensor, y: Tensor, distance: str, normalize: bool) -> Tensor:
    """(N, M) −d by differences of rows."""
    if normalize:
        x, y = (torch.nn.functional.normalize(z) for z in (x, y))
    if distance == "snr":
        x, y = (z - z.mean(1, keepdim=True) for z in (x, y))
    square = (x.unsqueeze(1) - y).square().sum(2)
    if distance == "l2":  # of a row itself not 0, where the square root has no slope
        return -torch.where(square == 0, 1, square).sqrt()
    return -square / x.square().sum(1, keepdim=True) if distance == "snr" else -square


def by_hand(x: Tensor, labels: Tensor, given: dict[str, Any], **how: Any) -> Tensor:
    """Σ log(1 + e^(0.2 − 1.5 t)) over the positives of every row, and Σ t over its negatives."""
    y, ref_labels = given.get("ref_emb", x), given.get("ref_labels", labels)
    rows, cols = labels != -100, ref_labels != -100
    t = x.new_zeros(len(x), len(y))
    found = closeness(x[rows], y[cols], how["distance"], how["normalize"])
    at = rows.nonzero(), cols.nonzero().T
    t = t.index_put(at, found) if found.numel() else t + 0 * (x.sum() + y.sum())
    present = rows.unsqueeze(1) & cols
    if y is x:
        present = present & ~torch.eye(len(x), dtype=torch.bool)
    positive = present & (labels.unsqueeze(1) == ref_labels)
    negative = present & ~positive
    pull = -torch.nn.functional.logsigmoid(1.5 * t - 0.2)
    return (torch.where(positive, pull, 0) + torch.where(negative, t, 0)).sum(1)


TERMS = total(POS, -1.5, 0.2, function=softplus), total(NEG, 1.0, 0.0)


def distinct(n: int, d: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(n, d, dtype=DOUBLE).to(dtype)


def sets(name: str) -> tuple[Tensor, Tensor, dict[str, Any]]:
    labels, ref_labels = torch.arange(9) // 3, torch.arange(7) % 4
    x, y = distinct(9, 5), distinct(7, 5)
    if name == "D = 2":
        x, y = distinct(9, 2), distinct(7, 2)
    if name in ("one row", "one of each"):
        x, labels = x[:1], labels[:1]
    if name == "one of each":
        y, ref_labels = y[:1], ref_labels[:1]
    if name == "no columns":
        y, ref_labels = y[:0], ref_labels[:0]
    if name == "no rows":
        x, labels = x[:0], labels[:0]
    if name == "ignored rows with NaN":
        labels[[2, 6]], ref_labels[3] = -100, -100
        x[[2, 6]], y[3] = torch.nan, torch.inf
    if name == "16 bits":
        x, y = x.bfloat16(), y.bfloat16()
    return x, labels, {"ref_emb": y, "ref_labels": ref_labels}


CASES = [
    "two sets", "one set", "references that are x", "D = 2", "one row", "one of each", "no columns",
    "no rows", "ignored rows with NaN", "16 bits", "x alone", "y alone",
]  # fmt: skip


@pytest.mark.parametrize("engine", WIDE)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("distance", MEASURES)
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_differences(
    name: str, distance: str, normalize: bool, engine: str
) -> None:
    x, labels, given = sets(name)
    how: dict[str, Any] = {"distance": distance, "normalize": normalize}
    found = []
    for dtype in (x.dtype, DOUBLE):
        mine = x.to(dtype, copy=True).requires_grad_(name != "y alone")
        others = {**given, "ref_emb": given["ref_emb"].to(dtype, copy=True)}
        others["ref_emb"].requires_grad_(name != "x alone")
        leaves = [mine, others["ref_emb"]]
        if name == "one set":
            others, leaves = {}, [mine]
        if name == "references that are x":
            others, leaves = {"ref_emb": mine, "ref_labels": labels}, [mine]
        leaves = [z for z in leaves if z.requires_grad]
        if found:
            values = by_hand(mine, labels, others, **how)
        else:
            with pairops.engine(engine):
                both = row_stats(Pairs.of(mine, labels, **others, **how), *TERMS)
            values = torch.stack(both).sum(0)
        value = (values * torch.linspace(1, 2, len(x), dtype=values.dtype)).sum()
        unused = {"materialize_grads": True} if found else {}
        found.append([values.detach(), *torch.autograd.grad(value, leaves, **unused)])
    bound = 1e-10 if x.dtype == DOUBLE else 2e-2
    for k, (ours, truth) in enumerate(zip(*found, strict=True)):
        if k and name == "ignored rows with NaN":
            rows = labels if k == 1 else given["ref_labels"]
            assert not ours[rows == -100].any()
            ours, truth = ours[rows != -100], truth[rows != -100]
        size = float(truth.abs().max()) if truth.numel() else 1.0
        torch.testing.assert_close(ours.double(), truth, rtol=bound, atol=bound * size)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("engine", WIDE)
@pytest.mark.parametrize("m", [0, 5])
@pytest.mark.parametrize("distance", MEASURES)
def test_gradgradcheck_under_windows(distance: Any, m: int, engine: str) -> None:
    """By embeddings and arguments, through the squared norms and what snr divides by."""
    n = 6
    x, labels, other = problem(n, m, d=4, classes=2)
    u = torch.rand(n, dtype=DOUBLE)
    t = closeness(x, other.get("ref_emb", x), distance, False)
    t = t + (torch.diag(torch.full((n,), -torch.inf)) if not m else 0)
    above = t.sort(1).values[:, -4:-2].mean(1)  # between two of the distances, near to none
    inputs = [x.requires_grad_(), u.requires_grad_()]
    if m:
        inputs.append(other["ref_emb"].requires_grad_())

    def run(x: Tensor, u: Tensor, y: Tensor | None = None) -> tuple[Tensor, ...]:
        given = {} if y is None else {"ref_emb": y, "ref_labels": other["ref_labels"]}
        pairs = Pairs.of(x, labels, **given, distance=distance, normalize=False)
        rows = [
            lse(NEG, 0.5, u, above=above),
            total(NEG, 0.3, u, function=softplus),
            highest(NEG, below=above),
        ]
        found = row_stats(pairs, *rows, cols=[lse(ALL, 0.4, 0.0), highest(NEG)])
        return tuple([torch.where(z.isinf(), 0, z) for z in found])

    with pairops.engine(engine):
        assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("engine", WIDE)
def test_a_turned_distance_has_the_columns_for_anchors(engine: str) -> None:
    x, labels, other = problem(13, 11)
    y, ref_labels = other["ref_emb"].requires_grad_(), other["ref_labels"]
    x.requires_grad_()
    terms = [lse(NEG, 0.5, 0.1), total(POS, 1.0, 0.0), lowest(NEG)]
    there = Pairs.of(x, labels, ref_emb=y, ref_labels=ref_labels, distance="snr")
    assert there.measure is not None
    turned = replace(there, measure=there.measure.turned())
    back = Pairs.of(y, ref_labels, ref_emb=x, ref_labels=labels, distance="snr")
    with pairops.engine(engine):
        ours = results(lambda: row_stats(turned, cols=terms), [x, y])
        truth = results(lambda: row_stats(back, *terms), [x, y])
        other_way = row_stats(there, cols=terms)
    for one, expected in zip(ours, truth, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(other_way[2], truth[2])


@pytest.mark.parametrize("distance", MEASURES)
def test_statistics_whose_contributions_lie_far_apart(distance: Any) -> None:
    """By rows and by columns of two sets, farther apart than one exponential serves."""
    x, labels, _ = problem(30)
    found = []
    for engine in ("auto", "dense"):
        y, pairing = x.roll(1, 0).float() * 1.5, {"ref_labels": labels, "distance": distance}
        pairs = Pairs.of(x.float(), labels, ref_emb=y, exclude_self=False, **pairing)
        terms = [lse(side, 200.0, 0.0) for side in (POS, NEG)]
        with pairops.engine(engine):
            found.append(row_stats(pairs, *terms, cols=terms))
    for ours, truth in zip(*found, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-3)
