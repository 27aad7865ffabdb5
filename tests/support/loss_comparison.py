"""Losses on several engines against the naive float64 formulas, by the error rule."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import oracle
import pairops
from support.engine_names import HERE, WIDE
from support.error_rule import Dense, assert_within_rule, gradients
from support.loss_parameters import ONE_SET, mined, with_rest
from support.named_cases import Case, embeddings, separated, smaller, smooth, turned

Result = list[Tensor]


class Found(NamedTuple):
    """Losses of each anchor, or a gradient of their weighted sum."""

    engine: str
    what: str
    ours: Tensor
    dense: Iterator[Tensor]  # dense torch's, in one order of summation after another
    truth: Tensor


def check(
    tensors: list[Tensor],
    ours: Callable[..., Tensor],
    formula: Callable[..., Tensor],
    engines: Sequence[str] = tuple(HERE),
) -> list[str]:
    """`beside_dense` by the error rule. Returns the engines that served the call."""
    ran = []
    for found in beside_dense(tensors, ours, formula, engines):
        if found.engine not in ran:
            ran.append(found.engine)
        assert_within_rule(f"{found.engine}: {found.what}", found.ours, found.dense, found.truth)
    return ran


def beside_dense(
    tensors: list[Tensor],
    ours: Callable[..., Tensor],
    formula: Callable[..., Tensor],
    engines: Sequence[str] = tuple(HERE),
) -> Iterator[Found]:
    """Per-anchor losses and gradients by `tensors`, on those of the engines that serve the call.

    ours(*tensors) is the library, formula(*tensors, dtype=) the oracle. The oracle is the slow
    part, so it runs once for all engines.
    """
    wide = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    weight = 0.5 + torch.rand(max(len(z) for z in tensors), dtype=torch.float64)

    def run(function: Callable[..., Tensor], like: torch.dtype) -> Result:
        return values_and_gradients(function, [z.to(like) for z in tensors], weight)

    stored = tensors[0].dtype
    dense = Dense(lambda: run(functools.partial(formula, dtype=wide), stored), wide)
    truth = run(functools.partial(formula, dtype=torch.float64), torch.float64)
    for engine in engines:
        if wide == torch.float64 and engine not in WIDE:
            continue
        with pairops.engine(engine):
            try:
                found = run(ours, stored)
            except ValueError as error:
                if "cannot serve this call" not in str(error):
                    raise
                continue
        for k, what in enumerate(["losses", "dx", "dy"][: len(found)]):
            yield Found(engine, what, found[k], dense.result(k), truth[k])


def values_and_gradients(
    function: Callable[..., Tensor], tensors: list[Tensor], weight: Tensor
) -> Result:
    """Per-anchor losses, and the gradients of their sum with these weights."""
    mine = [z.detach().requires_grad_() for z in tensors]
    values = function(*mine)
    found = gradients(lambda: values, mine, weight[: len(values)].to(values.dtype))
    return [values.detach(), *found]


def compare(name: str, params: dict[str, Any], case: Case, engines: Sequence[str]) -> list[str]:
    """`check` of a labelled loss."""
    return check(*call_and_formula(name, params, case), engines)


# What `check` takes: tensors, the library's loss of them and the oracle's.
Call = tuple[list[Tensor], Callable[..., Tensor], Callable[..., Tensor]]


def of_two_sets(
    name: str, params: dict[str, Any], x: Tensor, y: Tensor, labels: Tensor | None = None
) -> Call:
    """A loss over two sets. labels: in place of those that `with_rest` makes."""

    def run(function: Callable[..., Tensor], x: Tensor, y: Tensor, **keywords: Any) -> Tensor:
        rest, told = with_rest(name, x, y)
        if labels is not None:
            rest = (y, labels)
        return function(x, *rest, **told, **params, **keywords)

    loss, formula = getattr(pairops, name), getattr(oracle, name)
    return [x, y], functools.partial(run, loss, reduction="none"), functools.partial(run, formula)


def call_and_formula(name: str, params: dict[str, Any], case: Case) -> Call:
    """A labelled loss."""
    params = {**params, **{k: case.keywords[k] for k in ("distance",) if k in case.keywords}}
    if params.get("distance") == "dot":
        params.pop("normalize", None)
    other = case.keywords.get("ref_emb")
    constant = {k: v for k, v in case.keywords.items() if k not in ("ref_emb", "distance")}
    for_oracle = {k: v for k, v in constant.items() if k in ("ignore_index", "ref_labels")}

    def reference(y: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return {} if other is None else {"ref_emb": y[0] if y else other}

    def ours(x: Tensor, *y: Tensor) -> Tensor:
        given = {**params, **constant, **reference(y)}
        return getattr(pairops, name)(x, case.labels, **given, reduction="none")

    def formula(x: Tensor, *y: Tensor, **changed: Any) -> Tensor:
        given = {**params, **for_oracle, **case.oracle, **reference(y), **changed}
        return getattr(oracle, name)(x, case.labels, **given)

    tensors = [case.x] if other is None or not case.y_grad else [case.x, other]
    return tensors, ours, formula


def case_for(
    name: str, params: dict[str, Any], maker: Callable[..., Case], dtype: torch.dtype
) -> Case:
    # Of all triplets many are near their kink where no feature tells classes apart.
    apart = params.get("mining") == "all"
    exact = mined(name, params) or apart
    make = embeddings if exact else smooth
    case = maker(lambda n, d: make(n, d, dtype))
    if params.get("mining") == "semihard":  # of a million triplets one is within rounding
        case = smaller(case)
    if apart:
        case = separated(case)
    return turned(case) if exact else case


def fits(name: str, params: dict[str, Any], case: Case) -> bool:
    """Has the loss what the case is about?"""
    similar = case.keywords.get("distance") == "dot"
    only_distances = similar and "neg_margin" in params and params.get("normalize") is False
    alone = {"ignore_index"} | ({"distance"} if params.get("distance") is None else set())
    return not only_distances and (name not in ONE_SET or set(case.keywords) <= alone)
