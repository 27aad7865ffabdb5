"""The compiled part, if there is one: loaded once, and told what every call of it must be told."""

import functools
import os
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

try:
    # By name: the contract on imports takes a compiled module for the whole package.
    native: Any = import_module("pairops._native")
except ImportError as error:  # a source tree that was never built
    native = None
    MISSING: str | None = f"the extension cannot be imported ({error})"
else:
    MISSING = None

DTYPES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}


def serves(tensor: Tensor) -> bool:
    """Can the extension work on this tensor's memory?"""
    return native is not None and tensor.device.type == "cpu"


@functools.cache
def isa() -> str:
    """PAIROPS_ISA, or the best instruction set of this machine."""
    known = native.isas()
    name: str = os.environ.get("PAIROPS_ISA", known[0])
    if name not in known:
        raise ValueError(
            f"PAIROPS_ISA is {name!r}; it must be one of those of this machine: {', '.join(known)}"
        )
    return name
