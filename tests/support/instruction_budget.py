"""Instructions of the GPU sweeps, counted: a table for the documentation, and their budgets.

`make cuda-resources` fails where a sweep takes more instructions than csrc/cuda/budget.txt grants,
and where the table in docs/engines/cuda.md is not that of the code; with ARGS=--write it writes
the table and lowers budgets. Nothing raises a budget but a hand.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
import triton

from support import cuda_counts
from support.documentation_tables import table
from support.project import ROOT, SUPPORT

PAGE = ROOT / "docs" / "engines" / "cuda.md"
BUDGET = ROOT / "csrc" / "cuda" / "budget.txt"
MADE = re.compile(r"(<!-- cycles: made by .* -->\n).*?(<!-- end -->)", re.DOTALL)
LITTLE = 0.02  # of a budget, by which a count may have fallen without a word

# What a multiprocessor of compute capability 9.0 does in a cycle.
SCHEDULERS = 4
PRODUCTS = 2048  # float16 multiply-adds of its tensor cores, by wgmma
BY_MMA = 0.62  # and the part of them that mma reaches
LINE = 128  # bytes of shared memory
SPECIAL = 16  # exponentials, a lane each
# What the model takes for granted; none of it was measured.
OF_PEAK = 0.8  # that torch.mm reaches, to which efficiency is relative
BUSY = 0.75  # of the cycles in which a scheduler could issue
EXPOSED = {"cuda": 0.5, "triton": 0.5}  # of tensor cycles, that nothing else hides
# On Hopper a group of warps multiplies s of a tile while it works on the pairs of the one before;
# what it must wait for, only the other group hides.
EXPOSED_AHEAD, EXPOSED_TO_GROUP = 0.2, 0.5
AHEAD = {128: 2 / 3, 256: 1 / 3, 512: 1 / 3}  # of the products: s of both sweeps, or of forward

TILE = 128 * 64  # pairs, of which cycles are given

SHAPES = {"cuda": {128: "Plain128", 256: "Plain256"}, "hopper": {}}
SHAPES["hopper"] = {128: "Hopper128", 256: "Hopper256", 512: "Hopper512"}
OF_BACKWARD = {"Hopper512": "Halves512"}  # where it has a shape of its own


class Sweep(NamedTuple):
    """One sweep at one D, as often as it runs for a gradient: once for each slice."""

    pairs: float  # that a thread has of a tile
    times: int
    work: Counter[str]  # opcodes of a warp and tile
    bring: Counter[str]  # of the warps that bring a tile
    warps: int  # that work on it

    @property
    def instructions(self) -> float:
        """Of a pair, by the warps that work."""
        return self.times * self.work.total() / self.pairs

    @property
    def of_bringing(self) -> float:
        return self.times * self.bring.total() / (self.pairs * self.warps)


LIMITERS = ["issue", "tensor cores", "shared memory", "special functions"]


class Cycles(NamedTuple):
    """Of a multiprocessor, for TILE pairs."""

    issue: float
    tensor: float
    shared: float
    special: float


def products(opcode: str) -> float:
    """Multiply-adds of a warp, as many as take their time by wgmma."""
    each = cuda_counts.multiply_adds(opcode)
    return each / BY_MMA if opcode.startswith("HMMA") else each


def lines(opcode: str) -> float:
    """Lines of shared memory that an instruction of a warp reads or writes.

    Narrow loads are those of a vector, of which lanes read the same few bytes.
    """
    if re.match(r"(LDSM|STSM)\b", opcode):
        return int(found[1]) if (found := re.search(r"\.([124])$", opcode)) else 1
    if re.match(r"(LDS|STS|LDGSTS)\b", opcode):
        return 4 if ".128" in opcode else 1
    if opcode.startswith("SHFL"):
        return 1
    if found := re.match(r"HGMMA\.64x(\d+)x16\.", opcode):
        rows = int(found[1]) + (64 if opcode.endswith(".SS") else 0)
        return rows * 32 / LINE / 4
    return 0.0


def cycles(sweep: Sweep) -> Cycles:
    warps = sweep.times * TILE / (32 * sweep.pairs)
    tensor = sum(n * products(opcode) for opcode, n in sweep.work.items())
    shared = sum(n * lines(opcode) for opcode, n in sweep.work.items())
    special = sum(n for opcode, n in sweep.work.items() if opcode.startswith("MUFU"))
    issued = sweep.work.total() + sweep.bring.total() / sweep.warps
    each = issued / SCHEDULERS, tensor / PRODUCTS, shared, special * 32 / SPECIAL
    return Cycles(*(warps * k for k in each))


def efficiency(path: str, d: int, each: Cycles) -> tuple[str, float, float]:
    """What limits a path, the efficiency that it cannot exceed, and the one to expect."""
    useful = 3 * TILE * d / PRODUCTS / OF_PEAK
    limiter = LIMITERS[each.index(max(each))]
    if path == "hopper":
        exposed = AHEAD[d] * EXPOSED_AHEAD + (1 - AHEAD[d]) * EXPOSED_TO_GROUP
    else:
        exposed = EXPOSED[path]
    taken = max(each.issue / BUSY, each.shared, each.special) + exposed * each.tensor
    return limiter, useful / max(each), useful / max(taken, each.tensor)


def triton_sweeps() -> dict[tuple[str, int, str], Sweep]:
    """Counted anew where pairops, Triton or what counts has changed."""
    content = hashlib.sha256(f"{triton.__version__} {torch.__version__}".encode())
    names = "triton_counts.py", "triton_resources.py", "sass.py", "cuda_counts.py"
    counting = [SUPPORT / name for name in names]
    for source in [*sorted((ROOT / "pairops").rglob("*.py")), *counting]:
        content.update(source.read_bytes())
    known = cuda_counts.BUILD / f"triton_{content.hexdigest()[:16]}.txt"
    if not known.exists():
        said = _triton_counts()
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(said, encoding="utf-8")
    found = {}
    for line in known.read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        sweep = Sweep(one["pairs"], one["parts"], Counter(one["opcodes"]), Counter(), one["warps"])
        found["triton", one["d"], one["sweep"]] = sweep
    return found


def _triton_counts() -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(SUPPORT.parent)])
    command = [sys.executable, str(SUPPORT / "triton_counts.py"), "90", "128", "256", "512"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if said.returncode:
        raise RuntimeError(said.stderr)
    return said.stdout


def cuda_sweeps() -> dict[tuple[str, int, str], Sweep]:
    counted = cuda_counts.counted()
    found = {}
    for path, shapes in SHAPES.items():
        for d, name in shapes.items():
            for sweep in ("forward", "backward"):
                backward = sweep == "backward"
                of = OF_BACKWARD.get(name, name) if backward else name
                shape = cuda_counts.shape(of)
                times = -(-d // shape.slice) if backward else 1
                work, bring = counted[of, sweep]
                found[path, d, sweep] = Sweep(shape.pairs, times, work, bring, shape.warps)
    return found


NAMES = {"cuda": "`cuda`, sm_80 path", "hopper": "`cuda`, Hopper", "triton": "`triton`"}
HEAD = ["path", "D", "forward", "backward", "copying", *LIMITERS, "limiter", "ceiling", "expected"]


def rows(sweeps: dict[tuple[str, int, str], Sweep]) -> list[list[str]]:
    made = []
    for path, d in dict.fromkeys((path, d) for path, d, _ in sweeps):
        both = [sweeps[path, d, sweep] for sweep in ("forward", "backward")]
        each = Cycles(*map(sum, zip(*map(cycles, both), strict=True)))
        limiter, ceiling, expected = efficiency(path, d, each)
        cells = [f"{one.instructions:.1f}" for one in both]
        cells += [f"{sum(one.of_bringing for one in both):.1f}", *(f"{k:,.0f}" for k in each)]
        made.append([NAMES[path], str(d), *cells, limiter, f"{ceiling:.2f}", f"{expected:.2f}"])
    return made


def compilers() -> dict[str, str]:
    """Of each path, the compiler whose instructions are counted."""
    said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", said)
    assert found is not None
    nvcc = f"nvcc {found[1]}"
    return {"cuda": nvcc, "hopper": nvcc, "triton": f"triton {triton.__version__}"}


class Granted(NamedTuple):
    most: float
    compiler: str


def budgets(text: str) -> dict[tuple[str, int, str], Granted]:
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            path, d, sweep, most, *compiler = line.split()
            found[path, int(d), sweep] = Granted(float(most), " ".join(compiler))
    return found


def objections(
    granted: dict[tuple[str, int, str], Granted],
    counted: dict[tuple[str, int, str], float],
    compiled_by: dict[str, str],
) -> tuple[list[str], list[str]]:
    """What is wrong, and what is merely worth saying."""
    wrong, said = [], []
    for key in sorted(granted.keys() | counted.keys()):
        name = "{} D = {} {}".format(*key)
        if key not in granted:
            wrong.append(f"{name}: csrc/cuda/budget.txt grants nothing; write {counted[key]:.1f}")
        elif key not in counted:
            wrong.append(f"{name}: csrc/cuda/budget.txt has a line for what is not counted")
        elif granted[key].compiler != compiled_by[key[0]]:
            said.append(
                f"{name}: SKIPPED, the budget is of {granted[key].compiler}, and this is "
                f"{compiled_by[key[0]]}"
            )
        elif counted[key] > granted[key].most + 0.05:
            wrong.append(
                f"{name}: {counted[key]:.1f} instructions a pair, and csrc/cuda/budget.txt grants "
                f"{granted[key].most}: OVER BUDGET"
            )
        elif counted[key] < granted[key].most * (1 - LITTLE):
            said.append(
                f"{name}: {counted[key]:.1f} instructions a pair, of {granted[key].most} granted; "
                "lower the budget: make cuda-resources ARGS=--write"
            )
    return wrong, said


def lowered(
    text: str, counted: dict[tuple[str, int, str], float], compiled_by: dict[str, str]
) -> str:
    """The file of budgets, each no higher than the count."""

    def line(old: str) -> str:
        if not old or old.startswith("#"):
            return old
        ((key, granted),) = budgets(old).items()
        now = round(counted.get(key, granted.most), 1)
        if granted.compiler != compiled_by[key[0]] or now >= granted.most:
            return old
        return "{:6} {:3} {:8} ".format(*key) + f"{now:6.1f} {granted.compiler}"

    return "".join(f"{line(old)}\n" for old in text.splitlines())


def check(write: bool) -> bool:
    """Print what is counted; False if a budget or the table is not kept."""
    if not shutil.which("nvcc"):
        print("SKIPPED: there is no nvcc, so instructions are not counted")
        return True
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(triton_sweeps)
        sweeps = cuda_sweeps() | beside.result()
    made = table(HEAD, rows(sweeps))
    print(f"\nInstructions a pair, and cycles of {TILE} pairs:\n{made}")
    counted = {key: sweep.instructions for key, sweep in sweeps.items()}
    page, granted = PAGE.read_text(encoding="utf-8"), BUDGET.read_text(encoding="utf-8")
    new = MADE.sub(lambda found: f"{found[1]}\n{made}\n{found[2]}", page)
    if write:
        PAGE.write_text(new, encoding="utf-8")
        granted = lowered(granted, counted, compilers())
        BUDGET.write_text(granted, encoding="utf-8")
    wrong, said = objections(budgets(granted), counted, compilers())
    current = set(compilers().values()) == {one.compiler for one in budgets(granted).values()}
    if current and not write and new != page:
        wrong.append("docs/engines/cuda.md has another table: make cuda-resources ARGS=--write")
    print("\n".join([*said, *wrong]))
    return not wrong
