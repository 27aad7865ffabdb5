"""What CMake says before it compiles anything: without a compiler, and where none is wanted."""

import shutil
import subprocess
from pathlib import Path

import pytest

from support.on_cpu import device as device
from support.project import ROOT

CMAKE = shutil.which("cmake")

pytestmark = pytest.mark.skipif(
    CMAKE is None or shutil.which("ninja") is None, reason="needs cmake and ninja"
)


def _configure(build: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    known = ["-G", "Ninja", "-DSKBUILD_PROJECT_VERSION=0.1.0", "-DCMAKE_CXX_COMPILER=NOTFOUND"]
    return subprocess.run(
        [str(CMAKE), "-S", str(ROOT), "-B", str(build), *known, *options],
        capture_output=True,
        text=True,
    )


def test_without_a_compiler_it_says_what_to_do(tmp_path: Path) -> None:
    done = _configure(tmp_path)
    assert done.returncode
    wanted = "pairops needs a C++17 compiler, or PAIROPS_NATIVE=OFF for the engines in plain torch"
    assert wanted in done.stderr


def test_the_engines_in_plain_torch_need_no_compiler(tmp_path: Path) -> None:
    done = _configure(tmp_path, "-DPAIROPS_NATIVE=OFF")
    assert done.returncode == 0, done.stderr
    assert "no extension is built" in done.stdout
