"""Compiles the CUDA sweeps for the CPU: as a Python module, or into a program under a sanitizer.

python tests/support/cuda_on_host/build.py makes the module, if it is older than its sources.
"""

import functools
import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[2]  # of the project: nothing else in this folder knows where it stands
PROGRAMS = ("module.cpp", "self_test.cpp", "sweeps_test.cpp")
MODULE = ROOT / "build" / "cuda_on_host" / "cuda_on_host.so"
OBJECTS = MODULE.parent / "objects"
COMPILER = os.environ.get("CXX", "g++")

# -ffp-contract=off: the same bits whatever the optimiser does.
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
FLAGS += ["-Wno-unknown-pragmas", "-fvisibility=hidden"]


def kernels(csrc: Path = ROOT / "csrc") -> list[Path]:
    return sorted((csrc / "cuda").rglob("*.cu"))


def machine() -> list[Path]:
    """What executes them; it tells the thread sanitizer itself what it does on their behalf."""
    return sorted(path for path in HERE.glob("*.cpp") if path.name not in PROGRAMS)


class Compiled(NamedTuple):
    """Sources, the folder that their objects lie in, and how they are compiled."""

    sources: Sequence[Path]
    to: Path
    flags: tuple[str, ...] = ()
    csrc: Path = ROOT / "csrc"  # the folder that they include from

    def objects(self) -> list[str]:
        return [str(self.to / f"{source.name}.o") for source in self.sources]

    def commands(self) -> list[list[str]]:
        python = sysconfig.get_paths()["include"]
        bindings = Path(torch.__file__).parent / "include"  # it has pybind11
        include = ["-I", str(HERE), "-I", str(self.csrc)]
        include += ["-isystem", python, "-isystem", str(bindings)]
        return [
            [COMPILER, *FLAGS, *self.flags, *include, "-x", "c++", "-c", str(source), "-o", made]
            for source, made in zip(self.sources, self.objects(), strict=True)
        ]


def compile_all(*wanted: Compiled) -> None:
    """As many at a time as there are cores, those first that are named first."""
    for one in wanted:
        one.to.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        commands = [command for one in wanted for command in one.commands()]
        list(pool.map(functools.partial(subprocess.run, check=True), commands))


def compile_each(
    sources: Sequence[Path], to: Path, flags: tuple[str, ...] = (), csrc: Path = ROOT / "csrc"
) -> list[str]:
    """The objects, in the folder `to`."""
    made = Compiled(sources, to, flags, csrc)
    compile_all(made)
    return made.objects()


def link(target: Path, objects: list[str], flags: tuple[str, ...]) -> None:
    half_done = target.with_suffix(".new")
    subprocess.run([COMPILER, *flags, *objects, "-o", str(half_done)], check=True)
    half_done.rename(target)


def module() -> Any:
    """The module `cuda_on_host`, compiled if it must be."""
    sources = [*(ROOT / "csrc").rglob("*"), *HERE.rglob("*")]
    newest = max(path.stat().st_mtime for path in sources if path.suffix in (".h", ".cpp", ".cu"))
    if not MODULE.exists() or MODULE.stat().st_mtime < newest:
        others = [*machine(), HERE / "module.cpp", ROOT / "csrc" / "bindings" / "cuda.cpp"]
        made = compile_each([*kernels(), *others], OBJECTS)
        link(MODULE, made, ("-shared",))
    return loaded(MODULE)


def loaded(path: Path) -> Any:
    """A compiled module; a process can have one."""
    spec = importlib.util.spec_from_file_location("cuda_on_host", path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules["cuda_on_host"] = found
    spec.loader.exec_module(found)
    return found


if __name__ == "__main__":
    module()
