"""`python -m bench ring` at a tiny size: every way has a time."""

import json

import pytest

from bench.__main__ import main


@pytest.mark.xdist_group("ranks")
def test_ring(tmp_path, capsys):
    main(["ring", "--n", "16", "--d", "4", "--repeats", "1", "--output", str(tmp_path)])
    (row,) = json.loads((tmp_path / "ring-cpu.json").read_text())["rows"]
    assert (row["n"], row["d"]) == (16, 4)
    assert all(row[way] > 0 for way in ("gathered", "ring", "one process"))
    assert "ring/gathered" in capsys.readouterr().out
