"""A node of torch's graph that autograd, torch.compile and torch.func all pass through."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor


def transforming() -> bool:
    """Does torch.func follow this thread's tensors? Then they may have no values to be read."""
    return bool(torch._C._are_functorch_transforms_active())


class Node(torch.autograd.Function):
    """A function with derivatives of its own; a subclass writes `run`, `keep`, `backward` and
    `tangent`, and is called by `of`.

    torch asks for three forms of one function. torch.compile refuses one that has a `jvp`;
    torch.func needs `setup_context`, which makes every call of it 60 µs slower.

    A backward pass is itself a call of a Node wherever it can be differentiated again, so no pass
    has to know whether it will be: torch.func always says that it may.
    """

    _eager: ClassVar[type["Node"]]
    _transformed: ClassVar[type["Node"]]

    @staticmethod
    def run(*inputs: Any) -> Any:
        """The outputs."""
        raise NotImplementedError

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], outputs: Any) -> None:
        """Save in `ctx` what derivatives need: inputs and outputs."""
        raise NotImplementedError

    @staticmethod
    def tangent(ctx: Any, *tangents: Any) -> Any:
        """The derivatives of the outputs along `tangents`, None for an input that stands still."""
        raise NotImplementedError

    @classmethod
    def of(cls, *inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return cls.apply(*inputs)  # type: ignore[no-untyped-call]
        form = cls._transformed if transforming() else cls._eager
        return form.apply(*inputs)  # type: ignore[no-untyped-call]

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "run" not in vars(cls):  # one of the forms below
            return

        def forward(ctx: Any, *inputs: Any) -> Any:
            outputs = cls.run(*inputs)
            cls.keep(ctx, inputs, outputs)
            return outputs

        def vmap(info: Any, dims: tuple[Any, ...], *inputs: Any) -> Any:
            return by_sample(cls.of, info.batch_size, dims, inputs)

        cls.forward = staticmethod(forward)  # type: ignore[method-assign]
        cls._eager = type(cls.__name__, (cls,), {"jvp": staticmethod(cls.tangent)})
        form: dict[str, Any] = {"forward": staticmethod(cls.run)}
        form["setup_context"] = staticmethod(cls.keep)
        if not cls.generate_vmap_rule:
            form["vmap"] = staticmethod(vmap)
        cls._transformed = type(cls.__name__, (cls._eager,), form)


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """Save for `backward` and for `tangent`."""
    ctx.save_for_backward(*tensors)
    if not torch.compiler.is_compiling():  # which knows no tangents
        ctx.save_for_forward(*tensors)


def by_sample(
    function: Any, size: int, dims: Sequence[Any], inputs: Sequence[Any]
) -> tuple[Any, Any]:
    """A vmap rule: `function` of one sample after the other, and where the samples lie then."""
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
