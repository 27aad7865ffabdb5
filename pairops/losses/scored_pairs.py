"""CoSENT: pairs with a score each, whose similarities are to be in the order of their scores."""

import torch
from torch import Tensor
from typing_extensions import Unpack

from pairops.ops.bindings.devices import widest_float
from pairops.ops.pairs.widths import numbers
from pairops.ops.row_stats.op import row_stats
from pairops.ops.terms.accumulators import finite
from pairops.ops.terms.tensor_checks import number
from pairops.ops.terms.term import POS, total

from .objective.keywords import Paired, Value
from .objective.objective import check_one_for_each, paired
from .objective.registration import loss

__all__ = ["cosent_loss"]


@loss()
def cosent_loss(
    x: Tensor,  # (N, D)
    y: Tensor,  # (N, D)
    scores: Tensor,  # (N,)
    *,
    temperature: float | Tensor = 0.05,
    **common: Unpack[Paired],
) -> Value:
    """ℓ_i = log(1 + Σ_{c_k > c_l} e^{(s_ll − s_kk)/τ}): one number for every anchor.

    Pair k is x_k and y_k, with the score c_k that people gave it. Of two pairs the one with the
    higher score is to be the more similar; pairs with equal scores are not compared, and a loss
    without two different scores is 0. A score that is NaN or infinite makes the loss NaN. `weight`
    is one factor per pair, of its ℓ_i. With a distance d, s is −d.

    The N numbers s_kk are sorted by score: time O(N·D + N log N) and memory O(N·D), with no matrix
    of N × N differences. With `group` every rank gathers the N similarities and scores, and no
    embedding is sent.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, the embeddings.
        y: (N, D) of the dtype of x. y_i belongs to x_i.
        scores: (N,) finite real numbers without gradient: c, of any scale, since their order alone
            counts.
        temperature: a number above 0 or a 0-d tensor with gradient: τ.

    Source:
        Huang et al., CoSENT: Consistent Sentence Embedding via Similarity Ranking, TASLP 2024. The
        loss equals CoSENTLoss of sentence-transformers with scale = 1/τ.

    Differs from:
        Earlier releases of CoSENTLoss make all N × N differences. That of 6.2 sorts too, and adds
        exponents in the dtype of the embeddings, here in float64 where the device has it.
    """
    scale = 1 / number("temperature", temperature, positive=True)
    check_one_for_each(x, y)
    scores = numbers("scores", scores, "x", x)
    objective = paired(x, y, common)
    pairs = objective.pairs
    (similarity,) = row_stats(pairs, total(POS, 1.0, 0.0))
    if pairs.batch[0] < 2:
        return objective.value(0 * similarity)
    # In the widest dtype, since these are N numbers alone, and sums of up to N² exponentials.
    s = pairs.of_all(0, similarity.to(widest_float(similarity.device)))
    value = _disorder(scale * (s - s.detach().amax()), pairs.of_all(0, scores))
    return objective.value(value.to(similarity.dtype).expand(len(similarity)))


def _disorder(z: Tensor, scores: Tensor) -> Tensor:
    """Return log(1 + Σ_{c_k > c_l} e^{z_l − z_k}); NaN if a score is NaN or infinite.

    z: (N,), N ≥ 1.  scores: (N,) c.
    """
    scores, order = torch.sort(scores, descending=True)
    z = z[order]
    constant = z.detach()
    factors = torch.exp(z - constant)  # 1, with the derivatives of e^z
    following = torch.arange(1, len(z), device=z.device)
    begins = torch.where(scores[1:] != scores[:-1], following, 0)
    # How many scores are higher: as many as stand before the first equal one.
    higher = torch.cat([begins.new_zeros(1), begins.cummax(0).values])
    last = (higher - 1).clamp(min=0)
    peaks, sums = _running(-constant, 1 / factors)
    exponents = torch.where(higher > 0, constant + peaks[last], -torch.inf)
    peak = exponents.amax()
    # Where nothing is compared the sum is 0, and the loss is log 1.
    total = (factors * sums[last] * torch.exp(exponents - finite(peak))).sum()
    beyond = peak.clamp(min=0)
    power = torch.exp(finite(peak) - beyond)
    return beyond + torch.log1p(torch.expm1(-beyond) + power * total) + 0 * scores.sum()


def _running(peaks: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Sum up e^{p_j} a_j over j ≤ i: return (N,) powers and (N,) factors, of the same form.

    Neighbours are summed, and their sums in the same way, so work and memory are O(N). A sum has a
    rounding error of its own size, where that of torch.logcumsumexp is one of the exponent.

    peaks: (N,) p without gradient.  sums: (N,) a.
    """
    n = len(peaks)
    if n < 2:
        return peaks, sums
    even = slice(0, n - n % 2, 2)
    odd = _running(*_added(peaks[even], sums[even], peaks[1::2], sums[1::2]))
    before = slice(0, (n - 1) // 2)
    after = _added(odd[0][before], odd[1][before], peaks[2::2], sums[2::2])
    firsts = [torch.cat([z[:1], more]) for z, more in zip((peaks, sums), after, strict=True)]
    woven = [
        torch.cat([torch.stack([a[: n // 2], b], 1).flatten(), a[n // 2 :]])
        for a, b in zip(firsts, odd, strict=True)
    ]
    return woven[0], woven[1]


def _added(p: Tensor, a: Tensor, q: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return e^p a + e^q b as a power and a factor."""
    peak = torch.maximum(p, q)
    return peak, a * torch.exp(p - peak) + b * torch.exp(q - peak)
