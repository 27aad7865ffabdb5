"""Problems for every kernel for GPUs, solved beside dense torch, in a process of its own.

`kernel_check` starts it, and reads a line of JSON before and after each kernel. So it knows which
kernel ended the process, or does not return.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pairops.ops import engines
from pairops.ops.bindings import cuda as cuda_kernels
from pairops.ops.engines import first_use, passed, sampled_rows
from pairops.ops.pairs.pairs import Pairs
from pairops.ops.pairs.similarity import apply_scale, constant_inverse_norm, product
from pairops.ops.row_stats.op import row_stats
from pairops.ops.terms.arguments import Argument, Partner
from pairops.ops.terms.recipe import unpack
from pairops.ops.terms.term import Term

_ROWS, _COLUMNS = 200, 77  # no multiple of any tile
_MANY = 1100  # rows on both sides, of which a bfloat16 pair's weight has one part
_CLASSES = 25
_NUMBER = 3.0  # an argument that is the same for all

# Terms for engines that write kernels for any: what the losses are made of.
_RECIPES = (
    "lse:neg:affine lse:pos:affine(fo)",
    "lse:neg:affine> lse:pos:affine<",
    "sum:pos:hinge sum:neg:softplus(op)",
    "lowest:pos:identity@ highest:neg:identity@",
)
_BF16, _FP16, _FP32 = torch.bfloat16, torch.float16, torch.float32


class Kernel(NamedTuple):
    """One call of an engine, whose kernels are tried."""

    engine: str
    recipe: str
    dtype: torch.dtype
    n: int
    m: int  # 0: the same set
    d: int

    @property
    def key(self) -> str:
        sets = f"{self.n} × {self.m}" if self.m else f"{self.n} rows"
        return f"{self.recipe}, {str(self.dtype).partition('.')[2]}, D = {self.d}, {sets}"


def kernels() -> list[Kernel]:
    """List what is tried: every kind of the compiled kernels in every shape of tiles, and for the
    engines that write theirs some calls of each kind."""
    found = []
    if cuda_kernels.BACKEND is None:
        found.append(Kernel("cuda", _RECIPES[0], _BF16, _ROWS, 0, 128))  # which says why
    else:
        recipes = [_of_kind(kind) for kind in cuda_kernels.BACKEND.kinds]
        shapes = [
            (t, _ROWS, m, d) for t in (_BF16, _FP16, _FP32) for m in (0, _COLUMNS) for d in _D
        ]
        for shape in [*shapes, (_BF16, _MANY, 0, 128)]:
            found += [Kernel("cuda", recipe, *shape) for recipe in recipes]
    for recipe in _RECIPES:
        found.append(Kernel("triton", recipe, _BF16, _ROWS, 0, 128))
    for shape in _TRITON:
        found.append(Kernel("triton", _RECIPES[0], *shape))
    for shape in _CHUNKED:
        found += [Kernel("chunked", recipe, *shape) for recipe in _RECIPES[:2]]
    return found


_D = 48, 128, 200, 300, 512
_TRITON = (
    (_FP32, _ROWS, 0, 128), (_FP16, _ROWS, _COLUMNS, 48), (_BF16, _ROWS, 0, 300),
    (_BF16, _MANY, 0, 128),
)  # fmt: skip
_CHUNKED = (_BF16, _ROWS, _COLUMNS, 512), (_FP32, _ROWS, 0, 300)


def _of_kind(kind: str) -> str:
    """Return two terms of a compiled kind: one over positives, one over what a window leaves of
    the negatives. Kernels learn of both when they run."""
    statistic, function = kind.split(":")
    statistic, keeps, _ = statistic.partition("@")
    return f"{statistic}:pos:{function}{keeps} {statistic}:neg:{function}>{keeps}"


def tried(kernel: Kernel, device: str) -> tuple[str, str]:
    """Return the outcome, "passed", "wrong" or "declined", and what there is to say about it."""
    random = torch.Generator().manual_seed(0)
    n, m, d = kernel.n, kernel.m or kernel.n, kernel.d
    x = torch.randn(n, d, generator=random).to(kernel.dtype)
    y = torch.randn(m, d, generator=random).to(kernel.dtype) if kernel.m else None
    labels, ref_labels = [torch.randint(0, _CLASSES, (k,), generator=random) for k in (n, m)]
    labels[n // 3] = -100  # an ignored row
    sets = x, x if y is None else y
    s = product(*[apply_scale(z, constant_inverse_norm(z), torch.float64) for z in sets])
    rows, cols = ([_term(word, z, random) for word in kernel.recipe.split()] for z in (s, s.T))

    def run(engine: str, dtype: torch.dtype, device: str) -> list[Tensor]:
        sums = torch.float64 if dtype == torch.float64 else torch.float32
        leaves: list[Tensor] = []

        def leaf(z: Tensor, of: torch.dtype) -> Tensor:
            leaves.append(z.to(device, of).requires_grad_())
            return leaves[-1]

        given = (
            {} if y is None else {"ref_emb": leaf(y, dtype), "ref_labels": ref_labels.to(device)}
        )
        pairs = Pairs.of(leaf(x, dtype), labels.to(device), **given)  # type: ignore[arg-type]
        terms = [
            [_placed(t, lambda z: leaf(z, sums), device) for t in some] for some in (rows, cols)
        ]
        with engines.engine(engine):
            statistics = row_stats(pairs, *terms[0], cols=terms[1])
        live = [torch.where(z.isinf(), 0, z) for z in statistics]
        weights = [torch.linspace(-1, 2, len(z), dtype=sums).to(device) for z in live]
        total = torch.stack([(z * w).sum() for z, w in zip(live, weights, strict=True)]).sum()
        slopes: tuple[Tensor | None, ...] = ()
        if total.requires_grad:  # not that of extremes that only serve as thresholds
            slopes = torch.autograd.grad(total, leaves, allow_unused=True)
        found = [*statistics, *[z for z in slopes if z is not None]]
        return [z.detach().cpu() for z in found]

    try:
        ours, again = [run(kernel.engine, kernel.dtype, device) for _ in range(2)]
    except ValueError as error:
        return "declined", str(error).partition("cannot serve this call: ")[2] or str(error)
    truth, dense = [run("dense", dtype, "cpu") for dtype in (torch.float64, kernel.dtype)]
    worst = 0.0
    for k, (a, b, c, e) in enumerate(zip(ours, again, dense, truth, strict=True)):
        what = f"result {k} of {len(ours)}"
        if not torch.equal(a.nan_to_num(), b.nan_to_num()):
            return "wrong", f"{what}: the same call gives other bits the second time"
        near = torch.zeros(len(a), dtype=torch.bool)
        off, allowed, _ = sampled_rows.compared(what, a, c, e, near).numbers.tolist()
        if not off <= allowed:
            return "wrong", f"{what}: error {off:.2g}, where {allowed:.2g} is allowed"
        worst = max(worst, off / allowed if allowed else 0.0)
    return "passed", f"the largest error is {worst:.2f} of what is allowed"


def _term(word: str, s: Tensor, random: torch.Generator) -> Term:
    """Return the term of a recipe for owners along the first axis of s, with random arguments."""
    holder = torch.empty(0)
    (pattern,), _ = unpack(word, [_NUMBER] * 3, [holder] * 5)
    args: list[Argument] = []
    for a in pattern.args:
        if isinstance(a, Partner):
            args.append(Partner(torch.rand(s.shape[1], generator=random) + 0.5))
        else:
            numbers = torch.rand(s.shape[0], generator=random) + 0.5
            args.append(numbers if isinstance(a, Tensor) else a)
    above, below = [z if z is None else _gap(s) for z in (pattern.above, pattern.below)]
    return replace(pattern, args=tuple(args), above=above, below=below)


def _gap(s: Tensor) -> Tensor:
    """Return for each row a threshold from which every similarity is as far as can be."""
    third = s.shape[1] // 3
    middle = s.sort(1).values[:, third : 2 * third]
    width, place = middle.diff(dim=1).max(1, keepdim=True)
    return (middle.gather(1, place) + width / 2).squeeze(1).float()


def _placed(term: Term, leaf: Any, device: str) -> Term:
    """Return the term with leaves of the graph for its arguments."""
    args = [
        Partner(leaf(a.values))
        if isinstance(a, Partner)
        else leaf(a)
        if isinstance(a, Tensor)
        else a
        for a in term.args
    ]
    above, below = [z if z is None else z.to(device) for z in (term.above, term.below)]
    return replace(term, args=tuple(args), above=above, below=below)


def main(arguments: Sequence[str]) -> int:
    """Try kernels, and say so line by line. arguments: the first one, and engines to leave out."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    # So outputs are poisoned.
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    first_use.ENABLED = False  # an engine that is left out would not be tried on
    first, left_out = int(arguments[0]), set(arguments[1:])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    every = kernels()
    _say({
        "identity": passed.identity(torch.device(device)),
        "kernels": [[kernel.engine, kernel.key] for kernel in every],
    })  # fmt: skip
    for k, outcome in _outcomes(every, first, left_out, device):
        _say({"at": k, "outcome": outcome and outcome[0], "detail": outcome and outcome[1]})
    return 0


def _outcomes(
    every: Sequence[Kernel], first: int, left_out: set[str], device: str
) -> Iterator[tuple[int, tuple[str, str] | None]]:
    """Yield the index of each kernel, and then again with its outcome."""
    for k, kernel in enumerate(every):
        if k < first or kernel.engine in left_out:
            continue
        yield k, None
        try:
            outcome = tried(kernel, device)
        except Exception as error:
            # A kernel that traps leaves no CUDA in its process.
            text = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")
            yield k, ("trapped", text[:300])
            sys.exit(1)
        yield k, outcome


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
