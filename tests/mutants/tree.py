"""A copy of the working tree for wrong edits, and its extension, compiled without CUDA.

The Makefile makes the environment in which the copy, and nothing else, is `pairops`. The objects of
the right extension are kept, so that a mutant compiles what its edit reaches and no more.
"""

import contextlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from mutants.mutant import Mutant
from support.project import ROOT

FOLDER = ROOT / "build" / "mutants"
TREE = FOLDER / "tree"  # the environment's path says so too
OBJECTS, RIGHT = FOLDER / "objects", FOLDER / "right_objects"

# The module that stands in for a GPU: no mutant here is compiled into it.
ON_HOST = Path("build", "cuda_on_host", "cuda_on_host.so")

# The mutants' own test looks for lines that an edit changes, and would catch them all.
LEFT_OUT = (".git", ".venv", "build", "dist", "mutants", "__pycache__", "*.so", ".*_cache")

IMPORTED = "import pairops, pairops._native as n; print(pairops.__file__, n.__file__, sep='\\n')"


class BrokenMutant(Exception):
    """An edit that does not compile, or whose tests cannot be collected."""


def environment() -> dict[str, str]:
    """For whatever runs in the copy: nothing that leads to another `pairops`."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


class Tree:
    """The copy. Outside of `mutated` it is right."""

    def __init__(self) -> None:
        shutil.rmtree(TREE, ignore_errors=True)
        shutil.copytree(ROOT, TREE, ignore=shutil.ignore_patterns(*LEFT_OUT))
        self._restore_objects()
        self._configure()
        self._build()
        shutil.rmtree(RIGHT, ignore_errors=True)
        shutil.copytree(OBJECTS, RIGHT)
        self._check_imports()

    @contextlib.contextmanager
    def mutated(self, mutant: Mutant) -> Iterator[None]:
        path = TREE / mutant.file
        text, times = path.read_text(), path.stat()
        path.write_text(mutant.applied(TREE))
        try:
            if mutant.compiled:
                self._build()
            yield
        finally:
            path.write_text(text)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            if mutant.compiled:
                self._restore_objects()
                self._install()

    def _configure(self) -> None:
        version = importlib.metadata.version("pairops")
        pybind11 = subprocess.check_output([sys.executable, "-m", "pybind11", "--cmakedir"])
        definitions = {
            "CMAKE_BUILD_TYPE": "Release",
            "PAIROPS_CUDA": "OFF",
            "SKBUILD_PROJECT_VERSION": version,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.decode().strip(),
        }
        defined = [f"-D{name}={value}" for name, value in definitions.items()]
        self._run("cmake", "-G", "Ninja", "-S", str(TREE), "-B", str(OBJECTS), *defined)

    def _build(self) -> None:
        self._run("cmake", "--build", str(OBJECTS))
        self._install()

    def _install(self) -> None:
        (built,) = OBJECTS.glob("_native*.so")
        shutil.copy2(built, TREE / "pairops" / built.name)
        # Newer than every source, or the tests would compile it.
        (TREE / ON_HOST).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / ON_HOST, TREE / ON_HOST)

    def _restore_objects(self) -> None:
        if RIGHT.exists():
            shutil.rmtree(OBJECTS, ignore_errors=True)
            shutil.copytree(RIGHT, OBJECTS)

    def _run(self, *command: str) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment() | {"PATH": path}
        )
        if done.returncode:
            said = f"{done.stdout}{done.stderr}"[-3000:]
            raise BrokenMutant(f"{' '.join(command[:2])} fails:\n{said}")

    def _check_imports(self) -> None:
        """`pairops` is the copy, in whatever folder Python starts."""
        for start in (TREE, FOLDER):
            said = subprocess.check_output(
                [sys.executable, "-c", IMPORTED], cwd=start, env=environment(), text=True
            )
            for path in said.splitlines():
                if not Path(path).is_relative_to(TREE):
                    raise RuntimeError(f"pairops is {path}; it must be the copy in {TREE}")
