"""Area "relations": one problem said in two ways, and Modules beside pytorch-metric-learning's."""

import math
from collections.abc import Callable
from random import Random
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import pairops
from fuzz import losses
from fuzz.batches import batch
from fuzz.finding import Skipped
from fuzz.formulas import unless_refused
from pairops.ops.engines.blockwise import grid
from support.loss_parameters import LABELLED, ONE_SET, SIMILAR_ONLY

IMPORTS = [
    "from fuzz.batches import centred, places",
    "from fuzz.relations import alike, as_theirs, equal_references, order, sizes, tiles",
    "from support.named_cases import embeddings",
]
THEIRS = [
    "CircleLoss", "ContrastiveLoss", "GeneralizedLiftedStructureLoss", "MarginLoss",
    "MultiSimilarityLoss", "NCALoss", "NTXentLoss", "SupConLoss", "TripletMarginLoss",
    "SignalToNoiseRatioContrastiveLoss",
]  # fmt: skip


def draw(random: Random) -> list[str]:
    if random.random() < 0.15:
        return [*IMPORTS, *_modules(random)]
    name = random.choice([name for name in LABELLED if name not in ONE_SET])
    params = losses.settings(random, name)
    way = random.choice(["equal_references", "order", "sizes", "tiles"])
    if way == "equal_references" and name not in SIMILAR_ONLY and "negatives" not in params:
        params |= random.choice([{}, {"distance": "snr"}])  # whose two sides are not alike
    if way == "sizes":
        params.pop("distance", None)
        params.pop("normalize", None)
        params["distance"] = "cosine" if name in SIMILAR_ONLY else random.choice(["cosine", "l2"])
        if params.get("negatives") == "raw":
            params["distance"] = "cosine"
    made = batch(random, dtype="torch.float64", alone=True, plain=True, ties=False)
    made.keywords = {k: v for k, v in made.keywords.items() if k == "ignore_index"}
    told = "".join(f", {k}={v}" for k, v in made.keywords.items())
    engine = random.choice(losses.PLAIN)
    further = f", by={random.choice([1e100, 1e155, 1e160, 1e-9])}" if way == "sizes" else ""
    if way == "tiles":
        engine, further = "blockwise", f", rows={random.randint(1, 9)}, cols={random.randint(1, 9)}"
    call = f"{way}({name!r}, {params}, x, labels, {engine!r}{further}{told})"
    return [*IMPORTS, *made.lines, call]


def _modules(random: Random) -> list[str]:
    n, d, m = random.randint(6, 24), random.choice([4, 9]), random.randint(6, 24)
    way = random.choice(["alone", "two views", "two views", "references"])
    lines = [
        f"labels = torch.randint(0, {random.randint(2, 5)}, ({n},))",
        f"x = torch.randn({n}, {d}, dtype=torch.float64)",
        f"y = torch.randn({n if way == 'two views' else m}, {d}, dtype=torch.float64)",
        f"ref_labels = torch.randint(0, 4, ({m},))",
    ]
    told = {
        "alone": "x, labels",
        "two views": "x, labels, None, y, labels",
        "references": "x, labels, None, y, ref_labels",
    }
    return [*lines, f"as_theirs({random.choice(THEIRS)!r}, {told[way]})"]


def _both(run: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
    leaves = [z.detach().clone().requires_grad_() for z in tensors]
    values = run(*leaves)
    total = (values * torch.linspace(0.5, 1.5, len(values), dtype=values.dtype)).sum()
    if not total.requires_grad:
        return [values.detach(), *[torch.zeros_like(z) for z in leaves]]
    found = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return [values.detach(), *found]


def alike(what: str, ours: Tensor, other: Tensor) -> None:
    """To ten digits of the largest entry."""
    largest = float(other.abs().max()) if other.numel() else 0.0
    error = float((ours - other).abs().max()) if other.numel() else 0.0
    bound = 1e-8 * largest + 1e-11
    assert error <= bound, f"{what}: {error:.3g} apart, allowed {bound:.3g}"


def _loss(name: str, params: dict[str, Any], engine: str, labels: Tensor, **further: Any) -> Any:
    def run(x: Tensor, y: Tensor | None = None) -> Tensor:
        given = {**params, **further} if y is None else {**params, **further, "ref_emb": y}
        with pairops.engine(engine):
            value: Tensor = getattr(pairops, name)(x, labels, reduction="none", **given)
        return value

    return run


def equal_references(
    name: str, params: dict[str, Any], x: Tensor, labels: Tensor, engine: str, **further: Any
) -> None:
    """A batch against itself, and against references that are equal to it."""
    one = _loss(name, params, engine, labels, **further)
    other = _loss(
        name, params, engine, labels, ref_labels=labels.clone(), exclude_self=True, **further
    )
    unless_refused(lambda: one(x))
    value, dx = _both(one, x)
    again, by_x, by_y = _both(other, x, x)
    alike("values", again, value)
    alike("gradients", by_x + by_y, dx)


def order(
    name: str, params: dict[str, Any], x: Tensor, labels: Tensor, engine: str, **further: Any
) -> None:
    """The same rows in another order."""
    turn = torch.randperm(len(x))
    shuffled = torch.stack([labels[k] for k in turn.tolist()]) if len(x) else labels
    one = _loss(name, params, engine, labels, **further)
    unless_refused(lambda: one(x))
    leaf = x.clone().requires_grad_()
    value = one(leaf)
    again = _loss(name, params, engine, shuffled, **further)(leaf[turn])
    alike("values", again.detach(), value.detach()[turn])
    if value.requires_grad:
        alike(
            "gradients",
            torch.autograd.grad(again.sum(), leaf)[0],
            torch.autograd.grad(value.sum(), leaf)[0],
        )


def sizes(
    name: str, params: dict[str, Any], x: Tensor, labels: Tensor, engine: str, by: float,
    **further: Any,
) -> None:  # fmt: skip
    """Unit vectors of rows that are longer or shorter, each by its own factor up to `by`."""
    powers = math.log2(by) * torch.rand(len(x), 1, dtype=torch.float64)
    factors = 2 ** powers.round()  # exact
    one = _loss(name, params, engine, labels, **further)
    unless_refused(lambda: one(x))
    value, dx = _both(one, x)
    again, scaled = _both(one, x * factors)
    alike("values", again, value)
    alike("gradients", scaled * factors, dx)


def tiles(
    name: str, params: dict[str, Any], x: Tensor, labels: Tensor, engine: str, rows: int,
    cols: int, **further: Any,
) -> None:  # fmt: skip
    """In tiles of another shape."""
    one = _loss(name, params, engine, labels, **further)
    unless_refused(lambda: one(x))
    found = _both(one, x)
    with mock.patch.object(grid, "ROWS", rows), mock.patch.object(grid, "COLS", cols):
        small = _both(one, x)
    alike("values", small[0], found[0])
    alike("gradients", small[1], found[1])


def as_theirs(name: str, x: Tensor, labels: Tensor, *others: Tensor | None) -> None:
    """A class of pairops.compat.pml has the numbers of its namesake."""
    from pytorch_metric_learning import losses as theirs

    told = others[2:] if others else ()
    known = {k for z in (labels, *told) if z is not None for k in z.tolist()}
    if name == "SupConLoss" and len(known) == 1:
        raise Skipped("theirs is 0 without negatives: docs/losses.md")
    from pairops.compat import pml

    ours, other = getattr(pml, name)(), getattr(theirs, name)()
    if name == "MarginLoss":  # not rounded to float32
        ours.beta = other.beta = torch.tensor([1.2], dtype=torch.float64)
    tensors = [x, others[1]] if others else [x]

    def call(loss: Any) -> Callable[..., Tensor]:
        return lambda x, *y: (loss(x, labels, None, *y, *told) if y else loss(x, labels)).reshape(1)

    for mine, those in zip(_both(call(ours), *tensors), _both(call(other), *tensors), strict=True):  # type: ignore[arg-type]
        alike("values or gradients", mine, those)
