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
from support import cuda_counts, sass, triton_resources

NVDISASM = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
ROWS = 4096


def opcodes(cubin: bytes, products: float) -> dict[str, float]:
    """Of one trip of the loop over full tiles, known by its products: multiply-adds of a warp.

    The other loop over tiles has masks, and may have narrower tiles.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [NVDISASM, "-c", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ((_, graph),) = sass.kernels(said)

    def multiplied(loop: sass.Loop) -> float:
        found = sass.opcodes(graph, loop.blocks)
        return sum(n * cuda_counts.multiply_adds(opcode) for opcode, n in found.items())

    both = [k for k in sass.loops(graph) if sass.opcodes(graph, k.blocks)["MUFU.EX2"]]
    full = [k for k in both if multiplied(k) >= products]
    # The masks of a partial tile take more instructions than its width spares.
    loop = min(full, key=lambda k: sass.opcodes(graph, k.blocks).total())
    path = sass.Path(graph, lambda *_: False, sass.no_trips)
    return dict(path.around(loop))


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
        products = config.rows * config.cols * config.padded / config.warps
        for sweep in ("forward", "backward"):
            # A program of `backward` also multiplies the weights of its part of the dimensions.
            times = 1 + 1 / config.parts if sweep == "backward" else 1
            said = {
                "d": d, "sweep": sweep, "parts": config.parts if sweep == "backward" else 1,
                "pairs": config.rows * config.cols / (32 * config.warps),
                "warps": config.warps, "opcodes": opcodes(
                    compiled[sweep].asm["cubin"], times * products
                ),
            }  # fmt: skip
            print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), [int(d) for d in sys.argv[2:]])
