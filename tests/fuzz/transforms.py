"""Area "transforms": numbers of every kind, torch.func, and devices without float64."""

from random import Random
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import pairops
from fuzz import losses
from fuzz.formulas import unless_refused
from fuzz.relations import alike
from pairops import losses as every
from support import loss_parameters
from support.without_float64 import WithoutFloat64

IMPORTS = ["from fuzz.transforms import differentiated, mixed, numbers, without_float64"]
KINDS = {
    "np.float32": numpy.float32, "np.float64": numpy.float64, "np.float16": numpy.float16,
    "np.array": numpy.array, "tensor ()": torch.tensor,
    "tensor (1,)": lambda v: torch.tensor([v]), "tensor (1, 1)": lambda v: torch.tensor([[v]]),
    "parameter (1,)": lambda v: torch.nn.Parameter(torch.tensor([v])),
}  # fmt: skip
WAYS = ["grad", "vjp", "jvp", "jacrev", "jacfwd", "vmap", "vmap(grad)", "hessian", "vectorize"]


def draw(random: Random) -> list[str]:
    name = random.choice(every.__all__)
    params = losses.settings(random, name)
    ways = {"differentiated": 5, "numbers": 4, "without_float64": 3, "mixed": 0.5}
    (way,) = random.choices(list(ways), list(ways.values()))
    if way == "mixed":
        return [*IMPORTS, f"mixed({random.choice(['info_nce_loss', 'siglip_loss'])!r})"]
    engine = random.choice(["auto", "dense", "blockwise"])
    if way == "differentiated":
        engine = random.choice(["auto", "dense"])
        n, d = random.randint(3, 7), random.choice([2, 3])
        line = f"differentiated({name!r}, {params}, x, {random.choice(WAYS)!r}, {engine!r})"
        return [*IMPORTS, f"x = torch.randn({n}, {d}, dtype=torch.float64)", line]
    x = f"x = torch.randn({random.randint(4, 24)}, {random.choice([4, 9])})"
    if way == "numbers":
        plain = ("smoothing", "width")  # numbers that the host has to know
        known = [k for k, v in params.items() if isinstance(v, float) and k not in plain]
        if not known:
            name, params, known = "supcon_loss", {"temperature": 0.25}, ["temperature"]
        keyword, kind = random.choice(known), random.choice(list(KINDS))
        return [*IMPORTS, x, f"numbers({name!r}, {params}, x, {keyword!r}, {kind!r})"]
    return [*IMPORTS, x, f"without_float64({name!r}, {params}, x, {engine!r})"]


def _gradient(loss: Any, x: Tensor, create_graph: bool = False) -> Tensor:
    x = x.clone().requires_grad_()
    value = loss(x)
    if not value.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(value, x, create_graph=create_graph)[0]


def _second(loss: Any, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    value = loss(x)
    first = value
    if value.requires_grad:
        (first,) = torch.autograd.grad(value, x, create_graph=True)
    if not first.requires_grad:
        return torch.zeros(x.shape + x.shape, dtype=x.dtype)
    found = [
        torch.autograd.grad(g, x, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
        for g in first.flatten()
    ]
    return torch.stack(found).view(x.shape + x.shape)


def differentiated(name: str, params: dict[str, Any], x: Tensor, way: str, engine: str) -> None:
    """By torch.func, and by autograd one derivative at a time."""

    def loss(x: Tensor) -> Tensor:
        value: Tensor = call_with(name, x, params)
        return value

    along = torch.randn_like(x)
    batch = torch.stack([x, x + 0.3 * along])
    with pairops.engine(engine):
        unless_refused(lambda: loss(x))
        first = _gradient(loss, x)
        ours, expected = {
            "grad": lambda: (grad(loss)(x), first),
            "vjp": lambda: (vjp(loss, x)[1](torch.ones((), dtype=x.dtype))[0], first),
            "jvp": lambda: (jvp(loss, (x,), (along,))[1], (first * along).sum()),
            "jacrev": lambda: (jacrev(loss)(x), first),
            "jacfwd": lambda: (jacfwd(loss)(x), first),
            "vmap": lambda: (vmap(loss)(batch), torch.stack([loss(z) for z in batch])),
            "vmap(grad)": lambda: (
                vmap(grad(loss))(batch),
                torch.stack([_gradient(loss, z) for z in batch]),
            ),
            "hessian": lambda: (hessian(loss)(x), _second(loss, x)),
            "vectorize": lambda: (
                torch.autograd.functional.hessian(loss, x, vectorize=True),
                _second(loss, x),
            ),
        }[way]()
    assert ours.shape == expected.shape
    alike(way, ours.detach(), expected.detach())


def call_with(name: str, x: Tensor, params: dict[str, Any]) -> Any:
    """Any loss as a function of x alone: nothing else is drawn, so that vmap takes it."""
    function, labels = getattr(pairops, name), torch.arange(len(x)) % 3
    y = torch.linspace(-1, 1, x[0].numel() * len(x), dtype=x.dtype).sin().view(x.shape).roll(1, 0)
    params = {**loss_parameters.parameters(name)[0], **params}
    if name in loss_parameters.LABELLED:
        return function(x, labels, **params)
    if name in loss_parameters.AGAINST_PROXIES:
        return function(x, labels, y[:3], **params)
    args, told = loss_parameters.with_rest(name, y, y)
    return function(x, *args, **told, **params)


def numbers(name: str, params: dict[str, Any], x: Tensor, keyword: str, kind: str) -> None:
    """A number is the number, in whatever it is wrapped."""
    unless_refused(lambda: call_with(name, x, params))
    wrapped = KINDS[kind](params[keyword])
    plain = {**params, keyword: float(wrapped)}  # as the narrow ones have it
    ours = call_with(name, x, {**params, keyword: wrapped})
    expected = call_with(name, x, plain)
    error, largest = float((ours - expected).abs().detach()), float(expected.abs().detach())
    assert error <= 1e-5 * largest + 1e-9, f"{kind}: {float(ours)} and not {float(expected)}"


def without_float64(name: str, params: dict[str, Any], x: Tensor, engine: str) -> None:
    """On a device that refuses float64: the numbers of one that does not, but for rounding."""

    def both() -> tuple[Tensor, Tensor]:
        def loss(x: Tensor) -> Tensor:
            value: Tensor = call_with(name, x, params)
            return value

        return loss(x), _gradient(loss, x)

    unless_refused(lambda: call_with(name, x, params))
    with pairops.engine(engine):
        elsewhere = both()
        with WithoutFloat64():
            here = both()
    for a, b in zip(here, elsewhere, strict=True):
        error, largest = float((a - b).abs().max()), float(b.abs().max())
        assert error <= 1e-3 * largest + 1e-6, f"{error:.3g} apart, of {largest:.3g}"


def mixed(name: str) -> None:
    """Two towers of different dtypes: promoted, or told what to write."""
    x, y = torch.randn(6, 4).bfloat16(), torch.randn(6, 4)
    told = {"scale": 10.0, "bias": -10.0} if name == "siglip_loss" else {}
    try:
        getattr(pairops, name)(x, y, **told)
    except TypeError as error:
        if ".to(torch." not in str(error):
            raise
