"""Numbers that are large, small or many, in Triton's kernels; and what float32 multiplies as."""

import pytest
import torch
from torch import Tensor

import pairops
from pairops import ALL, NEG, POS, Pairs, highest, lowest, lse, row_stats
from pairops.ops import engines
from pairops.ops.engines.triton import tile_configs
from pairops.ops.terms.term import Wanted
from support.error_rule import Dense, assert_within_rule
from support.loss_comparison import compare
from support.named_cases import Case, smooth
from support.term_problems import results

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from pairops.ops.engines.triton import compile_time  # noqa: E402
from pairops.ops.engines.triton.kernels import tile  # noqa: E402
from pairops.ops.engines.triton.operands import Side  # noqa: E402


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
        with pairops.engine("triton"):
            z = x.clone().requires_grad_()
            ours = torch.autograd.grad(getattr(pairops, loss)(z, labels, **params), z)[0]
        with pairops.engine("chunked"), pytest.raises(ValueError, match="below the precision"):
            getattr(pairops, loss)(z, labels, **params)
    finally:
        torch.set_float32_matmul_precision(before)
    error = float((ours - truth).abs().max() / truth.abs().max())
    assert error < (1e-5 if level == "high" else 5e-3)
    assert (error > 1e-5) == (level == "medium")


@pytest.mark.parametrize("factor", [2.0**-60, 2.0**60])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_beyond_the_range_of_float16(
    gpu_engine: str, dtype: torch.dtype, factor: float
) -> None:
    """A gradient is as exact whatever the loss is multiplied by. float16 gradients end at 65504."""
    x, labels = smooth(50, 20, dtype), torch.randint(0, 6, (50,))

    def gradient(factor: float) -> Tensor:
        pairs = Pairs.of(x, labels)
        term = lse(NEG, 9.0, 0.5).over(50, 50, torch.float32)
        found, _, bits = module.forward(pairs, [term], [])
        return module.backward(
            pairs, [term], [], found, [torch.full((50,), factor)], bits, Wanted(True, False)
        )[0]

    module = engines.ENGINES[gpu_engine]
    assert torch.equal(gradient(factor) / factor, gradient(1.0))


def test_an_infinite_cotangent_shows(gpu_engine: str) -> None:
    """A gradient scaler that has scaled too far must see it."""
    x, labels = smooth(50, 20).requires_grad_(), torch.randint(0, 6, (50,))
    with pairops.engine(gpu_engine):
        (r,) = row_stats(Pairs.of(x, labels), lse(NEG, 9.0, 0.5))
        (gradient,) = torch.autograd.grad(r, x, torch.full((50,), -torch.inf))
    assert not bool(torch.isfinite(gradient).any())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_short_row_costs_the_others_nothing(gpu_engine: str, dtype: torch.dtype) -> None:
    x = 300 * smooth(50, 20)
    x[7] *= 1e-6
    compare("supcon_loss", {}, Case(x.to(dtype), torch.randint(0, 6, (50,))), [gpu_engine])


def test_infinite_dot_products_are_infinite(gpu_engine: str) -> None:
    x = torch.tensor([[1e30], [1e30], [1.0]], dtype=torch.bfloat16)
    with pairops.engine(gpu_engine):
        pairs = Pairs.of(x, torch.arange(3), distance="dot")
        low, high = row_stats(pairs, lowest(NEG), highest(NEG))
    assert bool((high[:2] == torch.inf).all())
    assert torch.equal(low[:2], x[:2, 0].float())


def test_no_dimensions(gpu_engine: str) -> None:
    with pairops.engine(gpu_engine):
        assert pairops.supcon_loss(torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64)) == 0


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e30])
def test_bfloat16_of_any_size(gpu_engine: str, size: float) -> None:
    x = (smooth(50, 20) * size).to(torch.bfloat16)
    labels = torch.randint(0, 6, (50,))
    compare("supcon_loss", {}, Case(x, labels), [gpu_engine])


@triton.jit
def _load(side, begin, depth, out, R: tl.constexpr, C: tl.constexpr):
    block = tile.block_of(side, begin, tl.arange(0, R) >= 0, 1, depth, R, C, True)
    at = tl.arange(0, R)[:, None] * C.depth + tl.arange(0, C.depth)[None, :]
    tl.store(out + at, block)


def test_addresses_beyond_32_bits() -> None:
    """A block of rows that begins more than 2³¹ numbers after the first."""
    torch.use_deterministic_algorithms(False)  # do not fill 2 GiB with anything
    config = tile_configs.choose(None, torch.float16, 1024, "highest")
    depth, rows = config.padded, 2**31 // config.padded + 8
    x = torch.empty((rows + 16, depth), dtype=torch.int8)
    x[rows:] = torch.arange(16, dtype=torch.int8).unsqueeze(1)
    none = torch.empty(0)
    found = torch.zeros((16, config.depth), dtype=torch.int8)
    _load[1,](
        Side(x, none, none, none, len(x)), rows, depth, found, R=16, C=compile_time.static(config)
    )
    assert torch.equal(found, x[rows:, : config.depth])


@pytest.mark.parametrize("scale", [52.0, 400.0])
@pytest.mark.parametrize("two_sets", [False, True])
def test_sharp_softmaxes_of_16_bits(scale: float, two_sets: bool) -> None:
    """Up to 52 exponentials need no maximum; at 400 those of opposite rows are 2^−1154."""
    x, y = (smooth(n, 12, torch.bfloat16) for n in (40, 30))
    x[20:] = -x[:20]
    labels, base = torch.randint(0, 6, (40,)), torch.rand(40) - 0.5
    apart = torch.linspace(-0.3, 0.3, 40)

    def run(x: Tensor, base: Tensor) -> tuple[Tensor, ...]:
        other = {"ref_emb": y.to(x.dtype), "ref_labels": labels[:30]} if two_sets else {}
        terms = lse(NEG, scale, base), lse(POS, -scale, base, below=apart), lse(ALL, scale, 0.5)
        return row_stats(Pairs.of(x, labels, **other), *terms)

    def of(engine: str, wide: bool = False) -> list[Tensor]:
        mine = (x.double(), base.double()) if wide else (x, base)
        leaves = [z.clone().requires_grad_() for z in mine]
        with pairops.engine(engine):
            return [z.detach() for z in results(lambda: run(*leaves), leaves)]

    truth, dense = of("dense", wide=True), Dense(lambda: of("dense"))
    for k, found in enumerate(of("triton")):
        counted = truth[k].isfinite()
        assert torch.equal(found[~counted].double(), truth[k][~counted])
        orders = (z[counted] for z in dense.result(k))
        assert_within_rule(str(k), found[counted], orders, truth[k][counted])
