"""Over ranks, terms that refer to earlier ones are what one process makes of all rows."""

import pytest
import torch

from support.earlier_calls import CALLS, batch, on_a_rank
from support.gloo_ranks import Ranks
from support.rank_problems import GATHERED, RING, assert_equal

pytestmark = pytest.mark.xdist_group("ranks")

SIZES = {2: ([23, 17], [11, 14]), 3: ([1, 0, 39], [9, 16, 0])}


@pytest.mark.parametrize("gathered", [RING, GATHERED], ids=["ring", "gathered"])
@pytest.mark.parametrize("cols", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_one_call_over_ranks(ranks: Ranks, name: str, cols: bool, gathered: int) -> None:
    """Of rows and of columns; by distances too, which are functions around those of the terms."""
    x, labels, other = batch("mixed", 25)
    for distance in ("cosine", "l2") if gathered == RING else ("cosine",):
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
            for got in found:
                assert isinstance(got, list), got
            for k, truth in enumerate(one):
                ours = torch.cat([got[k] for got in found])
                assert_equal(f"{size} ranks, {distance}: result {k}", *finite(ours, truth), 1e-9)


def finite(ours: torch.Tensor, truth: torch.Tensor) -> list[torch.Tensor]:
    assert torch.equal(ours.isinf(), truth.isinf())
    assert not bool(ours.isnan().any())
    return [torch.where(z.isinf(), 0, z) for z in (ours, truth)]
