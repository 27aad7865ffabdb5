"""The CUDA kernels of a test: those of the host, or the same ones told otherwise."""

from dataclasses import replace
from typing import Any

import pytest

from pairops.ops.bindings import cuda as cuda_kernels


def change_backend(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    """For this test, the installed kernels with other fields of `Backend`."""
    monkeypatch.setattr(cuda_kernels, "BACKEND", replace(cuda_kernels.installed(), **fields))
