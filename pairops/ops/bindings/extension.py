"""The compiled extension, if there is one: loaded once; with facts that every call needs."""

import functools
import importlib.util
import os
import sys
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_NAME = "pairops._native"
_ROOT = Path(__file__).parents[2]  # the package


def _load() -> tuple[Any, str | None]:
    """Return the extension, or why there is none.

    A source folder that Python finds before the installed package has no extension: then the
    installed package's is loaded, if it has the same interface.
    """
    try:
        # Import by name: the import contract takes a compiled module for the whole package.
        return import_module(_NAME), None
    except ImportError as error:
        reason = f"the extension cannot be imported ({error})"
    installed = _installed()
    if installed is None:
        return None, f"{reason}; in a source folder type: pip install ."
    try:
        same = (installed.parent / "_native.pyi").read_bytes() == (
            _ROOT / "_native.pyi"
        ).read_bytes()
    except OSError:
        same = False
    if not same:
        return None, (
            f"{_ROOT} is a source folder without its extension, and {installed} is that of another "
            "version; type: pip install ."
        )
    try:
        return _from_file(installed), None
    except ImportError as error:
        return None, f"the extension cannot be imported ({error})"


def _installed() -> Path | None:
    """Return the installed package's extension, if this is another folder."""
    try:
        known = files("pairops") or []
    except PackageNotFoundError:
        return None
    for path in known:
        if path.parent.name == "pairops" and path.name in _FILES:
            return Path(str(path.locate()))
    return None


_FILES = {f"_native{suffix}" for suffix in EXTENSION_SUFFIXES}


def _from_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(_NAME, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[_NAME] = module
    return module


native, MISSING = _load()

DTYPES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}


def serves(tensor: Tensor) -> bool:
    """Return whether the extension can work on this tensor's memory."""
    return native is not None and tensor.device.type == "cpu"


@functools.cache
def isa() -> str:
    """Return PAIROPS_ISA, or the best instruction set of this machine."""
    known = native.isas()
    name: str = os.environ.get("PAIROPS_ISA", known[0])
    if name not in known:
        raise ValueError(
            f"PAIROPS_ISA is {name!r}; it must be one of those of this machine: {', '.join(known)}"
        )
    return name
