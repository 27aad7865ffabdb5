"""InfoNCE whose negatives count the more the harder they are."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.row_stats.pieces import log1p_exp
from pairops.ops.terms.checks import one_of
from pairops.ops.terms.tensor_checks import check_embeddings, number

from .directions.candidates import Candidates, Direction, checked_directions
from .directions.cross_entropy import Negatives
from .directions.directions import Directions
from .info_nce import PARTITIONS, Partition
from .objective.keywords import Paired, Value
from .objective.objective import Objective, split
from .objective.registration import loss

__all__ = ["hard_negative_info_nce_loss"]

Hardened = Literal["all", "in_batch", "own"]
_ONE_WAY: tuple[Direction, ...] = ("xy",)


@loss()
def hard_negative_info_nce_loss(
    x: Tensor,  # (N, D)
    y: Tensor,  # (M, D)
    *,
    temperature: float | Tensor = 0.05,
    hardness: float | Tensor | None = None,
    hardened: Hardened = "all",
    concentration: float | Tensor | None = None,
    debias: float | Tensor = 0.0,
    directions: Sequence[Direction] = _ONE_WAY,
    partition: Partition = "joint",
    own_negatives: Tensor | None = None,  # (N, K, D)
    ids: Tensor | None = None,  # (N,)
    ref_ids: Tensor | None = None,  # (M,)
    **common: Unpack[Paired],
) -> Value:
    """ℓ_i = log(1 + R_i e^{−s_ii/τ}), where R_i weighs negatives by e^{α s_ij} or e^{β s_ij/τ}.

    With `hardness`, R = Σ_j e^{s_ij/τ + α s_ij} over the negatives, α s_ij held constant. With
    `concentration`, R = max(n e^{−1/τ}, (n h − τ⁺ n e^{s_ii/τ}) / (1 − τ⁺)) of n negatives, with
    h = Σ_j e^{(1+β) s_ij/τ} / Σ_j e^{β s_ij/τ}. An anchor without negatives contributes 0. `weight`
    is one factor per pair (i, i). With a distance d, s is −d.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        y: (M, D) of the dtype of x, with M ≥ N. The embeddings that x is compared with.
        temperature: a number above 0 or a 0-d tensor with gradient: τ.
        hardness: a number or a 0-d tensor, held constant, 0 or above: α. Derivatives of the loss
            are first ones. None: hard negatives weigh by `concentration`.
        hardened: which negatives of "xy" hardness is for: "all"; "in_batch", the rows of y; "own",
            `own_negatives`.
        concentration: a number or a 0-d tensor with gradient, 0 or above: β. None: 1, if there is
            no hardness.
        debias: a number or a 0-d tensor with gradient, from 0 to below 1: τ⁺, the share of
            negatives that are believed to be positives. It comes with concentration.
        directions: as in `info_nce_loss`.
        partition: as in `info_nce_loss`: n and R are of one direction, or of all.
        own_negatives: (N, K, D) of the dtype of x, K further negatives for each x_i, in "xy".
        ids: (N,) integers that name the pairs, as in `info_nce_loss`.
        ref_ids: (M,) integers, the names of the rows of y.

    Source:
        Hardness as in Lan et al., LLaVE, 2025, and EmbeddingGemma, 2025, in the form of
        sentence-transformers' MultipleNegativesRankingLoss. Robinson et al., Contrastive Learning
        with Hard Negative Samples, 2021; with concentration=0 Chuang et al., Debiased Contrastive
        Learning, 2020.

    Differs from:
        Robinson's code has two views: it is the mean of this loss of (x, y) and of (y, x) with
        directions=("xy", "xx").
    """
    scale = 1 / number("temperature", temperature, positive=True)
    ways = directions if directions is _ONE_WAY else checked_directions(directions)
    one_of("partition", partition, PARTITIONS)
    one_of("hardened", hardened, get_args(Hardened))
    share = number("debias", debias)
    check_embeddings("x", x)
    check_embeddings("y", y, like=("x", x))
    if hardness is not None and concentration is not None:
        raise ValueError("hardness and concentration are both given; give one of them")
    if hardness is None and hardened != "all":
        raise ValueError(f"hardened is {hardened!r} without hardness; it must come with one")
    if hardened == "own" and own_negatives is None and len(x):
        raise ValueError("hardened is 'own' and own_negatives is None; they must be given")
    if hardened == "in_batch" and "xy" not in ways:
        raise ValueError("hardened is 'in_batch', of the direction 'xy'; directions must have it")
    if hardness is not None and (isinstance(share, Tensor) or share):
        raise ValueError("debias is given with hardness; it comes with concentration")
    if not isinstance(share, Tensor) and not 0 <= share < 1:
        raise ValueError(f"debias is {share}; it must be from 0 to below 1")
    candidates = Candidates.checked(
        x, y, ways, own_negatives=own_negatives, ids=ids, ref_ids=ref_ids
    )
    asked, comparing = split(common, x)
    if hardness is not None:
        alpha = _not_negative("hardness", hardness)
        at: Directions = _Hardened(x, y, scale, candidates, comparing, alpha, hardened)
        found = at.negatives(ways)
        losses = at.joint(found, 0.0) if partition == "joint" else at.separate(found, 0.0)
        return Objective.of(at.paired, **asked).value(losses)
    beta = 1.0 if concentration is None else _not_negative("concentration", concentration)
    at = Directions(x, y, (1 + beta) * scale, candidates, True, comparing, beside=(beta * scale,))
    found = at.negatives(ways)
    parts = list(found.values()) if partition == "separate" else [at.together(found)]
    positive = at.positive / (1 + beta)
    of_parts = [_debiased(positive, part, at.near, scale, share) for part in parts]
    return Objective.of(at.paired, **asked).value(torch.stack(of_parts).mean(0))


class _Hardened(Directions):
    """Directions of which some negatives of "xy" have e^{α s} for a factor, held constant."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        scale: float | Tensor,
        candidates: Candidates,
        comparing: dict[str, Any],
        hardness: float | Tensor,
        which: Hardened,
    ) -> None:
        self._hardness = hardness.detach() if isinstance(hardness, Tensor) else hardness
        self._parts = {"all": ("xy", "own"), "in_batch": ("xy",), "own": ("own",)}[which]
        super().__init__(x, y, scale, candidates, False, comparing)

    def scale_of(self, part: str) -> float | Tensor:
        if part not in self._parts:
            return self.scale
        if not isinstance(self.scale, Tensor):
            return self.scale + self._hardness
        # Its gradient is multiplied by `_share` below, which is for that by s alone.
        held = self.scale.detach()
        return held + self._hardness + (self.scale - held) / self._share()

    def _share(self) -> float | Tensor:
        held = self.scale.detach() if isinstance(self.scale, Tensor) else self.scale
        return held / (held + self._hardness)

    def _negatives(self, way: str, found: Iterable[Tensor], nominal: int) -> Negatives:
        made = super()._negatives(way, found, nominal)
        if way not in self._parts:
            return made
        share, log_sum = self._share(), made.log_sum
        held = log_sum.detach()
        # Without arithmetic on −inf, which an anchor without negatives has.
        log_sum = held + torch.where(held == -torch.inf, 0.0, share * (log_sum - held))
        return replace(made, log_sum=log_sum + self._hardness * self.near)


def _not_negative(name: str, given: float | Tensor) -> float | Tensor:
    value = number(name, given)
    if not isinstance(value, Tensor) and value < 0:
        raise ValueError(f"{name} is {value}; it must be 0 or above")
    return value


def _debiased(
    positive: Tensor,  # (N,) κ (s_ii − c)
    negatives: Negatives,
    near: Tensor,  # (N,) c
    scale: float | Tensor,
    share: float | Tensor,
) -> Tensor:  # (N,)
    """Compute log(1 + g e^{−κ s_ii}), in logarithms, since e^{κ s} may overflow."""
    (spread,) = negatives.beside
    assert negatives.count is not None, "the number of negatives is asked for"
    none = negatives.count == 0
    log_n = torch.log(torch.where(none, 1, negatives.count))
    hard = log_n + torch.where(none, 0.0, negatives.log_sum) - torch.where(none, 0.0, spread)
    if isinstance(share, Tensor) or share:
        share = torch.as_tensor(share, dtype=hard.dtype, device=hard.device)
        # Beyond e^80 a share that float32 holds is more than all there is.
        gone = share * torch.exp((log_n + positive - hard).clamp(max=80))
        is_left = gone < 1
        left = torch.log1p(-torch.where(is_left, gone, 0.5))
        hard = torch.where(is_left, hard + left - torch.log1p(-share), -torch.inf)
    floor = log_n - scale * (1 + near)
    log_g = torch.where(hard > floor, hard, floor)
    return log1p_exp(torch.where(none, -torch.inf, log_g - positive))
