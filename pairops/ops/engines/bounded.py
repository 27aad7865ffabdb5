"""Log-sum-exps of cosines that engines for GPUs sum without a maximum, in kernels of their own."""

from pairops.ops.terms.arguments import Partner
from pairops.ops.terms.functions import affine
from pairops.ops.terms.term import Term

# The largest |scale| for which exp(scale · s), |s| ≤ 1, is between 2^±76. Then Σ of 2^31 of them is
# a float32, and the shares of anchors of which a gradient is between 2^±33 have all their digits.
_SHARPEST = 52.0


def is_bounded(term: Term) -> bool:
    """Return whether exp f of a cosine is exp(−scale · base) times a number between 2^±76."""
    if term.statistic != "lse" or term.function is not affine:
        return False
    scale, base = term.args
    sharp = not isinstance(scale, float) or abs(scale) > _SHARPEST
    return not (sharp or isinstance(base, Partner))
