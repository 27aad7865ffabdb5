"""MultipleNegativesRankingLoss with its arguments, by `info_nce_loss`."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pairops.losses.hard_negative import hard_negative_info_nce_loss
from pairops.losses.info_nce import info_nce_loss
from pairops.losses.objective.keywords import Value
from pairops.losses.objective.views import names_of_rows
from pairops.ops.distributed.group import Given, Group
from pairops.ops.row_stats.pieces import log1p_exp
from pairops.ops.terms.checks import one_of, plain_number

from .columns import PairedLoss

WAYS = {
    "query_to_doc": "xy",
    "query_to_query": "xx",
    "doc_to_query": "yx",
    "doc_to_doc": "yy",
}
HARDENED = {"in_batch_negatives": "in_batch", "hard_negatives": "own", "all_negatives": "all"}
DISTANCES = {"cos_sim": "cosine", "dot_score": "dot"}

Way = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]


class MultipleNegativesRankingLoss(PairedLoss):
    """sentence-transformers' loss of this name, and its Cached… one with `mini_batch_size`.

    The columns of the dataset are anchors, positives, and hard negatives, as many columns as there
    are. No matrix of similarities is held.

    Args:
        model: a SentenceTransformer.
        scale: a number above 0, what similarities are multiplied by: 1/τ.
        similarity_fct: its `cos_sim` or `dot_score`, or one of these names.
        gather_across_devices: True compares with the texts of all processes, as `group="auto"` does
            in the other losses; as there, every process has its own value.
        directions: names of what is compared with what, "query_to_doc" among them.
        partition_mode: "joint" or "per_direction".
        hardness_mode: which negatives of "query_to_doc" count the more the harder they are:
            "in_batch_negatives", "hard_negatives" or "all_negatives". None: none do.
        hardness_strength: a number, 0 or above.
        mini_batch_size: an int: encode so many texts at a time, as in `PairedLoss`. None: encode
            all at once.

    Raises:
        ValueError, TypeError: the message names the argument, what it was and must be.

    Source:
        sentence-transformers 6.2.

    Differs from:
        Queries of one batch are as many on every process.
    """

    def __init__(
        self,
        model: nn.Module,
        scale: float = 20.0,
        similarity_fct: Callable[..., Any] | str = "cos_sim",
        gather_across_devices: bool = False,
        directions: Sequence[Way] = ("query_to_doc",),
        partition_mode: Literal["joint", "per_direction"] = "joint",
        hardness_mode: str | None = None,
        hardness_strength: float = 0.0,
        *,
        mini_batch_size: int | None = None,
    ) -> None:
        for way in directions:
            one_of("directions", way, WAYS)
        one_of("partition_mode", partition_mode, ("joint", "per_direction"))
        if "query_to_doc" not in directions:
            raise ValueError(
                f"directions are {tuple(directions)}; query_to_doc must be one of them"
            )
        if partition_mode == "per_direction" and {"query_to_query", "doc_to_doc"} & {*directions}:
            raise ValueError(
                "partition_mode is 'per_direction', and query_to_query and doc_to_doc have no "
                "positive of their own; it must be 'joint' with them"
            )
        name = getattr(similarity_fct, "__name__", similarity_fct)
        one_of("similarity_fct", name, DISTANCES)
        given: dict[str, Any] = {
            "temperature": 1 / plain_number("scale", scale, positive=True),
            "directions": tuple(WAYS[way] for way in WAYS if way in directions),
            "partition": "joint" if partition_mode == "joint" else "separate",
            "distance": DISTANCES[str(name)],
        }
        strength = plain_number("hardness_strength", hardness_strength)
        if strength < 0:
            raise ValueError(f"hardness_strength is {strength}; it must be 0 or above")
        function = info_nce_loss
        if hardness_mode is not None:
            one_of("hardness_mode", hardness_mode, HARDENED)
        if hardness_mode is not None and strength:
            function = hard_negative_info_nce_loss  # type: ignore[assignment]
            given |= {"hardness": strength, "hardened": HARDENED[hardness_mode]}
        group: Given = "auto" if gather_across_devices else None
        super().__init__(model, function, group=group, mini_batch_size=mini_batch_size, **given)

    def _loss_of(self, columns: list[Tensor], labels: Any) -> Value:  # noqa: ARG002
        """Return the loss of the embeddings of every column."""
        x, *docs = columns
        further: dict[str, Any] = {}
        if self.function is hard_negative_info_nce_loss:
            further = {"own_negatives": x.new_empty(len(x), 0, x.shape[1])}
        if len(docs) > 1:
            # A query's own hard negatives are its own, and no negatives of its positive.
            ids = names_of_rows(x, Group.of(self._here()))
            further = {"ids": ids, "ref_ids": ids.repeat(len(docs))}
            further["own_negatives"] = torch.stack(docs[1:], 1)
        losses = self.of(x, torch.cat(docs), reduction="none", **further)
        if self.partition == "joint" and "yx" in self.directions:
            losses = log1p_exp(losses)  # there the joint denominator has the positive twice
        return losses.mean()
