"""Pair functions, built in and of one's own: slopes, recipes, and what an engine makes of them."""

import copy
import itertools
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import pairops
from pairops import NEG, POS, Function, Pairs, highest, lowest, lse, partner, row_stats, total
from pairops.ops.terms import functions
from pairops.ops.terms.functions import FUNCTIONS
from pairops.ops.terms.recipe import pack, unpack
from support.engine_names import HERE, WIDE
from support.error_rule import gradients
from support.term_problems import DOUBLE, every_kind_of_term, problem, results


@pytest.fixture(params=[name for name in HERE if name != "cuda"])
def engine_that_counts(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of these, those that serve functions of which csrc/recipes.h says that they are the CPU's."""
    with pairops.engine(request.param):
        yield request.param


BUILT_IN = (
    "identity", "one", "affine", "hinge", "sigmoid", "softplus", "softplus_from",
    "circle_pull", "circle_push", "attended",
)  # fmt: skip


@pytest.mark.parametrize("function", BUILT_IN)
def test_slopes_are_the_derivatives(function: str) -> None:
    f = FUNCTIONS[function]
    s = torch.linspace(-1, 1, 41, dtype=DOUBLE)
    for scale, base in itertools.product((-3.0, 0.0, 10.0), (-0.512, 0.0, 0.498)):
        if function == "attended" and scale == 0:  # the inverse of a temperature
            continue
        args = [torch.full_like(s, a) for a in (scale, base, 0.37)][: f.arity]
        inputs = [z.clone().requires_grad_() for z in (s, *args)]
        value = f.value(*inputs) + 0 * inputs[0]
        found = torch.autograd.grad(value.sum(), inputs, allow_unused=True)
        for mine, theirs in zip(f.slopes(s, *args), found, strict=True):  # type: ignore[misc]
            at_kink = (value == 0) & (function == "hinge")
            expected = torch.zeros_like(s) if theirs is None else theirs
            difference = (mine * torch.ones_like(s) - expected)[~at_kink].abs()
            assert bool((difference < 1e-14 * expected[~at_kink].abs().clamp(min=1)).all())


@pytest.mark.usefixtures("small_tiles")
def test_user_functions_with_and_without_slopes() -> None:
    """All engines agree, slopes given or derived; names are kept apart."""

    def bump(s: Tensor, height: Tensor, centre: Tensor) -> Tensor:
        return height * torch.tanh(s - centre) ** 2 + torch.where(s > 0, s, 0.0)

    def bump_slopes(s: Tensor, height: Tensor, centre: Tensor) -> tuple[Tensor, ...]:
        tanh = torch.tanh(s - centre)
        by_s = 2 * height * tanh * (1 - tanh**2)
        return by_s + (s > 0), tanh**2, -by_s

    derived, given_slopes = Function(bump), Function(bump, bump_slopes)
    assert derived.name != given_slopes.name
    x, labels, _ = problem()
    u = torch.rand(60, dtype=DOUBLE)
    leaves = [x.requires_grad_(), u.requires_grad_()]
    found = []
    for engine, f in (("dense", derived), ("blockwise", derived), ("blockwise", given_slopes)):
        with pairops.engine(engine):
            run = results(
                lambda f=f: row_stats(Pairs.of(x, labels), lse(NEG, u, partner(u), function=f)),  # type: ignore[misc]
                leaves,
            )
            found.append(run)
    for other in found[1:]:
        for a, b in zip(other, found[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("small_tiles", "open_engine")
def test_a_declared_slope_is_used_by_every_engine() -> None:
    """A weight held constant, as in circle loss: value a(s)·s with slope a(s)."""
    held = Function(
        lambda s: (1 + s) * s, lambda s: (1 + s,), name="held_weight", is_derivative=False
    )
    x, labels, _ = problem()
    x.requires_grad_()
    (ours,) = row_stats(Pairs.of(x, labels), lse(NEG, function=held))
    unit = x / x.norm(dim=1, keepdim=True)
    s = unit @ unit.T
    f = (1 + s.detach()) * s
    truth = torch.logsumexp(f.masked_fill(labels[:, None] == labels, -torch.inf), 1)
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)
    a, b = (torch.autograd.grad(r.sum(), x)[0] for r in (ours, truth))
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_a_recipe_says_all_of_its_terms() -> None:
    u, v = torch.rand(6, dtype=DOUBLE), torch.rand(4, dtype=DOUBLE)
    terms = [t.over(6, 4, DOUBLE) for t in every_kind_of_term(u, v)]
    columns = [t.over(4, 6, DOUBLE) for t in every_kind_of_term(v, u)]
    recipe, numbers, vectors = pack(terms, columns)
    assert recipe.startswith("lse:pos:affine lse:neg:affine(fo)> lse:all:affine(op)<")
    assert "highest:neg:identity@ " in recipe
    assert "lowest:neg:identity |" in recipe
    rows, cols = unpack(recipe, numbers, vectors)
    assert pack(rows, cols)[0] == recipe
    assert all(a is b for a, b in zip(pack(rows, cols)[2], vectors, strict=True))


@pytest.mark.usefixtures("wide_engine")
@pytest.mark.parametrize("loss", ["ms_loss", "supcon_loss"])
def test_the_gradient_by_a_learnable_scalar_sums_over_rows(loss: str) -> None:
    x, labels, _ = problem()
    name = {"ms_loss": "beta", "supcon_loss": "temperature"}[loss]
    t = torch.tensor(3.0, dtype=DOUBLE, requires_grad=True)

    def run() -> Tensor:
        return getattr(pairops, loss)(x, labels, **{name: t})

    (ours,) = gradients(run, [t], torch.ones((), dtype=DOUBLE))
    step = 1e-6
    ends = [getattr(pairops, loss)(x, labels, **{name: 3.0 + e}) for e in (step, -step)]
    torch.testing.assert_close(ours, (ends[0] - ends[1]) / (2 * step), rtol=1e-7, atol=1e-9)


@pytest.mark.usefixtures("small_tiles", "open_engine")
def test_a_function_may_ignore_the_similarity() -> None:
    """Σ over negatives of a row weight is the number of negatives times it."""
    x, labels, _ = problem()
    w = torch.rand(60, dtype=DOUBLE, requires_grad=True)
    weight_only = Function(lambda s, a: a * 1.0, lambda s, a: (0.0, 1.0), name="weight_only")  # noqa: ARG005
    pairs = Pairs.of(x, labels)
    negatives = pairs.counts()[1].double()
    terms = [total(NEG, w, function=weight_only), lse(NEG, w, function=weight_only)]
    sums, logs, count = row_stats(pairs, *terms, total(NEG, function=functions.one))
    torch.testing.assert_close(sums, negatives * w)
    torch.testing.assert_close(logs, w + negatives.log())
    assert torch.equal(count, negatives)
    torch.testing.assert_close(torch.autograd.grad(sums.sum() + logs.sum(), w)[0], negatives + 1.0)


@pytest.mark.usefixtures("small_tiles", "engine_that_counts")
def test_pairs_are_counted() -> None:
    """All of a side, or those inside a window; no gradient comes of it, nor of its gradient."""
    x, labels, _ = problem()
    x = x.float().requires_grad_()
    one, t = functions.one, torch.rand(60) - 0.5
    pairs = Pairs.of(x, labels)
    found = row_stats(
        pairs,
        *(total(side, function=one) for side in (POS, NEG)),
        *(total(side, function=one, above=t) for side in (POS, NEG)),
        *(total(side, function=one, below=t) for side in (POS, NEG)),
    )
    unit = x.detach().double() / x.detach().double().norm(dim=1, keepdim=True)
    s, other = unit @ unit.T, ~torch.eye(60, dtype=torch.bool)
    positive = labels[:, None] == labels
    for k, window in enumerate((s < 2, s > t[:, None], s < t[:, None])):
        for side, present in enumerate((positive & other, ~positive)):
            assert torch.equal(found[2 * k + side].long(), (present & window).sum(1))
    r = torch.cat(found).sum() + 0 * x.sum()
    (g,) = torch.autograd.grad(r, x, create_graph=True)
    (h,) = torch.autograd.grad(g.sum() + 0 * x.sum(), x)
    assert bool((g == 0).all())
    assert bool((h == 0).all())


HELD = {
    "circle_pull": lambda s, g, m: -g * (1 + m - s).clamp(min=0).detach() * (s - 1 + m),
    "circle_push": lambda s, g, m: g * (s + m).clamp(min=0).detach() * (s - m),
    "attended": lambda s, scale, shift: (scale * s - shift).exp().detach() * (s - shift / scale),
}


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name", HELD)
def test_what_is_held_constant(name: str, engine_that_counts: str) -> None:
    """Value and gradients by embeddings and both arguments, against torch with a detach."""
    x, labels, _ = problem()
    dtype = DOUBLE if engine_that_counts in WIDE else torch.float32
    gather, side = (
        (total, POS) if name == "attended" else (lse, POS if name == "circle_pull" else NEG)
    )
    values = x, torch.rand(60) + 1, torch.rand(60)
    found = []
    for kind in (dtype, DOUBLE):
        leaves = [z.to(dtype).to(kind).requires_grad_() for z in values]
        z, *args = leaves
        if not found:
            (r,) = row_stats(Pairs.of(z, labels), gather(side, *args, function=FUNCTIONS[name]))
        else:
            unit = z / z.norm(dim=1, keepdim=True)
            f = HELD[name](unit @ unit.T, *[a[:, None] for a in args])
            kept = (labels[:, None] == labels) == (side == POS)
            kept &= ~torch.eye(60, dtype=torch.bool)
            r = (
                (f * kept).sum(1)
                if gather is total
                else f.masked_fill(~kept, -torch.inf).logsumexp(1)
            )
        weighted = (torch.where(r.isinf(), 0, r) * torch.linspace(-1, 2, 60)).sum()
        found.append((r, *torch.autograd.grad(weighted, leaves, materialize_grads=True)))
    tolerance = 1e-11 if dtype == DOUBLE else 1e-4
    for ours, truth in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("small_tiles")
def test_slopes_where_there_is_no_pair_do_not_matter() -> None:
    """A logarithm under a window: infinite or NaN at self pairs, positives and dropped pairs."""
    log = Function(lambda s: torch.log(s + s.abs()), lambda s: (2 / (s + s.abs()),), name="log")
    x, labels, _ = problem()
    x.requires_grad_()
    zero = torch.zeros((), dtype=DOUBLE)
    for term in (total, lse, lowest, highest):
        found = []
        for engine in ("dense", "blockwise"):
            with pairops.engine(engine):
                (r,) = row_stats(Pairs.of(x, labels), term(NEG, function=log, above=zero))
                r = torch.where(r.isinf(), 0, r)
                (g,) = torch.autograd.grad(r.sum(), x, create_graph=True)
                found.append((r, g, *torch.autograd.grad((g * g).sum(), x)))
        for ours, theirs in zip(*found, strict=True):
            assert bool(torch.isfinite(ours).all())
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    root = Function(
        lambda s: s.abs().sqrt(), lambda s: (s.sign() / (2 * s.abs().sqrt()),), name="root"
    )
    alone = torch.cat([torch.tensor([99]), labels[1:]])
    with pairops.engine("blockwise"):
        (r,) = row_stats(Pairs.of(x, alone), lowest(POS, function=root))
        (gradient,) = torch.autograd.grad(torch.where(r.isinf(), 0, r).sum(), x)
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.usefixtures("small_tiles", "open_engine")
@pytest.mark.parametrize("of", ["owner", "partner"])
def test_arguments_where_there_is_no_pair_do_not_matter(of: str) -> None:
    """Infinite or NaN for a row that is ignored, as a statistic of the row itself may be."""
    times = Function(lambda s, a: torch.exp(s * a), name="times")
    x, labels, _ = problem()
    labels[[0, 7, 9]] = -100
    u = torch.rand(len(x), dtype=DOUBLE)
    for hostile in (0.0, torch.inf, -torch.inf, torch.nan):
        u[[0, 7, 9]] = hostile
        leaves = [x.detach().requires_grad_(), u.clone().requires_grad_()]
        argument = leaves[1] if of == "owner" else partner(leaves[1])
        (r,) = row_stats(Pairs.of(leaves[0], labels), total(POS, argument, function=times))
        found = [r, *torch.autograd.grad(r.sum(), leaves)]
        assert all(bool(torch.isfinite(z).all()) for z in found), hostile
        assert bool((found[2][[0, 7, 9]] == 0).all())


@pytest.mark.usefixtures("small_tiles")
def test_a_declared_slope_is_constant_in_second_derivatives_too() -> None:
    held = Function(
        lambda s: torch.relu(s + 1) ** 2,
        lambda s: (torch.relu(s + 1),),
        name="held_square",
        is_derivative=False,
    )
    x, labels, _ = problem()
    x.requires_grad_()
    found = []
    for engine in ("dense", "blockwise"):
        with pairops.engine(engine):
            (r,) = row_stats(Pairs.of(x, labels), total(NEG, function=held))
            (g,) = torch.autograd.grad(r.sum(), x, create_graph=True)
            found.append(torch.autograd.grad((g**2).sum(), x)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)


def _squared(s: Tensor) -> Tensor:
    return s * s


def _cubed(s: Tensor) -> Tensor:
    return s * s * s


def test_copies_of_a_function_are_the_function() -> None:
    mine = Function(lambda s: s * s, name="mine")  # which no pickle could hold
    assert copy.copy(mine) is mine
    assert copy.deepcopy({"terms": [total(NEG, function=mine)]})["terms"][0].function is mine
    for function in (Function(_squared), functions.affine):
        assert pickle.loads(pickle.dumps(function)) is function


@pytest.mark.usefixtures("open_engine")
@pytest.mark.parametrize("taken", [False, True])
def test_a_pickle_that_another_process_reads_is_the_same_function(
    taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has its name there, and as often as it is read."""
    written = Function(_squared, name=f"written_{taken}")
    text = pickle.dumps(written)
    for known in [known for known in FUNCTIONS.values() if known.value is _squared]:
        monkeypatch.delitem(FUNCTIONS, known.name)
    monkeypatch.setattr(functions, "_ORIGINS", {})
    other = Function(_cubed, name=written.name) if taken else None
    read = pickle.loads(text)
    assert pickle.loads(text) is read is pickle.loads(pickle.dumps(read))
    assert (read.name == written.name) != taken
    x, labels, _ = problem(n=20)
    found = row_stats(Pairs.of(x, labels), total(NEG, function=read))[0]
    assert torch.equal(found, row_stats(Pairs.of(x, labels), total(NEG, function=read))[0])
    s = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(x).T
    truth = (s * s * (labels[:, None] != labels)).sum(1)
    torch.testing.assert_close(found, truth)
    if other is not None:
        assert FUNCTIONS[written.name] is other
    # And where the module that made it was imported, it is the one made there.
    monkeypatch.setattr(functions, "_ORIGINS", {})
    assert pickle.loads(text) is read


def test_ranks_know_a_function_by_what_it_computes() -> None:
    """Names depend on what a process made before."""

    def times(k: float) -> Function:
        return Function(lambda s: k * s, name="times")

    told = [total(NEG, function=times(k)).describe(str) for k in (2.0, 2.0, 3.0)]
    assert told[0] == told[1] != told[2]
    assert times(2.0).name != times(2.0).name


@pytest.mark.parametrize("engine", ["blockwise", "triton"])
@pytest.mark.parametrize("name", ["2nd", "\ufb01t", "x\u00b2", "class", "\u0967", "a-b", "\u00e9"])
def test_any_name_will_do(name: str, engine: str) -> None:
    function = Function(lambda s: s * s + 0.5 * s, name=name)
    assert function.name.isascii()
    assert function.name.isidentifier()
    x, labels = torch.randn(8, 4), torch.arange(8) // 2
    with pairops.engine("dense"):
        (truth,) = row_stats(Pairs.of(x, labels), total(NEG, function=function))
    with pairops.engine(engine):
        (found,) = row_stats(Pairs.of(x, labels), total(NEG, function=function))
    torch.testing.assert_close(found, truth)


@pytest.mark.parametrize("engine", [name for name in HERE if name != "cuda"])
def test_a_first_call_draws_no_random_number(engine: str) -> None:
    """A function is traced when it is made, and once more when an engine first meets it."""
    x, labels, _ = problem()
    x = x.float().requires_grad_()
    before = torch.get_rng_state()
    one_that_engines_serve = functions.affine if engine == "cpu" else Function(lambda s: s * s + s)
    given = (2.0, 0.1)[: one_that_engines_serve.arity]
    with pairops.engine(engine):
        (found,) = row_stats(
            Pairs.of(x, labels), total(NEG, *given, function=one_that_engines_serve)
        )
    found.sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_function_without_a_name_of_its_own() -> None:
    class Times:
        def __call__(self, s: Tensor) -> Tensor:
            return 2 * s

    assert Function(Times()).name == "Times"
    with pytest.raises(TypeError, match="name is int; it must be a str"):
        Function(_squared, name=3)  # type: ignore[arg-type]
