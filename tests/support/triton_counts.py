"""Counts the instructions of Triton's loops over full tiles, compiled for a GPU that is not there.

    python tests/support/triton_counts.py 90 128 256 512

One JSON object per D and sweep. Run by `make cuda-resources` in a process of its own, like
triton_resources.py, whose stand-in for a driver it takes.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.runtime.jit import JITFunction

import pairops
from pairops import NEG, Pairs, lse, row_stats
from pairops.ops.engines import weight_parts
from pairops.ops.engines.triton import tile_configs
from support import sass, triton_resources

NVDISASM = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
ROWS = 4096


def opcodes(cubin: bytes) -> dict[str, float]:
    """Of one trip of the loop over full tiles: the lighter of two, of which one has masks."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [NVDISASM, "-c", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ((_, graph),) = sass.kernels(said)
    path = sass.Path(graph, lambda *_: False, sass.no_trips)
    return dict(path.around(sass.main_loop(graph, copies=2)))


def main(capability: int, widths: list[int]) -> None:
    triton_resources.compile_for(capability)
    weight_parts.FEW = 0
    compile_only, compiled = JITFunction.run, {}

    def keep(self: Any, *args: Any, **options: Any) -> Any:
        compiled[self.__name__] = kernel = compile_only(self, *args, **options)
        return kernel

    JITFunction.run = keep
    for d in widths:
        x = torch.ones(ROWS, d, dtype=torch.bfloat16, requires_grad=True)
        with pairops.engine("triton"):
            ((found, *_),) = row_stats(Pairs.of(x, torch.arange(ROWS) // 4), lse(NEG, 1.0, 0.0))
            found.sum().backward()
        config = tile_configs.choose(divmod(capability, 10), x.dtype, d, "highest")
        for sweep in ("forward", "backward"):
            said = {
                "d": d, "sweep": sweep, "parts": config.parts if sweep == "backward" else 1,
                "pairs": config.rows * config.cols / (32 * config.warps),
                "warps": config.warps, "opcodes": opcodes(compiled[sweep].asm["cubin"]),
            }  # fmt: skip
            print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), [int(d) for d in sys.argv[2:]])
