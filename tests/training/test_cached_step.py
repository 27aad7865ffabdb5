"""cached_step against the plain step that it stands for: values, gradients, random numbers."""

import contextlib
import functools
from collections import UserDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pairops
from pairops import cached_step

DOUBLE = torch.float64

Found = tuple[Any, list[Tensor]]  # what a step returns, and the gradients that it leaves


def network(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), *between, nn.Linear(16, 5)).to(DOUBLE)


def batch(n: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 6, dtype=DOUBLE), torch.randint(0, classes, (n,))


def over(labels: Tensor, **keywords: Any) -> Callable[[Tensor], Any]:
    return lambda x: pairops.ms_loss(x, labels, **keywords)


def plain(loss: Callable[..., Any], *encoded: tuple[Any, Tensor], chunk_size: int = 10**6) -> Any:
    """In one graph."""
    sets = [
        torch.cat([encoder(chunk) for chunk in inputs.split(chunk_size)])
        for encoder, inputs in encoded
    ]
    value = loss(*sets)
    value.backward()
    return value.detach()


def found(step: Callable[[], Any], *owners: nn.Module | Tensor) -> Found:
    leaves = [
        leaf
        for owner in owners
        for leaf in (owner.parameters() if isinstance(owner, nn.Module) else [owner])
    ]
    for leaf in leaves:
        leaf.grad = None
    result = step()
    assert all(leaf.grad is not None for leaf in leaves)
    return result, [leaf.grad for leaf in leaves if leaf.grad is not None]


def same(ours: Found, expected: Found, rtol: float = 1e-12, atol: float = 1e-12) -> None:
    torch.testing.assert_close(ours[0], expected[0], rtol=rtol, atol=atol)
    for mine, theirs in zip(ours[1], expected[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("n", "chunk_size"), [(24, 5), (24, 6), (24, 1), (24, 24), (24, 100), (1, 3), (0, 3)]
)
def test_is_the_plain_step(n: int, chunk_size: int) -> None:
    encoder, (inputs, labels) = network(), batch(n)
    loss = over(labels)
    ours = found(lambda: cached_step(loss, (encoder, inputs), chunk_size=chunk_size), encoder)
    same(ours, found(lambda: plain(loss, (encoder, inputs)), encoder))
    assert n < 2 or ours[1][0].abs().sum() > 0
    assert not ours[0].requires_grad


@pytest.mark.parametrize("shared", [True, False])
def test_two_sets_and_what_the_loss_learns(shared: bool) -> None:
    one = network()
    other = one if shared else network()
    temperature = torch.tensor(0.2, dtype=DOUBLE, requires_grad=True)
    loss = functools.partial(pairops.info_nce_loss, temperature=temperature)
    encoded = (one, batch(11)[0]), (other, batch(17)[0])
    owners: list[nn.Module | Tensor] = [one, temperature, *([] if shared else [other])]
    ours = found(lambda: cached_step(loss, *encoded, chunk_size=4), *owners)
    same(ours, found(lambda: plain(loss, *encoded), *owners))


def test_gradients_add_to_those_that_are_there() -> None:
    encoder, (inputs, labels) = network(), batch(9)
    step = functools.partial(cached_step, over(labels), (encoder, inputs), chunk_size=4)
    _, gradients = found(step, encoder)
    once = [gradient.clone() for gradient in gradients]
    step()
    for parameter, gradient in zip(encoder.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backward_draws", [False, True])
def test_random_numbers_come_again_and_go_on_after_the_loss(backward_draws: bool) -> None:
    one, other = network(nn.Dropout(0.5)), network(nn.Dropout(0.2))
    inputs, labels = batch(23)

    def draw(*_: object) -> None:
        torch.rand(1)

    if backward_draws:
        one[2].register_full_backward_hook(draw)

    def loss(x: Tensor, y: Tensor) -> Any:
        return pairops.ms_loss(x + 0.1 * torch.randn_like(x), labels) + (x - y).square().mean()

    encoded = (one, inputs), (other, inputs)
    torch.manual_seed(3)
    ours = found(lambda: cached_step(loss, *encoded, chunk_size=5), one, other)
    then = torch.rand(3)
    torch.manual_seed(3)
    same(ours, found(lambda: plain(loss, *encoded, chunk_size=5), one, other))
    assert backward_draws or torch.equal(then, torch.rand(3))


class Routed(nn.Module):
    """A chunk takes one of two ways, with weights that no chunk of the other way uses."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = network(), network()

    def forward(self, x: Tensor) -> Tensor:
        return (self.other if bool(x[0, 0] > 0) else self.one)(x)  # type: ignore[no-any-return]


def test_under_autocast_every_weight_has_its_gradient() -> None:
    """Torch 2.6 hands out again what it cast without a graph, and these weights get no gradient."""
    encoder, (inputs, labels) = Routed().float(), batch(16)
    inputs = inputs.float()
    inputs[:, 0] = torch.arange(16) // 4 - 1.5  # ways: one, one, other, other
    loss = over(labels)
    seen: list[torch.dtype] = []

    def half() -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(inputs.device.type, torch.bfloat16)

    def noted(x: Tensor) -> Any:
        seen.append(x.dtype)
        return loss(x)

    def ours() -> Any:
        with half():
            with torch.no_grad():
                encoder(inputs)
            return cached_step(noted, (encoder, inputs), chunk_size=4)

    def theirs() -> Any:
        with half():
            value = loss(torch.cat([encoder(chunk) for chunk in inputs.split(4)]))
        value.backward()
        return value.detach()

    same(found(ours, encoder), found(theirs, encoder), rtol=0.02, atol=2e-3)
    assert seen == [torch.bfloat16]


def test_what_goes_back_does_so_outside_autocast() -> None:
    """A product of float32 in a backward pass would be one of bfloat16 there."""
    encoder, inputs = network().float(), batch(9)[0].float()

    def loss(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return (x @ x.T).square().sum()

    def ours() -> Any:
        with torch.autocast(inputs.device.type, torch.bfloat16):
            return cached_step(loss, (exact, inputs), chunk_size=4)

    def exact(rows: Tensor) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):
            return encoder(rows)  # type: ignore[no-any-return]

    expected = found(lambda: plain(loss, (encoder, inputs)), encoder)
    same(found(ours, encoder), expected, rtol=1e-5, atol=1e-5)


def test_a_scaler_scales_what_is_sent_back_and_not_the_value() -> None:
    encoder, (inputs, labels) = network(), batch(9)
    loss = over(labels)
    scaler = torch.amp.GradScaler(inputs.device.type, init_scale=8.0)
    value, gradients = found(lambda: plain(loss, (encoder, inputs)), encoder)
    step = functools.partial(cached_step, loss, (encoder, inputs), chunk_size=4, scaler=scaler)
    same(found(step, encoder), (value, [8 * gradient for gradient in gradients]))


class Encoding(UserDict[str, Tensor]):
    """What transformers' BatchEncoding is."""

    def __getattr__(self, name: str) -> Tensor:
        return self.data[name]


@pytest.mark.parametrize("kind", [tuple, list, dict, Encoding])
def test_inputs_of_several_tensors(kind: Any) -> None:
    body, (tokens, labels) = network(), batch(13)
    mask, loss = torch.randint(0, 2, (13, 1)), over(labels)

    def encoder(tokens: Tensor, mask: Tensor) -> Tensor:
        return body(tokens) * (mask + 0.5)  # type: ignore[no-any-return]

    def together(tokens: Tensor) -> Tensor:
        return encoder(tokens, mask)

    inputs = kind([tokens, mask] if kind in (tuple, list) else {"mask": mask, "tokens": tokens})
    ours = found(lambda: cached_step(loss, (encoder, inputs), chunk_size=4), body)
    same(ours, found(lambda: plain(loss, (together, tokens)), body))


def test_inputs_have_gradients_where_they_want_some() -> None:
    encoder, (inputs, labels) = network().requires_grad_(False), batch(9)
    inputs.requires_grad_()
    loss = over(labels)
    ours = found(lambda: cached_step(loss, (encoder, inputs), chunk_size=4), inputs)
    same(ours, found(lambda: plain(loss, (encoder, inputs)), inputs))


@pytest.mark.parametrize("frozen_is_first", [True, False])
def test_a_frozen_encoder_is_a_constant_and_run_once(frozen_is_first: bool) -> None:
    trained, frozen = network(), network().requires_grad_(False)
    calls: list[int] = []

    def tower(rows: Tensor) -> Tensor:
        calls.append(len(rows))
        return frozen(rows)  # type: ignore[no-any-return]

    def loss(x: Tensor, y: Tensor) -> Any:
        assert (x.requires_grad, y.requires_grad) == (not frozen_is_first, frozen_is_first)
        return pairops.info_nce_loss(x, y)

    encoded: list[Any] = [(trained, batch(9)[0]), (tower, batch(9)[0])]
    if frozen_is_first:
        encoded.reverse()
    ours = found(lambda: cached_step(loss, *encoded, chunk_size=4), trained)
    assert calls == [4, 4, 1]
    same(ours, found(lambda: plain(pairops.info_nce_loss, *encoded), trained))


def test_a_frozen_part_of_an_encoder_may_serve_a_whole_chunk() -> None:
    encoder, (inputs, labels) = Routed(), batch(8)
    encoder.other.requires_grad_(False)
    inputs[:, 0] = torch.arange(8) // 4 - 0.5
    loss = over(labels)
    ours = found(lambda: cached_step(loss, (encoder, inputs), chunk_size=4), encoder.one)
    same(ours, found(lambda: plain(loss, (encoder, inputs), chunk_size=4), encoder.one))


def test_encoders_without_gradients_leave_the_loss_its_own() -> None:
    frozen = torch.no_grad()(network())
    temperature = torch.tensor(0.2, dtype=DOUBLE, requires_grad=True)
    loss = functools.partial(pairops.info_nce_loss, temperature=temperature)
    encoded = (frozen, batch(5)[0]), (frozen, batch(5)[0])
    ours = found(lambda: cached_step(loss, *encoded, chunk_size=2), temperature)
    same(ours, found(lambda: plain(loss, *encoded), temperature))


def test_an_encoder_that_the_loss_leaves_out_has_no_gradient() -> None:
    one, other, (inputs, _) = network(), network(), batch(5)
    cached_step(lambda x, _: x.sum(), (one, inputs), (other, inputs), chunk_size=2)
    assert all(parameter.grad is not None for parameter in one.parameters())
    assert all(parameter.grad is None for parameter in other.parameters())


def test_what_comes_with_the_value_is_returned() -> None:
    encoder, (inputs, labels) = network(), batch(9)
    loss = lambda x: pairops.ms_loss.with_aux(x, labels)  # noqa: E731
    value, aux = cached_step(loss, (encoder, inputs), chunk_size=4)
    expected, told = loss(encoder(inputs))
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=1e-12)
    assert not value.requires_grad
    assert torch.equal(aux.positives, told.positives)
