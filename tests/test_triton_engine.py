"""The Triton engine and its chunked path in Triton's interpreter: what the losses' own tests leave
open. On a GPU the same tests run the compiled kernels."""

import functools
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import formulas
import pytest
import torch
from cases import Case, embeddings, smooth
from conftest import TRITON, assert_within_rule
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import every_kind_of_term, problem, results
from test_losses import LABELLED, TWO_SETS, check, compare, mined, parameters
from torch import Tensor

import pairops
from pairops import ALL, NEG, POS, Function, Pairs, highest, lowest, lse, partner, row_stats, total
from pairops.engines import triton as engine
from pairops.functions import softplus
from pairops.triton_kernels import configurations
from pairops.triton_kernels.configurations import Row

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from pairops.triton_kernels import launches, tiles  # noqa: E402
from pairops.triton_kernels.operands import Side  # noqa: E402

SMALL = Row(float("inf"), 32, 16, 16, 2, False, 4, 1)


@pytest.fixture(params=TRITON)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configurations, "INTERPRETED", SMALL)


def statistics(x: Tensor, labels: Tensor, other: dict[str, Any]) -> tuple[Tensor, ...]:
    pairs = Pairs.of(x, labels, **other)
    torch.manual_seed(7)  # the same terms at every call
    n, m = pairs.shape
    return row_stats(pairs, *every_kind_of_term(n, m), cols=every_kind_of_term(m, n))


def assert_as_dense(
    name: str, run: Callable[..., tuple[Tensor, ...]], *leaves: Tensor
) -> list[Tensor]:
    """Statistics and gradients by the error rule; infinities where dense has them."""
    found = []
    for which, dtype in ((name, torch.float32), ("dense", torch.float32), ("dense", torch.float64)):
        mine = [z.to(dtype).requires_grad_() for z in leaves]
        with pairops.use(which):
            found.append([z.detach() for z in results(lambda mine=mine: run(*mine), mine)])  # type: ignore[misc]
    for k, (ours, dense, truth) in enumerate(zip(*found, strict=True)):
        assert torch.equal(ours.isinf(), truth.isinf())
        ours, dense, truth = (torch.where(z.isinf(), 0, z) for z in (ours, dense, truth))
        assert_within_rule(f"{name}: result {k}", ours, [dense], truth)
    return found[0]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("m", [0, 45])
def test_every_kind_of_term(name: str, m: int) -> None:
    x, labels, other = problem(n=60, m=m, d=37)
    labels[[5, 20]] = -100
    if m:
        other["ref_labels"][7] = -100
    y = other.pop("ref_emb", None)

    def run(x: Tensor, *y: Tensor) -> tuple[Tensor, ...]:
        return statistics(x, labels, {**other, "ref_emb": y[0]} if y else {})

    assert_as_dense(name, run, *([x] if y is None else [x, y]))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("m", [0, 30])
def test_gradients_by_every_tensor_argument(name: str, m: int) -> None:
    x, labels, other = problem(n=40, m=m, d=5)
    labels[3] = -100
    n, m = 40, m or 40
    leaves = [x, torch.rand(n) + 0.5, torch.rand(m) + 0.5, torch.tensor(1.3)]

    def run(x: Tensor, u: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        given = {k: z.to(x.dtype) if k == "ref_emb" else z for k, z in other.items()}
        rows = [
            lse(NEG, t, u, above=torch.zeros(())),
            total(ALL, u, partner(v), function=softplus),
            total(POS, t, 0.1),
            highest(NEG, t, partner(v), function=pairops.functions.affine),
        ]
        return row_stats(
            Pairs.of(x, labels, **given), *rows, cols=[lse(ALL, v, partner(u)), lowest(ALL)]
        )

    assert_as_dense(name, run, *leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("d", [1, 48, 100, 128, 512, 700])
def test_dimensions(d: int, dtype: torch.dtype) -> None:
    """Every loss, the same set and two, by the error rule."""
    make = functools.partial(smooth, dtype=dtype)
    for loss in LABELLED:
        params = parameters(loss)[0]
        if d == 1 and mined(loss, params):
            params = {"epsilon": None}  # products of single numbers come close to any threshold
        create = functools.partial(embeddings, dtype=dtype) if mined(loss, params) else make
        labels, other = torch.randint(0, 9, (50,)), torch.randint(0, 9, (40,))
        keywords: dict[str, Any] = {} if d > 1 else {"normalize": False}
        compare(loss, params, Case(create(50, d), labels, keywords), TRITON)
        keywords = {**keywords, "ref_emb": create(40, d), "ref_labels": other}
        compare(loss, params, Case(create(50, d), labels, keywords), TRITON)
    for loss in TWO_SETS:
        given = {**parameters(loss)[0], "normalize": d > 1}
        ours = functools.partial(getattr(pairops, loss), **given, reduction="none")
        check(
            [make(50, d), make(50, d)],
            ours,
            functools.partial(getattr(formulas, loss), **given),
            TRITON,
        )


SHAPES = {
    "one block of columns": Row(float("inf"), 64, 64, 64, 2, False, 4, 1),
    "wide blocks": Row(float("inf"), 64, 16, 32, 1, False, 4, 1),
    "all accumulators": Row(float("inf"), 32, 32, 16, 8, False, 4, 1),
    "slices of the gradient": Row(float("inf"), 16, 16, 16, 1, False, 4, 1),
}


@pytest.mark.parametrize(
    ("shape", "processors"),
    [("wide blocks", 1), ("wide blocks", 20), *[(shape, 3) for shape in SHAPES]],
)
def test_shapes_and_splits_change_nothing(
    shape: str, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the same call twice gives the same bits."""
    monkeypatch.setattr(configurations, "INTERPRETED", SHAPES[shape])
    monkeypatch.setattr(launches, "processors", lambda _: processors)
    x, labels, other = problem(n=50, m=35, d=40)
    labels[[5, 20]] = -100
    y = other.pop("ref_emb")

    def run(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return statistics(x, labels, {**other, "ref_emb": y})

    first = assert_as_dense("triton", run, x, y)
    with pairops.use("triton"):
        mine = [z.float().requires_grad_() for z in (x, y)]
        again = results(lambda: run(*mine), mine)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    n=st.integers(0, 40),
    m=st.integers(0, 40),
    d=st.integers(1, 20),
    classes=st.integers(1, 12),
    same=st.booleans(),
    named=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_both_equal_dense_on_anything(
    n: int, m: int, d: int, classes: int, same: bool, named: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    x, labels, other = problem(n, 0 if same else m, d, classes)
    if not same and m == 0:
        other = {"ref_emb": x[:0].clone(), "ref_labels": labels[:0]}
    if not same and named:
        other |= {"ids": torch.randint(0, 60, (n,)), "ref_ids": torch.randint(0, 60, (m,))}
    labels = torch.where(torch.rand(n) < 0.1, -100, labels)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configurations, "INTERPRETED", SMALL)
        for which, dtype in (("dense", torch.float64), *[(t, torch.float32) for t in TRITON]):
            given = {k: z.to(dtype) if k == "ref_emb" else z for k, z in other.items()}
            mine = x.to(dtype).requires_grad_()
            with pairops.use(which):
                found.append(results(lambda: statistics(mine, labels, given), [mine]))  # noqa: B023
    for ours in found[1:]:
        for a, b in zip(ours, found[0], strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3)


def sparse(n: int, m: int) -> tuple[Pairs, list[Any], list[Any]]:
    """Windowed terms of rows and of columns, of which most tiles keep no pair."""
    labels = torch.arange(n) // 5
    centre = torch.randn(60, 16)
    x = centre[labels] + 0.3 * torch.randn(n, 16)
    other = {}
    if m:
        ref_labels = torch.randint(0, 60, (m,))
        other = {"ref_emb": centre[ref_labels] + 0.3 * torch.randn(m, 16), "ref_labels": ref_labels}
    pairs = Pairs.of(x, labels, **other)
    n, m = pairs.shape
    rows = [
        lse(NEG, 50.0, 0.5, above=torch.full((n,), 0.7)),
        total(POS, 1.0, 0.0, below=torch.full((n,), 0.8)),
    ]
    cols = [lse(NEG, 20.0, 0.5, above=torch.full((m,), 0.6))]
    over = [t.over(n, m, torch.float32) for t in rows], [t.over(m, n, torch.float32) for t in cols]
    return pairs, *over


@pytest.mark.parametrize("ignored", [10, 42])
def test_listed_tiles_end_where_the_kept_rows_do(
    ignored: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of two tiles, of which the second holds ignored rows only; windows only."""
    monkeypatch.setattr(
        configurations, "INTERPRETED", Row(float("inf"), 128, 64, 64, 1, True, 4, 1)
    )
    labels = torch.arange(200) // 3
    x = torch.randn(70, 20)[labels] + 0.9 * torch.randn(200, 20)
    labels[200 - ignored :] = -100

    def run(x: Tensor, a: Tensor) -> tuple[Tensor, ...]:
        return row_stats(
            Pairs.of(x, labels), total(NEG, a, -1.0, above=torch.full((200,), -0.1003))
        )

    assert_as_dense("triton", run, x, torch.rand(200) + 0.5)


@pytest.mark.parametrize(
    ("m", "shape", "processors"),
    [
        (0, "one block of columns", 2),
        (0, "wide blocks", 20),
        (170, "one block of columns", 20),
        (170, "wide blocks", 2),
    ],
)
def test_tile_bits_change_no_result_by_one_bit(
    m: int, shape: str, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launches, "processors", lambda _: processors)
    row = SHAPES[shape]
    monkeypatch.setattr(
        configurations,
        "INTERPRETED",
        Row(*[row.most, 32, row.cols // 2 if row.cols > 16 else 8, 16, 2, False, 4, 1]),
    )
    pairs, rows, cols = sparse(300, m)
    found, _, bits = engine.gather(pairs, rows, cols)
    share = float(bits.float().mean())
    assert 0 < share < 0.5, f"{share:.2f} of the bits are set: the case does not test skipping"
    cotangents = [torch.randn(len(z)) for z in found]
    with torch.no_grad():
        skipped, whole = (
            engine.weigh(pairs, rows, cols, found, cotangents, b, (True, True))
            for b in (bits, torch.ones_like(bits))
        )
    for a, b in zip((*skipped[:2], *skipped[2]), (*whole[:2], *whole[2]), strict=True):
        assert torch.equal(a, b)
    assert bool((skipped[0] != 0).any())
    without = engine.weigh(pairs, rows, cols, found, cotangents, None, (True, True))
    torch.testing.assert_close(without[0], whole[0])


@pytest.mark.parametrize("loss", ["ms_loss", "supcon_loss"])
@pytest.mark.parametrize("level", ["high", "medium"])
def test_levels_of_precision(level: str, loss: str) -> None:
    """float32 as two float16 has 22 bits, as one 11; the loss itself stays exact to that."""
    x, labels = smooth(80, 70), torch.randint(0, 9, (80,))
    params = {"epsilon": None} if loss == "ms_loss" else {}
    truth = torch.autograd.grad(
        getattr(pairops, loss)(z := x.double().requires_grad_(), labels, **params), z
    )[0]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(level)
    try:
        with pairops.use("triton"):
            z = x.clone().requires_grad_()
            ours = torch.autograd.grad(getattr(pairops, loss)(z, labels, **params), z)[0]
        with pairops.use("chunked"), pytest.raises(ValueError, match="below the precision"):
            getattr(pairops, loss)(z, labels, **params)
    finally:
        torch.set_float32_matmul_precision(before)
    error = float((ours - truth).abs().max() / truth.abs().max())
    assert error < (1e-5 if level == "high" else 5e-3)
    assert (error > 1e-5) == (level == "medium")


@pytest.mark.parametrize("factor", [2.0**-60, 2.0**60])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_beyond_the_range_of_float16(name: str, dtype: torch.dtype, factor: float) -> None:
    """A gradient is as exact whatever the loss is multiplied by. float16 gradients end at 65504."""
    x, labels = smooth(50, 20, dtype), torch.randint(0, 6, (50,))

    def gradient(factor: float) -> Tensor:
        pairs = Pairs.of(x, labels)
        term = lse(NEG, 9.0, 0.5).over(50, 50, torch.float32)
        found, _, bits = module.gather(pairs, [term], [])
        return module.weigh(
            pairs, [term], [], found, [torch.full((50,), factor)], bits, (True, False)
        )[0]

    module = pairops.engines.ENGINES[name]
    assert torch.equal(gradient(factor) / factor, gradient(1.0))


def test_an_infinite_cotangent_shows(name: str) -> None:
    """A gradient scaler that has scaled too far must see it."""
    x, labels = smooth(50, 20).requires_grad_(), torch.randint(0, 6, (50,))
    with pairops.use(name):
        (r,) = row_stats(Pairs.of(x, labels), lse(NEG, 9.0, 0.5))
        (gradient,) = torch.autograd.grad(r, x, torch.full((50,), -torch.inf))
    assert not bool(torch.isfinite(gradient).any())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_short_row_costs_the_others_nothing(name: str, dtype: torch.dtype) -> None:
    x = 300 * smooth(50, 20)
    x[7] *= 1e-6
    compare("supcon_loss", {}, Case(x.to(dtype), torch.randint(0, 6, (50,))), [name])


def test_infinite_dot_products_are_infinite(name: str) -> None:
    x = torch.tensor([[1e30], [1e30], [1.0]], dtype=torch.bfloat16)
    with pairops.use(name):
        pairs = Pairs.of(x, torch.arange(3), normalize=False)
        low, high = row_stats(pairs, lowest(NEG), highest(NEG))
    assert bool((high[:2] == torch.inf).all())
    assert torch.equal(low[:2], x[:2, 0].float())


def test_no_dimensions(name: str) -> None:
    with pairops.use(name):
        assert pairops.supcon_loss(torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64)) == 0


def test_torch_s_newer_setting_of_precision_is_read() -> None:
    code = """
import torch, pairops
from pairops.engines import triton
torch.backends.cuda.matmul.fp32_precision = "tf32"
assert triton.precision_level() == "high", triton.precision_level()
with pairops.use("triton"):
    pairops.supcon_loss(torch.randn(6, 3), torch.arange(6) // 2)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_a_compiled_call_may_ask_the_planner() -> None:
    def plan(x: Tensor) -> Tensor:
        pairs = Pairs.of(x, torch.arange(len(x)) // 2)
        return x + 1 if engine.prefers_chunks(pairs) else x - 1

    torch._dynamo.reset()
    x = smooth(6, 3)
    compiled = torch.compile(plan, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(x), plan(x))


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e30])
def test_bfloat16_of_any_size(name: str, size: float) -> None:
    x = (smooth(50, 20) * size).to(torch.bfloat16)
    labels = torch.randint(0, 6, (50,))
    compare("supcon_loss", {}, Case(x, labels), [name])


@triton.jit
def _load(side, begin, depth, out, R: tl.constexpr, C: tl.constexpr):
    block = tiles.block_of(side, begin, tl.arange(0, R) >= 0, 1, depth, R, C, True)
    at = tl.arange(0, R)[:, None] * C.depth + tl.arange(0, C.depth)[None, :]
    tl.store(out + at, block)


def test_addresses_beyond_32_bits() -> None:
    """A block of rows that begins more than 2³¹ numbers after the first."""
    torch.use_deterministic_algorithms(False)  # do not fill 2 GiB with anything
    config = configurations.choose(None, torch.float16, 1024, "highest")
    depth, rows = config.padded, 2**31 // config.padded + 8
    x = torch.empty((rows + 16, depth), dtype=torch.int8)
    x[rows:] = torch.arange(16, dtype=torch.int8).unsqueeze(1)
    none = torch.empty(0)
    found = torch.zeros((16, config.depth), dtype=torch.int8)
    _load[1,](
        Side(x, none, none, none, len(x)), rows, depth, found, R=16, C=launches.static(config)
    )
    assert torch.equal(found, x[rows:, : config.depth])


def test_importing_pairops_imports_no_triton() -> None:
    code = "import sys, pairops; assert not [m for m in sys.modules if m.split('.')[0] == 'triton']"
    subprocess.run([sys.executable, "-c", code], check=True)


UNKNOWN = Function(lambda s: torch.special.i0(s), name="unknown_to_triton")


@pytest.mark.parametrize(
    ("capability", "dtype", "level", "d", "same", "chunks"),
    [
        ((9, 0), torch.bfloat16, "highest", 128, True, False),
        ((9, 0), torch.bfloat16, "highest", 256, False, False),
        ((9, 0), torch.bfloat16, "highest", 300, False, True),
        ((9, 0), torch.float16, "highest", 1024, True, True),
        ((8, 6), torch.bfloat16, "highest", 100, True, False),
        ((9, 0), torch.float32, "highest", 128, True, True),
        ((9, 0), torch.float32, "high", 64, True, False),
    ],
)
def test_the_planner_reads_the_table(
    capability: tuple[int, int], dtype: torch.dtype, level: str, d: int, same: bool, chunks: bool
) -> None:
    config = configurations.choose(capability, dtype, d, level)
    assert configurations.chunks_pay(config, d, same) == chunks
    assert config.padded >= d
    assert config.parts * config.accumulators * config.depth == config.padded


@pytest.mark.parametrize("chunks", [True, False])
def test_auto_on_a_gpu_asks_the_planner(chunks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "prefers_chunks", lambda _: chunks)
    on_gpu = SimpleNamespace(x=SimpleNamespace(is_cuda=True, device=torch.device("cuda")))
    first = ["chunked", "triton"] if chunks else ["triton", "chunked"]
    expected = ["native", *first, "blockwise", "dense"]
    assert pairops.engines._preferred(on_gpu) == expected  # type: ignore[arg-type]
    pairs = Pairs.of(smooth(6, 3), torch.arange(6))
    assert pairops.engines._preferred(pairs) == ["native", "blockwise", "dense"]


def test_who_is_declined(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = smooth(6, 3), torch.arange(6) // 2
    cases: list[tuple[str, Callable[[], Any]]] = [
        (
            "x is float64; the Triton kernels sum in float32",
            lambda: pairops.ms_loss(x.double(), labels),
        ),
        (
            "x has 4097 dimensions; the Triton kernels take 4096",
            lambda: pairops.ms_loss(smooth(6, 4097), labels),
        ),
        (
            "the value of the function unknown_to_triton uses aten.i0.default, which has no Triton",
            lambda: row_stats(Pairs.of(x, labels), total(NEG, function=UNKNOWN)),
        ),
    ]
    with pairops.use(name):
        for reason, call in cases:
            with pytest.raises(
                ValueError, match=f"engine '{name}' cannot serve this call: {reason}"
            ):
                call()
        monkeypatch.setattr(engine, "MISSING", "triton is not installed")
        with pytest.raises(ValueError, match="triton is not installed"):
            pairops.ms_loss(x, labels)
