"""The extension is found: beside the package, or where a source folder hides the installed one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pairops
from pairops.ops.bindings import extension
from support.on_cpu import device as device

PACKAGE = Path(pairops.__file__).parent
SHOW = "from pairops.ops.bindings import extension as e; print(e.MISSING, e.native is not None)"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source folder without an extension."""
    return _copy(tmp_path / "source")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Where the package is installed with its extension."""
    root = _copy(tmp_path / "site")
    built = Path(extension.native.__file__)
    shutil.copy(built, root / "pairops")
    known = root / "pairops-0.1.0.dist-info"
    known.mkdir()
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: pairops\nVersion: 0.1.0\n")
    (known / "RECORD").write_text(f"pairops/__init__.py,,\npairops/{built.name},,\n")
    return root


def _copy(to: Path) -> Path:
    no = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    shutil.copytree(PACKAGE, to / "pairops", ignore=no)
    return to


def _shown(source: Path, *site: Path) -> str:
    """What a process in the source folder says, whose other packages are those of `site`."""
    # An editable install finds its own package before any folder.
    apart = "sys.meta_path[:] = [f for f in sys.meta_path if 'pairops' not in type(f).__module__]"
    code = f"import sys; {apart}; sys.path[1:1] = {[str(s) for s in site]}; {SHOW}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_source_folder_takes_the_installed_extension(source: Path, site: Path) -> None:
    assert _shown(source, site) == "None True"


def test_one_of_another_interface_is_not_taken(source: Path, site: Path) -> None:
    with (site / "pairops" / "_native.pyi").open("a") as interface:
        interface.write("def more() -> None: ...\n")
    said = _shown(source, site)
    assert said.endswith("False")
    assert f"{source / 'pairops'} is a source folder without its extension" in said
    assert "type: pip install ." in said
    assert "\n" not in said


def test_where_none_is_installed_it_says_what_to_type(source: Path, tmp_path: Path) -> None:
    """One is known to be installed without an extension, as with PAIROPS_NATIVE=OFF."""
    plain = _copy(tmp_path / "plain")
    known = plain / "pairops-0.1.0.dist-info"
    known.mkdir()
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: pairops\nVersion: 0.1.0\n")
    (known / "RECORD").write_text("pairops/__init__.py,,\n")
    said = _shown(source, plain)
    assert said.startswith("the extension cannot be imported (")
    assert said.endswith("; in a source folder type: pip install . False")
