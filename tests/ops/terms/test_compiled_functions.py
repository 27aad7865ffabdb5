"""The extension's functions and gathers against formulas, their Python twins, and the GPU."""

import ctypes.util
import importlib.metadata
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from pairops import _native
from support.on_cpu import device as device

CUDA = _native.features()["cuda"]

# (function, args): usual scales, a negative one, and a flat one.
CASES = [
    ("identity", ()),
    ("one", ()),
    ("affine", (50.0, 0.5)),
    ("affine", (-2.0, 0.5)),
    ("hinge", (1.0, 0.25)),
    ("hinge", (-3.0, 0.75)),
    ("sigmoid", (1.0, 0.25)),
    ("sigmoid", (-100.0, 0.5)),
    ("sigmoid", (0.0, 0.5)),
    ("softplus", (1.0, 0.0)),
    ("softplus", (50.0, -25.0)),
    ("softplus", (-2.0, 1.0)),
    ("softplus", (0.0, 0.5)),
    ("softplus_from", (50.0, 0.5, 1.0)),
    ("softplus_from", (-2.0, 0.25, -1.0)),
    ("circle_pull", (80.0, 0.25)),
    ("circle_push", (80.0, 0.25)),
    ("attended", (3.0, 2.0)),
    ("attended", (-3.0, -2.0)),
    ("gated", (0.25, 50.0, 0.25)),
    ("gated", (0.5, -2.0, 0.25)),
]
FORMULAS = {
    "identity": lambda s: s,
    "one": lambda s: 1 + 0 * s,
    "affine": lambda s, scale, base: scale * (s - base),
    "hinge": lambda s, scale, base: torch.relu(scale * (s - base)),
    # torch.sigmoid's slope, by autograd, has no digits at a large z.
    "sigmoid": lambda s, scale, base: (
        -torch.logaddexp(-scale * (s - base), torch.zeros_like(s))
    ).exp(),
    "softplus": lambda s, scale, bias: torch.logaddexp(scale * s + bias, torch.zeros_like(s)),
    "softplus_from": lambda s, scale, base, bias: torch.logaddexp(
        scale * (s - base) + bias, torch.zeros_like(s)
    ),
    "circle_pull": lambda s, g, m: g * (1 + m - s).clamp(min=0).detach() * (1 - m - s),
    "circle_push": lambda s, g, m: g * (s + m).clamp(min=0).detach() * (s - m),
    "attended": lambda s, scale, shift: (scale * s - shift).exp().detach() * (s - shift / scale),
    "gated": lambda s, t, scale, bar: torch.where(t <= bar, scale * s, -torch.inf) + 0 * (t - bar),
}
GATHERS = ["sum", "lse", "lowest", "highest"]

cases = pytest.mark.parametrize(("name", "args"), CASES, ids=lambda v: str(v))
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
gathers = pytest.mark.parametrize("name", GATHERS)
on_gpu = pytest.mark.skipif(
    not (CUDA and torch.cuda.is_available()), reason="needs a build with CUDA kernels and a GPU"
)


def similarities(dtype: torch.dtype) -> Tensor:
    """Both kinks of CASES are on the grid."""
    extremes = [0.0, -0.0, 1e-30, 0.25, 0.75, 27.6, -27.6, 1e4, -1e4, 1e18, -1e18]
    usual = torch.linspace(-1.5, 1.5, 301, dtype=torch.float64).tolist()
    return torch.tensor(usual + extremes, dtype=dtype)


def placed(x: Tensor) -> dict[str, Any]:
    """What a probe must know of its input's memory."""
    stream = torch.cuda.current_stream().cuda_stream if x.is_cuda else None
    return {"dtype": str(x.dtype).removeprefix("torch."), "stream": stream}


def function(name: str, s: Tensor, *args: float) -> tuple[Tensor, Tensor]:
    value = torch.full_like(s, torch.nan)
    slopes = s.new_full((len(s), 1 + len(args)), torch.nan)
    addresses = {"s": s.data_ptr(), "value": value.data_ptr(), "slopes": slopes.data_ptr()}
    _native.probe_function(name, args=args, n=len(s), **addresses, **placed(s))
    return value, slopes


def gather(name: str, f: Tensor, split: int = 0) -> tuple[Tensor, int, Tensor]:
    value, shares = f.new_full((1,), torch.nan), torch.full_like(f, torch.nan)
    argument = torch.full((1,), -2, dtype=torch.int32, device=f.device)
    addresses = {"contributions": f, "value": value, "argument": argument, "shares": shares}
    addresses = {k: tensor.data_ptr() for k, tensor in addresses.items()}
    _native.probe_accumulator(name, n=len(f), split=split, **addresses, **placed(f))
    return value[0], int(argument), shares


def formula(name: str, s: Tensor, *args: float) -> tuple[Tensor, Tensor]:
    """Value and slopes in float64, slopes by autograd."""
    inputs = [s.double(), *(torch.full_like(s, a, dtype=torch.float64) for a in args)]
    inputs = [x.requires_grad_() for x in inputs]
    value = FORMULAS[name](*inputs)
    slopes = torch.autograd.grad(value.sum(), inputs, materialize_grads=True)
    return value.detach(), torch.stack(slopes, dim=1)


def assert_rounded(actual: Tensor, expected: Tensor, condition: Tensor) -> None:
    """A few roundings apart, each magnified by the condition number of the formula.

    Torch flushes denormal sigmoids, which a scale then multiplies: hence the floor.
    """
    limits = torch.finfo(actual.dtype)
    actual, expected = actual.double(), expected.double()
    error = (actual - expected).abs()
    bound = 4 * limits.eps * condition * expected.abs() + 64 * limits.tiny
    good = (error <= bound) | (actual == expected)  # of equal infinities too
    assert good.all(), (actual[~good], expected[~good])


def condition_of(name: str, s: Tensor, *args: float) -> Tensor:
    """exp(z) magnifies the rounding of z by |z|, a difference that of its parts by how much smaller
    it is; the other functions only multiply."""
    if name not in ("sigmoid", "softplus", "softplus_from", "attended"):
        return torch.ones_like(s, dtype=torch.float64)
    scale, *base, bias = (*args, 0.0) if name == "sigmoid" else args
    apart = s.double() - (base[0] if base else 0)
    condition = 1 + (scale * apart).abs() * (scale != 1 or bool(base)) + abs(bias)
    if name == "attended":
        parts = s.double().abs() + abs(bias / scale)
        condition = condition * parts / (s.double() - bias / scale).abs()
    return condition


def test_features_say_what_the_build_is():
    features = _native.features()
    assert features["version"] == _native.version() == importlib.metadata.version("pairops")
    assert features["compiler"]
    assert features["build_type"]
    assert (features["cuda_toolkit"] is not None) == CUDA
    assert (features["cuda_architectures"] is not None) == CUDA
    assert (features["cuda_sources"] is not None) == CUDA


@cases
@dtypes
def test_function_is_its_formula(name, args, dtype):
    s = similarities(dtype)
    value, slopes = function(name, s, *args)
    true_value, true_slopes = formula(name, s, *args)
    condition = condition_of(name, s, *args)
    assert_rounded(value, true_value, condition)
    assert_rounded(slopes, true_slopes, condition[:, None])


@cases
@dtypes
def test_function_is_its_python_twin(name, args, dtype):
    from pairops.ops.terms.functions import FUNCTIONS

    twin = FUNCTIONS[name]
    s = similarities(dtype)
    value, slopes = function(name, s, *args)
    condition = 2 * condition_of(name, s, *args)
    assert_rounded(value, torch.as_tensor(twin.value(s, *args)).expand_as(s), condition)
    expected = [torch.as_tensor(slope, dtype=dtype).expand_as(s) for slope in twin.slopes(s, *args)]
    assert_rounded(slopes, torch.stack(expected, dim=1), condition[:, None])


def test_every_twin_has_a_twin():
    assert {name for name, _ in CASES} == set(FORMULAS)
    with pytest.raises(ValueError, match="one of " + ", ".join(FORMULAS) + "$"):
        function("", torch.zeros(1))


@cases
@dtypes
def test_nan_comes_out_as_nan(name, args, dtype):
    value, slopes = function(name, torch.tensor([torch.nan], dtype=dtype), *args)
    # What does not depend on s cannot show it.
    assert name == "one" or value.isnan()
    assert name in ("identity", "one", "affine") or slopes.isnan().all()


@dtypes
def test_softplus_keeps_small_exponentials_and_survives_large_ones(dtype):
    s = torch.tensor([-27.6, -80.0, 3e4, torch.inf, -torch.inf], dtype=dtype)
    value, slopes = function("softplus", s, 1.0, 0.0)
    assert_rounded(value[:2], torch.exp(s[:2].double()).log1p(), torch.ones(2))
    assert value[2:].tolist() == [s[2].item(), torch.inf, 0]
    assert slopes[2:, 0].tolist() == [1, 1, 0]


def true_gather(name: str, f: Tensor) -> tuple[Tensor, int, Tensor]:
    f = f.double()
    if name == "sum":
        return f.sum(), -1, torch.ones_like(f)
    if name == "lse":
        return f.logsumexp(0), -1, f.softmax(0)
    value = f.min() if name == "lowest" else f.max()
    first = int((f == value).nonzero()[0])
    return value, first, torch.nn.functional.one_hot(torch.tensor(first), len(f)).double()


@gathers
@dtypes
def test_gather_is_torchs_at_every_split(name, dtype):
    f = 20 * torch.randn(19, dtype=dtype, generator=torch.Generator().manual_seed(0))
    f[[3, 11]], f[[5, 17]] = f.min(), f.max()  # ties
    value, argument, shares = true_gather(name, f)
    # exp(f - R) magnifies the rounding of f and R.
    size = 1 + f.double().abs().max() + value.abs()
    if name == "sum":
        size = f.double().abs().sum() * len(f) / value.abs()
    for split in range(len(f) + 1):
        mine = gather(name, f, split)
        assert mine[1] == argument
        assert_rounded(mine[0], value, size)
        assert_rounded(mine[2], shares, size)


@gathers
@dtypes
def test_an_empty_side_is_the_identity(name, dtype):
    identity = {"sum": 0.0, "lse": -torch.inf, "lowest": torch.inf, "highest": -torch.inf}
    value, argument, _ = gather(name, torch.empty(0, dtype=dtype))
    assert (value.item(), argument) == (identity[name], -1)


@gathers
def test_nan_wins_wherever_it_is(name):
    for at, split in product(range(4), range(5)):
        f = torch.tensor([1.0, -torch.inf, torch.inf, 2.0])
        f[at] = torch.nan
        value, argument, _ = gather(name, f, split)
        assert value.isnan()
        assert argument == (at if name in ("lowest", "highest") else -1)
    two = torch.tensor([1.0, torch.nan, torch.nan])
    if name in ("lowest", "highest"):
        assert all(gather(name, two, split)[1] == 1 for split in range(4))


@pytest.mark.parametrize("split", range(4))
def test_infinite_contributions(split):
    nothing = torch.full((3,), -torch.inf)
    value, _, shares = gather("lse", nothing, split)
    assert value == -torch.inf
    assert (shares == 0).all()
    assert gather("lse", torch.tensor([0.0, torch.inf, torch.inf]), split)[0] == torch.inf
    # An infinity that was pushed has a column, unlike the identity.
    assert gather("highest", nothing, split)[:2] == (-torch.inf, 0)
    assert gather("lowest", -nothing, split)[:2] == (torch.inf, 0)


def test_lse_does_not_overflow():
    f = torch.tensor([1e4, 1e4, -1e4])
    value, _, shares = gather("lse", f, 1)
    assert value == (1e4 + torch.tensor(2.0).log())
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.5, 0.0]), rtol=1e-3, atol=0)


FUNCTION = {"dtype": "float32", "args": (), "n": 0, **dict.fromkeys(["s", "value", "slopes"], 0)}
PLACES = ["contributions", "value", "argument", "shares"]
GATHER = {"dtype": "float32", "n": 0, "split": 0, **dict.fromkeys(PLACES, 0)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (FUNCTION | {"name": "cos"}, "name is 'cos'; it must be one of identity, one, affine"),
        (FUNCTION | {"name": "hinge"}, "args is 0 numbers; it must be 2 .scale, base. for hinge"),
        (FUNCTION | {"dtype": "int64"}, "dtype is 'int64'; it must be float32 or float64"),
        (FUNCTION | {"n": -1}, "n is -1; it must be from 0 to 2147483647"),
        (GATHER | {"name": "mean"}, "name is 'mean'; it must be one of sum, lse, lowest, highest"),
        (GATHER | {"dtype": "half"}, "dtype is 'half'; it must be float32 or float64"),
        (GATHER | {"n": 2**40}, "n is 1099511627776; it must be from 0 to 2147483647"),
        (GATHER | {"split": 1}, "split is 1; it must be from 0 to n = 0"),
    ],
)
def test_bad_input_is_refused(call, message):
    is_gather = "split" in call
    probe = _native.probe_accumulator if is_gather else _native.probe_function
    with pytest.raises(ValueError, match=message):
        probe(**{"name": "sum" if is_gather else "identity"} | call)


@pytest.mark.skipif(CUDA, reason="this build has CUDA kernels")
def test_a_stream_is_refused_without_cuda_kernels():
    with pytest.raises(ValueError, match="stream is 0; it must be None: this build has no CUDA"):
        _native.probe_accumulator("sum", **GATHER, stream=0)


@pytest.mark.skipif(
    not CUDA or ctypes.util.find_library("cuda") is not None,
    reason="needs CUDA kernels and no driver",
)
def test_a_refused_launch_raises():
    with pytest.raises(RuntimeError, match="launch of accumulator_kernel: cuda"):
        _native.probe_accumulator("sum", **GATHER, stream=0)
    with pytest.raises(RuntimeError, match="launch of function_kernel: cuda"):
        _native.probe_function("identity", **FUNCTION | {"n": 1}, stream=0)


@pytest.mark.gpu
@on_gpu
@cases
@dtypes
def test_functions_on_the_gpu(name, args, dtype):
    s = torch.cat([similarities(dtype), torch.tensor([torch.nan], dtype=dtype)])
    condition = 2 * condition_of(name, s, *args)
    host, device = function(name, s, *args), function(name, s.cuda(), *args)
    for mine, theirs in zip(host, device, strict=True):
        assert torch.equal(mine.isnan(), theirs.cpu().isnan())
        known = ~mine.isnan().reshape(len(s), -1).any(1)
        shape = (-1,) + (1,) * (mine.ndim - 1)
        assert_rounded(theirs.cpu()[known], mine[known], condition[known].reshape(shape))


@pytest.mark.gpu
@on_gpu
@gathers
@dtypes
def test_gathers_on_the_gpu(name, dtype):
    f = torch.randn(19, dtype=dtype, generator=torch.Generator().manual_seed(0))
    poisoned = f.clone()
    poisoned[7] = torch.nan
    for values, split in product([f, poisoned, f[:0], f - torch.inf], range(0, 20, 3)):
        split = min(split, len(values))
        host, device = gather(name, values, split), gather(name, values.cuda(), split)
        assert host[1] == device[1]
        torch.testing.assert_close(device[0].cpu(), host[0], equal_nan=True)
        torch.testing.assert_close(device[2].cpu(), host[2], equal_nan=True)
