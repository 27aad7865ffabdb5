"""Mistakes in the C++ part that runs on a CPU: what `python_mutants` says holds here too.

The CUDA kernels have mutants of their own, in cuda_on_host. Of what is shared with them, functions
and accumulators, only the CPU's extension is compiled with the edit.
"""

from mutants.mutant import Mutant

FUNCTIONS = "csrc/math/functions.h"
ACCUMULATORS = "csrc/math/accumulators.h"
INTERVALS = "csrc/cpu/label_sort.cpp"
TILE = "csrc/cpu/simd/tile.h"
BOTH_ROLES = "csrc/cpu/simd/tile_symmetric.h"
PACKING = "csrc/cpu/simd/packing.h"
PRODUCT = "csrc/cpu/simd/microkernel.h"
FORWARD = "csrc/cpu/forward.cpp"
BACKWARD = "csrc/cpu/backward.cpp"
EXTREMES = "csrc/cpu/extremes.cpp"
MEAN = "csrc/cpu/mean.cpp"
SWEEP = "csrc/cpu/sweep.cpp"
BINDINGS = "csrc/bindings/cpu.cpp"
PLAN = "csrc/bindings/plan.h"

OF_FUNCTIONS = "tests/ops/terms/test_compiled_functions.py"
OF_ROUNDING = "tests/ops/engines/cpu/test_rounding.py"
OF_TERMS = "tests/ops/engines/cpu/test_sweeps.py::test_every_served_term_equals_dense"
OF_TERMS_ALONE = "tests/ops/engines/cpu/test_sweeps.py::test_every_served_term_alone_equals_dense"
OF_RANGES = "tests/ops/engines/cpu/test_sweeps.py::test_states_far_below_the_maximum_of_a_tile"
OF_DIGITS = (
    "tests/ops/engines/cpu/test_sweeps.py::test_a_maximum_that_a_window_drops_costs_no_digits"
)
OF_DEPTHS = "tests/ops/engines/cpu/test_sweeps.py::test_every_dtype_and_depth"
OF_TILE_BITS = "tests/ops/engines/cpu/test_sweeps.py::test_tile_bits_change_no_bit"
OF_SAVED = "tests/ops/engines/cpu/test_saved_similarities.py"
OF_EXTREMES = f"{OF_SAVED}::test_the_gradient_of_extremes_is_that_of_dense"
OF_DISTANCES = "tests/ops/row_stats/test_distances.py"
OF_LISTS = "tests/ops/pairs/test_lists.py"
OF_EARLIER = "tests/ops/row_stats/test_earlier_terms.py"
OF_BETWEEN = "tests/ops/row_stats/test_between.py"
OF_PIECES = "tests/ops/row_stats/test_pieces.py"
OF_TILES_WITHOUT_WEIGHTS = (
    "tests/ops/engines/cpu/test_sweeps.py::test_a_tile_without_weights_has_slopes"
)
OF_INTERVALS = "tests/ops/pairs/test_intervals.py"
OF_STATISTICS = "tests/ops/row_stats/test_row_stats.py"

MUTANTS = [
    # What one pair contributes, and how contributions become a statistic.
    Mutant(
        "sign of hinge's slope by its base", FUNCTIONS,
        "select(rises, -scale, flat)", "select(rises, scale, flat)",
        (OF_FUNCTIONS,),
    ),
    Mutant(
        "attended's product is fused into the subtraction of its shift", FUNCTIONS,
        "exp(rounded(scale * s) - shift)", "exp(scale * s - shift)",
        (OF_ROUNDING,),
    ),
    Mutant(
        "merge takes the maxima of log-sum-exps for one another", ACCUMULATORS,
        "other.sum * exp_to_one(difference(other.max, top))",
        "other.sum * exp_to_one(difference(max, top))",
        (OF_FUNCTIONS,),
    ),
    Mutant(
        "of equal extremes the highest index wins", ACCUMULATORS,
        "(ties & (j < argument))", "(ties & (j > argument))",
        (OF_FUNCTIONS,),
    ),
    # Who is positive.
    Mutant(
        "an interval may end before it begins", INTERVALS,
        "        if (end < begin) end = begin;\n", "",
        (OF_INTERVALS,),
    ),
    Mutant(
        "a row is counted among its own positives", BINDINGS,
        "pos_end[i] - pos_begin[i] - counts_self : 0;", "pos_end[i] - pos_begin[i] : 0;",
        (OF_INTERVALS,),
    ),
    # Tiles.
    Mutant(
        "a pair at the threshold is kept", TILE,
        "valid & !(s <= above.at(j))", "valid & !(s < above.at(j))",
        (OF_STATISTICS,),
    ),
    Mutant(
        "columns beyond a ragged tile count", TILE,
        "const Mask pair = (column != self) & (column < cols);",
        "const Mask pair = column != self;",
        (OF_TERMS,),
    ),
    Mutant(
        "a ragged tile is swept as a full one", SWEEP,
        "tile.cols % kernels.vector_width != 0 ||", "",
        (OF_TERMS,),
    ),
    Mutant(
        "a band ends before the tile that its last positives begin", SWEEP,
        "return std::min(tiles_of(call.pos_end[last]), col_tiles);",
        "return std::min(int(call.pos_end[last] / TILE), col_tiles);",
        (OF_TERMS_ALONE,),
    ),
    Mutant(
        "a state far below a tile's maximum does not count", BOTH_ROLES,
        "            low = select((level < low) & !empty, level, low);\n", "",
        (OF_RANGES,),
    ),
    Mutant(
        "states of rows are finished under their highest maximum", BOTH_ROLES,
        "const V one = level(states[k]);", "const V one = states[k].max;",
        (OF_RANGES, OF_DIGITS),
    ),
    # Embeddings.
    Mutant(
        "compiled gradient through a scale without the scale", PACKING,
        "out[k] = T(r * (double(out[k]) - dot * unit(k)));",
        "out[k] = T(double(out[k]) - dot * unit(k));",
        (OF_TERMS,),
    ),
    Mutant(
        "flags of a list stay for the next tile", SWEEP,
        "listed.flags[listed_[k]] = 0;", "break;",
        (OF_LISTS,),
    ),
    Mutant(
        "of a row's listed positives in a tile the last alone is read", SWEEP,
        "extend(columns, {j, j + 1});", "columns = {j, j + 1};",
        (OF_LISTS,),
    ),
    Mutant(
        "a row without a listed positive decides for the rows after it", TILE,
        "has_some(end) == has_some(first)", "!has_some(first)",
        (OF_LISTS,),
    ),
    Mutant(
        "a list's columns are its rows", SWEEP,
        "std::uint16_t(p % TILE * TILE + q % TILE)", "std::uint16_t(q % TILE * TILE + p % TILE)",
        (OF_LISTS,),
    ),
    Mutant(
        "a gradient passed on replaces the cotangent", PLAN,
        "to[i] += slopes_[k][p][i];", "to[i] = slopes_[k][p][i];",
        (OF_EARLIER,),
    ),
    Mutant(
        "a sum of sweeps goes through the scale after each", BACKWARD,
        "return call_.last || !set.scale;", "return true;",
        (OF_EARLIER,),
    ),
    Mutant(
        "a mean over positives without their number", MEAN,
        "by_plus = {plus / count, 1 / count};", "by_plus = {plus / count, 1};",
        (OF_PIECES,),
    ),
    Mutant(
        "the last dimensions are left out of a norm", PACKING,
        "    for (; k < d; ++k) sums[0] += term(k);\n", "",
        (OF_INTERVALS,),
    ),
    Mutant(
        "dimensions beyond the first 256 replace those before", PRODUCT,
        "(k == 0 ? micro.sums[r][half] : V::load(to) + micro.sums[r][half])",
        "micro.sums[r][half]",
        (OF_DEPTHS,),
    ),
    Mutant(
        "the last dimension of a column's gradient is dropped", PRODUCT,
        "for (int c = 0; c < width; ++c) to[c] += last[c];",
        "for (int c = 0; c + 1 < width; ++c) to[c] += last[c];",
        (OF_TERMS,),
    ),
    # Sweeps.
    Mutant(
        "a tile's bit tells of the columns alone", FORWARD,
        "found |= kernel(k).forward_cols", "found = kernel(k).forward_cols",
        (OF_STATISTICS, OF_TILE_BITS),
    ),
    Mutant(
        "a tile is multiplied only if its last term weighs something", BACKWARD,
        "found |= kernel.backward_cols", "found = kernel.backward_cols",
        (OF_TILES_WITHOUT_WEIGHTS,),
    ),
    Mutant(
        "in a band partners are lost where their row keeps no pair of its own", BACKWARD,
        " || (call_.same && sweep_.bit(term, c, r));", ";",
        (OF_STATISTICS,),
    ),
    Mutant(
        "slopes by arguments count a tile on the diagonal twice", BACKWARD,
        "const bool mirrored = sweep_.triangle && r != c;",
        "const bool mirrored = sweep_.triangle;",
        (OF_TERMS,),
    ),
    # Similarities that are kept.
    Mutant(
        "a tile of which a band has computed a part is known", SWEEP,
        "in_ranges = of_positives && !call.similarities.tiles;", "in_ranges = of_positives;",
        (OF_SAVED,),
    ),
    Mutant(
        "a tile is known before it is written", SWEEP,
        "    if (mine) s = saved;\n",
        "    if (mine) s = saved, __atomic_store_n(state, KNOWN, __ATOMIC_RELEASE);\n",
        (OF_SAVED,),
    ),
    Mutant(
        "all products of further embeddings are the first", SWEEP,
        "products + std::size_t(product) * TILE * TILE", "products",
        (f"{OF_BETWEEN}::test_compiled_beside_others",),
    ),
    Mutant(
        "a pair above its bar has the slope of one below", FUNCTIONS,
        "const T flat = select(z > T(0), T(0), z);", "const T flat = select(z > T(0), scale, z);",
        (OF_FUNCTIONS,),
    ),
    # What goes without a sweep.
    Mutant(
        "snr of two sets has anchors in both", "csrc/cpu/sweep.h",
        "if (!call.same) return !call.measure.anchors_are_columns;", "",
        (f"{OF_DISTANCES}::test_statistics_whose_contributions_lie_far_apart",),
    ),
    Mutant(
        "squared norms of y have a gradient where those of x have one", "csrc/cpu/simd/closeness.h",
        "if (given.of_rows || given.of_cols) add(", "if (given.of_rows) add(",
        (f"{OF_DISTANCES}::test_gradients_are_those_of_differences",),
    ),
    Mutant(
        "the gradient of an extreme is its owner's alone", EXTREMES,
        "if (by_theirs) add_pair<T>(owner, by.weight, partner, of_partner, d, by_theirs + j * d);",
        "",
        (OF_EXTREMES,),
    ),
    Mutant(
        "the slope of a piece without its weight", MEAN,
        "const double share = piece.weight / double(n);", "const double share = 1 / double(n);",
        (OF_PIECES,),
    ),
    Mutant(
        "the slope by a mean without the number of its pairs", MEAN,
        "by_minus = -1 / count;", "by_minus = -1;",
        (OF_PIECES,),
    ),
]  # fmt: skip
