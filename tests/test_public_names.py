"""The public names: docs/api.txt is what the code says, and says nothing that changes by itself."""

import difflib

import pytest

from support import public_names

pytest.importorskip("pytorch_metric_learning")


def test_the_file_is_what_the_code_says() -> None:
    written = public_names.FILE.read_text(encoding="utf-8").splitlines()
    now = public_names.text().splitlines()
    changes = [*difflib.unified_diff(written, now, "docs/api.txt", "the code", lineterm="", n=8)]
    if changes:
        told = "Public names have changed. If they shall, `make api` writes docs/api.txt anew."
        pytest.fail("\n".join([told, *changes]), pytrace=False)


def test_no_address_and_no_module_is_in_it() -> None:
    entries = public_names.text().removeprefix(public_names.HEAD)
    for line in entries.splitlines():
        assert "0x" not in line
        kind, _, rest = line.partition(" pairops.")
        assert not rest or kind in ("class", "constant", "function"), line
        assert "pairops." not in rest, line
