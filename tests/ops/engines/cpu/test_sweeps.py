"""The compiled engine on every instruction set: results, their bits, its exp."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor

import pairops
from pairops import ALL, NEG, POS, Pairs, highest, lse, partner, row_stats, total
from pairops.ops.bindings import extension
from pairops.ops.engines import cpu as cpu_engine
from pairops.ops.engines import cpu_addresses
from pairops.ops.terms.functions import hinge, softplus
from pairops.ops.terms.recipe import cpu_key
from pairops.ops.terms.term import Term, Wanted
from support.error_rule import Dense, assert_within_rule, gradients
from support.exhaustive import exhaustive, exhaustive_but
from support.term_problems import DOUBLE, PRODUCTS, problem, served_terms

ISAS, TILE = pairops._native.isas(), pairops._native.TILE
isas = pytest.mark.parametrize("isa", ISAS)


@contextlib.contextmanager
def using(isa: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, pairops.engine("cpu"):
        patch.setattr(extension, "isa", lambda: isa)
        yield


@pytest.fixture
def on_isa(isa: str) -> Iterator[None]:
    with using(isa):
        yield


def found(
    pairs: Callable[[], Pairs], rows: list[Term], cols: list[Term], leaves: list[Tensor]
) -> list[Tensor]:
    """Statistics, and gradients of a fixed combination of the finite ones."""
    statistics = row_stats(pairs(), *rows, cols=cols)
    live = torch.cat([torch.where(r.isinf(), 0, r) for r in statistics])
    if not live.requires_grad:  # counts are constants to dense
        return [*statistics, *[torch.zeros_like(z) for z in leaves]]
    return [*statistics, *gradients(lambda: live, leaves, torch.linspace(-1, 2, len(live)))]


def against_dense(pairs: Callable[[], Pairs], leaves: list[Tensor], calls: str = "one") -> None:
    """All served terms in one call, as rows and columns; each alone, in either role; in pairs."""
    n, m = pairs().shape
    u, v, t = torch.rand(n, dtype=DOUBLE), torch.rand(m, dtype=DOUBLE), torch.tensor(1.3)
    own = [z.to(DOUBLE).requires_grad_() for z in (u, v, t)]
    turned = own[1], own[0], own[2]
    rows, cols = served_terms(*own), served_terms(*turned, turn=1)
    every = rows + served_terms(*own, names=PRODUCTS), cols + served_terms(*turned, names=PRODUCTS)
    alone = [([term], []) for term in every[0]] + [([], [term]) for term in every[1]]
    two = [(list(pair), []) for pair in itertools.combinations(rows, 2)]
    for call in {"one": [(rows, cols)], "alone": alone, "in pairs": two}[calls]:
        with pairops.engine("dense"):
            truth = found(pairs, *call, leaves + own)
        # Which terms stand side by side is nothing that an instruction set knows.
        for isa in ISAS[:1] if calls == "in pairs" else ISAS:
            with using(isa):
                ours = found(pairs, *call, leaves + own)
            for k, (a, b) in enumerate(zip(ours, truth, strict=True)):
                what = f"{isa}, result {k} of {[cpu_key(t) for t in call[0] + call[1]]}"
                torch.testing.assert_close(
                    a, b, rtol=1e-10, atol=1e-10, msg=lambda m, what=what: f"{what}: {m}"
                )


def related(how: str, n: int, m: int, d: int, classes: int) -> tuple[Any, list[Tensor]]:
    """() -> Pairs, and the embeddings."""
    one = how in ("one set", "self pairs kept")
    x, labels, other = problem(n, 0 if one else m, d, classes)
    if m == 0 and not one:
        other = {"ref_emb": torch.zeros(0, d, dtype=DOUBLE), "ref_labels": labels[:0]}
    labels = torch.where(torch.rand(n) < 0.1, -100, labels)
    leaves = [x.requires_grad_()]
    # As cosines of one dimension all gradients are rounding errors.
    distance = "cosine" if d > 1 else "dot"
    if other:
        leaves.append(other["ref_emb"].requires_grad_())
        other["ref_labels"] = torch.where(torch.rand(m) < 0.1, -100, other["ref_labels"])
    if how == "by index":
        return (lambda: Pairs.paired(x[:m], leaves[1][:n], distance=distance)), leaves
    if how == "self pairs kept":
        other["exclude_self"] = False
    if how == "named by ids":
        names = torch.randperm(2 * (n + m))
        other |= {"ids": names[:n], "ref_ids": names[: n + m].flip(0)[:m]}
    return (lambda: Pairs.of(x, labels, distance=distance, **other)), leaves


RELATIONS = ["one set", "self pairs kept", "two sets", "named by ids", "by index"]
SIZES = [(1, 300), (95, 97), (96, 193), (97, 96), (191, 250), (300, 1)]


@pytest.mark.parametrize(
    ("n", "m", "how"),
    exhaustive_but(
        [(*size, how) for size in SIZES for how in RELATIONS],
        lambda n, _m, how: n == 96 or how in ("one set", "two sets"),
    ),
)
def test_every_served_term_equals_dense(how: str, n: int, m: int) -> None:
    against_dense(*related(how, n, m, 33, n // 5 + 1))


@pytest.fixture
def none_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """No similarities, as where pairs are many: terms over positives are swept along a band."""
    monkeypatch.setattr(cpu_addresses, "MOST_BYTES", 0)


@pytest.mark.usefixtures("none_kept")
@pytest.mark.parametrize("how", RELATIONS)
def test_every_served_term_alone_equals_dense(how: str) -> None:
    """Terms over positives alone are swept along a band, and their windows skip tiles."""
    against_dense(*related(how, 193, 110, 5, 12), calls="alone")


@pytest.mark.parametrize("how", ["one set", "two sets"])
def test_every_served_term_alone_equals_dense_also_where_similarities_are_kept(how: str) -> None:
    against_dense(*related(how, 193, 110, 5, 12), calls="alone")


@exhaustive
@pytest.mark.usefixtures("none_kept")
@pytest.mark.parametrize("how", ["one set", "two sets"])
def test_every_two_served_terms_equal_dense(how: str) -> None:
    """Beside an extreme, which takes no part in weigh, a band is gathered as something else."""
    against_dense(*related(how, 193, 110, 5, 2), calls="in pairs")


@pytest.mark.parametrize("poisoned", [False, True])
@pytest.mark.parametrize("scale", [-5.0, 90.0, 3000.0])
@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("how", RELATIONS)
def test_one_exponential_for_both_roles_equals_dense(
    how: str, classes: int, scale: float, poisoned: bool
) -> None:
    """Log-sum-exps of the same numbers by row and by column: tiles of narrow and of wide range in
    turns, tiles without a pair of a side, rows whose window drops all that is high, a NaN."""
    pairs, leaves = related(how, 300, 290, 9, classes)
    orders = [pairs().relation.permutation_x, pairs().relation.permutation_y]
    with torch.no_grad():
        for z, order in zip(leaves, orders, strict=False):
            near = order[: 2 * TILE]
            z[near] = z[0] * torch.linspace(0.5, 1, 9) + 0.01 * z[near]
            z[order[-40:]] *= -1
        if poisoned:
            leaves[0][17] = torch.nan

    def call(owners: int) -> list[Term]:
        above = torch.where(torch.arange(owners) % 3 == 0, 0.99, -0.5)
        sides = [lse(side, scale, 0.25) for side in (ALL, NEG, POS)]
        windows = [lse(NEG, scale, 0.25, above=above), lse(POS, scale, 0.25, below=1.5 - above)]
        return [*sides, *windows]

    rows, cols = call(pairs().shape[0]), call(pairs().shape[1])
    with pairops.engine("dense"):
        truth = found(pairs, rows, cols, leaves)
    for isa in ISAS:
        with using(isa):
            ours = found(pairs, rows, cols, leaves)
        for a, b in zip(ours, truth, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_nothing_of_no_dimensions() -> None:
    x = torch.empty(0, 0, requires_grad=True)
    with pairops.engine("cpu"):
        loss = pairops.supcon_loss(x, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert x.grad is not None
    assert x.grad.shape == (0, 0)


def test_states_far_below_the_maximum_of_a_tile() -> None:
    """In float32 e⁻⁸⁷ is the least normal number: sums must outlast a maximum that rises past it
    tile by tile, and what is pushed, merged or finished after it."""
    t = TILE
    rising, labels = torch.zeros(4 * t, 2), torch.ones(4 * t, dtype=torch.int64)
    labels[:10] = 0
    rising[:10, 1] = rising[10:t, 0] = 1
    for k in (1, 2, 3):
        rising[k * t : (k + 1) * t, 0] = 80 * k
    one, many = torch.zeros(t, 2), torch.zeros(22 * t, 2)
    one[:, 0], one[0, 1] = 1, 1
    many[:t, 0], many[t:, 0], many[:t, 1] = -7.3, -7.35, 87.3
    high = 87.3 * torch.eye(2)[torch.arange(3 * t) % 50 // 49] - 60
    same = torch.ones(t, dtype=torch.int64), torch.ones(22 * t, dtype=torch.int64)

    def sets(x: Tensor, x_labels: Tensor, *other: Tensor) -> Callable[[], Pairs]:
        ref = dict(zip(("ref_emb", "ref_labels"), other, strict=False))
        return lambda: Pairs.of(x, x_labels, distance="dot", **ref)

    for pairs in (
        sets(rising, labels),
        sets(one, same[0], many, same[1]),
        sets(many, same[1], one, same[0]),
        sets(high, torch.arange(3 * t) % 2),
    ):
        rows = [lse(POS, 1.0, 0.0), lse(ALL, 1.0, 0.0)]
        with pairops.engine("dense"):
            truth = row_stats(pairs(), *rows, cols=rows)
        for isa in ISAS:
            with using(isa):
                ours = row_stats(pairs(), *rows, cols=rows)
            for a, b in zip(ours, truth, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.usefixtures("none_kept")
@pytest.mark.parametrize("two_sets", [False, True], ids=["one set", "two sets"])
def test_a_maximum_that_a_window_drops_costs_no_digits(two_sets: bool) -> None:
    """max + log Σ of a state 35 below its maximum would have five digits of its result."""
    n = 3 * TILE
    x = torch.cat([0.2 * torch.randn(n, 4), torch.zeros(n, 1)], 1)
    x[:: TILE // 2, 4] = 40**0.5  # two rows of a tile are 40 apart from all pairs but their own
    y = x.roll(TILE // 2, 0).flip(0) if two_sets else None
    labels = torch.arange(n) % 2

    def results(dtype: torch.dtype) -> tuple[Tensor, ...]:
        given = {} if y is None else {"ref_emb": y.to(dtype), "ref_labels": labels}
        pairs = Pairs.of(x.to(dtype), labels, distance="dot", **given)
        kept = torch.full((n,), 10.0, dtype=dtype)
        term = lse(POS, 1.0, 4.5, below=kept)  # near 0, where a result has most digits
        return row_stats(pairs, term, cols=[term] if two_sets else [])

    with pairops.engine("dense"):
        truth = results(torch.float64)
    for isa in ISAS:
        with using(isa):
            ours = results(torch.float32)
        for a, b in zip(ours, truth, strict=True):
            assert 0.01 < b.abs().max() < 1
            torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-6)


def between(s: Tensor, share: float) -> Tensor:
    """Per row the middle of two neighbouring similarities: rounding moves none past it."""
    k = int(share * (s.shape[1] - 1))
    return s.sort(1).values[:, k : k + 2].mean(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d", [1, 31, 33, 257, 300])
def test_every_dtype_and_depth(d: int, dtype: torch.dtype) -> None:
    stored, labels = torch.randn(d, 193).to(dtype).T, torch.randint(0, 30, (193,))
    assert d == 1 or not stored.is_contiguous()
    normalize = d > 1
    wide = torch.nn.functional.normalize(stored.double()) if normalize else stored.double()
    above, below = (between(wide @ wide.T, share).float() for share in (0.3, 0.8))
    numbers = [torch.rand(193), torch.rand(193), torch.tensor(1.3)]

    def run(like: torch.dtype) -> list[Tensor]:
        to = torch.float64 if like == torch.float64 else torch.float32
        x = stored.detach().to(like).requires_grad_()
        u, v, t = (z.to(to).requires_grad_() for z in numbers)
        terms = served_terms(u, v, t, above=above, below=below)
        distance = "cosine" if normalize else "dot"
        pairs = lambda: Pairs.of(x, labels, distance=distance)  # noqa: E731
        results = found(pairs, terms, [], [x, u, v])
        return [torch.where(r.isinf(), 0, r).detach() for r in results]

    def by_dense(like: torch.dtype) -> list[Tensor]:
        with pairops.engine("dense"):
            return run(like)

    truth, dense = by_dense(torch.float64), Dense(lambda: by_dense(dtype))
    for isa in ISAS:
        with using(isa):
            ours = run(dtype)
        for k, (a, exact) in enumerate(zip(ours, truth, strict=True)):
            assert_within_rule(f"{isa}, result {k}", a, dense.result(k), exact)


@isas
@pytest.mark.usefixtures("on_isa")
@pytest.mark.parametrize("d", [33, 300])
def test_copies_tie_wherever_they_stand(d: int) -> None:
    """Ten copies each of thirty rows, all negatives: the nearest is the copy of lowest index."""
    which = torch.arange(30).repeat(10)[torch.randperm(300)]
    pairs = Pairs.of(torch.randn(30, d)[which], torch.randperm(300))
    term = highest(NEG)
    (value,), (argument,), _ = cpu_engine.forward(pairs, [term], [])
    copies = (which == which[:, None]) & ~torch.eye(300, dtype=torch.bool)
    assert torch.equal(argument, copies.byte().argmax(1))
    by_copy = torch.zeros(30).scatter(0, which, value)
    assert torch.equal(by_copy[which], value)


@isas
@pytest.mark.usefixtures("on_isa")
def test_a_similarity_has_the_same_bits_from_either_side() -> None:
    x, y = torch.randn(193, 300), torch.randn(250, 300)
    a, b = torch.randint(0, 9, (193,)), torch.randint(0, 9, (250,))
    rows = row_stats(Pairs.of(x, a, ref_emb=y, ref_labels=b), highest(NEG))[0]
    cols = row_stats(Pairs.of(y, b, ref_emb=x, ref_labels=a), cols=[highest(NEG)])[0]
    assert torch.equal(rows, cols)
    one = row_stats(Pairs.of(x, a), highest(NEG))[0]
    assert torch.equal(one, row_stats(Pairs.of(x, a, ref_emb=x, ref_labels=a), highest(NEG))[0])


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "ms_loss": lambda x, _, labels, t: pairops.ms_loss(x, labels, beta=t),
    "supcon_loss": lambda x, _, labels, t: pairops.supcon_loss(x, labels, temperature=t),
    "info_nce_loss": lambda x, y, _, t: pairops.info_nce_loss(x, y, temperature=t),
    "siglip_loss": lambda x, y, _, t: pairops.siglip_loss(x, y, scale=t, bias=-t),
}


@isas
@pytest.mark.usefixtures("on_isa")
@pytest.mark.parametrize("loss", LOSSES)
def test_the_number_of_threads_changes_no_bit(loss: str) -> None:
    x, y = (torch.randn(700, 33, requires_grad=True) for _ in range(2))
    labels, t = torch.randint(0, 90, (700,)), torch.tensor(3.0, requires_grad=True)
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 3, 3, 2, 1):
            torch.set_num_threads(threads)
            value = LOSSES[loss](x, y, labels, t)
            found = torch.autograd.grad(value, [x, y, t], materialize_grads=True)
            runs.append([value.detach(), *found])
    finally:
        torch.set_num_threads(before)
    assert bool((runs[0][1] != 0).any())
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@isas
@pytest.mark.usefixtures("on_isa")
@pytest.mark.parametrize("m", [0, 1440])
def test_tile_bits_change_no_bit(m: int) -> None:
    """120 classes of 16 rows, which divide a tile; eight pairs of classes share a centre."""
    centres = torch.randn(120, 32)
    centres[torch.arange(1, 9) * 7] = centres[torch.arange(1, 9) * 13 + 2]

    def clustered(n: int) -> tuple[Tensor, Tensor]:
        labels = (torch.arange(n) // 16)[torch.randperm(n)]
        return centres[labels] + 0.1 * torch.randn(n, 32), labels

    x, labels = clustered(1920)
    y, ref_labels = clustered(m) if m else (None, None)
    pairs = Pairs.of(x, labels, ref_emb=y, ref_labels=ref_labels)
    n, m = pairs.shape
    u, bound = torch.rand(n), torch.tensor(0.9)
    terms = [
        lse(NEG, 50.0, u, above=bound).over(n, m, torch.float32),
        total(NEG, u, 0.5, function=hinge, above=bound, below=2 * bound).over(n, m, torch.float32),
    ]
    statistics, _, bits = cpu_engine.forward(pairs, terms, [])
    # Sorted by label; nobody but twins is nearly as near as the bound.
    (i, a), (j, b) = (
        (pairs.relation.permutation_x, labels),
        (pairs.relation.permutation_y, labels if y is None else ref_labels),
    )
    s = torch.nn.functional.normalize(x)[i] @ torch.nn.functional.normalize(pairs.other)[j].T
    alive = ((s > bound) & (a[i][:, None] != b[j])).view(n // 96, 96, m // 96, 96).any(3).any(1)
    assert torch.equal(bits, alive.byte().expand_as(bits))
    seen = alive if m != n else alive.triu()
    share = float(seen.sum() / (seen.numel() if m != n else torch.ones_like(alive).triu().sum()))
    assert 0 < share < 0.05, f"{share:.2f} of the bits are set: the case does not test skipping"
    cotangents = [torch.randn(n), torch.randn(n)]
    skipped, whole = (
        cpu_engine.backward(
            pairs, terms, [], statistics, cotangents, b, Wanted(True, y is not None)
        )
        for b in (bits, None)
    )
    for a, b in zip((*skipped[:2], *skipped[2]), (*whole[:2], *whole[2]), strict=True):
        assert torch.equal(a, b)
        assert a.numel() == 0 or bool((a != 0).any())


@isas
@pytest.mark.usefixtures("on_isa")
@pytest.mark.parametrize("m", [0, 150])
def test_a_tile_without_weights_has_slopes(m: int) -> None:
    """Where the pair weights of a term are all 0 in a tile embeddings get nothing of it, and
    arguments may."""
    x, labels = torch.randn(250, 9, dtype=DOUBLE).requires_grad_(), torch.randint(0, 40, (250,))
    other: dict[str, Tensor] = {}
    if m:
        y = torch.randn(m, 9, dtype=DOUBLE).requires_grad_()
        other = {"ref_emb": y, "ref_labels": torch.randint(0, 40, (m,))}
    # Of rows sorted by label those of the first tiles alone have a scale.
    scale = torch.where(labels < 10, torch.rand(250, dtype=DOUBLE), 0).requires_grad_()
    leaves = [x, scale, *([other["ref_emb"]] if m else [])]
    seen = []
    for engine in ("cpu", "dense"):
        with pairops.engine(engine):
            pairs = Pairs.of(x, labels, **other)
            terms = [total(POS, 2.0, 0.1), total(NEG, scale, 0.1)]
            seen.append(found(lambda: pairs, terms, [], leaves))  # noqa: B023
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert bool((seen[0][3] != 0).all())


def units(ours: Tensor, truth: list[Any]) -> float:
    """The largest error in units in the last place of the truth."""
    return max(
        float(
            abs(mpmath.mpf(a) - b)
            / mpmath.ldexp(torch.finfo(ours.dtype).eps, mpmath.frexp(b)[1] - 1)
        )
        for a, b in zip(ours.tolist(), truth, strict=True)
    )


@isas
@pytest.mark.usefixtures("on_isa")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_exp_and_log1p_are_exact_to_the_last_places(dtype: torch.dtype) -> None:
    """exp: the share exp(f − 0), as the slope by a base per partner. log1p: softplus below 0."""
    least, most = (-87.3, 88.3) if dtype == torch.float32 else (-708.3, 709.4)
    grid = torch.cat([torch.linspace(least, most, 4001), torch.linspace(-1, 1, 1001)]).to(dtype)
    beyond = torch.tensor([-torch.inf, 2 * least, 2 * most, torch.inf, torch.nan], dtype=dtype)
    z = torch.cat([grid, beyond])
    origin, same = torch.zeros(1, 1, dtype=dtype), torch.zeros(1, dtype=torch.int64)
    zeros = torch.zeros(len(z), 1, dtype=dtype)
    pairs = Pairs.of(origin, same, ref_emb=zeros, ref_labels=same.expand(len(z)), distance="dot")
    terms = [lse(ALL, torch.ones(()), partner(-z)).over(1, len(z), dtype)]
    slopes = cpu_engine.backward(
        pairs, terms, [], [origin[0]], [-origin[0] - 1], None, Wanted(False, False)
    )[2]
    with mpmath.workdps(40):
        assert units(slopes[1][: len(grid)], [mpmath.exp(a) for a in grid.tolist()]) <= 2
        below = grid[grid < 0]
        pairs = Pairs.of(zeros[: len(below)], same.expand(len(below)), ref_emb=origin,
                         ref_labels=same, distance="dot")  # fmt: skip
        (value,) = row_stats(pairs, total(POS, 1.0, below, function=softplus))
        # Two units of exp, three of log1p.
        assert units(value, [mpmath.log1p(mpmath.exp(a)) for a in below.tolist()]) <= 5
    assert slopes[1][len(grid) :].tolist()[:4] == [0, 0, torch.inf, torch.inf]
    assert bool(slopes[1][-1].isnan())


def test_a_tuple_of_another_length_is_refused() -> None:
    """Positions are names on the other side: none may be missing."""
    plan, rest = cpu_engine._native.Plan([], [], []), ([], [], 0, [], None, 0, 1, False)
    forward = cpu_engine._native.forward
    with pytest.raises(TypeError, match="a set must be a tuple of 7"):
        forward(plan, "baseline", (0, "float32"), None, None, (0, 0, 0), None, *rest)
