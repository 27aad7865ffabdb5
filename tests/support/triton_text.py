"""What `codegen` writes for a step of ms_loss, as text that a reader and a test can compare: of
float32 embeddings, and of bfloat16 ones, of which VISIT gets products without their scales.

PYTHONPATH=tests python -m support.triton_text renews the file.
"""

import inspect
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

# Triton must be told before its import.
if os.environ.get("PAIROPS_TEST_DEVICE", "cpu") == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

import torch

import pairops
from pairops.ops.engines.triton import codegen
from support.engine_names import DEVICE
from support.project import ROOT

FILE = ROOT / "tests/ops/engines/triton/generated_ms_loss.txt"
_HEAD = """\
Written by pairops/ops/engines/triton/codegen.py for a step of ms_loss with one set; called by the
kernels in kernels/sweep.py and kernels/finalize.py. Renewed by

    PYTHONPATH=tests python -m support.triton_text
"""


def generated() -> str:
    """The text of one step: pair functions, then each sweep's functions in the order of sweeps."""
    with mock.patch.object(codegen, "_SWEEPS", {}), pairops.engine("triton"):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.eye(6, 3, dtype=dtype, device=DEVICE, requires_grad=True)
            pairops.ms_loss(x, torch.arange(6, device=DEVICE) // 2).backward()
        sweeps = list(codegen._SWEEPS.items())
    found = [_HEAD, "# ---- pair functions", *_pair_functions([sweep for _, sweep in sweeps])]
    for (write, *rest), sweep in sweeps:
        recipes = [key[0] + (" across" if key[1] else "") for key in rest[: sweep.facts.terms]]
        found += [f"# ---- {write.__name__.strip('_')}: {', '.join(recipes)}", f"# {sweep.facts}"]
        found += [_source(function) for function in sweep.functions]
    return "\n\n".join([piece.strip() for piece in found]) + "\n"


def _pair_functions(sweeps: list[codegen.Sweep]) -> Iterator[str]:
    shown = set()
    for sweep in sweeps:
        for function in sweep.functions:
            for name, known in function.fn.__globals__.items():
                if name.endswith(("_value", "_slopes")) and name not in shown:
                    shown.add(name)
                    yield _source(known)


def _source(function: Any) -> str:
    return inspect.getsource(function.fn)


if __name__ == "__main__":
    if DEVICE == "cpu":
        from support import triton_interpreter

        triton_interpreter.prepare()
    FILE.write_text(generated())
