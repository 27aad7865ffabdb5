"""Batches that ranks share, and the comparison of what they compute with one process."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import pairops
from support import loss_parameters
from support.gloo_ranks import Ranks

D = 6
# Arguments that no tensor may be, or whose gradient is none.
NUMBERS = {
    "smoothing", "label_smoothing", "epsilon", "gamma", "width", "hardness", "false_negatives",
}  # fmt: skip
RING, GATHERED = 0, 1 << 30  # bytes below which all rows are gathered at once
SHARDS = {
    "even": {1: [24], 2: [12, 12], 3: [8, 8, 8], 4: [6, 6, 6, 6]},
    "uneven": {2: [17, 7], 3: [1, 14, 9], 4: [3, 1, 13, 7]},
    "empty": {2: [0, 24], 3: [11, 0, 13], 4: [0, 23, 1, 0]},
}


class Problem:
    """The arguments of a loss on a batch, and how the ranks share them."""

    def __init__(self, name: str, params: dict[str, Any], dtype: torch.dtype = torch.float64):
        generator = torch.Generator().manual_seed(3)
        n = 24
        x, y = torch.randn(2, n, D, generator=generator, dtype=torch.float64).to(dtype)
        labels = torch.randint(0, 6, (n,), generator=generator)
        self.name = name
        told: dict[str, Any] = {}
        if name in loss_parameters.LABELLED:
            self.args: tuple[Any, ...] = (x, labels)
        elif name in loss_parameters.AGAINST_PROXIES:
            self.args = (x, labels, y[:7])
        else:
            rest, told = loss_parameters.with_rest(name, x, y)
            self.args = (x, *rest)
        self.keywords = {**told, **params}
        named = list(enumerate(loss_parameters.argument_names(name)[: len(self.args)]))
        self.whole: set[Any] = loss_parameters.WHOLE | {
            at for at, argument in named if argument in loss_parameters.WHOLE
        }
        constant = loss_parameters.CONSTANT | {
            at for at, argument in named if argument in loss_parameters.CONSTANT
        }
        self.apart = {"negatives": [5, 0, 4, 3]}  # with rows of their own: how many each rank has
        self.leaves = [
            at
            for at, value in [*enumerate(self.args), *self.keywords.items()]
            if isinstance(value, Tensor) and value.is_floating_point() and at not in constant
        ]

    def learned(self) -> "Problem":
        """With every number that may be learned as a tensor with gradient."""
        for at, value in self.keywords.items():
            if isinstance(value, float) and at not in NUMBERS:
                self.keywords[at] = torch.tensor(value, dtype=self.args[0].dtype)
                self.whole.add(at)
                self.leaves.append(at)
        return self

    def widened(self) -> "Problem":
        """The same numbers in float64."""

        def wide(value: Any) -> Any:
            floats = isinstance(value, Tensor) and value.is_floating_point()
            return value.double() if floats else value

        result = copy.copy(self)
        result.args = tuple([wide(value) for value in self.args])
        result.keywords = {at: wide(value) for at, value in self.keywords.items()}
        return result

    def one(self) -> dict[Any, Tensor]:
        """Value and gradients of one process."""
        args, keywords = list(self.args), dict(self.keywords)
        leaves = {}
        for at in self.leaves:
            where: Any = args if isinstance(at, int) else keywords
            where[at] = leaves[at] = where[at].clone().requires_grad_()
        value = getattr(pairops, self.name)(*args, **keywords)
        gradients = torch.autograd.grad(
            value.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        return {"value": value.detach(), **dict(zip(leaves, gradients, strict=True))}

    def sizes(self, at: Any, sizes: list[int]) -> list[int]:
        if at not in self.apart:
            return sizes
        rows, few = len(self.keywords[at]), self.apart[at][: len(sizes)]
        return [*few[:-1], rows - sum(few[:-1])]

    def shared(self, sizes: list[int], **further: Any) -> list[dict[str, Any]]:
        """What each rank is given."""

        def of(at: Any, value: Any) -> list[Any]:
            if isinstance(value, tuple) and isinstance(value[0], Tensor):
                return list(zip(*[of(at, part) for part in value], strict=True))
            if not isinstance(value, Tensor) or at in self.whole:
                return [value] * len(sizes)
            return list(value.split(self.sizes(at, sizes)))

        args = [of(at, value) for at, value in enumerate(self.args)]
        keywords = {at: of(at, value) for at, value in self.keywords.items()}
        return [
            {
                "loss": self.name,
                "args": tuple([values[rank] for values in args]),
                "keywords": {at: values[rank] for at, values in keywords.items()},
                "leaves": self.leaves,
                **further,
            }
            for rank in range(len(sizes))
        ]

    def averaged(self, found: list[dict[Any, Tensor]]) -> dict[Any, Tensor]:
        """What training sees of it: gradients as DistributedDataParallel averages them."""
        result = {}
        for at in self.leaves:
            gradients = [one[at] for one in found]
            result[at] = (sum(gradients) if at in self.whole else torch.cat(gradients)) / len(found)
        return result


def assert_equal(name: str, ours: Tensor, one: Tensor, bound: float) -> None:
    assert ours.shape == one.shape, name
    error, scale = float((ours - one).abs().max()), float(one.abs().max())
    assert error <= bound * scale, f"{name}: {error / (scale or 1):.3g} of the greatest entry"


def check(
    ranks: Ranks,
    problem: Problem,
    bound: float,
    *,
    layouts: Sequence[str] = tuple(SHARDS),
    most: int = 3,
    **further: Any,
) -> None:
    """Hold a loss over 1 to `most` ranks to that of one process."""
    one = problem.one()
    for layout in layouts:
        for size, sizes in SHARDS[layout].items():
            if size > most:
                continue
            found = ranks.run(size, "support.rank_functions:step", problem.shared(sizes, **further))
            for rank, got in enumerate(found):
                where = f"{layout}, rank {rank} of {size}"
                assert not isinstance(got, tuple), f"{where}: {got}"
                assert got["value"].dtype == one["value"].dtype, where
                assert_equal(f"{where}: value", got["value"], one["value"], bound)
                assert torch.equal(got["value"], found[0]["value"]), where
            for at, gradient in problem.averaged(found).items():
                assert gradient.dtype == one[at].dtype
                assert_equal(f"{layout}, {size} ranks: by {at}", gradient, one[at], bound)


def rows(n: int = 24, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, D, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, 5, (n,), generator=generator)
