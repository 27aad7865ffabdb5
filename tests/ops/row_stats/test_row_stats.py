"""The primitive: what may not change a statistic, its edges, and its derivatives."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import pairops
from pairops import ALL, NEG, POS, Pairs, highest, lowest, lse, partner, row_stats, total
from pairops.ops.engines import cpu_addresses
from pairops.ops.engines.blockwise import engine as blockwise_engine
from pairops.ops.engines.blockwise import grid
from pairops.ops.terms import functions
from pairops.ops.terms.accumulators import ACCUMULATORS
from pairops.ops.terms.functions import hinge, softplus
from pairops.ops.terms.term import Term, Wanted
from support.engine_names import HERE
from support.term_problems import DOUBLE, all_statistics, problem, results, served_terms

HELD = ("circle_pull", "circle_push", "attended")  # a gradient takes their weights as constants
NONE_KEPT = "native, which keeps no similarities"


@pytest.fixture(params=[*HERE, *[NONE_KEPT for name in HERE if name == "cpu"]])
def none_kept_too(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Every engine, and the compiled one as it is where pairs are many."""
    if request.param == NONE_KEPT:
        monkeypatch.setattr(cpu_addresses, "MOST_BYTES", 0)
    with pairops.engine("cpu" if request.param == NONE_KEPT else request.param):
        yield


@pytest.mark.parametrize("m", [0, 45])
@pytest.mark.parametrize("extents", [(1, 1), (7, 64), (64, 7), (13, 21)])
def test_tile_size_changes_nothing(
    m: int, extents: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, labels, other = problem(m=m)
    labels[[5, 20]] = -100
    x.requires_grad_()
    with pairops.engine("dense"):
        truth = results(lambda: all_statistics(Pairs.of(x, labels, **other)), [x])
    monkeypatch.setattr(grid, "ROWS", extents[0])
    monkeypatch.setattr(grid, "COLS", extents[1])
    with pairops.engine("blockwise"):
        cut = results(lambda: all_statistics(Pairs.of(x, labels, **other)), [x])
    for ours, theirs in zip(cut, truth, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("small_tiles", "wide_engine")
def test_row_order_changes_nothing() -> None:
    """Ties aside, which go to the lowest index: random embeddings have none."""
    x, labels, _ = problem(n=200)
    order = torch.randperm(len(x))
    u = torch.rand(len(x), dtype=DOUBLE)

    def terms(u: Tensor) -> list[Term]:
        window = lse(NEG, 5.0, u, above=u - 0.5)
        return [window, total(POS, 0.1, partner(u)), lowest(POS), highest(NEG)]

    for a, b in zip(
        row_stats(Pairs.of(x, labels), *terms(u)),
        row_stats(Pairs.of(x[order], labels[order]), *terms(u[order])),
        strict=True,
    ):
        torch.testing.assert_close(a[order], b, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name", ["cpu", "blockwise"])
def test_reproducible_bit_by_bit_and_up_to_rounding_at_other_numbers_of_threads(name: str) -> None:
    """The native engine's bits do not depend on the number of threads either."""
    x, labels, _ = problem(n=300, d=33)
    x = x.float().requires_grad_()
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 2, 1):
            torch.set_num_threads(threads)
            with pairops.engine(name):
                value = pairops.ms_loss(x, labels) + pairops.triplet_loss(x, labels)
            runs.append([value.detach(), *torch.autograd.grad(value, x)])
    finally:
        torch.set_num_threads(before)
    for again, first in ((runs[2], runs[1]), (runs[3], runs[0])):
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))
    for two, one in zip(runs[1], runs[0], strict=True):
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-7)
        assert name != "cpu" or torch.equal(two, one)


@pytest.mark.parametrize(("statistic", "argument"), ACCUMULATORS)
@pytest.mark.parametrize("dim", [0, 1])
def test_splitting_and_merging_changes_nothing(statistic: str, argument: bool, dim: int) -> None:
    """An accumulator is a monoid: parts of any split, merged in any grouping, are the whole."""
    monoid = ACCUMULATORS[statistic, argument]
    f = torch.randn(6, 40, dtype=DOUBLE).round(decimals=1)  # with ties
    f[0] = monoid.neutral
    f[1, 20:] = monoid.neutral
    f[2, 11] = torch.nan
    where = torch.randperm(40)
    f = f if dim == 1 else f.T.contiguous()
    whole = monoid.from_tile(f, dim, where)
    blank = monoid.init(torch.empty(6, dtype=DOUBLE))
    for first, second in itertools.combinations((0, 1, 13, 20, 39, 40), 2):
        parts = [
            monoid.from_tile(f.narrow(dim, a, b - a), dim, where[a:b]) if b > a else blank
            for a, b in ((0, first), (first, second), (second, 40))
        ]
        left = monoid.merge(monoid.merge(parts[0], parts[1]), parts[2])
        right = monoid.merge(parts[0], monoid.merge(parts[1], monoid.merge(parts[2], blank)))
        for merged in (left, right):
            torch.testing.assert_close(
                monoid.finalize(merged), monoid.finalize(whole), equal_nan=True, rtol=1e-12, atol=0
            )
            if argument:
                assert torch.equal(monoid.argument(merged), monoid.argument(whole))  # type: ignore[attr-defined]
    assert bool((monoid.finalize(blank) == monoid.neutral).all())


@pytest.mark.usefixtures("small_tiles", "wide_engine")
def test_column_statistics_are_row_statistics_of_the_other_set() -> None:
    x, labels, other = problem(n=150, m=110)
    y, ref_labels = other["ref_emb"], other["ref_labels"]
    u, v = torch.rand(150, dtype=DOUBLE), torch.rand(110, dtype=DOUBLE)
    leaves = [z.requires_grad_() for z in (x, y, u, v)]
    terms = [
        lse(NEG, v, partner(u)),
        lse(NEG, 5.0, v, above=v.detach() - 0.5),
        total(POS, v, partner(u)),
        highest(NEG),
    ]
    columns = results(lambda: row_stats(Pairs.of(x, labels, **other), cols=terms), leaves)
    swapped = Pairs.of(y, ref_labels, ref_emb=x, ref_labels=labels)
    rows = results(lambda: row_stats(swapped, *terms), leaves)
    for a, b in zip(columns, rows, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("small_tiles")
def test_the_same_set_equals_itself_as_another_set(wide_engine: str) -> None:
    x, labels, _ = problem(n=130)
    x.requires_grad_()
    pairs, twice = Pairs.of(x, labels), Pairs.of(x, labels, ref_emb=x, ref_labels=labels)
    same = results(lambda: all_statistics(pairs, wide_engine), [x])
    other = results(lambda: all_statistics(twice, wide_engine), [x])
    for a, b in zip(same, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("small_tiles")
def test_tile_bits_change_no_result_by_one_bit() -> None:
    """`backward` with the tile masks, and with masks in which all tiles are 1."""
    labels = torch.arange(300) // 5
    x = torch.randn(60, 16)[labels] + 0.3 * torch.randn(300, 16)
    pairs = Pairs.of(x, labels)
    far = lowest(POS, grad=False)
    with pairops.engine("blockwise"):
        bound = row_stats(pairs, far)[0] - 0.05
    terms = [lse(NEG, 50.0, 0.5, above=bound).over(300, 300, torch.float32)]
    statistics, _, bits = blockwise_engine.forward(pairs, terms, [])
    share = float(bits.float().mean())
    assert 0 < share < 0.5, f"{share:.2f} of the bits are set: the case does not test skipping"
    cotangents = [torch.randn(300)]
    with torch.no_grad():
        skipped, whole = (
            blockwise_engine.backward(
                pairs, terms, [], statistics, cotangents, b, Wanted(True, False)
            )[0]
            for b in (bits, torch.ones_like(bits))
        )
    assert torch.equal(skipped, whole)
    assert bool((skipped != 0).any())


@pytest.mark.usefixtures("none_kept_too")
@pytest.mark.parametrize(("statistic", "side"), [("lse", POS), ("lse", NEG), ("sum", NEG)])
@pytest.mark.parametrize("first", [True, False])
def test_a_window_may_keep_a_tile_in_one_direction_alone(
    statistic: str, side: str, first: bool
) -> None:
    """Its rows are then partners, and get a gradient as such, where they own no pair."""
    n = 300
    labels = torch.zeros(n, dtype=torch.int64) if side == POS else torch.arange(n) % 100
    x = torch.randn(n, 8)
    keeps = (torch.arange(n) < n // 2) == first
    if side == POS:
        term = lse(POS, -2.0, 0.5, below=torch.where(keeps, torch.inf, -torch.inf))
    else:
        labels = labels.sort().values
        above = torch.where(keeps, -torch.inf, torch.inf)
        term = lse(NEG, 2.0, 0.5, above=above)
        if statistic == "sum":
            below = torch.full((n,), torch.inf)
            term = total(NEG, 2.0, -2.0, function=hinge, above=above, below=below)

    def gradient() -> Tensor:
        leaf = x.clone().requires_grad_()
        (statistic,) = row_stats(Pairs.of(leaf, labels), term)
        return torch.autograd.grad(statistic[keeps].sum(), leaf)[0]

    ours = gradient()
    with pairops.engine("dense"):
        theirs = gradient()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    assert bool((ours[~keeps] != 0).any(1).all())


@pytest.mark.usefixtures("small_tiles", "engine")
def test_a_class_may_begin_at_the_end_of_a_tile_and_end_at_the_beginning_of_one() -> None:
    """Two rows are a class around every place where a tile of any engine may end, 14 between."""
    ends = torch.arange(16, 200, 16)
    begins = torch.stack([ends - 1, ends + 1], 1).view(-1)
    labels = torch.bucketize(torch.arange(200), begins, right=True)
    x = torch.randn(200, 8, requires_grad=True)
    terms = [total(POS, 1.0, 0.0), lse(POS, -2.0, 0.5)]

    def found() -> list[Tensor]:
        return results(lambda: row_stats(Pairs.of(x, labels), *terms), [x])

    ours = found()
    with pairops.engine("dense"):
        theirs = found()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("engine")
def test_windows_drop_what_is_at_the_threshold_and_keep_nan() -> None:
    x = torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.25, 1.0], [torch.nan, 1.0]])
    y = torch.tensor([[1.0, 0.0]])
    labels, one = torch.arange(1, 5), torch.zeros(1, dtype=torch.int64)
    pairs = Pairs.of(y, one, ref_emb=x, ref_labels=labels, distance="dot")
    half, quarter = (torch.tensor(z) for z in (0.5, 0.25))
    terms = [
        lse(NEG, 1.0, 0.0, above=half),
        highest(NEG, below=half),
        total(NEG, 1.0, 0.0, function=hinge, above=half, below=2 * half),
        total(NEG, 1.0, 0.0, function=hinge, above=quarter / 2, below=half),
        total(NEG, 1.0, 0.0, function=hinge, above=quarter, below=2 * half),
    ]
    assert all(bool(r.isnan()) for r in row_stats(pairs, *terms))
    pairs = Pairs.of(y, one, ref_emb=x[:3], ref_labels=labels[:3], distance="dot")
    assert [r.item() for r in row_stats(pairs, *terms)] == [1.0, 0.25, 0.0, 0.25, 0.5]


@pytest.mark.usefixtures("engine")
def test_ties_go_to_the_lowest_index_of_the_caller() -> None:
    """Anchor 0 sees references 1, 2, 4 as equal negatives; sorting by label puts 4 first."""
    x = torch.eye(3)[[0, 1, 1, 0, 1]].requires_grad_()
    labels = torch.tensor([5, 9, 8, 5, 1])
    (near,) = row_stats(Pairs.of(x, labels), highest(NEG))
    (gradient,) = torch.autograd.grad(near[0], x)
    assert bool((gradient[1] != 0).any())
    assert bool((gradient[[2, 3, 4]] == 0).all())


@pytest.mark.usefixtures("engine")
def test_empty_sides_give_the_identity_and_no_gradient() -> None:
    x = torch.randn(5, 3, requires_grad=True)
    pairs = Pairs.of(x, torch.arange(5))
    out = torch.tensor(-2.0)  # a window that no cosine is in
    terms = [total(POS, 1.0, 0.0), lse(POS, 1.0, 0.0), lowest(POS), highest(NEG, below=out)]
    stats = row_stats(pairs, *terms)
    for statistic, identity in zip(stats, (0, -torch.inf, torch.inf, -torch.inf), strict=True):
        assert bool((statistic == identity).all())
        (gradient,) = torch.autograd.grad(statistic.sum(), x, retain_graph=True)
        assert bool((gradient == 0).all())


@pytest.mark.usefixtures("small_tiles", "small_triton_tiles", "engine")
@pytest.mark.parametrize(
    "terms",
    [
        [lse(NEG, 5.0, 0.1), total(POS, 1.0, 0.2, function=hinge)],
        [lowest(POS), highest(NEG)],
        [lse(NEG, 5.0, 0.1), lowest(POS), highest(NEG)],
    ],
    ids=["swept", "extremes", "both"],
)
def test_each_statistic_of_a_call_has_a_gradient_of_its_own(terms: list[Term]) -> None:
    """What nobody uses adds nothing to it."""
    x, labels = torch.randn(60, 8, requires_grad=True), torch.randint(0, 8, (60,))

    def gradients() -> list[Tensor]:
        statistics = [torch.where(r.isinf(), 0, r) for r in row_stats(Pairs.of(x, labels), *terms)]
        sums = [r.sum() for r in statistics]
        every = torch.stack([(k + 1) * z for k, z in enumerate(sums)]).sum()
        return [torch.autograd.grad(z, x, retain_graph=True)[0] for z in (*sums, every)]

    ours = gradients()
    with pairops.engine("dense"):
        theirs = gradients()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("m", [0, 23])
def test_gradcheck_and_gradgradcheck_of_every_kind_of_term(m: int, wide_engine: str) -> None:
    x, labels, other = problem(n=31, m=m, d=4, classes=4)
    labels[3] = -100
    n, m = 31, m or 31
    u, v = torch.rand(n, dtype=DOUBLE) + 0.5, torch.rand(m, dtype=DOUBLE) + 0.5
    t = torch.tensor(1.3, dtype=DOUBLE)
    bound = torch.zeros(n, dtype=DOUBLE)

    def run(x: Tensor, y: Tensor, u: Tensor, v: Tensor, t: Tensor) -> Tensor:
        pairs = Pairs.of(x, labels, **({**other, "ref_emb": y} if other else {}))
        if wide_engine == "cpu":
            rows = served_terms(u, v, t, above=bound, below=bound + 0.5)
            rows = [term for term in rows if term.grad and term.function.name not in HELD]
            cols = [lse(ALL, v, partner(u)), lowest(POS)]
        else:
            rows = [
                lse(NEG, t, u, above=bound),
                total(ALL, u, partner(v), function=softplus),
                total(POS, t, 0.1),
                highest(NEG, t, partner(v), function=functions.affine),
            ]
            cols = [lse(ALL, v, partner(u)), lowest(ALL)]
        stats = row_stats(pairs, *rows, cols=cols)
        return torch.cat([torch.where(r.isinf(), 0, r) for r in stats])

    inputs = [z.requires_grad_() for z in (x, other.get("ref_emb", x.clone()), u, v, t)]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.usefixtures("small_tiles", "wide_engine")
def test_an_ignored_nan_row_has_no_second_derivative() -> None:
    x, labels, _ = problem()
    x[2], labels[2] = torch.nan, -100
    x.requires_grad_()
    (g,) = torch.autograd.grad(pairops.ms_loss(x, labels), x, create_graph=True)
    (gg,) = torch.autograd.grad((g**2).sum(), x)
    assert bool(torch.isfinite(gg).all())
    assert bool((gg[2] == 0).all())


def test_an_extreme_without_gradient_gives_none_to_its_arguments() -> None:
    x, labels, _ = problem()
    x.requires_grad_()
    t = torch.tensor(2.0, dtype=DOUBLE, requires_grad=True)
    affine = functions.affine
    far, pos = row_stats(
        Pairs.of(x, labels),
        lowest(POS, t, 0.0, function=affine, grad=False),
        lse(POS, 1.0, 0.0),
    )
    assert not far.requires_grad
    assert torch.autograd.grad(pos[pos.isfinite()].sum(), [x, t], allow_unused=True)[1] is None


@pytest.mark.usefixtures("wide_engine")
def test_an_infinite_log_sum_exp_is_infinite() -> None:
    x = torch.tensor([[1e200], [1e200], [1.0]], dtype=DOUBLE)
    (r,) = row_stats(Pairs.of(x, torch.arange(3), distance="dot"), lse(NEG, 1.0, 0.0))
    assert bool((r[:2] == torch.inf).all())
