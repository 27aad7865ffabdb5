"""May a product be fused into a sum in the kernels for float32? Read from the extension's PTX.

What is compiled with -fmad=false says of every product and every sum that it is rounded, and ptxas
may fuse no such two. An fma.rn is one that the source asks for.
"""

import re
import subprocess
from pathlib import Path

# Of an entry for two float16 a number: Shape<slice, warps, columns, 2, chunk>.
SPLIT = re.compile(r"5ShapeILi\d+ELi\d+ELi\d+ELi2E")
UNROUNDED = re.compile(r"\b(?:add|sub|mul)\.(?:ftz\.)?f32\b")


def unrounded(ptx: str) -> dict[str, int]:
    """By kernel for two parts, how many of its products and sums the assembler may fuse."""
    found = {}
    for part in ptx.split(".entry ")[1:]:
        name, _, body = part.partition("(")
        if SPLIT.search(name):
            found[name.strip()] = len(UNROUNDED.findall(body))
    return found


def check(cuobjdump: Path, extension: str) -> bool:
    """Prints what may be fused; false if anything may, or if no such kernel is there."""
    command = [cuobjdump, "--dump-ptx", extension]
    ptx = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = unrounded(ptx)
    for name, count in sorted(found.items()):
        if count:
            print(f"{name}: {count} products and sums that may be FUSED; it needs -fmad=false")
    print(f"{len(found)} kernels for float32 fuse nothing that they are not told to")
    return bool(found) and not any(found.values())
