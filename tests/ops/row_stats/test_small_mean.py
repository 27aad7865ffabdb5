"""The mean loss of a small batch on a CPU, against the mean of losses that are made one by one."""

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pairops
from pairops import NEG, POS, Pairs, highest, row_stats, total
from pairops.ops.bindings import extension
from pairops.ops.engines import cpu as cpu_engine
from pairops.ops.row_stats.pieces import linear, losses_of
from pairops.ops.row_stats.small_mean import small_mean
from support.on_cpu import device as device

if extension.native is None:
    pytest.skip("this build has no kernels for the CPU", allow_module_level=True)

LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "ms": ("ms_loss", {}),
    "ms, not mined": ("ms_loss", {"epsilon": None, "alpha": 3.0}),
    "mlcd": ("mlcd_loss", {"scale": 10.0}),
    "supcon": ("supcon_loss", {}),
    "nca": ("nca_loss", {"distance": "cosine", "scale": 3.0}),
    "contrastive": ("contrastive_loss", {}),
    "triplet": ("triplet_loss", {"margin": 0.3}),
    "triplet, soft": ("triplet_loss", {"soft": True}),
    "siglip": ("siglip_loss", {"scale": 10.0, "bias": -5.0}),
    "info_nce": ("info_nce_loss", {}),
    "info_nce, one way": ("info_nce_loss", {"symmetric": False}),
}
OF_TWO = ["siglip", "info_nce", "info_nce, one way"]
EXACT = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
SOME = ["ms", "supcon", "triplet", "info_nce"]


@pytest.fixture
def taken() -> Iterator[mock.Mock]:
    """Called once for every loss that goes the short way."""
    with mock.patch.object(cpu_engine, "mean", wraps=cpu_engine.mean) as mean:
        yield mean


def batch(
    name: str, n: int = 33, kind: str = "some", dtype: torch.dtype = torch.float32, d: int = 16
) -> tuple[Tensor, Tensor]:
    """Embeddings with a gradient, and labels or further embeddings."""
    x = torch.randn(n, d, dtype=torch.float64).to(dtype).requires_grad_()
    if name in OF_TWO:
        return x, (x.detach() + torch.randn(n, d)).to(dtype).requires_grad_()
    of_kind = {
        "some": torch.randint(0, max(n // 4, 1), (n,)),
        "one class": torch.zeros(n, dtype=torch.int64),
        "all distinct": torch.randperm(n),
        "few with positives": torch.cat([torch.zeros(min(n, 3)), torch.arange(n)[3:]]).long(),
    }
    return x, of_kind[kind]


def loss_of(name: str, x: Tensor, other: Tensor, **keywords: Any) -> Tensor:
    function, told = LOSSES[name]
    value: Tensor = getattr(pairops, function)(x, other, **told, **keywords)
    return value


def one_by_one(name: str, x: Tensor, other: Tensor) -> Tensor:
    return loss_of(name, x, other, reduction="none").mean()


def leaves(x: Tensor, other: Tensor) -> list[Tensor]:
    return [z for z in (x, other) if z.requires_grad]


def assert_same(name: str, x: Tensor, other: Tensor, **close: Any) -> None:
    """Value and gradients."""
    bound = EXACT[x.dtype]
    ours, theirs = loss_of(name, x, other), one_by_one(name, x, other)
    assert ours.dtype == theirs.dtype
    assert ours.shape == ()
    torch.testing.assert_close(ours, theirs, rtol=min(bound, 1e-5), atol=1e-7, **close)
    if not x.requires_grad and not other.requires_grad:
        assert not ours.requires_grad
        return
    found = torch.autograd.grad(3 * ours, leaves(x, other))
    expected = torch.autograd.grad(3 * theirs, leaves(x, other))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        size = float(b[b.isfinite()].abs().max()) if bool(b.isfinite().any()) else 1.0
        torch.testing.assert_close(a, b, rtol=bound, atol=bound * size, **close)


@pytest.mark.filterwarnings("ignore:.*no two rows:UserWarning")
@pytest.mark.parametrize("n", [1, 2, 33, 96, 97])
@pytest.mark.parametrize("kind", ["some", "one class", "all distinct", "few with positives"])
@pytest.mark.parametrize("name", LOSSES)
def test_it_is_the_mean_of_the_losses(taken: mock.Mock, name: str, kind: str, n: int) -> None:
    if name in OF_TWO and kind != "some":
        pytest.skip("it has no labels")
    for dtype in EXACT if n == 33 else (torch.float32, torch.float64):
        taken.reset_mock()
        assert_same(name, *batch(name, n, kind, dtype))
        assert taken.call_count == 1, dtype


@pytest.mark.parametrize("name", LOSSES)
def test_at_the_size_where_it_ends(taken: mock.Mock, name: str) -> None:
    for n, calls in ((512, 1), (513, 0)):
        taken.reset_mock()
        x, other = batch(name, n)
        assert_same(name, x, other)
        assert taken.call_count == calls


@pytest.mark.parametrize("size", [1e-30, 30.0, 3e4])
@pytest.mark.parametrize("name", LOSSES)
def test_logits_of_every_size(taken: mock.Mock, name: str, size: float) -> None:
    function, told = LOSSES[name]
    x, other = batch(name)
    with torch.no_grad():
        x *= size
        if name in OF_TWO:
            other *= size
    keywords = {**told, "distance": "dot"}
    seen = []
    for reduction in ("mean", "none"):
        value = getattr(pairops, function)(x, other, **keywords, reduction=reduction).mean()
        seen.append([value, *torch.autograd.grad(value, leaves(x, other))])
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.detach().abs().max()))
    assert taken.call_count == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", LOSSES)
def test_what_is_not_finite_shows(taken: mock.Mock, name: str, bad: float) -> None:
    x, other = batch(name)
    with torch.no_grad():
        x[7] = bad
    assert bool(loss_of(name, x, other).isnan())
    assert_same(name, x, other, equal_nan=True)
    assert taken.call_count == 2


@pytest.mark.parametrize("name", LOSSES)
def test_strides_and_who_has_a_gradient(taken: mock.Mock, name: str) -> None:
    x, other = batch(name)
    wide = torch.randn(33, 40).requires_grad_()
    two = name in OF_TWO
    assert_same(name, wide[:, 3:35:2], torch.randn(16, 33).T.requires_grad_() if two else other)
    assert_same(name, x.detach().requires_grad_(), other.detach())
    assert_same(name, x.detach(), other.detach())
    if two:
        assert_same(name, x.detach(), other)
    with torch.no_grad():
        assert not loss_of(name, x, other).requires_grad
    assert taken.call_count == 4 + two


@pytest.mark.parametrize("kind", ["some", "few with positives"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_gradient_twice_and_several_at_once(name: str, kind: str) -> None:
    x, other = batch(name, kind=kind, dtype=torch.float64)
    mine = leaves(x, other)
    value, theirs = loss_of(name, x, other), one_by_one(name, x, other)
    first = torch.autograd.grad(value, mine, retain_graph=True)
    second = torch.autograd.grad(value, mine, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    several = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)

    def of(gradient: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(value, mine, gradient, retain_graph=True)

    batched = torch.autograd.grad(value, mine, several, is_grads_batched=True, retain_graph=True)
    truth = torch.autograd.grad(theirs, mine)
    for found in (batched, torch.vmap(of)(several)):
        for one, each in zip(truth, found, strict=True):
            torch.testing.assert_close(each, several[:, None, None] * one, rtol=1e-10, atol=1e-12)
    torch.autograd.grad(value, mine)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, mine)


@pytest.mark.parametrize("kind", ["some", "few with positives"])
@pytest.mark.parametrize("name", LOSSES)
def test_second_derivatives(taken: mock.Mock, name: str, kind: str) -> None:
    x, other = batch(name, 12, kind, torch.float64, 3)
    mine = leaves(x, other)

    def run(x: Tensor, *y: Tensor) -> Tensor:
        return loss_of(name, x, *(y or (other,)))

    assert torch.autograd.gradcheck(run, mine, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, mine, fast_mode=True)
    assert taken.called
    seconds = []
    for value in (run(*mine), one_by_one(name, x, other)):
        g = torch.autograd.grad(value, mine, create_graph=True)
        seconds.append(torch.autograd.grad(sum(z.square().sum() for z in g), mine))
    for a, b in zip(*seconds, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_an_owner_without_pairs_adds_nothing() -> None:
    """Where the earlier term found none, a sum over the other side is of nothing too."""
    x, labels = batch("ms", kind="few with positives", dtype=torch.float64)
    near = highest(POS, grad=False)
    rows = near, total(NEG, 1.0, near)
    pieces = [linear(rows[1])]
    ours = small_mean(Pairs.of(x, labels), rows, (), pieces)
    assert ours is not None
    pairs = Pairs.of(x, labels)
    by_term = dict(zip(rows, row_stats(pairs, *rows), strict=True))
    theirs = losses_of(pieces, by_term, pairs).mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)
    found, expected = torch.autograd.grad(ours, x), torch.autograd.grad(theirs, x)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


# Numbers that a model learns, as tensors with gradient.
LEARNED: dict[str, tuple[str, dict[str, float]]] = {
    "info_nce": ("info_nce_loss", {"temperature": 0.2}),
    "supcon": ("supcon_loss", {"temperature": 0.3}),
    "siglip": ("siglip_loss", {"scale": 5.0, "bias": -3.0}),
    "nca": ("nca_loss", {"scale": 3.0}),
}


@pytest.mark.parametrize("frozen", ["nothing", "the numbers", "the embeddings"])
@pytest.mark.parametrize("kind", ["some", "few with positives"])
@pytest.mark.parametrize("name", LEARNED)
def test_numbers_that_are_learned(taken: mock.Mock, name: str, kind: str, frozen: str) -> None:
    function, numbers = LEARNED[name]
    for dtype in EXACT:
        x, other = batch(name, kind=kind, dtype=dtype)
        wide = torch.promote_types(dtype, torch.float32)
        told = {
            key: torch.tensor(value, dtype=wide, requires_grad=frozen != "the numbers")
            for key, value in numbers.items()
        }
        if frozen == "the embeddings":
            x, other = x.detach(), other.detach()
        asked = [*leaves(x, other), *[z for z in told.values() if z.requires_grad]]
        taken.reset_mock()
        seen = []
        for reduction in ("mean", "none"):
            value = getattr(pairops, function)(x, other, **told, reduction=reduction).mean()
            seen.append([value, *torch.autograd.grad(3 * value, asked)])
        assert taken.call_count == 1
        for a, b in zip(*seen, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(
                a, b, rtol=EXACT[dtype], atol=EXACT[dtype] * float(b.detach().abs().max())
            )


@pytest.mark.parametrize("kind", ["some", "few with positives"])
@pytest.mark.parametrize("name", LEARNED)
def test_second_derivatives_by_numbers_that_are_learned(
    taken: mock.Mock, name: str, kind: str
) -> None:
    function, numbers = LEARNED[name]
    x, other = batch(name, 9, kind, torch.float64, 3)
    told = [torch.tensor(z, dtype=torch.float64, requires_grad=True) for z in numbers.values()]
    two = name in OF_TWO

    def run(*given: Tensor) -> Tensor:
        learned = dict(zip(numbers, given[1 + two :], strict=True))
        value: Tensor = getattr(pairops, function)(
            *given[:1], *(given[1:2] if two else (other,)), **learned
        )
        return value

    given = [*leaves(x, other), *told]
    assert torch.autograd.gradcheck(run, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, given, fast_mode=True)
    assert taken.called
    if name in ("info_nce", "supcon"):  # 1/τ is another tensor
        return
    value = run(*given)
    with torch.no_grad():
        told[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize("name", SOME)
def test_saved_tensors_are_torchs(name: str) -> None:
    """They may be packed, and come back with any stride; who changes one in place hears of it."""
    x, other = batch(name)
    plain = torch.autograd.grad(loss_of(name, x, other), leaves(x, other))

    def apart(z: numpy.ndarray) -> Tensor:
        return torch.stack([torch.from_numpy(z)] * 2, -1)[..., 0]

    for unpack in (torch.from_numpy, apart):
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda z: z.detach().numpy().copy(), unpack
        )
        with hooks:
            value = loss_of(name, x, other)
        packed = torch.autograd.grad(value, leaves(x, other))
        assert all(torch.equal(a, b) for a, b in zip(packed, plain, strict=True))
    for changed in leaves(x, other):
        value = loss_of(name, x, other)
        with torch.no_grad():
            changed.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()


@pytest.mark.parametrize("name", SOME)
def test_two_threads(taken: mock.Mock, name: str) -> None:
    given = [batch(name) for _ in range(2)]
    truth = [torch.autograd.grad(loss_of(name, *one), leaves(*one)) for one in given]
    found: list[list[Any]] = [[], []]

    def work(k: int) -> None:
        for _ in range(20):
            found[k].append(torch.autograd.grad(loss_of(name, *given[k]), leaves(*given[k])))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(2):
        assert len(found[k]) == 20
        assert all(
            torch.equal(a, b) for one in found[k] for a, b in zip(one, truth[k], strict=True)
        )
    assert taken.call_count == 42


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("kind", ["some", "few with positives"])
@pytest.mark.parametrize("name", SOME)
def test_a_backward_pass_goes_the_way_of_its_forward_pass(
    name: str, kind: str, create: bool
) -> None:
    """Whatever engine is asked for by then, and whoever looks on."""
    x, other = batch(name, kind=kind)
    mine = leaves(x, other)
    truth = torch.autograd.grad(loss_of(name, x, other), mine, create_graph=create)
    for around in (pairops.engine("dense"), Looking()):
        value = loss_of(name, x, other)
        with around:
            found = torch.autograd.grad(value, mine, create_graph=create)
        torch.testing.assert_close(found, truth)


class Looking(TorchDispatchMode):
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return op(*args, **(kwargs or {}))


def looked_at(x: Tensor, other: Tensor) -> Tensor:
    with Looking():
        return pairops.ms_loss(x, other)


def moved(x: Tensor, other: Tensor) -> Tensor:
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.detach(), torch.ones_like(x))
        return torch.autograd.forward_ad.unpack_dual(pairops.ms_loss(dual, other)).primal


ELSEWHERE: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "an ignored row": lambda x, y: pairops.ms_loss(x, torch.where(y == y[0], -100, y)),
    "weights": lambda x, y: pairops.ms_loss(x, y, weight=torch.ones(len(x))),
    "the sum": lambda x, y: pairops.ms_loss(x, y, reduction="sum"),
    "none": lambda x, y: pairops.ms_loss(x, y, reduction="none"),
    "mean_nonzero": lambda x, y: pairops.ms_loss(x, y, reduction="mean_nonzero"),
    "a number in another dtype": lambda x, y: pairops.supcon_loss(
        x, y, temperature=torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    ),
    "a number for each anchor": lambda x, y: pairops.margin_loss(
        x, y, beta=torch.full((len(x),), 1.2, requires_grad=True)
    ),
    "a tensor scale": lambda x, y: pairops.ms_loss(x, y, beta=torch.tensor(50.0)),
    "a tensor margin": lambda x, y: pairops.triplet_loss(x, y, margin=torch.tensor(0.1)),
    "columns beyond the rows": lambda x, _: pairops.info_nce_loss(x, torch.randn(40, 16)),
    "no rows": lambda x, y: pairops.ms_loss(x[:0], y[:0]),
    "a dispatch mode": looked_at,
    "forward AD": moved,
    "compile": lambda x, y: torch.compile(pairops.ms_loss, backend="eager")(x, y),
    "torch.func.grad": lambda x, y: torch.func.grad(pairops.ms_loss)(x.detach(), y),
    "vmap": lambda x, y: torch.func.vmap(pairops.ms_loss, (0, None))(x.detach()[None], y),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own imports
@pytest.mark.parametrize("way", ELSEWHERE)
def test_what_goes_another_way(taken: mock.Mock, way: str) -> None:
    x, labels = batch("ms")
    ELSEWHERE[way](x, labels)
    for name in ("dense", "blockwise"):
        with pairops.engine(name):
            pairops.ms_loss(x, labels)
    assert not taken.called
    pairops.ms_loss(x, labels)
    assert taken.called
