"""How often a step of a loss goes through the pairs: back once, whatever its terms wait for."""

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import pairops
from pairops.ops.bindings import extension
from pairops.ops.engines import blockwise_engine
from pairops.ops.engines import cpu as cpu_engine
from pairops.ops.engines.plan import Plan
from support.on_cpu import device as device

# A loss: how many sweeps its terms are gathered in, and how many of those go through all pairs.
FORWARD = {
    "ms_loss": (3, 1), "supcon_loss": (2, 1), "nca_loss": (2, 1), "info_nce_loss": (2, 1),
    "contrastive_loss": (1, 1), "triplet_loss": (1, 1),
}  # fmt: skip


def step(name: str, n: int, reduction: str, distance: str = "cosine") -> None:
    x = torch.randn(n, 8, requires_grad=True)
    other: Tensor = torch.arange(n) // 4
    told: dict[str, Any] = {"distance": distance}
    if name == "info_nce_loss":
        other = torch.randn(n, 8, requires_grad=True)
    value = getattr(pairops, name)(x, other, reduction=reduction, **told).sum()
    value.backward()
    assert x.grad is not None


@pytest.mark.skipif(extension.native is None, reason="this build has no kernels for the CPU")
@pytest.mark.parametrize(("n", "reduction"), [(64, "mean"), (64, "none"), (600, "mean")])
@pytest.mark.parametrize("name", FORWARD)
def test_of_the_compiled_engine(name: str, n: int, reduction: str) -> None:
    plans: list[Plan] = []
    forward = cpu_engine.planned_forward

    def counted(*args: Any) -> Any:
        plans.append(args[3])
        return forward(*args)

    native = mock.Mock(wraps=cpu_engine._native)
    with (
        mock.patch.object(cpu_engine, "planned_forward", counted),
        mock.patch.object(cpu_engine, "_native", native),
    ):
        step(name, n, reduction)
    (plan,) = plans
    assert native.forward.call_count == 1
    sweeps = [[plan.kinds[k].cpu_key.split(":")[1] for k in some] for some in plan.sweeps]
    whole = sum(set(sides) != {"pos"} for sides in sweeps)
    assert (len(sweeps), whole) == FORWARD[name]
    assert native.backward.call_count == 1


@pytest.mark.parametrize("distance", ["cosine", "l2", "snr"])
@pytest.mark.parametrize(("name", "back"), [*((name, 1) for name in FORWARD), ("nt_xent_loss", 2)])
def test_of_another_engine(name: str, back: int, distance: str) -> None:
    """A gradient that goes on to an earlier term takes one more, that of extremes none, a distance
    that is put under the functions of the terms none either."""
    if name == "triplet_loss":
        back = 0
    counts = {}
    with (
        pairops.engine("blockwise"),
        mock.patch.multiple(
            blockwise_engine,
            forward=mock.Mock(wraps=blockwise_engine.forward),
            backward=mock.Mock(wraps=blockwise_engine.backward),
        ),
    ):
        step(name, 64, "mean", distance)
        counts = {k: getattr(blockwise_engine, k).call_count for k in ("forward", "backward")}
    forward = FORWARD[name][0] if name in FORWARD else 3
    assert counts == {"forward": forward, "backward": back}
