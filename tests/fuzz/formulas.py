"""Losses beside their oracle: by the error rule, and in float64 with further derivatives."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import oracle
import pairops
from fuzz.finding import Skipped
from fuzz.neighbours import confirmed
from support.error_rule import Dense, assert_within_rule
from support.loss_comparison import of_two_sets, values_and_gradients
from support.loss_parameters import ONE_SET

# What is said of a call that has no meaning.
REFUSED = (
    "compares similarities", "compares distances", "cannot serve this call",
    "one feature has no variance",
)  # fmt: skip

# Those that subtract a positive's similarity, and how far above it, in temperatures, another may be
# until its rounding is more than the rule allows: docs/numerics.md.
REFERRED = {
    "supcon_loss", "nt_xent_loss", "decoupled_softmax_loss", "nca_loss", "n_pair_loss",
    "proxy_nca_loss", "info_nce_loss",
    "decoupled_contrastive_loss", "multi_positive_loss", "conr_loss", "supremix_loss", "nnclr_loss",
    "cwcl_loss",
}  # fmt: skip
FAR = 4.0


@dataclass
class Compared:
    """A loss as the library and as the oracle have it, as functions of these tensors."""

    tensors: list[Tensor]
    ours: Callable[..., Tensor]
    formula: Callable[..., Tensor]  # also of dtype=
    kinks: bool  # is there a threshold among the similarities?
    refers: bool  # is it among those of `REFERRED`?
    attends: bool = False  # is it tal_loss, whose weights add up to 1 within rounding?


def labelled(
    name: str,
    params: dict[str, Any],
    x: Tensor,
    labels: Tensor,
    *,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    own: Tensor | None = None,
    ignore_index: int | None = -100,
    reduction: str = "none",
    weight: Tensor | None = None,
    learn: str = "",
    **keywords: Any,
) -> Compared:
    """own: the oracle's.  keywords: the library's alone.  learn: a number to take slopes by."""
    tensors = [x] if ref_emb is None else [x, ref_emb]
    if learn:
        tensors.append(torch.tensor(params[learn], dtype=x.dtype))
    index, ref_index = indices(labels, ref_labels, ignore_index)

    def given(others: tuple[Tensor, ...], told: Tensor | None) -> dict[str, Any]:
        found = dict(params)
        if learn:
            found[learn] = others[-1]
        if ref_emb is not None:
            found |= {"ref_emb": others[0], "ref_labels": told}
        return found

    def ours(x: Tensor, *others: Tensor) -> Tensor:
        value = getattr(pairops, name)(
            x, labels, **given(others, ref_labels), **keywords, ignore_index=ignore_index,
            reduction=reduction, weight=weight,
        )  # fmt: skip
        return value.reshape(-1)

    def formula(x: Tensor, *others: Tensor, dtype: torch.dtype) -> Tensor:
        told = {**given(others, ref_index), "dtype": dtype} | ({} if own is None else {"own": own})
        if reduction == "mean_pairs":
            told |= {"reduction": reduction, "weight": weight}
            return getattr(oracle, name)(x, index, **told).reshape(-1)
        ignored = index == -100
        if name in ONE_SET:
            ignored = ~torch.isin(torch.arange(len(x)), oracle.n_pairs(index)[0])
        values = getattr(oracle, name)(x, index, **told)
        cancels = (values.detach().abs() < 1e-11) & ~ignored & _compares(index, ref_index, own)
        if reduction == "mean_nonzero" and name in REFERRED and bool(cancels.any()):
            raise Skipped("the formula cannot tell this loss from 0")
        if reduction == "none" and weight is None:
            return values
        value = oracle.reduce(values, weight=weight, reduction=reduction, ignored=ignored)
        return value.reshape(-1)

    return Compared(tensors, ours, formula, has_kinks(name, params), name in REFERRED)


def _compares(index: Tensor, ref_index: Tensor | None, own: Tensor | None) -> Tensor:
    """Which anchors have a positive and one more pair."""
    others = index if ref_index is None else ref_index
    itself = torch.arange(len(index)) if ref_index is None else torch.tensor([-1])
    kept = (itself if own is None else own)[:, None] != torch.arange(len(others))
    return (kept & (index[:, None] == others)).any(1) & (kept.sum(1) > 1)


def against_proxies(
    name: str, params: dict[str, Any], x: Tensor, labels: Tensor, proxies: Tensor
) -> Compared:
    def ours(x: Tensor, proxies: Tensor) -> Tensor:
        return getattr(pairops, name)(x, labels, proxies, **params, reduction="none")

    def formula(x: Tensor, proxies: Tensor, dtype: torch.dtype) -> Tensor:
        return getattr(oracle, name)(x, labels.long(), proxies, **params, dtype=dtype)

    return Compared([x, proxies], ours, formula, has_kinks(name, params), name in REFERRED)


def two_sets(
    name: str, params: dict[str, Any], x: Tensor, y: Tensor, labels: Tensor | None = None
) -> Compared:
    """labels: of `of_two_sets`."""
    call = of_two_sets(name, params, x, y, labels)
    return Compared(*call, has_kinks(name, params), name in REFERRED, name == "tal_loss")


def has_kinks(name: str, params: dict[str, Any]) -> bool:
    margins = ("contrastive_loss", "triplet_loss", "lifted_structure_loss", "margin_loss")
    mined = name == "ms_loss" and params.get("epsilon", 0.1) is not None
    nearest = ("nnclr_loss", "soft_triplet_loss")  # which row it is may change
    return mined or name in (
        *margins,
        *nearest,
        "circle_loss",
        "tal_loss",
        "sms_loss",
        "hashing_loss",
        "fast_ap_loss",
    )


def indices(
    labels: Tensor, ref_labels: Tensor | None, ignore_index: int | None
) -> tuple[Tensor, Tensor | None]:
    """The labels numbered, those that are ignored -100; compared as Python's integers."""
    known: dict[int | None, int] = {} if ignore_index is None else {ignore_index: -100}

    def numbered(each: Tensor) -> Tensor:
        found = [known.setdefault(label, len(known)) for label in each.tolist()]
        return torch.tensor(found, dtype=torch.int64)

    return numbered(labels), None if ref_labels is None else numbered(ref_labels)


def within_rule(compared: Compared, engines: Sequence[str]) -> None:
    """Values and gradients on these engines, by the error rule; to eight digits in float64, where
    it would compare roundings of a formula that is not exact itself."""
    if compared.tensors[0].dtype == torch.float64:
        for engine in engines:
            exactly(compared, engine)
        return
    unless_refused(lambda: compared.ours(*compared.tensors))
    weight = 0.5 + torch.rand(max(len(z) for z in compared.tensors), dtype=torch.float64)
    confirmed(lambda z: _check(replace(compared, tensors=z), engines, weight), compared.tensors)


def _check(compared: Compared, engines: Sequence[str], weight: Tensor) -> None:
    tensors = compared.tensors

    def run(dtype: torch.dtype) -> list[Tensor]:
        given = [z.to(dtype) if dtype == torch.float64 else z for z in tensors]
        return values_and_gradients(functools.partial(compared.formula, dtype=dtype), given, weight)

    dense = Dense(lambda: run(torch.float32))
    truth = run(torch.float64)
    for engine in engines:
        try:
            with pairops.engine(engine):
                found = values_and_gradients(compared.ours, tensors, weight)
        except ValueError as error:
            if "cannot serve this call" in str(error):
                continue
            raise
        for k, what in enumerate(("losses", "dx", "dy")[: len(found)]):
            try:
                assert_within_rule(f"{engine}: {what}", found[k], dense.result(k), truth[k])
            except AssertionError as error:
                if "not finite" in str(error):
                    raise Skipped("the formula overflows") from error
                off, whole = largest(found[k].double() - truth[k]), largest(truth[k])
                if _as_good_as_truth(compared, weight, k, off):
                    raise Skipped("the formula in float64 is no better") from error
                if compared.kinks and _at_a_kink(compared, weight):
                    raise Skipped("a pair lies at a threshold") from error
                same = len(tensors) > 1 and bool((tensors[1] == tensors[1][:1]).all())
                cancels = k > 0 and same and whole < 1e-12 and off < 1e-6
                if cancels or (compared.attends and off <= 1e-5 * whole):  # docs/numerics.md
                    raise Skipped("no more than rounding is left") from error
                if compared.refers and largest(truth[0]) > FAR:  # the loss is about as far
                    raise Skipped("a positive is far below others") from error
                raise


def _as_good_as_truth(compared: Compared, weight: Tensor, k: int, off: float) -> bool:
    """Is the result no farther from the truth than the truth itself may be from what is right?

    It is rounded too, and so it is as uncertain as it moves where embeddings change by their last
    bits; and a difference of numbers of order 1 has no digits beyond 2^-50.
    """
    still, *others = _nearby(compared, weight, 6, 2 * 2**-52)
    return off <= 2 * max(largest(z[k] - still[k]) for z in others) + 2**-50


def unless_refused(call: Callable[[], object]) -> None:
    try:
        call()
    except ValueError as error:
        if any(text in str(error) for text in REFUSED):
            raise Skipped(str(error)) from error
        raise


def _at_a_kink(compared: Compared, weight: Tensor) -> bool:
    """Does the truth jump where embeddings change by what their own rounding may be?"""
    still, *others = _nearby(compared, weight, 10, 8 * 2**-23)
    return any(
        largest(a - b) > 1e-4 * largest(b)
        for each in others
        for a, b in zip(each, still, strict=True)
    )


def _nearby(compared: Compared, weight: Tensor, count: int, by: float) -> Iterator[list[Tensor]]:
    """The truth, and then that of rows which differ from these by a few bits."""
    computed = functools.partial(compared.formula, dtype=torch.float64)
    for k in range(count):
        near = [1 + by * bool(k) * torch.randn(z.shape) for z in compared.tensors]
        changed = [z.double() * a for z, a in zip(compared.tensors, near, strict=True)]
        yield values_and_gradients(computed, changed, weight)


def exactly(compared: Compared, engine: str, *, twice: bool = False) -> None:
    """In float64: values, gradients by all tensors, and the gradient of a part of these.

    To eight digits of the largest entry, where the formula is as well conditioned as that.
    """
    with pairops.engine(engine):
        try:
            unless_refused(lambda: compared.ours(*compared.tensors))
        except Skipped as reason:
            if "cannot serve" in str(reason):
                return
            raise
        ours = _derivatives(compared, compared.ours, twice)
    formula = functools.partial(compared.formula, dtype=torch.float64)
    truth = _derivatives(compared, formula, twice)
    names = ["values", *[f"slopes by tensor {n}" for n in range(len(compared.tensors))]]
    for k, (a, b) in enumerate(zip(ours, truth, strict=True)):
        if not bool(torch.isfinite(b).all()):
            raise Skipped("the formula overflows")
        bound = 1e-8 * largest(b) + 1e-11
        if not largest(a - b) <= bound:
            for _ in range(10):
                # More than the tolerance with which the oracle takes two for equal.
                near = [z * (1 + 2**-40 * torch.randn_like(z)) for z in compared.tensors]
                other = _derivatives(replace(compared, tensors=near), formula, twice)[k]
                if largest(other - b) > largest(a - b) / 16:
                    raise Skipped("a pair lies at a threshold, or digits are lost")
            name = names[k] if k < len(names) else "second derivatives"
            raise AssertionError(f"{engine}: {name}: error {largest(a - b):.3g} > {bound:.3g}")


def largest(z: Tensor) -> float:
    return float(z.abs().max()) if z.numel() else 0.0


def _derivatives(compared: Compared, run: Callable[..., Tensor], twice: bool) -> list[Tensor]:
    leaves = [z.detach().clone().requires_grad_() for z in compared.tensors]
    values = run(*leaves)
    total = (values * torch.linspace(0.5, 1.5, len(values), dtype=values.dtype)).sum()
    found = _slopes(total, leaves, create_graph=twice)
    result = [values.detach(), *[g.detach() for g in found]]
    if twice:
        part = sum((g * torch.linspace(-1, 2, g.numel()).view(g.shape)).sum() for g in found)
        result += [g.detach() for g in _slopes(part, leaves)]
    return result


def _slopes(total: Any, leaves: list[Tensor], create_graph: bool = False) -> list[Tensor]:
    if not total.requires_grad:
        return [torch.zeros_like(z) for z in leaves]
    found = torch.autograd.grad(total, leaves, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(z) if g is None else g for g, z in zip(found, leaves, strict=True)]
