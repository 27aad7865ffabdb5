"""The test of the tests: wrong kernels, each one edit away from right ones, that must be caught.

An edit's text must stand in its file exactly once, so that whoever changes that line changes the
mutant too. Only the shape that a mutant needs is compiled.
"""

import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

from support.cuda_on_host import build

COPIES = build.ROOT / "build" / "cuda_on_host_mutants"

# Files of csrc/cuda.
SCHEDULER, MMA = "tile/scheduler.h", "tile/mma.h"
MAINLOOP, SM90 = "kernels/mainloop.h", "kernels/sm90/mainloop.h"
SM90_FORWARD, SM90_BACKWARD = "kernels/sm90/forward.h", "kernels/sm90/backward.h"
HALVES = "kernels/sm90/halves.h"
FORWARD, BACKWARD = "kernels/forward.h", "kernels/backward.h"
FORWARD_TILE, BACKWARD_TILE = "tile/epilogue_forward.h", "tile/epilogue_backward.h"
SHORT_WAYS = "kernels/short_ways.h"
LIMITS = "device/shared_limits.h"
# Cases of sweeps_test.cpp.
ONE_SET, TWO_SETS, STREAMED = "plain, D = 40, N = 205", "plain, D = 40, N = 269", "plain, D = 300"
SPLIT, LONG = "split, D = 40, N = 107", "split, D = 40, N = 19"


class Mutant(NamedTuple):
    name: str
    file: str  # of csrc/cuda
    old: str
    new: str
    # Who is asked first: "result" (wrong, or an error of the machine), "address" or "thread".
    by: str = "result"
    case: str = ONE_SET
    first: str = "forward"  # of an edit of both, the kernel that is asked first
    rare: bool = False  # whether `--all` alone asks, for the time that it takes
    # What is compiled: the kernels of one shape.
    forward: str = "launch_forward<Plain64>(ForwardCall, int, int, Stream)"
    backward: str = "launch_backward<Plain64, 1>(BackwardCall, int, Stream)"

    def kernels(self) -> tuple[str, str]:
        return self.forward, self.backward

    def streamed(self) -> "Mutant":
        changed = [kernel.replace("Plain64", "PlainAny") for kernel in self.kernels()]
        return self._replace(case=STREAMED, forward=changed[0], backward=changed[1])

    def split(self, case: str = SPLIT) -> "Mutant":
        backward = self.backward.replace("Plain64, 1", "Split64, 2")
        forward = self.forward.replace("Plain64", "Split64")
        return self._replace(case=case, forward=forward, backward=backward)

    def hopper(self, shape: str = "Hopper64", case: str = ONE_SET) -> "Mutant":
        changed = [kernel.replace("Plain64", shape) for kernel in self.kernels()]
        return self._replace(case="Hopper " + case, forward=changed[0], backward=changed[1])

    def wide(self) -> "Mutant":
        """Where the groups of four warps take turns."""
        return self._replace(first="backward").hopper("Hopper256", "plain, D = 200")

    def halves(self) -> "Mutant":
        """Where two groups exchange weights."""
        return self._replace(first="backward").hopper("Hopper512", "plain, D = 300")


WAIT = "        copies_wait<0>();\n        block_sync();\n"
LEAVE = "    if (lane() == 0) barrier_arrive(turn.empty(call));\n"

MUTANTS = [
    # Copies and barriers.
    Mutant("no barrier after the wait", MAINLOOP, WAIT, "        copies_wait<0>();\n"),
    Mutant("no wait for copies", MAINLOOP, WAIT, "        block_sync();\n"),
    Mutant("waits for another group", MAINLOOP, WAIT, WAIT.replace("<0>", "<1>")),
    Mutant("no last barrier", MAINLOOP, "    block_sync();\n    synced();\n}", "    synced();\n}"),
    Mutant("prefetch into the same buffer", MAINLOOP,
           "issue(walk.tile(after), 0, buffer ^ 1);", "issue(walk.tile(after), 0, buffer);"),
    Mutant("next chunk into the same buffer", MAINLOOP,
           "step + 1, buffer ^ 1);", "step + 1, buffer);").streamed(),
    Mutant("x of the other buffer", MAINLOOP, "buffer * S::X::bytes : 0", "0 : 0").streamed(),
    Mutant("columns of one stage", MAINLOOP, "stage ^= 1;", ""),
    Mutant("flags of one stage", FORWARD,
           "4 * ((stage * MOST_TERMS + k) * S::warps + warp)", "4 * (k * S::warps + warp)"),
    # Layouts.
    Mutant("swizzle of pack", "around/pack.h",
           "((lane() / 4) ^ (i % 8))", "((lane() / 4) ^ (i % 4))"),
    Mutant("swizzle of a lane's row", MMA, "(in_block % 8)", "(in_block % 4)"),
    Mutant("no second part of y", MMA,
           "multiply_add(of_tile[half], weights[0][t], b[t][1][2 * half],\n"
           "                                 b[t][1][2 * half + 1]);",
           "{}", first="backward").split(),
    # What lies beyond a set, or does not count.
    Mutant("row guard of masks", SCHEDULER, "if (i + 8 * h >= n_valid_rows) continue;", "",
           "address"),
    Mutant("row guard of states", FORWARD, "if (i >= call.rows.n) continue;", "", "address"),
    Mutant("row guard of the gradient", BACKWARD,
           "if (i >= smaller(call.rows.n, load_global(call.rows.n_valid))) continue;",
           "", "address"),
    Mutant("column guard of operands", MAINLOOP,
           "if (in_tile >= S::columns || column >= load_global(call.cols.n_valid)) return -1;",
           "if (in_tile >= S::columns) return -1;", "address"),
    Mutant("column guard of masks", SCHEDULER, "if (column >= n_valid_cols) continue;", ""),
    Mutant("ragged tile as a full one", SCHEDULER,
           "tiles - width - (ragged ? 1 : 0)", "tiles - width"),
    Mutant("pair with itself counts", SCHEDULER, "if (position == self_index) continue;", ""),
    Mutant("sums of ignored rows", BACKWARD,
           "valid ? sum.finalize().value : 0.f", "sum.finalize().value"),
    Mutant("bits of one view", SCHEDULER, "transposed ? (1 << ratio) - 1 : 1;",
           "transposed ? 0 : 1;", first="backward"),
    Mutant("a bit of another tile", SCHEDULER, ">> first % 8 & bits) return true;",
           ">> (first + 1) % 8 & bits) return true;", first="backward"),
    # Numbers.
    Mutant("half of a quad's merge", FORWARD_TILE,
           "for (int offset = 1; offset <= 2; offset *= 2)",
           "for (int offset = 1; offset <= 1; offset *= 2)"),
    Mutant("no exponent", BACKWARD,
           "from_bits(std::uint32_t(units.of_sums[h]) << 23)", "from_bits(127u << 23)"),
    Mutant("no shrinking", BACKWARD_TILE, "sums[t][e] *= shrink[e / 2];", "(void)shrink;"),
    Mutant("a tile's unit is left out of an exponential", BACKWARD_TILE,
           "offset[h] = middle + units.log2(h);", "offset[h] = middle;"),
    Mutant("a gradient is not multiplied", "around/finalize.h",
           "float(double(factor) * r *", "float(r *"),
    # Short ways.
    Mutant("a state is merged twice", FORWARD, "    store_running<S>(call, running);\n",
           2 * "    store_running<S>(call, running);\n"),
    Mutant("no maximum of rows of any length", SHORT_WAYS, "!call.normalized || ", "",
           case="plain, D = 40, N = 77"),
    Mutant("no maximum where a base is far away", FORWARD_TILE,
           "running.bounded = !ballot(!within);", "running.bounded = true;", rare=True),
    Mutant("one exponential out of its range", SHORT_WAYS, "LOG2_E <= MOST_EXPONENT",
           "LOG2_E <= 1e9f", first="backward"),
    Mutant("an owner's window for its partner", BACKWARD_TILE,
           "by_column = every || (column_pairs", "by_column = every || (row_pairs", rare=True),
    # Two levels of sums.
    Mutant("a step's sum is not added", MMA, "add(products[0][at], of_step);", "").split(),
    Mutant("half of a tile's sums are not added", MMA,
           "add(sums[first / 8 + 2 * u + 1], of_tile[1]);", "", first="backward").split(),
    Mutant("one sum over all tiles", MMA, "float of_tile[2][4] = {};",
           "auto& all = sums[first / 8 + 2 * u]; float of_tile[2][4];"
           "__builtin_memcpy(of_tile, all, sizeof(of_tile));"
           "__builtin_memset(all, 0, sizeof(of_tile));", first="backward").split(LONG),
    # Limits of shared memory.
    Mutant("a limit is lowered", LIMITS, "if (bytes <= limit) return;",
           "if (bytes == limit) return;").streamed(),
    Mutant("a limit is not raised", LIMITS, "if (bytes <= limit) return;",
           "if (limit) return;").streamed(),
    # Splits.
    Mutant("two blocks write one state", FORWARD,
           "(Index(block_y()) * call.n_terms + k) * 2 * call.rows.n + i",
           "Index(k) * 2 * call.rows.n + i", "thread", TWO_SETS),
    Mutant("the last split alone", "around/finalize.h",
           "state.merge(state_of<Acc>(Floats{{from[0], from[call.n]}}));",
           "state = state_of<Acc>(Floats{{from[0], from[call.n]}});", "result", TWO_SETS),
    # Hopper's.
    Mutant("no wait for a full stage", SM90,
           "barrier_wait(turn.full(call), turn.parity());", "").hopper(),
    Mutant("embeddings do not wait for an empty stage", SM90,
           "            barrier_wait(turn.empty(call), turn.parity() ^ 1);\n", "").hopper(),
    Mutant("columns do not wait for an empty stage", SM90,
           "        barrier_wait(turn.empty(call), turn.parity() ^ 1);\n        left(",
           "left(").hopper(),
    Mutant("a stage is left before it is used", SM90,
           "        known(walk", "        leave<S>(call, turn);\n        known(walk").hopper(),
    Mutant("a stage is left while lanes read", SM90, "    warp_sync();\n" + LEAVE, LEAVE).hopper(),
    Mutant("fewer bytes than come", SM90,
           "S::Y::bytes + (first ? S::X::bytes : 0)", "S::Y::bytes").hopper(),
    Mutant("one arrival too few", SM90, "1 + S::columns);", "S::columns);").hopper(),
    Mutant("no second phase", SM90, "packed ^= stage() == 0 ? ODD : 0;", "").hopper(),
    Mutant("no wait for s", SM90,
           "wgmma_wait<0>(products);\n        take", "take").hopper(),
    Mutant("s is written over by the next one", SM90, "        take<S>(products, s);\n",
           "        multiply_next<S>(call, coming, products);\n        take<S>(products, s);\n"
           ).hopper(),
    Mutant("no wait for sums", SM90_BACKWARD,
           "wgmma_wait<0>(products, sums, packed);", ";", first="backward").hopper(),
    Mutant("a wait too early", SM90_BACKWARD, "wgmma_wait<0>(products, sums, packed);",
           "wgmma_wait<1>(products, sums, packed);", first="backward").hopper(),
    Mutant("weights are not pinned", SM90_BACKWARD, "wgmma_wait<0>(products, sums, packed);",
           "wgmma_wait<0>(products, sums);", first="backward").hopper(),
    Mutant("states are read early", SM90_FORWARD, "group_sync(1, S::workers);", "").hopper(),
    Mutant("sums are read early", SM90_BACKWARD, "    group_sync(1, S::workers);\n", "",
           first="backward").hopper(),
    Mutant("another step's numbers", SM90, "step % 4 * 2 * CHUNK_BYTES",
           "step % 2 * 2 * CHUNK_BYTES").hopper(),
    # Turns of the two groups.
    Mutant("a dropped arrive", SM90_BACKWARD, "            in_turn.pass();\n", "").wide(),
    Mutant("no wait for a turn", SM90_BACKWARD, "            in_turn.wait();\n", "").wide(),
    Mutant("the last turn is left over", SM90_BACKWARD, "    in_turn.end();\n", "").wide(),
    # Weights that are exchanged.
    Mutant("an exchange without a fence", HALVES, "        fence_async();\n", "").halves(),
    Mutant("no wait for the other's weights", HALVES,
           "barrier_wait(Half<S>::given(call, half.is_second() ? 0 : 1), parity);", "").halves(),
    Mutant("weights are given before they are stored", HALVES,
           "warp_sync();\n        if (lane() == 0) barrier_arrive(given",
           "if (lane() == 0) barrier_arrive(given").halves(),
    Mutant("weights are stored over those that are read", HALVES,
           "            half.give(call, packed);\n",
           "            half.give(call, packed);\n            half.give(call, packed);\n").halves(),
    Mutant("x is not waited for", HALVES,
           "            barrier_wait(turn.full(call), turn.parity());  // X comes with this tile\n",
           "").halves(),
    Mutant("a stage is reused while the other's weights need it", HALVES,
           "            if (embeddings) {\n                barrier_wait(Half",
           "            leave<S>(call, before);\n            if (embeddings) {\n"
           "                barrier_wait(Half").halves(),
    Mutant("the other's tile is left before it came", HALVES,
           "            barrier_wait(before.full(call), before.parity());\n",
           "            if (embeddings) barrier_wait(before.full(call), before.parity());\n",
           ).halves(),
    Mutant("exchanged weights are not pinned", HALVES,
           "wgmma_wait<0>(s, sums, packed);", "wgmma_wait<0>(s, sums);").halves(),
    Mutant("sums stay in the unit of the last weights", HALVES,
           "change_units(mine, theirs, sums);", "{}").halves(),
    Mutant("units of the other's weights are forgotten", HALVES,
           "load_exponents(half.exponents(true), units.of_sums);\n            }",
           "}").halves(),
    Mutant("sums of one group's tiles alone", BACKWARD, "held += S::rows)", "held += S::held_rows)",
           ).halves(),
    Mutant("bits of another block", SCHEDULER,
           "(transposed ? tile * S::columns : block_x() * S::rows) / S::noted_rows;",
           "transposed ? tile * S::columns / S::noted_rows : block_x();"
           ).halves(),
]  # fmt: skip

SCHEDULES = ("lockstep", "last_warp", "random_thread")
DETECTORS = {
    "result": ("plain", ("small",), SCHEDULES),
    "address": ("address", ("small",), ("lockstep",)),
    "thread": ("thread", ("few",), ("lockstep",)),
}
# For programs that lack kernels which they do not call.
LENIENT = ("-Wl,--unresolved-symbols=ignore-all", "-no-pie")
HEADER = '#include "cuda/kernels/launchers.h"\nnamespace pairops::cuda {\ntemplate void %s;\n}\n'


def affected(file: str) -> tuple[str, ...]:
    """Which of api.cu, forward and backward a header's edit is compiled into."""
    if not file:
        return ()
    if file.startswith("around/"):
        return ("api",)
    if file.endswith("forward.h"):
        return ("forward",)
    if file.endswith(("backward.h", "halves.h")):
        return ("backward",)
    return ("forward", "backward")


class Bench:
    def __init__(self, flavours: Mapping[str, Any], machine: Callable[..., Any], run: Any) -> None:
        self.flavours, self.machine, self.run = flavours, machine, run
        self.lock = threading.Lock()
        self.known: dict[tuple[str, str], str] = {}  # objects of kernels that are not mutated
        self.mutated: dict[Path, list[str]] = {}  # and of those that are, by their source

    def program(self, mutant: Mutant, detector: str, csrc: Path, edited: tuple[str, ...]) -> Path:
        flavour = self.flavours[DETECTORS[detector][0]]
        folder = csrc.parent / flavour.name
        flags = (*flavour.flags, "-w") if flavour.flags else ("-O1", "-w")
        folder.mkdir(parents=True, exist_ok=True)
        new: list[str] = []  # compiled from the copy
        old: list[str] = []
        for kernel in ("forward", "backward"):
            source = folder / f"{kernel}.cu"
            source.write_text(HEADER % getattr(mutant, kernel))
            if kernel in edited:
                if source not in self.mutated:
                    self.mutated[source] = build.compile_each([source], folder, flags, csrc)
                new += self.mutated[source]
            else:
                key = flavour.name, getattr(mutant, kernel)
                with self.lock:
                    if key not in self.known:
                        to = COPIES / "right" / str(len(self.known))
                        (self.known[key],) = build.compile_each([source], to, flags)
                old.append(self.known[key])
        if "api" in edited:
            new += build.compile_each([csrc / "cuda" / "api.cu"], folder, flags, csrc)
        else:
            old.append(str(flavour.objects / "api.cu.o"))
        # Of a function in several objects the first is taken: the mutant's.
        objects = new + old + self.machine(flavour)
        build.link(folder / "sweeps_test", objects, (*flavour.flags, *LENIENT))
        return Path(folder / "sweeps_test")

    def caught(self, mutant: Mutant, detector: str, csrc: Path) -> str | None:
        """How, if it is: by one kernel, so that the other need not be compiled, or by both."""
        _, choice, schedules = DETECTORS[detector]
        status, said = 0, ""
        every = affected(mutant.file)
        for edited in [(mutant.first,), every] if len(every) > 1 else [every]:
            program = self.program(mutant, detector, csrc, edited)
            status, said = self.run(program, *choice, mutant.case, *schedules)
            if status != 0:
                break
        else:
            return None
        if status not in (1, 2, -signal.SIGABRT, -signal.SIGSEGV):
            raise RuntimeError(f"{mutant.name}: exit status {status}: {said}")
        lines = said.strip().splitlines()
        told = [line for line in lines if "SUMMARY" in line or "ERROR: " in line] or lines[-1:]
        words = {"address": ("AddressSanitizer", "runtime error"), "thread": ("ThreadSan",)}
        if any(word in said for word in words.get(detector, ())):
            kind = detector
        else:  # a sanitizer's program stops where the machine finds something, too
            kind = {1: "result", -signal.SIGSEGV: "crash"}.get(status, "machine")
        return f"{kind}: {told[-1].strip()[:150] if told else ''}"


def mutated(mutant: Mutant) -> Path:
    """A copy of csrc with the one edit."""
    folder = COPIES / mutant.name.replace(" ", "_").replace("'", "")
    csrc = folder / "csrc"
    shutil.copytree(build.ROOT / "csrc", csrc)
    if not mutant.file:
        return csrc
    path = csrc / "cuda" / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: {mutant.file} has {text.count(mutant.old)} of its text")
    path.write_text(text.replace(mutant.old, mutant.new))
    return csrc


def survivors(
    flavours: Mapping[str, Any], machine: Any, run: Any, pool: Executor, only: str, every: bool
) -> list[str]:
    """Names of those that nobody caught. Prints who caught the others, `every` one or the first."""
    shutil.rmtree(COPIES, ignore_errors=True)
    bench = Bench(flavours, machine, run)
    chosen = [m for m in MUTANTS if only in m.name and (every or only or not m.rare)]
    copies = [mutated(mutant) for mutant in chosen]

    def must_be_right(number: int, bare: Mutant) -> None:
        right = bare._replace(name=f"right {number}")
        said = bench.caught(right, "result", mutated(right))
        if said:
            raise RuntimeError(f"{right.case}, not mutated: {said}")

    def verdict(mutant: Mutant, csrc: Path) -> bool:
        order = [mutant.by, *(name for name in DETECTORS if name != mutant.by)]
        found = []
        for detector in order:
            how = bench.caught(mutant, detector, csrc)
            found += [how] if how else []
            if how and not every:
                break
        print(f"{mutant.name}: {' | '.join(found) or 'SURVIVES'}", flush=True)
        return bool(found)

    # Without an edit the same programs must be right: who is caught is caught for the edit.
    bare = sorted({m._replace(name="", file="", old="", new="", by="") for m in chosen})
    list(pool.map(must_be_right, range(len(bare)), bare))
    caught = list(pool.map(verdict, chosen, copies))
    return [mutant.name for mutant, was in zip(chosen, caught, strict=True) if not was]
