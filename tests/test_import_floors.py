"""The script that reads the imports: it finds cycles, too many floors, and files beside folders."""

from pathlib import Path

import pytest

from support import import_floors


def package(root: Path, **modules: str) -> None:
    """modules: source by dotted name with `__` for dots, below pairops."""
    (root / "pairops").mkdir()
    for name, source in modules.items():
        path = root / "pairops" / Path(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


def test_this_package_has_no_fault() -> None:
    assert import_floors.faults(import_floors.ROOT) == []


@pytest.mark.parametrize("deferred", [False, True])
def test_a_cycle_of_sub_packages(tmp_path: Path, deferred: bool) -> None:
    line = "from ..terms import term"
    source = f"def f():\n    {line}" if deferred else line
    package(
        tmp_path, ops__pairs__pairs=source.replace("..terms", "pairops.ops.terms"),
        ops__terms__term="import pairops.ops.pairs.pairs",
    )  # fmt: skip
    found = import_floors.faults(tmp_path)
    assert any("sub-packages" in line for line in found)
    assert any("files" in line for line in found) is not deferred


def test_a_relative_import_of_files_in_one_folder(tmp_path: Path) -> None:
    package(tmp_path, nn__a="from . import b", nn__b="from .a import c")
    assert import_floors.faults(tmp_path) == [
        "a cycle of files: pairops.nn.a -> pairops.nn.b -> pairops.nn.a"
    ]


def test_more_floors_than_there_may_be(tmp_path: Path) -> None:
    sources = {f"p{k}__m": f"from pairops.p{k - 1} import m" if k else "" for k in range(9)}
    package(tmp_path, **sources)
    assert import_floors.faults(tmp_path) == ["9 floors; there may be 8"]


def test_a_module_beside_the_folders(tmp_path: Path) -> None:
    package(tmp_path, stray="")
    assert import_floors.faults(tmp_path) == ["pairops/stray.py stands beside the folders"]
