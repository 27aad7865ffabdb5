"""Compiles the Triton sweeps of losses for GPUs that are not there, and prints what they take.

    python tests/support/triton_resources.py 90 bfloat16-128-ms_loss-highest \
        float32-128-supcon_loss-high

One JSON object per kernel: its registers, its shared memory, bytes spilled, and what its text says
of rounding. Run by test_tile_configs.py in processes of their own, one per GPU, since it takes
Triton's driver for a stand-in that compiles and launches nothing. Another Triton comes first on
PYTHONPATH, see docs/testing.md.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

import pairops
from pairops.ops.engines import weight_parts
from pairops.ops.engines.triton import engine

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class NoDriver:
    """A GPU of the given compute capability that is asked for its name and nothing else."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


def resources(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    return {"registers": int(found["REG"]), "spilled": int(found["STACK"]) + int(found["LOCAL"])}


def carried_products(text: str) -> int:
    """How many products of a kernel, as Triton's first representation has it, add to a sum of the
    tiles before: to what is no constant, no other product and no sum over dimensions, whose loops
    stand inside those over tiles."""
    loops = re.findall(r"^ {6,}\S+ = scf\.for .* iter_args\((.*?)\) ->", text, re.M)
    within = {name for loop in loops for name in re.findall(r"(%[\w.]+) =", loop)}
    within |= set(re.findall(r"(%[\w.]+) = tt\.dot ", text))
    sums = re.findall(r"tt\.dot %[\w.#]+, %[\w.#]+, (%[\w.#]+)", text)
    return sum(name not in within and not name.startswith("%cst") for name in sums)


def compile_for(capability: int) -> dict[str, dict[str, Any]]:
    """Triton compiles from here on instead of launching; what it has compiled, by its hash."""
    triton.runtime.driver.set_active(NoDriver(capability))
    kernels: dict[str, dict[str, Any]] = {}
    launch = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        del warmup
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        if kernel.hash not in kernels:
            kernels[kernel.hash] = {
                "kernel": self.__name__,
                "shared": kernel.metadata.shared,
                "products": len(
                    re.findall("wgmma.mma_async|tcgen05.mma|mma.sync", kernel.asm["ptx"])
                ),
                # Without .rn a product may be fused into a sum by what reads this text.
                "fusible": len(re.findall(r"\b(?:add|sub|mul)(?:\.ftz)?\.f32", kernel.asm["ptx"])),
                "carried": carried_products(kernel.asm["ttir"]),
                **resources(kernel.asm["cubin"]),
            }
        return kernel

    JITFunction.run = compile_only
    engine.declines = lambda *_call: None
    engine.capability = lambda _device: divmod(capability, 10)
    return kernels


def step(name: str, dtype: torch.dtype, d: int) -> None:
    """Forward and backward of a loss, with positives by list if its name ends in "+list", of dot
    products if in "+chunks"; the numbers that come out mean nothing."""
    name, _, how = name.partition("+")
    x, y = (torch.ones(300, d, dtype=dtype, requires_grad=True) for _ in "xy")
    other = y if name in ("info_nce_loss", "siglip_loss") else torch.arange(300) // 4
    given = {"scale": torch.ones(()), "bias": 0.0} if name == "siglip_loss" else {}
    if how == "chunks":
        given = {"distance": "dot"}  # of which not every weight has a bound
    elif how == "list":
        other, given = None, {"positives": (torch.arange(299), torch.arange(1, 300))}
    getattr(pairops, name)(x, other, **given).backward()


if __name__ == "__main__":
    capability, *jobs = sys.argv[1:]
    kernels = compile_for(int(capability))
    for job in jobs:
        dtype, d, loss, level = job.split("-")
        torch.set_float32_matmul_precision(level)
        kernels.clear()
        # The rows of a step as few and as many: weights in two parts, and in as many as they have.
        for weight_parts.FEW in (1024, 0):
            with pairops.engine("chunked" if loss.endswith("+chunks") else "triton"):
                step(loss, getattr(torch, dtype), int(d))
        for kernel in kernels.values():
            print(json.dumps({"job": job, **kernel}), flush=True)
