"""`between(u, v)`: a product of other embeddings as an argument, against the whole matrices."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from torch import Tensor

import pairops
from oracle.rows import Rows, closeness
from pairops import (
    ALL,
    NEG,
    POS,
    Earlier,
    Function,
    Pairs,
    Term,
    between,
    highest,
    lowest,
    lse,
    partner,
    row_stats,
    total,
)
from pairops.ops.engines import cpu_addresses
from pairops.ops.engines.blockwise import engine as blockwise_engine
from pairops.ops.engines.blockwise import grid, tiled_arguments
from pairops.ops.pairs.similarity import product
from pairops.ops.row_stats import ring_blocks
from pairops.ops.terms.functions import affine, gated
from support.error_rule import Dense, assert_within_rule
from support.exhaustive import exhaustive_but
from support.gloo_ranks import Ranks
from support.named_cases import CASES, Case, smooth
from support.on_cpu import device as device
from support.rank_problems import GATHERED, RING

E = 5
SERVING = ["blockwise", "dense"]
DOUBLE = torch.float64

# A learned gate of each pair, as in Hydra.
blend = Function(lambda s, t, sharpness: s * torch.sigmoid(sharpness * t), name="blend_of_products")
above_earlier = Function(lambda s, t, e: s * torch.sigmoid(t - e), name="product_above_an_earlier")
alone = Function(lambda s, t: t + 0 * s, name="product_alone")


class Kind(NamedTuple):
    """A term, and its values and side as matrices: of closeness, products and a bar per owner."""

    make: Callable[[Any, Tensor], Term]
    statistic: str
    side: str
    value: Callable[[Tensor, Tensor, Tensor], Tensor]
    window: Callable[[Tensor], Tensor] | None = None


KINDS = [
    Kind(
        lambda t, _: total(ALL, t, 2.0, function=blend),
        "sum", ALL, lambda s, t, _: s * torch.sigmoid(2 * t),
    ),
    Kind(lambda t, _: lse(NEG, 3.0, t), "lse", NEG, lambda s, t, _: 3 * (s - t)),
    Kind(
        lambda t, bar: lse(ALL, t, 4.0, bar, function=gated),
        "lse", ALL, lambda s, t, bar: torch.where(t <= bar, 4 * s, -torch.inf),
    ),
    Kind(
        lambda t, _: total(POS, t, 0.5, function=blend, below=0.11),
        "sum", POS, lambda s, t, _: s * torch.sigmoid(t / 2), lambda s: s < 0.11,
    ),
    Kind(
        lambda t, _: lse(NEG, 2.0, t, above=-0.13),
        "lse", NEG, lambda s, t, _: 2 * (s - t), lambda s: s > -0.13,
    ),
    Kind(
        lambda t, _: highest(NEG, 1.0, t, function=affine), "highest", NEG, lambda s, t, _: s - t,
    ),
    Kind(
        lambda t, _: lowest(POS, t, 1.0, function=blend),
        "lowest", POS, lambda s, t, _: s * torch.sigmoid(t),
    ),
]  # fmt: skip


# The one that is compiled for the engine cpu.
GATED = [
    Kind(
        lambda t, bar: lse(NEG, t, 4.0, bar, function=gated),
        "lse", NEG, lambda s, t, bar: torch.where(t <= bar, 4 * s, -torch.inf),
    ),
]  # fmt: skip


def statistic(kind: Kind, s: Tensor, t: Tensor, bar: Tensor, sides: dict[str, Tensor]) -> Tensor:
    """A statistic of every owner (N,) from matrices (N, M); 0 where an owner has no pair."""
    selected = sides[kind.side]
    if kind.window is not None:
        selected = selected & kind.window(s.detach())
    f = kind.value(s, t, bar[:, None])
    if kind.statistic == "sum" or not s.shape[1]:
        return torch.where(selected, f, 0).sum(1)
    selected = selected & (f.detach() != -torch.inf)
    empty = ~selected.any(1)
    sign = -1 if kind.statistic == "lowest" else 1
    f = torch.where(selected | empty[:, None], f * sign, -torch.inf)
    f = torch.where(empty[:, None], 0, f)
    if kind.statistic == "lse":
        found = f.logsumexp(1)
    else:  # of equal ones the first: of a zero vector many are
        found = sign * f.gather(1, f.detach().argmax(1, keepdim=True))[:, 0]
    return torch.where(empty, 0, found)


class Batch(NamedTuple):
    """A case with other embeddings: integers, whose products no rounding moves across a bar."""

    case: Case
    u: Tensor
    v: Tensor
    of_columns: bool
    kinds: list[Kind]

    @staticmethod
    def of(
        case: Case,
        of_columns: bool = False,
        dtype: torch.dtype | None = None,
        kinds: list[Kind] = KINDS,
    ) -> "Batch":
        sets = case.x, case.keywords.get("ref_emb", case.x)
        u, v = [
            torch.randint(-3, 4, (len(z), E)).to(z.dtype if dtype is None else dtype) / 2
            for z in sets
        ]
        return Batch(case, u, v, of_columns, kinds)

    def tensors(self) -> list[Tensor]:
        other = [self.case.keywords["ref_emb"]] if "ref_emb" in self.case.keywords else []
        return [self.u, self.v, self.case.x, *other]

    def bar(self, dtype: torch.dtype) -> Tensor:
        owners = len(self.v if self.of_columns else self.u)
        return torch.arange(owners).to(dtype) % 3 - 0.6

    def pairs(self, x: Tensor, *y: Tensor, **keywords: Any) -> Pairs:
        given = {**self.case.keywords, **keywords}
        if y:
            given["ref_emb"] = y[0]
        return Pairs.of(x, self.case.labels, **given)

    def ours(self, u: Tensor, v: Tensor, x: Tensor, *y: Tensor) -> list[Tensor]:
        """Statistics, 0 where there is no pair."""
        owners, partners = (v, u) if self.of_columns else (u, v)
        bar = self.bar(DOUBLE if x.dtype == DOUBLE else torch.float32)
        terms = [kind.make(between(owners, partners), bar) for kind in self.kinds]
        pairs = self.pairs(x, *y)
        found = row_stats(pairs, cols=terms) if self.of_columns else row_stats(pairs, *terms)
        return [torch.where(z.isinf(), 0, z) for z in found]

    def formula(self, u: Tensor, v: Tensor, x: Tensor, *y: Tensor, dtype: Any) -> list[Tensor]:
        case = self.case
        known = ("ref_labels", "ignore_index", "distance", "normalize")
        given = {k: z for k, z in case.keywords.items() if k in known} | case.oracle
        if y:
            given["ref_emb"] = y[0]
        rows = Rows(x, case.labels, **given, dtype=dtype)
        ignored = given.get("ignore_index", -100)
        labels = given.get("ref_labels", case.labels).long()
        columns = torch.arange(len(labels))
        if ignored is not None:
            columns = columns[labels != ignored]
        s, t = rows.t, closeness(u[rows.anchors], v[columns], "dot", dtype=dtype)
        positive, negative, owners = rows.positive, rows.negative, rows.anchors
        if self.of_columns:
            s, t, owners = s.T, t.T, columns
            positive, negative = positive.T, negative.T
        sides = {POS: positive, NEG: negative, ALL: positive | negative}
        every = self.bar(dtype)
        found = [statistic(kind, s, t, every[owners], sides) for kind in self.kinds]
        return [torch.zeros(len(every), dtype=z.dtype).index_put((owners,), z) for z in found]


def values_and_gradients(
    function: Callable[..., list[Tensor]], tensors: list[Tensor], learned: bool
) -> list[Tensor]:
    """Statistics, and the gradients of a fixed sum of them."""
    mine = [z.detach().clone() for z in tensors]
    leaves = [z.requires_grad_() for z in (mine if learned else mine[2:])]
    values = function(*mine)
    weighted = sum((z * torch.linspace(1, 2 + k, len(z)).to(z)).sum() for k, z in enumerate(values))
    found = torch.autograd.grad(weighted, leaves, allow_unused=True)  # type: ignore[arg-type]
    return [
        *[z.detach() for z in values],
        *[torch.zeros_like(z) if g is None else g for g, z in zip(found, leaves, strict=True)],
    ]


def check(batch: Batch, learned: bool, engines: Sequence[str] = SERVING) -> None:
    """By the error rule, on every engine that serves it."""
    tensors = batch.tensors()
    stored = tensors[2].dtype
    wide = DOUBLE if stored == DOUBLE else torch.float32

    def of_formula(dtype: torch.dtype, given: list[Tensor]) -> list[Tensor]:
        return values_and_gradients(lambda *z: batch.formula(*z, dtype=dtype), given, learned)

    dense = Dense(lambda: of_formula(wide, tensors), wide)
    truth = of_formula(DOUBLE, [z.double() for z in tensors])
    for engine in engines:
        with pairops.engine(engine):
            found = values_and_gradients(batch.ours, tensors, learned)
        assert len(found) == len(truth)
        for k, z in enumerate(found):
            assert_within_rule(f"{engine}: result {k}", z, dense.result(k), truth[k])


KEPT = ["square", "ragged", "ignored_rows", "one_row", "no_references", "named_by_ids"]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("learned", [False, True], ids=["frozen", "learned"])
@pytest.mark.parametrize("of_columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("name", exhaustive_but(CASES, lambda name: name in KEPT))
def test_values_and_gradients(name: str, of_columns: bool, learned: bool) -> None:
    case = CASES[name](smooth)
    if name == "ragged":
        case.x, case.labels = case.x[:50], case.labels[:50]
    check(Batch.of(case, of_columns), learned)


@pytest.mark.parametrize("of_columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("name", exhaustive_but(CASES, lambda name: name in (*KEPT, "ragged")))
def test_what_is_compiled(name: str, of_columns: bool) -> None:
    """Of one set a product is not symmetric, so its gradient is one of two sets."""
    check(Batch.of(CASES[name](smooth), of_columns, kinds=GATED), False, ["cpu", *SERVING])


@pytest.mark.parametrize("of_columns", [False, True], ids=["rows", "columns"])
def test_derivatives_of_what_is_compiled(of_columns: bool) -> None:
    """Second ones, by torch.func, and through the compiler, where an op takes the recipe."""
    batch = Batch.of(mixed(), of_columns, kinds=GATED)
    u, v, x, y = batch.tensors()

    def ours(x: Tensor, y: Tensor) -> Tensor:
        return summed(batch.ours(u, v, x, y))

    def truth(x: Tensor, y: Tensor) -> Tensor:
        return summed(batch.formula(u, v, x, y, dtype=DOUBLE))

    def close(found: Any, other: Any) -> None:
        torch.testing.assert_close(found, other, rtol=1e-9, atol=1e-9)

    torch._dynamo.reset()
    with pairops.engine("cpu"):
        leaves = [z.clone().requires_grad_() for z in (x, y)]
        close(derived(ours(*leaves), leaves), derived(truth(*leaves), leaves))
        close(torch.func.grad(ours, (0, 1))(x, y), torch.func.grad(truth, (0, 1))(x, y))
        compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="aot_eager")
        found = torch.autograd.grad(compiled(*leaves), leaves)
        close(found, torch.autograd.grad(truth(*leaves), leaves))


def test_compiled_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several products, shared ones among them, an earlier bar, distances, views, strides."""
    u, v = smooth(110, 7, DOUBLE), smooth(7, 203, DOUBLE).T
    x, y = smooth(110, 9, DOUBLE), smooth(203, 9, DOUBLE)
    labels, others = torch.randint(0, 9, (110,)), torch.randint(0, 9, (203,))
    scale = torch.rand(110, dtype=DOUBLE)

    def both(engine: str, distance: Any, one_set: bool) -> list[Tensor]:
        leaves = [z.clone().requires_grad_() for z in (x, scale, *([] if one_set else [y]))]
        other = {} if one_set else {"ref_emb": leaves[2], "ref_labels": others}
        partners = u.flip(1)[::1] if one_set else v
        pairs = Pairs.of(leaves[0], labels, distance=distance, **other)
        near = highest(POS)
        rows = [
            near, lse(NEG, between(u, partners), leaves[1], near, function=gated),
            lse(NEG, between(u[:, 2:], partners[:, 2:]), 2.0, 0.3, function=gated),
            total(POS, 1.0, 0.2),
        ]  # fmt: skip
        cols = [lse(NEG, between(partners, u), 3.0, 0.1, function=gated), lse(NEG, 2.0, 0.0)]
        with pairops.engine(engine):
            found = [torch.where(z.isinf(), 0, z) for z in row_stats(pairs, *rows, cols=cols)]
            return [*found, *derived(summed(found), leaves)]

    for kept in (True, False):
        if not kept:
            monkeypatch.setattr(cpu_addresses, "MOST_BYTES", 0)
        for distance in ("cosine", "l2", "snr"):
            for one_set in (False, True):
                truth = both("dense", distance, one_set)
                for one, z in zip(both("cpu", distance, one_set), truth, strict=True):
                    torch.testing.assert_close(one, z, rtol=1e-8, atol=1e-8)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("distance", ["l2", "sqeuclidean", "snr"])
def test_distances(distance: str) -> None:
    """They are composed with the function, behind whose arguments theirs stand."""
    for of_columns in (False, True):
        case = CASES["square"](lambda n, d: smooth(n, d, DOUBLE))
        case.keywords["distance"] = distance
        check(Batch.of(case, of_columns), True)


@pytest.mark.parametrize(
    ("of_x", "of_u"),
    [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16), (DOUBLE, DOUBLE)],
)
def test_dtypes(of_x: torch.dtype, of_u: torch.dtype) -> None:
    """Of 16 bits they are multiplied in float32, and beside float64 in float64."""
    case = CASES["one_row_against_many"](lambda n, d: smooth(n, d, of_x))
    check(Batch.of(case, dtype=of_u), True)
    u, v = (smooth(n, 300, of_u) for n in (30, 20))
    x = smooth(30, 4, of_x)
    pairs = Pairs.of(x, torch.zeros(30).long(), ref_emb=x[:20], ref_labels=torch.zeros(20).long())
    wide = DOUBLE if of_x == DOUBLE else torch.float32
    for engine in SERVING:
        with pairops.engine(engine):
            (found,) = row_stats(pairs, highest(POS, between(u, v), function=alone))
        assert found.dtype == wide
        torch.testing.assert_close(found, (u.to(wide) @ v.to(wide).T).amax(1))


def mixed() -> Case:
    """Two sets with ignored rows, in float64."""
    x, y = smooth(21, 6, DOUBLE), smooth(34, 6, DOUBLE)
    labels, others = torch.randint(0, 4, (21,)), torch.randint(0, 4, (34,))
    labels[3] = others[[0, 20]] = -100
    return Case(x, labels, {"ref_emb": y, "ref_labels": others})


def summed(statistics: list[Tensor]) -> Tensor:
    return sum((z.sin() * (k + 1)).sum() for k, z in enumerate(statistics))  # type: ignore[return-value]


def derived(values: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Gradients, and the gradients of what these make."""
    found = torch.autograd.grad(values, leaves, create_graph=True)
    of_them = sum((g.cos() * torch.linspace(0, 1, g.numel()).view_as(g)).sum() for g in found)
    return [*found, *torch.autograd.grad(of_them, leaves)]  # type: ignore[arg-type]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("engine", SERVING)
@pytest.mark.parametrize("learned", [False, True], ids=["frozen", "learned"])
@pytest.mark.parametrize("of_columns", [False, True], ids=["rows", "columns"])
def test_second_derivatives(engine: str, of_columns: bool, learned: bool) -> None:
    batch = Batch.of(mixed(), of_columns)
    tensors = batch.tensors()

    def both(function: Callable[..., list[Tensor]]) -> list[Tensor]:
        mine = [z.clone() for z in tensors]
        leaves = [z.requires_grad_() for z in (mine if learned else mine[2:])]
        return derived(summed(function(*mine)), leaves)

    truth = both(lambda *z: batch.formula(*z, dtype=DOUBLE))
    with pairops.engine(engine):
        found = both(batch.ours)
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own imports
@pytest.mark.usefixtures("small_tiles")
def test_transforms_and_the_compiler() -> None:
    batch = Batch.of(mixed())
    u, v, x, y = batch.tensors()
    places = 0, 1, 2, 3

    def value(*tensors: Tensor) -> Tensor:
        return summed(batch.ours(*tensors))

    def truth(*tensors: Tensor) -> Tensor:
        return summed(batch.formula(*tensors, dtype=DOUBLE))

    def close(found: Any, other: Any) -> None:
        torch.testing.assert_close(found, other, rtol=1e-9, atol=1e-9)

    with pairops.engine("blockwise"):
        close(
            torch.func.grad(value, places)(u, v, x, y), torch.func.grad(truth, places)(u, v, x, y)
        )
        # Alone: x is constant for one, u and v for the other.
        close(torch.func.grad(value)(u, v, x, y), torch.func.grad(truth)(u, v, x, y))
        close(torch.func.grad(value, 2)(u, v, x, y), torch.func.grad(truth, 2)(u, v, x, y))
        along = u.cos(), torch.zeros_like(v), torch.zeros_like(x), y.sin()
        close(
            torch.func.jvp(value, (u, v, x, y), along), torch.func.jvp(truth, (u, v, x, y), along)
        )
        for learned in (False, True):
            torch._dynamo.reset()
            mine = [z.clone().requires_grad_(learned or k > 1) for k, z in enumerate((u, v, x, y))]
            leaves = [z for z in mine if z.requires_grad]
            compiled = torch.compile(value, fullgraph=True, dynamic=True, backend="aot_eager")
            found = torch.autograd.grad(compiled(*mine), leaves)
            close(found, torch.autograd.grad(truth(*mine), leaves))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("engine", SERVING)
def test_earlier_terms(engine: str) -> None:
    """One is the bar of a product, another passes its gradient on; vectors stand between them."""
    case = mixed()
    batch = Batch.of(case)
    n, m = len(batch.u), len(batch.v)
    weight, other = torch.rand(n, dtype=DOUBLE), torch.rand(m, dtype=DOUBLE)
    mix = Function(
        lambda s, t, w, e, p: w * s * torch.sigmoid(t - 0.1 * e) + p * e, name="mix_of_products"
    )
    leaves = [*batch.tensors(), weight, other]
    leaves = [z.requires_grad_() for z in leaves]
    u, v, x, y, weight, other = leaves
    with pairops.engine(engine):
        first = lse(NEG, between(u, v), 1.0, function=blend)
        bar = highest(POS, between(u, v), 0.5, function=blend, grad=False)
        terms = (
            first, bar, lse(ALL, between(u, v), 2.0, bar, function=gated),
            total(
                ALL, between(u, v), weight, Earlier(first, grad=True), partner(other), function=mix
            ),
        )  # fmt: skip
        found = row_stats(batch.pairs(x, y), *terms)
        values = [torch.where(z.isinf(), 0, z) for z in found]
        ours = derived(summed([z for z in values if z.requires_grad]), leaves)
    labels, others = case.labels, case.keywords["ref_labels"]
    rows = Rows(x, labels, ref_emb=y, ref_labels=others)
    columns = (others != -100).nonzero()[:, 0]
    s, t = rows.t, u[rows.anchors] @ v[columns].T
    w, p = weight[rows.anchors][:, None], other[columns]
    sides = {POS: rows.positive, NEG: rows.negative, ALL: rows.positive | rows.negative}

    def of(name: str, side: str, f: Tensor) -> Tensor:
        kind = Kind(lambda *_: first, name, side, lambda *_: f)
        return statistic(kind, s, t, s.new_zeros(len(s)), sides)

    earlier = of("lse", NEG, s * torch.sigmoid(t))
    nobody = ~sides[NEG].any(1)
    highest_of = of("highest", POS, s * torch.sigmoid(t / 2)).detach()
    without = ~sides[POS].any(1)
    kept = of("lse", ALL, torch.where(t <= highest_of[:, None], 2 * s, -torch.inf))
    e = earlier[:, None]
    mixed_of = of("sum", ALL, w * s * torch.sigmoid(t - 0.1 * e) + p * e)
    expected = [
        earlier, torch.where(without, 0, kept), torch.where(nobody, 0, mixed_of),
    ]  # fmt: skip
    for one, z in zip([values[0], *values[2:]], expected, strict=True):
        torch.testing.assert_close(one[rows.anchors], z)
    truth = derived(summed(expected), leaves)
    for one, z in zip(ours, truth, strict=True):
        torch.testing.assert_close(one, z, rtol=1e-9, atol=1e-9)


@contextmanager
def products() -> Iterator[list[int]]:
    """The sizes of the results of all matrix products of the engine blockwise in this context."""
    found = []

    def noted(x: Tensor, y: Tensor) -> Tensor:
        result = product(x, y)
        found.append(result.numel())
        return result

    with contextlib.ExitStack() as patched:
        for module in (blockwise_engine, grid, tiled_arguments):
            patched.enter_context(mock.patch.object(module, "product", noted))
        yield found


@pytest.mark.usefixtures("small_tiles")
def test_no_matrix_is_made_and_constants_cost_no_product() -> None:
    n = 200
    labels = torch.arange(n) // 3
    for learned, each in (("", 4), ("u", 5), ("v", 5), ("uv", 6)):
        x, u, v = smooth(n, 6).requires_grad_(), smooth(n, 5), smooth(n, 5)
        u.requires_grad_("u" in learned)
        v.requires_grad_("v" in learned)
        with pairops.engine("blockwise"), products() as forward:
            term = total(NEG, between(u, v), 1.0, function=blend)
            (found,) = row_stats(Pairs.of(x, labels), term)
        with products() as backward:
            found.sum().backward()
        tiles = len(forward) // 2
        assert tiles == 7 * 7
        assert max(forward) < n * n / 30
        assert max(backward) < n * n / 30
        assert len(backward) == each * tiles


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("engine", SERVING)
def test_ignored_rows_may_hold_anything(engine: str) -> None:
    """And a NaN of a row that counts is in its pairs' contributions alone."""
    batch = Batch.of(mixed())
    u, v, x, y = batch.tensors()
    hole = batch.case.labels == -100
    holes = batch.case.keywords["ref_labels"] == -100

    def run() -> list[Tensor]:
        leaves = [z.clone().requires_grad_() for z in (u, v, x, y)]
        values = batch.ours(*leaves)
        return [*values, *torch.autograd.grad(summed(values), leaves)]

    with pairops.engine(engine):
        truth = run()
        u[hole], v[holes] = torch.nan, torch.inf
        for one, z in zip(run(), truth, strict=True):
            torch.testing.assert_close(one, z)
        v[5] = torch.nan
        pairs = batch.pairs(x, y)
        of_all, of_far = row_stats(
            pairs,
            total(ALL, between(u, v), 1.0, function=blend),
            lse(ALL, 1.0, between(u, v), above=-0.2),
        )
        counted = ~hole
        s = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(y)[5]
        assert of_all[counted].isnan().all()
        assert of_far[counted].isnan().tolist() == (s > -0.2)[counted].tolist()
        assert not of_all[hole].isnan().any()


def on_a_rank(group: Any, given: dict[str, Any]) -> list[Tensor]:
    """Statistics of rows and of columns, gradients, and second derivatives."""
    leaves = [given[key].clone() for key in ("x", "y", "u", "v")]
    for z in leaves if given["learned"] else leaves[:2]:
        z.requires_grad_()
    x, y, u, v = leaves
    other = {} if given["one_set"] else {"ref_emb": y, "ref_labels": given["ref_labels"]}
    v = v if other else u.flip(1)
    with mock.patch.object(ring_blocks, "GATHERED", given["gathered"]):
        pairs = Pairs.of(x, given["labels"], distance=given["distance"], group=group, **other)
        near = highest(NEG, between(u, v), 1.0, function=blend)
        rows = [
            lse(NEG, 2.0, between(u, v)),
            near,
            total(ALL, between(u, v), Earlier(near, grad=True), function=above_earlier),
        ]
        cols = [total(POS, between(v, u), 0.5, function=blend)]
        found = row_stats(pairs, *rows, cols=cols)
        wanted = [z for z in leaves if z.requires_grad and (other or z is not y)]
        if given["one_set"]:
            wanted = [z for z in wanted if z is not leaves[3]]
        values = [torch.where(z.isinf(), 0, z) for z in found]
        total_of = torch.stack([z.square().sum() for z in values]).sum()
        g = torch.autograd.grad(total_of, wanted, create_graph=True)
        second = torch.autograd.grad(sum((z**2).sum() for z in g), wanted)
    return [z.detach() for z in (*values, *g, *second)]


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("gathered", [RING, GATHERED], ids=["ring", "gathered"])
@pytest.mark.parametrize("learned", [False, True], ids=["frozen", "learned"])
@pytest.mark.parametrize("one_set", [False, True], ids=["two-sets", "one-set"])
def test_over_ranks(ranks: Ranks, one_set: bool, learned: bool, gathered: int) -> None:
    """u and v travel with the rows, and their gradients come back to them."""
    case = mixed()
    batch = Batch.of(case)
    given = {
        "x": case.x, "labels": case.labels, "y": case.keywords["ref_emb"],
        "ref_labels": case.keywords["ref_labels"], "u": batch.u, "v": batch.v,
        "one_set": one_set, "learned": learned, "gathered": gathered,
        "distance": "l2" if one_set else "cosine",
    }  # fmt: skip
    truth = on_a_rank(None, given)
    for rows, columns in (([12, 9], [30, 4]), ([20, 0, 1], [0, 14, 20])):
        size = {"x": rows, "labels": rows, "u": rows}
        size |= {"y": columns, "ref_labels": columns, "v": columns}
        parts = {key: given[key].split(sizes) for key, sizes in size.items()}
        shares = [{**given, **{key: z[k] for key, z in parts.items()}} for k in range(len(rows))]
        found = ranks.run(len(rows), "ops.row_stats.test_between:on_a_rank", shares)
        for k, one in enumerate(truth):
            assert all(isinstance(got, list) for got in found), found
            together = torch.cat([got[k] for got in found])
            torch.testing.assert_close(together, one, rtol=1e-8, atol=1e-9)


def gated_on_a_rank(group: Any, given: dict[str, Any]) -> list[Tensor]:
    """Statistics and gradients of what is compiled."""
    x, y = given["x"].clone().requires_grad_(), given["y"].clone().requires_grad_()
    u, v = given["u"], given["v"]
    with mock.patch.object(ring_blocks, "GATHERED", RING), pairops.engine("cpu"):
        pairs = Pairs.of(x, given["labels"], ref_emb=y, ref_labels=given["ref_labels"], group=group)
        row = lse(NEG, between(u, v), 4.0, 0.3, function=gated)
        found = row_stats(pairs, row, cols=[lse(NEG, between(v, u), 2.0, 0.1, function=gated)])
        values = [torch.where(z.isinf(), 0, z) for z in found]
        g = torch.autograd.grad(torch.stack([z.square().sum() for z in values]).sum(), [x, y])
    return [z.detach() for z in (*values, *g)]


def learned_on_one_rank(group: Any, given: dict[str, Any]) -> list[Tensor]:
    x, u = given["x"], given["u"].clone().requires_grad_(given["learned"])
    pairs = Pairs.of(x, given["labels"], group=group)
    return list(row_stats(pairs, lse(NEG, 2.0, between(u, u))))


@pytest.mark.xdist_group("ranks")
def test_ranks_that_disagree_about_who_is_learned(ranks: Ranks) -> None:
    batch = Batch.of(mixed())
    given = {"x": batch.case.x, "labels": batch.case.labels, "u": batch.u}
    shares = [{**given, "learned": learned} for learned in (True, False)]
    for found in ranks.run(2, "ops.row_stats.test_between:learned_on_one_rank", shares):
        assert "disagree about which embeddings of between(...) are learned" in str(found)


@pytest.mark.xdist_group("ranks")
def test_compiled_over_ranks(ranks: Ranks) -> None:
    case = mixed()
    batch = Batch.of(case)
    given = {
        "x": case.x, "labels": case.labels, "y": case.keywords["ref_emb"],
        "ref_labels": case.keywords["ref_labels"], "u": batch.u, "v": batch.v,
    }  # fmt: skip
    truth = gated_on_a_rank(None, given)
    size = {"x": [12, 9], "labels": [12, 9], "u": [12, 9]}
    size |= {"y": [30, 4], "ref_labels": [30, 4], "v": [30, 4]}
    parts = {key: z.split(size[key]) for key, z in given.items()}
    shares = [{key: z[k] for key, z in parts.items()} for k in (0, 1)]
    found = ranks.run(2, "ops.row_stats.test_between:gated_on_a_rank", shares)
    for k, one in enumerate(truth):
        torch.testing.assert_close(torch.cat([got[k] for got in found]), one, rtol=1e-9, atol=1e-9)


def test_which_engine_serves_it(capsys: pytest.CaptureFixture[str]) -> None:
    x, u = smooth(30, 6), smooth(30, 4)
    labels = torch.arange(30) // 3

    def loss(x: Tensor) -> Tensor:
        term = total(NEG, between(u, u), 1.0, function=blend)
        return row_stats(Pairs.of(x, labels), term)[0].mean()

    pairops.explain(loss, x)
    shown = capsys.readouterr().out
    assert "sum of blend_of_products(s, between, 1) over negatives" in shown
    assert "engine cpu: declines" in shown
    assert "engine blockwise: serves it" in shown
    learned = between(u.clone().requires_grad_(), u)
    term = lse(NEG, learned, 2.0, 0.5, function=gated)
    with pairops.engine("cpu"), pytest.raises(ValueError, match="of learned embeddings; here it"):
        row_stats(Pairs.of(x, labels), term)
    for engine, reason in (
        ("cpu", r"no recipe .* has the term sum:neg:blend_of_products\(bo\)"),
        ("triton", "takes a product of other embeddings"),
        ("chunked", "takes a product of other embeddings"),
        ("cuda", r"no recipe .* has a sum:blend_of_products\(bo\)"),
    ):
        with pairops.engine(engine), pytest.raises(ValueError, match=reason):
            loss(x)


@pytest.mark.parametrize("of_columns", [False, True])
def test_pair_weights(of_columns: bool) -> None:
    batch = Batch.of(mixed(), of_columns)
    u, v, x, y = batch.tensors()
    x, y = (torch.nn.functional.normalize(z) for z in (x, y))

    def loss(x: Tensor) -> Tensor:
        return summed(batch.ours(u, v, x, y))

    weights = pairops.pair_weights(loss, x)
    leaf = x.clone().requires_grad_()
    batch.case.keywords["distance"] = "dot"
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(weights @ y, gradient)


def test_what_it_may_not_be() -> None:
    u, v = torch.randn(6, 4), torch.randn(6, 4)
    for given, error, message in (
        (([1.0], v), TypeError, "owners is list; it must be a tensor"),
        ((u.long(), v), TypeError, "owners is torch.int64; it must be float16"),
        ((u, v.to(torch.complex64)), TypeError, "partners is torch.complex64; it must be float16"),
        ((u, v[0]), ValueError, r"partners has shape \(4,\); it must be \(N, D\)"),
        ((u, v[:, :3]), ValueError, r"partners has shape \(6, 3\).*owners \(6, 4\).*same E"),
        ((u[:, :0], v[:, :0]), ValueError, "owners has shape .*must be at least 1"),
        ((u, v.to_sparse()), ValueError, r"partners has the layout .*write partners\.to_dense"),
    ):
        with pytest.raises(error, match=message):
            between(*given)  # type: ignore[arg-type]
    pairs = Pairs.of(torch.randn(6, 3), torch.arange(6) // 2)
    for given, message in (
        ((u[:5], v), r"argument 1 of affine has owners of shape \(5, 4\); they must be \(6, E\)"),
        ((u, v[:1]), r"argument 1 of affine has partners of shape \(1, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            row_stats(pairs, lse(NEG, 2.0, between(*given)))
    with pytest.raises(TypeError, match="above is Between; it must be a number"):
        row_stats(pairs, lse(NEG, 2.0, 1.0, above=between(u, v)))  # type: ignore[arg-type]
