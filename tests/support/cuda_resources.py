"""What the CUDA kernels take of a GPU, as compiled without one: registers, spills, shared memory.

python tests/support/cuda_resources.py fails on a spill, on local memory, and where the shared memory
of the largest call is more than the smallest GPU of its architecture gives a block.
"""

import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "cuda_resources"
ARCHITECTURES = ("80", "90a")
FLAGS = ["-std=c++17", "--expt-relaxed-constexpr", "-O3", "-I", str(ROOT / "csrc")]
STRICT = ["-Xptxas", "-v,-warn-spills,-warn-lmem-usage", "-Xptxas", "-Werror"]

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
    source: str
    architecture: str
    name: str
    registers: int
    spilled: int  # bytes


def compile_one(nvcc: str, source: Path, architecture: str) -> tuple[bool, str]:
    target = BUILD / f"{source.stem}.{architecture}.cubin"
    command = [nvcc, *FLAGS, *STRICT, f"-arch=sm_{architecture}", "-cubin"]
    done = subprocess.run(
        [*command, str(source), "-o", str(target)], capture_output=True, text=True
    )
    return done.returncode == 0, done.stdout + done.stderr


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


def kernels_of(source: str, architecture: str, text: str) -> list[Kernel]:
    found = []
    for part in text.split("Compiling entry function '")[1:]:
        name = part.split("'")[0]
        registers = re.search(r"Used (\d+) registers", part)
        bytes_of = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", part)
        assert registers is not None
        assert bytes_of is not None
        spilled = int(bytes_of[1]) + int(bytes_of[2])
        found.append(Kernel(source, architecture, name, int(registers[1]), spilled))
    names = short([kernel.name for kernel in found])
    return [kernel._replace(name=name) for kernel, name in zip(found, names, strict=True)]


def shared_memory() -> dict[str, tuple[int, int, int]]:
    """By shape: the largest call's bytes, the largest layout's, the limit."""
    text = (ROOT / "csrc" / "cuda" / "params" / "shape_table.h").read_text()
    shapes = re.findall(r"^using (\w+) = (?:Hopper)?Shape<", text, re.M)
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


def main() -> int:
    BUILD.mkdir(parents=True, exist_ok=True)
    good = True
    shared = shared_memory()
    print(f"{'shape':12} {'largest call':>13} {'largest layout':>15} {'limit':>8}")
    for name, (largest, layout, limit) in shared.items():
        fits = largest <= limit
        good = good and fits
        print(f"{name:12} {largest:13} {layout:15} {limit:8}{'' if fits else '  TOO MUCH'}")
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("SKIPPED: there is no nvcc on PATH, so nothing is known of registers and spills")
        return 0 if good else 1
    begin = time.monotonic()
    sources = sorted((ROOT / "csrc" / "cuda").rglob("*.cu"))
    # Those of the backward pass take longest: first.
    sources.sort(key=lambda path: "forward" in path.name)
    jobs = [(source, arch) for source in sources for arch in ARCHITECTURES]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda job: compile_one(nvcc, *job), jobs))
    found = []
    for (source, architecture), (compiled, text) in zip(jobs, results, strict=True):
        found += kernels_of(source.name, architecture, text)
        if not compiled:
            good = False
            told = [line for line in text.splitlines() if not re.search(r"ptxas info|^ ", line)]
            print(f"{source.name} for sm_{architecture} FAILED:", *told, sep="\n")
    print(f"\n{'sm':3} {'registers':>9} {'spilled':>7}  kernel")
    for kernel in sorted(found, key=lambda k: (k.architecture, k.source, k.name)):
        good = good and kernel.spilled == 0
        text = f"{kernel.architecture:3} {kernel.registers:9} {kernel.spilled:7}  {kernel.name}"
        print(text)
    print(f"{len(found)} kernels, compiled in {time.monotonic() - begin:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
