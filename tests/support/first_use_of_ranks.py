"""Calls of ranks whose engine is checked at first use, and is wrong on some of them."""

import warnings
from typing import Any
from unittest import mock

import torch

import pairops
from pairops.ops.engines import blockwise_engine, first_use


def calls(group: Any, given: dict[str, Any]) -> list[str]:
    """Who served each of three calls, or the error that there was.

    given: wrong: whether this rank's results are.
    """
    forward = blockwise_engine.forward

    def computed(*call: Any) -> Any:
        statistics, *rest = forward(*call)
        return [z * (1.01 if given["wrong"] else 1.0) for z in statistics], *rest

    names = "DEVICE", "WRONG", "AGREED", "_seen", "_waiting", "_engines", "_passed"
    values: list[Any] = ["cpu", {}, {}, set(), [], [], lambda _: frozenset()]
    found = []
    with mock.patch.multiple(first_use, **dict(zip(names, values, strict=True))):
        checked = first_use.checked_forward("blockwise")(computed)
        with (
            mock.patch.object(blockwise_engine, "forward", checked),
            pairops.engine("blockwise"),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            x = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
            for _ in range(3):
                try:
                    pairops.supcon_loss(x, torch.arange(12) // 3, group=group)
                    found.append("blockwise")
                except ValueError as error:
                    found.append(type(error).__name__)
    return found
