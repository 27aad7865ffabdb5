"""The count build: the sweeps with one kind of term, compiled by nvcc, and what one tile runs.

What a tile of negatives runs is read off the SASS: the heaviest way around the main loop that
avoids what `skipped` names, in the words of the source. A loop whose trips are not known is an
error, and so is a path whose matrix products are not those of a tile.
"""

import functools
import hashlib
import re
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import triton

from support import sass

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "cuda_counts"
NVDISASM = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"

# H200 runs what is compiled for 9.0a, of the sm_80 path too. Line numbers change no instruction.
FLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-lineinfo", "-cubin"]
FLAGS += ["-gencode=arch=compute_90a,code=sm_90a"]

KIND = "Recipe<Term<LogSumExp, Side::neg, Affine>>"  # lse:neg:affine

# The shapes that are counted, by file: each file is compiled by a process of its own.
FILES = {
    "sm80": ["Plain128", "Plain256"],
    "sm90": ["Hopper128", "Hopper256", "Hopper512", "Halves512"],
}


class Shape(NamedTuple):
    """What a Shape of shape_table.h says, of which csrc/cuda/params/tile_shape.h has the words."""

    slice: int
    warps: int
    columns: int
    numbers: int  # of a row, in shared memory at once
    hopper: bool

    @property
    def pairs(self) -> int:
        """That a thread holds of a tile: 16 rows of all columns for a warp."""
        return self.columns // 2


def shape(name: str) -> Shape:
    text = (CSRC / "cuda" / "params" / "shape_table.h").read_text(encoding="utf-8")
    found = re.search(rf"^using {name} = (Hopper|Halves)?Shape<([\d, ]+)>;", text, re.MULTILINE)
    assert found is not None, f"csrc/cuda/params/shape_table.h has no {name}"
    numbers = [int(k) for k in found[2].split(",")]
    if found[1] == "Halves":
        slice_, columns, _stages, _parts, _noted = numbers
        return Shape(slice_, 8, columns, slice_, hopper=True)
    if found[1]:
        slice_, columns, _stages, *whole = numbers
        return Shape(slice_, 8, columns, whole[0] if whole else slice_, hopper=True)
    slice_, warps, columns, _parts = numbers
    return Shape(slice_, warps, columns, slice_, hopper=False)


class Counts(NamedTuple):
    """Opcodes of a warp that works on one tile, and of those that only bring it, all together."""

    work: Counter[str]
    bring: Counter[str]


@functools.cache
def where(file: str, first: str, last: str | None = None) -> frozenset[sass.Line]:
    """The lines of a file in csrc/cuda/ from the one that holds `first` to the next that is `last`,
    or all that hold `first`."""
    lines = (CSRC / "cuda" / file).read_text(encoding="utf-8").splitlines()
    starts = [k for k, line in enumerate(lines) if first in line]
    assert starts, f"csrc/cuda/{file} has no line with {first!r}: say here what became of it"
    if last is None:
        return frozenset((f"cuda/{file}", k + 1) for k in starts)
    assert len(starts) == 1, f"csrc/cuda/{file} has several lines with {first!r}"
    end = lines.index(last, starts[0])
    return frozenset((f"cuda/{file}", k + 1) for k in range(starts[0], end + 1))


def skipped() -> frozenset[sass.Line]:
    """What a tile of negatives without windows, bits or gradients by arguments does not run."""
    return frozenset().union(
        where("tile/scheduler.h", "DEVICE Masks masks(", "}"),
        where("tile/scheduler.h", "DEVICE bool has_pairs(", "}"),
        where("tile/epilogue.h", "const Operands<S, !transposed> bounds", "    }"),
        where("tile/epilogue_backward.h", "DEVICE void add_slopes(", "}"),
        where("kernels/backward.h", "backward_term<S>(call, term, stage, s, of, units, weights,"),
        where("kernels/backward.h", "        scale<S>(call, stage, s);"),
        where("tile/epilogue_backward.h", "add_joint<S, false>(call, joint, stage, s, row_pairs,"),
        # Units change where a weight is the largest so far.
        where("tile/epilogue_backward.h", "float shrink[2];", "}"),
        where("kernels/sm90/halves.h", "static DEVICE void change_units(", "    }"),
        where("kernels/forward.h", "int any = 0;", "}"),
        where("kernels/forward.h", "store_shared(flag_at<S>(call, k, stage, warp()), int(found));"),
        # A full tile's pairs are all valid, and a plain scale of s in [-1, 1] needs no maximum.
        where("kernels/forward.h", "if (!running.started) start<S>(call, running);"),
        where("kernels/mainloop.h", "if (!holding) held.load(x);"),
        where("kernels/forward.h", "add_bounded<S, false>(running, s, pairs);"),
        where("kernels/forward.h", "visit_kind(term.kind, [&](auto kind) INLINE {", "        });"),
    )


# In one set a pair is weighed for its owner and its partner at once.
JOINT = ("kernels/backward.h", "joint_term<S>(call, term, call.terms[term.twin], stage, s,")


class _Kernel:
    """A kernel of the count build: which of its blocks a tile skips, how often its loops run."""

    def __init__(self, graph: list[sass.Block], shape: Shape, forward: bool) -> None:
        self.graph, self.shape, self.forward = graph, shape, forward
        self.off = skipped()
        # The operands of columns, a statistic and a cotangent, come with a tile in backward alone.
        self.operands = where(
            "kernels/mainloop.h", "for (int k = 0; k < call.n_copied; ++k) {", "    }"
        )
        if forward:
            self.off |= self.operands
        self.loops = sass.loops(graph)
        self.path = sass.Path(graph, self.is_avoided, self.trips)

    def is_avoided(self, _block: int, instruction: sass.Instruction) -> bool:
        return not self.off.isdisjoint(instruction.lines)

    def ends(self, loop: sass.Loop, lines: frozenset[sass.Line]) -> bool:
        """Does the loop stand there in the source, by the branches that lead back?"""
        back = [k for k in loop.blocks if loop.header in self.graph[k].follows]
        return any(not lines.isdisjoint(self.graph[k].code[-1].lines) for k in back)

    def trips(self, loop: sass.Loop) -> list[tuple[float, sass.Avoided]]:
        def plain(_block: int, _instruction: sass.Instruction) -> bool:
            return False

        def without(line: tuple[str, str]) -> sass.Avoided:
            lines = where(*line)
            return lambda _, instruction: not lines.isdisjoint(instruction.lines)

        if self.ends(loop, self.operands):
            return [(0 if self.forward else 2, plain)]
        if self.ends(loop, where("kernels/forward.h", "for (int k = 0; k < call.n_terms; ++k) {")):
            return [(1, plain)]
        if self.ends(loop, where("kernels/backward.h", "for (int k = 0; k < call.n_terms; ++k) {")):
            return [(1, plain), (1, without(JOINT))]
        if self.ends(
            loop, where("tile/scheduler.h", "for (; visit < walk.end; visit += 32) {", "    }")
        ):
            return [(0, plain)]  # no term has bits
        if self.ends(loop, where("device/intrinsics.h", "DEVICE void barrier_wait(", "}")):
            return [(0, plain)]  # the tile is there
        if sass.opcodes(self.graph, loop.blocks)["ELECT"]:
            return [(1, plain)]  # a turn for each lane that issues a copy, of which there is one
        lines = {
            one.lines[:3]
            for k in loop.blocks
            for one in self.graph[k].code[-1:]
            if loop.header in self.graph[k].follows
        }
        raise ValueError(f"how often does the loop run that ends at {sorted(lines)}?")

    def bringing(self, function: str) -> Counter[str]:
        """One trip of the loop over tiles of a function that brings them."""
        lines = where("kernels/sm90/mainloop.h", f"DEVICE void {function}(", "}")
        found = [k for k in self.loops if self.ends(k, lines)]
        return self.path.around(found[-1])

    def counts(self) -> Counts:
        bring: Counter[str] = Counter()
        if self.shape.hopper:
            bring = self.bringing("bring_embeddings")
            for _ in range(self.shape.columns // 32):
                bring += self.bringing("bring_columns")
        work = self.path.around(sass.main_loop(self.graph))
        multiplied = self.shape.numbers + (0 if self.forward else self.shape.slice)
        expected = 16 * self.shape.columns * multiplied
        counted = sum(n * multiply_adds(opcode) for opcode, n in work.items())
        if counted != expected:
            raise ValueError(f"a warp's path has {counted} multiply-adds, and a tile {expected}")
        if work["MUFU.EX2"] < self.shape.pairs:
            raise ValueError("a pair's exponential is off the path")
        return Counts(work, bring)


def multiply_adds(opcode: str) -> float:
    """Of a warp, in one instruction of the tensor cores."""
    if found := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)\.", opcode):
        return int(found[1]) * int(found[2]) * int(found[3]) / 4  # of four warps together
    return 16.0 * 8 * 16 if opcode.startswith("HMMA.16816.") else 0.0


def _source(shapes: list[str]) -> str:
    lines = ['#include "cuda/kernels/launchers.h"', "namespace pairops::cuda {"]
    for name in shapes:
        if name.startswith("Halves"):  # backward of another shape, which instantiates it
            continue
        lines += [
            f"template void launch_forward<{name}>(ForwardCall, int, int, Stream);",
            f"template void launch_backward<{name}, 1>(BackwardCall, int, Stream);",
        ]
    return "\n".join([*lines, "}\n"])


def _recipes() -> str:
    """recipes.h, with one recipe for a GPU."""
    text = (CSRC / "recipes.h").read_text(encoding="utf-8")
    cut, n = re.subn(
        r"(using Recipes = std::tuple<).*?(>;\n\n// Recipes for the CPU)",
        rf"\g<1>{KIND}\g<2>",
        text,
        flags=re.DOTALL,
    )
    assert n == 1, "csrc/recipes.h has no list that is called Recipes"
    return cut


def disassembled(file: str) -> str:
    """nvdisasm's text of a file of the count build: compiled anew if nvcc or a header changed."""
    nvcc = shutil.which("nvcc")
    assert nvcc is not None
    source, recipes = _source(FILES[file]), _recipes()
    content = hashlib.sha256(" ".join([source, recipes, *FLAGS]).encode())
    content.update(subprocess.run([nvcc, "--version"], capture_output=True, check=True).stdout)
    for header in sorted(CSRC.rglob("*.h")):
        if "cpu" not in header.parts:
            content.update(str(header.relative_to(CSRC)).encode() + header.read_bytes())
    folder = BUILD / f"{file}-{content.hexdigest()[:16]}"
    text = folder / f"{file}.txt"
    if not text.exists():
        for old in BUILD.glob(f"{file}-*"):
            shutil.rmtree(old)
        folder.mkdir(parents=True)
        (folder / "recipes.h").write_text(recipes, encoding="utf-8")
        (folder / f"{file}.cu").write_text(source, encoding="utf-8")
        made = folder / f"{file}.cubin"
        include = ["-I", str(folder), "-I", str(CSRC)]  # the first recipes.h is the cut one
        command: list[str | Path] = [nvcc, *FLAGS, *include, "-o", made, folder / f"{file}.cu"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode or "instructions are serialized" in done.stdout:
            raise RuntimeError(f"{file}.cu: {done.stdout}")
        said = subprocess.run(
            [NVDISASM, "-c", "-gi", made], capture_output=True, text=True, check=True
        )
        half_done = text.with_suffix(".new")
        half_done.write_text(said.stdout, encoding="utf-8")
        half_done.rename(text)
    return text.read_text(encoding="utf-8")


def counted() -> dict[tuple[str, str], Counts]:
    """By shape and sweep, "forward" or "backward"."""
    found = {}
    with ThreadPoolExecutor(2) as pool:
        for file, text in zip(FILES, pool.map(disassembled, FILES), strict=True):
            for mangled, graph in sass.kernels(text):
                sweep = "forward" if "forward" in mangled else "backward"
                arguments = [int(k) for k in re.findall(r"Li(\d+)E", mangled)]
                for name in FILES[file]:
                    if _arguments(name) == arguments[: len(_arguments(name))]:
                        known = _Kernel(graph, shape(name), sweep == "forward")
                        found[name, sweep] = known.counts()
    return found


def _arguments(name: str) -> list[int]:
    text = (CSRC / "cuda" / "params" / "shape_table.h").read_text(encoding="utf-8")
    found = re.search(rf"^using {name} = \w+<([\d, ]+)>;", text, re.MULTILINE)
    assert found is not None
    return [int(k) for k in found[1].split(",")]
