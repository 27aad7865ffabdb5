"""`python -m bench cached` at a tiny size: both steps have the same value."""

import json

import pytest

from bench.__main__ import main
from support.exhaustive import exhaustive


@exhaustive
def test_cached(tmp_path, capsys):
    sizes = ["--n", "64", "--chunk-size", "16", "--threads", "1"]
    main(["cached", *sizes, "--output", str(tmp_path)])
    plain, cached = json.loads((tmp_path / "cached-cpu.json").read_text())["rows"]
    assert (plain["n"], plain["way"], cached["way"]) == (64, "plain", "cached")
    assert cached["value"] == pytest.approx(plain["value"], rel=1e-5)
    for row in (plain, cached):
        assert row["s"] > 0
        assert row["peak_mib"] >= 0
    assert "peak MiB" in capsys.readouterr().out
