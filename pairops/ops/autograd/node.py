"""Nodes of torch's graph that autograd, torch.compile and torch.func can all follow."""

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.forward_ad import unpack_dual


def transforming() -> bool:
    """Return whether torch.func follows this thread's tensors, which may then have no values."""
    return bool(torch._C._are_functorch_transforms_active())


class Node(torch.autograd.Function):
    """A function with hand-written derivatives; a subclass defines `run`, `keep`, `backward` and
    `tangent`, and callers use `of`.

    torch needs three forms of one function. torch.compile refuses one that has a `jvp`; torch.func
    needs `setup_context`, which makes every call of it 60 µs slower.

    A backward pass is itself a call of a Node wherever it can be differentiated again, so no pass
    has to know whether it will be: torch.func always says that it may.
    """

    # A staticmethod that decorates `backward`, except where torch.compile traces it.
    around_backward: ClassVar[Any] = None
    _eager: ClassVar[type["Node"]]
    _transformed: ClassVar[type["Node"]]

    @staticmethod
    def run(*inputs: Any) -> Any:
        """Compute the outputs."""
        raise NotImplementedError

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], outputs: Any) -> None:
        """Save in `ctx` the inputs and outputs that derivatives need."""
        raise NotImplementedError

    @staticmethod
    def tangent(ctx: Any, saved: list[Any], *tangents: Any) -> Any:
        """Compute derivatives of the outputs along `tangents`, None for a constant input.

        saved: the tensors that `keep` saved, without the tangents.
        """
        raise NotImplementedError

    @classmethod
    def of(cls, *inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return cls.apply(*inputs)  # type: ignore[no-untyped-call]
        if transforming():
            return cls._transformed.apply(*inputs)  # type: ignore[no-untyped-call]
        level = _batched_gradients()
        if level:
            return _each_gradient(cls.of, level, inputs)
        if not torch.is_grad_enabled() and forward_ad._current_level < 0:
            return cls.run(*inputs)  # an ordinary backward pass, which is not differentiated
        return cls._eager.apply(*inputs)  # type: ignore[no-untyped-call]

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "run" not in vars(cls):  # a form made below
            return

        def forward(ctx: Any, *inputs: Any) -> Any:
            outputs = cls.run(*inputs)
            cls.keep(ctx, inputs, outputs)
            return outputs

        # torch.compile counts parameters to find out whether there is a ctx.
        context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_ONLY)
        parameters = [context, *inspect.signature(cls.run).parameters.values()]
        forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                p.replace(kind=context.kind) if p.kind is not p.VAR_POSITIONAL else p
                for p in parameters
            ]
        )

        def jvp(ctx: Any, *tangents: Any) -> Any:
            # torch disables tangents here, and those of an outer jvp would be lost.
            saved = [z if z is None else unpack_dual(z).primal for z in ctx.saved_tensors]
            with forward_ad._set_fwd_grad_enabled(True):
                return cls.tangent(ctx, saved, *tangents)

        def vmap(info: Any, dims: tuple[Any, ...], *inputs: Any) -> Any:
            return by_sample(cls.of, info.batch_size, dims, inputs)

        cls.forward = staticmethod(forward)  # type: ignore[method-assign]
        eager: dict[str, Any] = {"jvp": staticmethod(jvp)}
        if cls.around_backward is not None:
            eager["backward"] = staticmethod(cls.around_backward(cls.backward))
        cls._eager = type(cls.__name__, (cls,), eager)
        form = {"forward": cls.run, "setup_context": cls.keep, "vmap": vmap}
        form = {name: staticmethod(function) for name, function in form.items()}
        cls._transformed = type(cls.__name__, (cls._eager,), form)


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """Save for `backward` and for `tangent`."""
    ctx.save_for_backward(*tensors)
    if not torch.compiler.is_compiling():  # the compiler knows no tangents
        ctx.save_for_forward(*tensors)


_PLAIN = (Tensor, torch.nn.Parameter)
_WITH_VALUES = frozenset([Tensor, type(None)])


def followed_by_autograd_alone(
    x: Tensor, y: Tensor | None = None, others: Sequence[Tensor] = ()
) -> bool:
    """Return whether these tensors have values, and nothing but autograd follows them."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in _PLAIN
        and (y is None or type(y) in _PLAIN)
        and (not others or all(type(z) in _PLAIN for z in others))
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
    )


def transformed(cotangents: Sequence[Tensor | None]) -> bool:
    """Return whether something besides autograd follows this backward pass, such as one of torch's
    two vmaps over several cotangents. The cotangents may then have no values."""
    return (
        torch._C._are_functorch_transforms_active()
        or _batched_gradients() > 0
        or not _WITH_VALUES.issuperset(map(type, cotangents))
    )


def _batched_gradients() -> int:
    """Return the level of torch's older vmap, 0 outside of it.

    `torch.autograd.grad(is_grads_batched=True)` and `torch.autograd.functional` with vectorize=True
    run a backward pass in it."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return level


# Compiled autograd traces a backward pass here; it would do the first of these, not the second.
_batched_gradients._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _each_gradient(function: Any, level: int, inputs: Sequence[Any]) -> Any:
    """Run `function` sample by sample where some inputs are batches at `level`: no rule serves."""
    given: list[Any] = list(inputs)
    dims: list[int | None] = [None] * len(inputs)
    for k, z in enumerate(inputs):
        if isinstance(z, Tensor) and torch._C._functorch.is_legacy_batchedtensor(z):
            given[k], dims[k] = torch._remove_batch_dim(z, level, 1, 0), 0
    sizes = [len(z) for z, dim in zip(given, dims, strict=True) if dim == 0]
    # Results of plain tensors are no batch, even while a batch is traced around them.
    if not sizes:
        outer = [torch._C._vmapmode_decrement_nesting() for _ in range(level)]
        try:
            return function(*inputs)
        finally:
            for _ in outer:
                torch._C._vmapmode_increment_nesting()
    results, _ = by_sample(function, sizes[0], dims, given)
    if isinstance(results, Tensor):
        return torch._add_batch_dim(results, 0, level)
    return tuple([torch._add_batch_dim(z, 0, level) for z in results])


def by_sample(
    function: Any, size: int, dims: Sequence[Any], inputs: Sequence[Any]
) -> tuple[Any, Any]:
    """Run `function` sample by sample, as a vmap rule; return results and their batch dims."""
    results = []
    for k in range(size):
        sample = [
            z.select(dim, k) if isinstance(z, Tensor) and dim is not None else z
            for z, dim in zip(inputs, dims, strict=True)
        ]
        results.append(function(*sample))
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    stacked = tuple([torch.stack(every) for every in zip(*results, strict=True)])
    return stacked, (0,) * len(stacked)
