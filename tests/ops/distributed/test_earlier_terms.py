"""Over ranks, terms that refer to earlier ones are what one process makes of all rows."""

from typing import Any

import pytest
import torch

from support.earlier_calls import CALLS, batch, on_a_rank, on_a_rank_of_one_set
from support.exhaustive import exhaustive_but
from support.gloo_ranks import Ranks
from support.rank_problems import GATHERED, RING, assert_equal

pytestmark = pytest.mark.xdist_group("ranks")

SIZES = {2: ([23, 17], [11, 14]), 3: ([1, 0, 39], [9, 16, 0])}


WAYS = {
    "ring": (RING, False, "cosine"),
    "ring-cols-l2": (RING, True, "l2"),  # distances are functions around those of the terms
    "gathered-cols": (GATHERED, True, "cosine"),
}


@pytest.mark.parametrize(
    ("name", "way"),
    exhaustive_but(
        [(name, way) for name in CALLS for way in WAYS],
        lambda name, way: way == "ring" or name == "gradient",
    ),
)
def test_one_call_over_ranks(ranks: Ranks, name: str, way: str) -> None:
    gathered, cols, distance = WAYS[way]
    x, labels, other = batch("mixed", 25)
    given = {
        "x": x, "labels": labels, "y": other["ref_emb"], "ref_labels": other["ref_labels"],
        "name": name, "cols": cols, "gathered": gathered, "distance": distance,
    }  # fmt: skip
    one = on_a_rank(None, given)
    for size, (rows, columns) in SIZES.items():
        shares = [dict(given) for _ in range(size)]
        of = {"x": rows, "labels": rows, "y": columns, "ref_labels": columns}
        for key, sizes in of.items():
            for share, z in zip(shares, given[key].split(sizes), strict=True):
                share[key] = z
        found = ranks.run(size, "support.earlier_calls:on_a_rank", shares)
        assert_joined(f"{size} ranks", found, one)


@pytest.mark.parametrize("gathered", [RING, GATHERED], ids=["ring", "gathered"])
@pytest.mark.parametrize("distance", ["cosine", "sqeuclidean", "snr"])
def test_of_one_set(ranks: Ranks, distance: str, gathered: int) -> None:
    """Of rows and of columns at once: a column is a row, for which snr has others for anchors."""
    x, labels, _ = batch("mixed")
    given = {
        "x": x, "labels": labels, "name": "gradient", "of_columns": "windows",
        "gathered": gathered, "distance": distance,
    }  # fmt: skip
    one = on_a_rank_of_one_set(None, given)
    for size, (rows, _) in SIZES.items():
        shares = [
            {**given, "x": of_x, "labels": of_labels}
            for of_x, of_labels in zip(x.split(rows), labels.split(rows), strict=True)
        ]
        found = ranks.run(size, "support.earlier_calls:on_a_rank_of_one_set", shares)
        assert_joined(f"{size} ranks, {distance}", found, one)


def assert_joined(where: str, found: list[Any], one: list[torch.Tensor]) -> None:
    """Of each result, the ranks' parts one after the other are that of one process."""
    for got in found:
        assert isinstance(got, list), got
    for k, truth in enumerate(one):
        ours = torch.cat([got[k] for got in found])
        assert_equal(f"{where}: result {k}", *finite(ours, truth), 1e-9)


def finite(ours: torch.Tensor, truth: torch.Tensor) -> list[torch.Tensor]:
    assert torch.equal(ours.isinf(), truth.isinf())
    assert not bool(ours.isnan().any())
    return [torch.where(z.isinf(), 0, z) for z in (ours, truth)]
