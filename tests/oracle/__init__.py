"""Every loss written naively from its paper: the oracle that the engines are compared with.

Nothing here knows the library. A loss computes in `dtype` (float64; float32 gives what dense torch
gets), by plain autograd over the whole matrix, and returns one number per anchor, in the caller's
order; `reduce` makes them one. A loss over pairs also takes reduction="mean_pairs" and weight=, and
is then a scalar.

All are written in closeness t: a similarity, or minus a distance. What the user says as a place on
that axis (margins, base, beta) is a similarity or a distance, and turned `at` its place.

The losses over labels share these keywords (see `Rows`):
    ref_emb, ref_labels   the references; None: the anchors themselves
    own                   (N,) the reference that row i itself is, or -1; None: i if the same set
    distance              "cosine", "dot", "l2", "sqeuclidean" or "snr"
    normalize             compare x / |x|, where the zero vector stays zero and gets no gradient;
                          None: unless for "dot"
    ignore_index          rows with this label are neither anchors nor references; None: no label
    dtype                 what to compute in
Those against proxies take distance, normalize, ignore_index and dtype of these, and those over two
sets distance, normalize and dtype.
"""

from oracle import (  # fmt: skip
    codes,
    gates,
    hard_negative,
    info_nce,
    margins,
    nearest,
    proxies,
    ranking,
    regression,
    softmaxes,
    taught,
    two_sets,
)
from oracle.codes import *
from oracle.gates import *
from oracle.hard_negative import *
from oracle.info_nce import *
from oracle.margins import *
from oracle.nearest import *
from oracle.proxies import *
from oracle.ranking import *
from oracle.regression import *
from oracle.reported import Aux, aux
from oracle.rows import closeness, reduce
from oracle.softmaxes import *
from oracle.taught import *
from oracle.two_sets import *

__all__ = ["Aux", "aux", "closeness", "reduce"]
for _family in (
    codes, gates, hard_negative, info_nce, margins, nearest, proxies, ranking, regression,
    softmaxes, taught, two_sets,
):  # fmt: skip
    __all__ += _family.__all__
