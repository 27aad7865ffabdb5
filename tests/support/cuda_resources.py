"""What the CUDA kernels take of a GPU: registers, spills, shared memory, instructions a pair.

PYTHONPATH=tests python -m support.cuda_resources fails on a spill, on local memory, where the
shared memory of the largest call is more than the smallest GPU of its architecture gives a block,
where a kernel for float32 may fuse a product into a sum, and where a sweep is over its budget of
instructions. Triton brings the program that reads the kernels which are installed; only what
instructions are counted of is compiled.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import triton

from pairops import _native
from support import cuda_contraction, instruction_budget

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "cuda_resources"
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

# What a block may have: 8.6, 8.9 and 12.0 have least of what runs the one; Hopper runs the other.
LIMITS = {"Shape": 101376, "HopperShape": 232448}

# Prints every shape's name and the shared memory of its largest call. In the layout rows and
# columns may both have MOST_OPERANDS; but the engine gives them that many in all, and a term that
# has two sums by arguments has four operands in the one role that they are summed in.
LAYOUTS = """
#include <cstdio>
#include <typeinfo>
#include "cuda/params/shape_table.h"
using namespace pairops::cuda;
template <class S>
void print(const char* name) {
    constexpr int all = FIRST_OPERAND + MOST_OPERANDS, sums = 2 * 2 * MOST_TERMS;
    int largest = 0;
    for (int rows = 0; rows <= MOST_OPERANDS; ++rows) {
        const int bytes = layout<S>(FIRST_OPERAND + rows, all - rows, MOST_OPERANDS).bytes;
        largest = bytes > largest ? bytes : largest;
    }
    std::printf("%s %s %d %d\\n", name, S::hopper ? "HopperShape" : "Shape", largest,
                layout<S>(all, all, sums).bytes);
}
int main() {
"""


class Kernel(NamedTuple):
    architecture: str
    name: str
    registers: int
    local: int  # bytes of local memory a thread: its stack, where spills are, and arrays


def short(names: list[str]) -> list[str]:
    """Names of entries as one would write them, without namespaces and parameters."""
    demangler = shutil.which("c++filt") or shutil.which("cu++filt")
    if not demangler:
        return names
    text = subprocess.run(
        [demangler], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout
    found = []
    for line in text.splitlines():
        line = re.sub(r"^void |pairops::(portable::)?|cuda::|\(anonymous namespace\)::", "", line)
        found.append(re.sub(r"\((\w+::)?\w*\)(?=\d)|\([A-Z]\w*<?.*\)$", "", line))
    return found


def kernels_of(dump: str) -> list[Kernel]:
    """Every kernel for every architecture, from what cuobjdump says of a file."""
    found = []
    for part in dump.split("Fatbin elf code:")[1:]:
        architecture = re.search(r"^arch = sm_(\w+)", part, re.M)
        assert architecture is not None
        entries = re.findall(
            r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", part
        )
        assert len(entries) == part.count(" Function ")
        found += [
            Kernel(architecture[1], name, int(registers), int(stack) + int(local))
            for name, registers, stack, local in entries
        ]
    names = short([kernel.name for kernel in found])
    return [kernel._replace(name=name) for kernel, name in zip(found, names, strict=True)]


def shared_memory() -> dict[str, tuple[int, int, int]]:
    """By shape: the largest call's bytes, the largest layout's, the limit."""
    text = (ROOT / "csrc" / "cuda" / "params" / "shape_table.h").read_text()
    shapes = re.findall(r"^using (\w+) = (?:Hopper|Halves)?Shape<", text, re.M)
    calls = "".join(f'    print<{name}>("{name}");\n' for name in shapes)
    source, program = BUILD / "layouts.cpp", BUILD / "layouts"
    source.write_text(LAYOUTS + calls + "}\n")
    command = ["g++", "-std=c++17", "-I", str(ROOT / "csrc"), str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    found = {}
    for line in lines.splitlines():
        name, kind, largest, layout = line.split()
        found[name] = int(largest), int(layout), LIMITS[kind]
    return found


def resources() -> bool:
    """Print what kernels take, as the extension has them; False if it is too much."""
    BUILD.mkdir(parents=True, exist_ok=True)
    good = True
    shared = shared_memory()
    print(f"{'shape':12} {'largest call':>13} {'largest layout':>15} {'limit':>8}")
    for name, (largest, layout, limit) in shared.items():
        fits = largest <= limit
        good = good and fits
        print(f"{name:12} {largest:13} {layout:15} {limit:8}{'' if fits else '  TOO MUCH'}")
    if not _native.features()["cuda"]:
        print(
            "SKIPPED: this build has no CUDA kernels, so nothing is known of registers and spills"
        )
        return good
    dump = subprocess.run(
        [CUOBJDUMP, "--dump-resource-usage", str(_native.__file__)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = kernels_of(dump)
    print(f"\n{'sm':3} {'registers':>9} {'local':>5}  kernel")
    for kernel in sorted(found):
        good = good and kernel.local == 0
        print(f"{kernel.architecture:3} {kernel.registers:9} {kernel.local:5}  {kernel.name}")
    print(f"{len(found)} kernels")
    rounded = cuda_contraction.check(CUOBJDUMP, str(_native.__file__))
    return good and bool(found) and rounded


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m support.cuda_resources", description=__doc__)
    parser.add_argument(
        "--write", action="store_true", help="write the table, and lower budgets to what is counted"
    )
    options = parser.parse_args()
    good = [resources(), instruction_budget.check(options.write)]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
