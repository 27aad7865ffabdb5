"""The ops as torch sees them: opcheck, compile, autocast, double backward, threads, no_grad."""

import itertools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import pairops
from pairops import ALL, POS, Pairs, lowest, lse, partner, row_stats
from pairops.ops import engines
from pairops.ops.engines import ENGINES
from support.engine_names import HERE
from support.exhaustive import exhaustive, exhaustive_but

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

# Each takes embeddings, labels and one learnable scalar.
LOSSES: dict[str, Loss] = {
    "ms_loss": lambda x, labels, t: pairops.ms_loss(x, labels, beta=t),
    "ms_loss, not mined": lambda x, labels, t: pairops.ms_loss(x, labels, alpha=t, epsilon=None),
    "ms_loss, two sets": lambda x, labels, t: pairops.ms_loss(
        x,
        labels,
        beta=t,
        ref_emb=x.flip(0),
        ref_labels=labels.flip(0),
        ids=torch.arange(x.shape[0]),
        ref_ids=torch.arange(x.shape[0]).flip(0),
        weight=torch.linspace(0.5, 2, x.shape[0], dtype=x.dtype),
        reduction="mean_nonzero",
    ),
    "contrastive_loss": lambda x, labels, t: pairops.contrastive_loss(x, labels, pos_margin=t),
    "supcon_loss": lambda x, labels, t: pairops.supcon_loss(x, labels, temperature=t),
    "triplet_loss": lambda x, labels, t: pairops.triplet_loss(x, labels, margin=t),
    "info_nce_loss": lambda x, _, t: pairops.info_nce_loss(x, x.roll(1, 1), temperature=t),
    "info_nce_loss, with itself": lambda x, _, t: pairops.info_nce_loss(x, x, temperature=t),
    "siglip_loss": lambda x, _, t: pairops.siglip_loss(x, x.roll(1, 1), scale=t, bias=-t),
}
AS_OPS = ["ms_loss", "ms_loss, two sets", "info_nce_loss", "siglip_loss"]
# With these the compiler sees every statistic, function, window and kind of pairs in `dense`.
TRACED_WHOLE = ["contrastive_loss", "triplet_loss", "siglip_loss"]
SOME = ["ms_loss", "info_nce_loss"]
# Every engine has some, and some engines have every one.
ON_ENGINES = exhaustive_but(
    itertools.product(LOSSES, HERE),
    lambda name, engine: name in SOME or engine in ("cpu", "blockwise"),
)


def inputs(n: int = 24, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(n, 8, dtype=dtype, requires_grad=True)
    t = torch.tensor(1.3, dtype=dtype, requires_grad=True)
    return x, torch.randint(0, 6, (n,)), t


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("name", "engine_name"),
    [
        *((name, "cpu") for name in LOSSES),
        ("ms_loss", "blockwise"),
        ("supcon_loss", "blockwise"),
    ],
)
def test_opcheck(name: str, engine_name: str) -> None:
    calls: list[tuple[Any, Any]] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if op.namespace == "pairops":
                calls.append((op, tree_map_only(Tensor, Tensor.detach, args)))
            return op(*args, **(kwargs or {}))

    x, labels, t = inputs(40)
    with pairops.engine(engine_name), Recorder():
        LOSSES[name](x, labels, t).backward()
        if name == "supcon_loss":
            pairs = Pairs.of(x, labels, distance="dot")
            row_stats(pairs, lse(ALL, t, partner(x[:, 0])))[0].sum().backward()
    ops = ("sort_by_label", "row_stats", "row_stats_backward")
    assert {op.__name__ for op, _ in calls} == {f"{name}.default" for name in ops}
    for op, args in calls:
        checks = torch.library.opcheck(op, args)
        assert set(checks.values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("name", "engine_name"),
    [
        # Of "auto" the ops are all that the compiler sees, whatever the loss (its own Python is
        # compiled in tests/losses); of "dense" every operation.
        *exhaustive_but(itertools.product(AS_OPS, ["auto"]), lambda name, _: name == "ms_loss"),
        *exhaustive_but(itertools.product(TRACED_WHOLE, ["dense"]), lambda *_: False),
        pytest.param("ms_loss, two sets", "blockwise", marks=exhaustive),
        pytest.param("contrastive_loss", "triton", marks=exhaustive),
        pytest.param("ms_loss", "chunked", marks=exhaustive),
    ],
)
def test_compile_in_one_graph_for_any_size(name: str, engine_name: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(LOSSES[name], fullgraph=True, dynamic=True, backend="aot_eager")
    with pairops.engine(engine_name):
        for n in (24, 40, 1) if name in SOME and engine_name == "auto" else (24, 40):
            x, labels, t = inputs(n)
            eager, ours = LOSSES[name](x, labels, t), compiled(x, labels, t)
            torch.testing.assert_close(ours, eager)
            for a, b in zip(
                torch.autograd.grad(ours, (x, t)), torch.autograd.grad(eager, (x, t)), strict=True
            ):
                torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:.*is not a leaf:UserWarning", "ignore:Dynamo:UserWarning"
)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_autograd(reduction: Any) -> None:
    """It traces the backward pass of an eager call too, and leaves torch as it was."""
    torch._dynamo.reset()
    x, labels, _ = inputs()

    def value() -> Tensor:
        result: Tensor = pairops.ms_loss(x, labels, reduction=reduction).sum()
        return result

    (truth,) = torch.autograd.grad(value(), x)
    eager = value()
    with compiled_autograd._enable(torch.compile(backend="eager")):
        eager.backward()
    torch.testing.assert_close(x.grad, truth)
    x.grad = None
    value().backward()
    torch.testing.assert_close(x.grad, truth, rtol=0, atol=0)


def test_a_compiled_call_follows_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice is guarded: leaving `use` recompiles."""
    torch._dynamo.reset()
    compiled = torch.compile(pairops.contrastive_loss, fullgraph=True, backend="aot_eager")
    x, labels, _ = inputs()
    seen = []

    def watch(name: str, forward: Callable[..., Any]) -> None:
        monkeypatch.setattr(
            ENGINES[name], "forward", lambda *call: (seen.append(name), forward(*call))[1]
        )

    for name in ("cpu", "blockwise"):
        watch(name, ENGINES[name].forward)
    expected = {"blockwise": ["blockwise"], "dense": [], "cpu": ["cpu"], "auto": ["cpu"]}
    for engine in ("blockwise", "dense", "blockwise", "auto", "cpu", "dense", "auto"):
        seen.clear()
        with pairops.engine(engine):
            compiled(x, labels)
        assert seen == expected[engine], engine


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(("name", "engine"), ON_ENGINES, indirect=["engine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(name: str, dtype: torch.dtype) -> None:
    x, labels, t = inputs(dtype=dtype)
    plain = LOSSES[name](x, labels, t)
    with torch.autocast("cpu", torch.bfloat16):
        cast = LOSSES[name](x, labels, t)
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)
    a, b = (torch.autograd.grad(value, x)[0] for value in (plain, cast))
    assert torch.equal(a, b)
    assert a.dtype == dtype


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("engine_name", "compiled"),
    [*((name, False) for name in HERE), ("auto", True), ("dense", True)],
)
def test_autocast_around_backward_changes_nothing(engine_name: str, compiled: bool) -> None:
    """Compiled, an engine is an op, or it is "dense"."""
    torch._dynamo.reset()
    x, labels, t = inputs(40)
    with pairops.engine(engine_name):
        loss = LOSSES["supcon_loss"]
        plain = torch.autograd.grad(loss(x, labels, t), x, create_graph=True)[0]
        twice = torch.autograd.grad((plain**2).sum(), x)[0]
        if compiled:
            loss = torch.compile(loss, fullgraph=True, backend="aot_eager")
        with torch.autocast("cpu", torch.bfloat16):
            if compiled:
                cast = torch.autograd.grad(loss(x, labels, t), x)[0]
            else:
                cast = torch.autograd.grad(loss(x, labels, t), x, create_graph=True)[0]
                again = torch.autograd.grad((cast**2).sum(), x)[0]
                torch.testing.assert_close(again, twice)
        torch.testing.assert_close(cast, plain.detach() if compiled else plain)


@pytest.mark.usefixtures("small_tiles", "wide_engine")
@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck_and_gradgradcheck_by_embeddings_and_scalar(name: str) -> None:
    x, labels, t = inputs(20, torch.float64)

    def run(x: Tensor, t: Tensor) -> Tensor:
        return LOSSES[name](x, labels, t)

    assert torch.autograd.gradcheck(run, (x, t), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, t), fast_mode=True)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name", LOSSES)
def test_a_gradient_penalty_through_a_network(name: str) -> None:
    """The second set is a function of the first: no path may count twice."""
    weight = torch.randn(8, 8, dtype=torch.float64, requires_grad=True)
    x, labels, t = inputs(40, torch.float64)
    found = []
    for engine in ("dense", "blockwise"):
        with pairops.engine(engine):
            value = LOSSES[name](torch.tanh(x @ weight), labels, t)
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            assert gradient.requires_grad
            penalty = value + (gradient.norm() - 1) ** 2
            found.append(torch.autograd.grad(penalty, (weight, x, t)))
    for ours, truth in zip(*found, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-11)


def test_third_derivatives() -> None:
    x, labels, t = inputs(12, torch.float64)
    found = []
    for engine in ("dense", "blockwise"):
        with pairops.engine(engine):
            g = LOSSES["supcon_loss"](x, labels, t)
            for _ in range(2):
                (g,) = torch.autograd.grad((g**2).sum(), x, create_graph=True)
            found.append(torch.autograd.grad((g**2).sum(), (x, t)))
    for ours, truth in zip(*found, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-8, atol=1e-10)


@pytest.mark.usefixtures("engine")
def test_backward_twice_and_on_another_thread() -> None:
    x, labels, t = inputs()
    value = LOSSES["ms_loss"](x, labels, t)
    first = torch.autograd.grad(value, x, retain_graph=True)[0]
    results: list[Tensor] = []

    def work() -> None:
        with pairops.engine("auto"):
            results.append(torch.autograd.grad(value, x)[0])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert torch.equal(results[0], first)


@pytest.mark.usefixtures("wide_engine")
def test_several_cotangents_at_once() -> None:
    """By either of torch's vmaps."""
    x, labels, _ = inputs(dtype=torch.float64)
    near, far = row_stats(Pairs.of(x, labels), lse(ALL, 3.0, 0.5), lowest(POS))
    value = near + torch.where(far.isinf(), 0, far)

    def of(cotangent: Tensor) -> Tensor:
        return torch.autograd.grad(value, x, cotangent, retain_graph=True)[0]

    several = torch.randn(3, len(value), dtype=x.dtype)
    truth = torch.stack([of(cotangent) for cotangent in several])
    torch.testing.assert_close(torch.vmap(of)(several), truth)
    torch.testing.assert_close(
        torch.autograd.grad(value, x, several, is_grads_batched=True)[0], truth
    )


@pytest.mark.usefixtures("engine")
def test_a_graph_that_is_freed_lets_go_of_the_embeddings() -> None:
    """The loss may live on, such as in a sum over an epoch."""
    x, labels, _ = inputs()
    embeddings = x * 1
    gone = weakref.ref(embeddings)
    value = pairops.ms_loss(embeddings, labels)
    value.backward()
    del embeddings
    assert gone() is None


def test_a_graph_that_is_freed_lets_go_of_what_was_prepared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which the backward pass is given until then."""
    engine, seen, made = ENGINES["blockwise"], [], []
    backward = engine.backward
    assert backward is not None

    def prepare(pairs: Pairs) -> list[Tensor]:
        if "blockwise" not in pairs.cache.prepared:
            pairs.cache.prepared["blockwise"] = [torch.ones(3)]
            made.append(weakref.ref(pairs.cache.prepared["blockwise"][0]))
        return pairs.cache.prepared["blockwise"]

    def weigh(pairs: Pairs, *rest: Any) -> Any:
        seen.append(prepare(pairs)[0].tolist())
        return backward(pairs, *rest)

    monkeypatch.setattr(engine, "prepare", prepare)
    monkeypatch.setattr(engine, "backward", weigh)
    x, labels, _ = inputs()
    with pairops.engine("blockwise"):
        value = pairops.ms_loss(x, labels)
    value.backward(retain_graph=True)
    assert len(made) == 1
    assert made[0]() is not None
    value.backward()
    assert len(made) == 1
    assert made[0]() is None
    assert seen == [[1, 1, 1]] * 2


@pytest.mark.usefixtures("wide_engine")
def test_tensors_without_memory_of_their_own() -> None:
    """Such as a DTensor: as a number that is learned, and as a cotangent."""
    x, labels, t = inputs(dtype=torch.float64)
    weight = torch.rand(24, dtype=torch.float64)
    wrapped = TwoTensor(t.detach(), t.detach().clone()).requires_grad_()
    other = TwoTensor(weight, weight.clone())

    def found(t: Tensor, weight: Tensor, **reduced: Any) -> tuple[Tensor, ...]:
        value = (pairops.nt_xent_loss(x, labels, temperature=t, **reduced) * weight).sum()
        return value, *torch.autograd.grad(value, (x, t))

    for reduced in ({"reduction": "none"}, {}):
        truth = found(t, weight, **reduced)
        for ours in (found(wrapped, weight, **reduced), found(wrapped, other, **reduced)):
            torch.testing.assert_close([z.a for z in ours], [*truth])
    for loss in (pairops.ms_loss, pairops.triplet_loss):
        value = loss(x, labels)
        (truth,) = torch.autograd.grad((value * weight).sum(), x, retain_graph=True)
        (ours,) = torch.autograd.grad((value * other).sum(), x)
        torch.testing.assert_close(ours.a, truth)


@pytest.mark.usefixtures("wide_engine")
def test_a_cotangent_whose_sign_is_yet_to_be_turned() -> None:
    """As torch returns it of the imaginary part of a conjugate."""
    x, labels, _ = inputs(dtype=torch.float64)
    (r,) = row_stats(Pairs.of(x, labels), lse(ALL, 3.0, 0.5))
    (plain,) = torch.autograd.grad((-2 * r).sum(), x, retain_graph=True)
    seen = []
    r.register_hook(lambda g: seen.append(g.is_neg()))
    turned = (torch.complex(torch.zeros_like(r), r).conj() * 2j).real.sum()
    torch.testing.assert_close(-torch.autograd.grad(turned, x)[0], plain)
    assert seen == [True]


def test_the_engine_is_a_thread_s_own() -> None:
    seen = []
    with pairops.engine("dense"):
        thread = threading.Thread(target=lambda: seen.append(engines.choose(
            Pairs.of(torch.randn(3, 2), torch.arange(3)), [], [])))  # fmt: skip
        thread.start()
        thread.join()
    assert seen == ["cpu"]


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(("name", "engine"), ON_ENGINES, indirect=["engine"])
def test_without_grad(name: str) -> None:
    x, labels, t = inputs()
    with torch.no_grad():
        value = LOSSES[name](x, labels, t)
    assert not value.requires_grad
    torch.testing.assert_close(value, LOSSES[name](x, labels, t).detach())


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(("name", "engine"), ON_ENGINES, indirect=["engine"])
def test_only_the_scalar_needs_a_gradient(name: str) -> None:
    x, labels, t = inputs()
    alone = torch.autograd.grad(LOSSES[name](x.detach(), labels, t), t)[0]
    beside = torch.autograd.grad(LOSSES[name](x, labels, t), t)[0]
    torch.testing.assert_close(alone, beside)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(("name", "engine"), ON_ENGINES, indirect=["engine"])
@pytest.mark.parametrize("n", [0, 1])
def test_nothing_to_compare(name: str, n: int) -> None:
    """No pair of the same set: 0, connected, gradients 0."""
    x, labels, t = inputs(n)
    value = LOSSES[name](x, labels, t)
    gradients = torch.autograd.grad(value, (x, t))
    assert all(bool(torch.isfinite(g).all()) for g in (value, *gradients))
    if "two sets" not in name and "siglip" not in name:
        assert value == 0
        assert all(bool((g == 0).all()) for g in gradients)
