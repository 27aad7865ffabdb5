"""Terms that refer to earlier ones of their call, against the same calls one after the other."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import pairops
from pairops import ALL, NEG, POS, Earlier, Pairs, Term, lowest, lse, row_stats
from pairops.ops.terms.levels import numbered
from pairops.ops.terms.recipe import pack, unpack
from support.earlier_calls import CALLS, OWNERS, at_once, batch, compare, in_turn, need, terms_of
from support.engine_names import NARROW
from support.exhaustive import exhaustive_but
from support.term_problems import results


@pytest.mark.usefixtures("small_tiles", "small_triton_tiles")
@pytest.mark.parametrize("owners", OWNERS)
@pytest.mark.parametrize("name", CALLS)
def test_one_call_is_the_calls_one_after_the_other(engine: str, name: str, owners: str) -> None:
    need(engine, name)
    if engine in NARROW and name in ("an extreme by an argument", "a quotient"):
        compare(engine, name, batch(owners, n=33))  # nearly the same pair may win in float32
    else:
        compare(engine, name, batch(owners))


@pytest.mark.usefixtures("small_tiles", "small_triton_tiles")
@pytest.mark.parametrize("cols", [False, True])
@pytest.mark.parametrize("name", ["windows", "constants", "gradient", "levels", "a quotient"])
def test_of_two_sets_and_of_columns(engine: str, name: str, cols: bool) -> None:
    need(engine, name)
    compare(engine, name, batch("mixed", 30), cols=cols)
    compare(engine, name, batch("columns of a further class", 30), cols=cols)
    if engine not in NARROW:
        compare(engine, name, batch("all distinct", 30), cols=cols)


@pytest.mark.usefixtures("small_tiles", "small_triton_tiles")
@pytest.mark.parametrize(
    ("name", "distance"),
    exhaustive_but(
        itertools.product(["windows", "gradient", "levels"], ["l2", "snr", "dot"]),
        lambda name, distance: (name, distance) == ("windows", "l2"),
    ),
)
def test_distances(engine: str, name: str, distance: str) -> None:
    if distance == "dot" and name == "levels":
        pytest.skip("its numbers grow beyond all bounds")
    need(engine, name, distance)
    compare(engine, name, batch("mixed"), distance=distance)
    if engine not in NARROW:
        compare(engine, name, batch("mixed", 30), distance=distance, cols=True)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("name", "m"),
    exhaustive_but(
        itertools.product(["windows", "carried", "levels", "an extreme with a gradient"], [0, 17]),
        lambda name, m: name == "carried" and m == 0,
    ),
)
def test_derivatives_of_every_order(wide_engine: str, name: str, m: int) -> None:
    need(wide_engine, name)
    x, labels, other = batch("mixed", m, n=34)

    def run(x: Tensor, *y: Tensor) -> Tensor:
        given = {**other, "ref_emb": y[0]} if y else {}
        statistics = at_once(Pairs.of(x, labels, **given), name)
        return torch.cat([torch.where(r.isinf(), 0, r) for r in statistics if r.requires_grad])

    leaves = [z.requires_grad_() for z in (x, *([other["ref_emb"]] if other else []))]
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("name", "owners"),
    exhaustive_but(
        itertools.product(CALLS, OWNERS), lambda _, owners: owners == next(iter(OWNERS))
    ),
)
def test_second_derivatives_are_those_of_the_calls_one_after_the_other(
    wide_engine: str, name: str, owners: str
) -> None:
    """Also with constants, by which nothing is differentiated."""
    need(wide_engine, name)
    x, labels, _ = batch(owners, n=34)
    found = []
    for run, engine in ((at_once, wide_engine), (in_turn, "dense")):
        leaf = x.clone().requires_grad_()
        with pairops.engine(engine):
            statistics = run(Pairs.of(leaf, labels), name)
            live = [torch.where(r.isinf(), 0, r) for r in statistics if r.requires_grad]
            value = sum((r * torch.linspace(-1, 2, len(r), dtype=r.dtype)).sum() for r in live)
            (g,) = torch.autograd.grad(value, leaf, create_graph=True)  # type: ignore[arg-type]
            found.append([g.detach(), *torch.autograd.grad(g.square().sum(), leaf)])
    for ours, theirs in zip(*found, strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10 * scale)


@pytest.mark.usefixtures("small_tiles", "wide_engine")
@pytest.mark.parametrize("of_columns", ["windows", "carried"])
def test_rows_and_columns_refer_each_to_their_own(of_columns: str) -> None:
    """With terms that stand in another order than they are gathered in."""
    x, labels, other = batch("mixed", 30)
    y = other["ref_emb"]
    seen = []
    for one in (True, False):
        leaves = [x.clone().requires_grad_(), y.clone().requires_grad_()]
        pairs = Pairs.of(leaves[0], labels, **{**other, "ref_emb": leaves[1]})
        if one:
            rows, cols = terms_of("gradient"), terms_of(of_columns)
            rows.insert(0, lse(ALL, 2.0, 0.1))

            def run(pairs: Pairs = pairs, rows: Any = rows, cols: Any = cols) -> Any:
                return row_stats(pairs, *rows, cols=cols)
        else:

            def run(pairs: Pairs = pairs) -> Any:  # type: ignore[misc]
                (first,) = row_stats(pairs, lse(ALL, 2.0, 0.1))
                return first, *in_turn(pairs, "gradient"), *in_turn(pairs, of_columns, True)

        seen.append(results(run, leaves))
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_what_a_term_may_not_refer_to() -> None:
    x, labels, other = batch("mixed", 30)
    pairs = Pairs.of(x, labels, **other)
    far = lowest(POS)
    lost = lse(NEG, 1.0, far)
    itself = lse(NEG, 1.0, 0.0)
    itself.args = (1.0, itself)

    def says(text: str, *rows: Term, cols: tuple[Term, ...] = ()) -> None:
        with pytest.raises(ValueError, match=text):
            row_stats(pairs, *rows, cols=cols)

    named = r"term 0 of rows \(lse of affine\) refers to "
    says(named + "itself; it must refer to an earlier term of the call", itself)
    says(named + "a later term; that must stand before it", lost, far)
    says(named + "a term that is not in this call; it must be given before it", lost)
    others = "a term of other owners; rows may refer to rows, and cols to cols"
    says(named + others, lost, cols=(far,))
    says(r"term 0 of cols \(lse of affine\) refers to " + others, far, cols=(lost,))
    for window in (lse(NEG, 1.0, 0.0, above=far), lse(NEG, 1.0, 0.0, below=far)):
        says(named + "a later term", window, far)
    says(named + "a term that is not in this call", lse(NEG, 1.0, Earlier(far, grad=True)))
    (near_one,) = row_stats(pairs, far)
    with pytest.raises(TypeError, match="above is str; it must be a number, a tensor"):
        lse(NEG, 1.0, 0.0, above="far")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="argument 1 of affine is str"):
        row_stats(pairs, lse(NEG, 1.0, "far"))  # type: ignore[arg-type]
    assert torch.equal(row_stats(pairs, far, lost)[0], near_one), "nothing of the errors is kept"


@pytest.mark.parametrize("name", CALLS)
def test_a_recipe_is_read_as_it_was_written(name: str) -> None:
    rows = numbered(terms_of(name), (), "rows")
    cols = numbered(terms_of("windows"), (), "cols")
    packed = pack(rows, cols)
    again = unpack(*packed)
    assert pack(*again) == packed
    for ours, theirs in zip((*again[0], *again[1]), (*rows, *cols), strict=True):
        assert ours.earlier() == theirs.earlier()
        assert (ours.above, ours.below, ours.args) == (theirs.above, theirs.below, theirs.args)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    "name",
    exhaustive_but(["windows", "gradient", "levels"], lambda name: name == "levels"),
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own imports
def test_under_compile_and_transforms(wide_engine: str, name: str) -> None:
    need(wide_engine, name)
    torch.compiler.reset()
    x, labels, _ = batch("mixed", n=21)

    def summed(x: Tensor) -> Tensor:
        statistics = at_once(Pairs.of(x, labels), name)
        return torch.stack([torch.where(r.isinf(), 0, r).sum() for r in statistics[1:]]).sum()

    leaf = x.clone().requires_grad_()
    value = summed(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    compiled = torch.compile(summed, fullgraph=True, dynamic=True, backend="eager")
    other = x.clone().requires_grad_()
    again = compiled(other)
    close = {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(again, value, **close)
    torch.testing.assert_close(torch.autograd.grad(again, other)[0], gradient, **close)
    torch.testing.assert_close(torch.func.grad(summed)(x), gradient, **close)
    direction = torch.randn_like(x)
    at, along = torch.func.jvp(summed, (x,), (direction,))
    torch.testing.assert_close(at, value.detach(), **close)
    torch.testing.assert_close(along, (gradient * direction).sum(), rtol=1e-9, atol=1e-9)
    both = torch.stack([x, 0.5 * x + 0.1])
    each = torch.func.vmap(summed)(both)
    torch.testing.assert_close(each, torch.stack([summed(z) for z in both]), **close)
    of_each = torch.func.vmap(torch.func.grad(summed))(both)
    torch.testing.assert_close(of_each[0], gradient, **close)
