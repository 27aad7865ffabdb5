"""Retrieval on the ranks of a test: functions of (group, what this rank is given)."""

from typing import Any
from unittest import mock

import torch

from pairops import retrieval
from support.rank_functions import Held, setting


def retrieved(group: Any, given: dict[str, Any]) -> list[Any]:
    """Means, first ranks and precisions of this rank's queries.

    given: args; keywords; counted: positives of a query whose ranks are counted one by one.
    """
    patches = {"_ROWS": 5, "_COLS": 16, "_ROOM": 30, "_AT_ONCE": 40}
    functions = retrieval.evaluate, retrieval.first_ranks, retrieval.average_precisions
    with (
        setting(given),
        mock.patch.object(retrieval.metrics, "_COUNTED", given["counted"]),
        mock.patch.multiple(retrieval.ranking, **patches),
    ):
        return [f(*given["args"], **given["keywords"], group=group) for f in functions]


def retrieval_peak(group: Any, given: dict[str, Any]) -> int:
    """How many bytes of torch's tensors the evaluation of this rank's rows holds at once."""
    x = torch.randn(given["rows"], given["d"])
    labels = torch.arange(given["rows"]) % 8
    with setting(given), mock.patch.object(retrieval.metrics, "_COUNTED", given["counted"]):
        with Held() as held:
            retrieval.evaluate(x, labels, group=group)
        return held.most
