"""Mistakes in the Python part: slopes, intervals, windows, roles, merges, indices, ranks.

A moved file or test changes one path below. An edit's text must stand in its file exactly once, so
that whoever changes that line changes the mutant too. No mutant may be right as well: each changes
a result.
"""

from mutants.mutant import Mutant

FUNCTIONS = "pairops/ops/terms/functions.py"
ACCUMULATORS = "pairops/ops/terms/accumulators.py"
INTERVALS = "pairops/ops/pairs/intervals.py"
RELATION = "pairops/ops/pairs/relation.py"
BY_LABEL = "pairops/ops/pairs/by_label.py"
SIMILARITY = "pairops/ops/pairs/similarity.py"
DISTANCES = "pairops/ops/pairs/distances.py"
WIDTHS = "pairops/ops/pairs/widths.py"
LISTS = "pairops/ops/pairs/lists.py"
SHARED_LABELS = "pairops/ops/pairs/shared_labels.py"
TERMS = "pairops/ops/terms/term.py"
SHARDS = "pairops/ops/pairs/shards.py"
RECIPES = "pairops/ops/terms/recipe.py"
BANDS = "pairops/ops/engines/bands.py"
WEIGHT_PARTS = "pairops/ops/engines/weight_parts.py"
BOUNDED = "pairops/ops/engines/bounded.py"
FIRST_USE = "pairops/ops/engines/first_use.py"
SAMPLED_ROWS = "pairops/ops/engines/sampled_rows.py"
PASSED = "pairops/ops/engines/passed.py"
MAIN = "pairops/__main__.py"
KERNEL_CHECK = "pairops/inspection/kernel_check.py"
ENGINES = "pairops/ops/engines/__init__.py"
BLOCKWISE = "pairops/ops/engines/blockwise/engine.py"
GRID = "pairops/ops/engines/blockwise/grid.py"
NATIVE = "pairops/ops/engines/cpu.py"
ADDRESSES = "pairops/ops/engines/cpu_addresses.py"
PLAN = "pairops/ops/engines/plan.py"
EARLIER = "pairops/ops/terms/levels.py"
LEVELS = "pairops/ops/row_stats/levels.py"
EAGER = "pairops/ops/row_stats/eager.py"
SMALL_MEAN = "pairops/ops/row_stats/small_mean.py"
BACKWARD = "pairops/ops/row_stats/backward.py"
SHARDED = "pairops/ops/row_stats/sharded.py"
POSITIVE_ROWS = "pairops/ops/row_stats/positive_rows.py"
PML_TUPLES = "pairops/compat/pml/tuples.py"
PML = "pairops/compat/pml/__init__.py"
OPEN_CLIP = "pairops/compat/open_clip.py"
PICKED_ROWS = "pairops/ops/row_stats/picked_rows.py"
RANKS_OF_POSITIVES = "pairops/losses/ranking.py"
SOFT_TOPK = "pairops/losses/soft_topk.py"
REDUCTION = "pairops/losses/objective/reduction.py"
REGRESSION = "pairops/losses/regression.py"
NEIGHBOURS = "pairops/losses/neighbours.py"
TRANSPORT = "pairops/losses/conditional_transport.py"
DISTILLATION = "pairops/losses/distillation.py"
TEACHER_SIMILARITIES = "pairops/losses/teacher_similarities.py"
SOFT_TRIPLET = "pairops/losses/soft_triplet.py"
MULTI_SIMILARITY = "pairops/losses/multi_similarity.py"
DIRECTIONS = "pairops/losses/directions/directions.py"
HARD_NEGATIVE = "pairops/losses/hard_negative.py"
HYDRA = "pairops/losses/hydra.py"
HASHING = "pairops/losses/hashing.py"
SEVERAL_LABELS = "pairops/losses/several_labels.py"
DECOUPLED = "pairops/losses/decoupled_contrastive.py"
MANN_WHITNEY = "pairops/losses/mann_whitney.py"
UNIFORMITY = "pairops/losses/uniformity.py"
SCORED_PAIRS = "pairops/losses/scored_pairs.py"
ALIGNMENT = "pairops/losses/alignment.py"
MEMORY = "pairops/training/cross_batch_memory.py"
CACHED_STEP = "pairops/training/cached_step.py"
RETRIEVAL = "pairops/retrieval/metrics.py"
RANKING = "pairops/retrieval/ranking.py"
HUBS = "pairops/retrieval/hubs.py"
PAIR_WEIGHTS = "pairops/inspection/pair_weights.py"
TRITON_MONOIDS = "pairops/ops/engines/triton/kernels/accumulators.py"
TRITON_TILES = "pairops/ops/engines/triton/kernels/tile.py"
CUDA_LAUNCH = "pairops/ops/engines/cuda/launch.py"
CUDA_PLANS = "pairops/ops/engines/cuda/plans.py"
CUDA_MEAN = "pairops/ops/row_stats/cuda_mean.py"
SAMPLED_CALLS = "pairops/ops/engines/sampled_calls.py"
TRITON_LISTS = "pairops/ops/engines/triton/kernels/lists.py"
TRITON_OPERANDS = "pairops/ops/engines/triton/operands.py"
TRITON_SWEEPS = "pairops/ops/engines/triton/kernels/sweep.py"
TRITON_TABLE = "pairops/ops/engines/triton/tile_configs.py"
TRITON_SCALE = "pairops/ops/engines/triton/kernels/finalize.py"
TRITON_TEXT = "pairops/ops/engines/triton/codegen.py"
TRITON_CHUNK = "pairops/ops/engines/triton/kernels/chunk.py"
TRITON_CHUNKS = "pairops/ops/engines/triton/chunked_launch.py"
TRITON_BOUNDS = "pairops/ops/engines/triton/weight_bounds.py"
DEVICES = "pairops/ops/bindings/devices.py"
TRITON_TERMS = "pairops/ops/engines/triton/term_text.py"

OF_FUNCTIONS = "tests/ops/terms/test_functions.py"
OF_STATISTICS = "tests/ops/row_stats/test_row_stats.py"
OF_INTERVALS = "tests/ops/pairs/test_intervals.py"
OF_INDEX = "tests/ops/row_stats/test_index.py"
OF_PML_TUPLES = "tests/compat/test_pml_tuples.py"
OF_PML_EDGES = "tests/compat/test_pml_edges.py"
OF_OPEN_CLIP = "tests/compat/test_open_clip.py"
OF_POSITIVE_ROWS = "tests/ops/row_stats/test_positive_rows.py"
OF_UNIT_ROWS = "tests/ops/pairs/test_gradients_of_unit_rows.py"
OF_LISTS = "tests/ops/pairs/test_lists.py"
OF_SHARED_LABELS = "tests/ops/pairs/test_shared_labels.py"
OF_INFO_NCE = "tests/losses/test_info_nce.py"
OF_HARD_NEGATIVES = "tests/losses/test_hard_negative.py"
OF_WIDTHS = "tests/ops/pairs/test_widths.py"
OF_EARLIER = "tests/ops/row_stats/test_earlier_terms.py"
OF_SAVED = "tests/ops/engines/cpu/test_saved_similarities.py"
OF_BETWEEN = "tests/ops/row_stats/test_between.py"
OF_LAYOUT = "tests/ops/engines/cpu/test_memory_layout.py"
OF_SMALL_MEAN = "tests/ops/row_stats/test_small_mean.py"
OF_HUGE_ROWS = "tests/ops/pairs/test_huge_rows.py"
OF_LOSSES = "tests/losses/test_named_cases.py::test_named_cases"
OF_NUMBERS = "tests/losses/test_over_numbers.py::test_one_set_on_every_engine"
OF_NEIGHBOURS = "tests/losses/test_nearest.py::test_nnclr_on_every_engine"
OF_SOFT_TRIPLETS = "tests/losses/test_nearest.py::test_soft_triplets_on_every_engine"
OF_TRANSPORT = "tests/losses/test_conditional_transport.py"
OF_DISTILLATION = "tests/losses/test_distillation.py"
OF_CWCL = "tests/losses/test_teacher_similarities.py::test_cwcl"
OF_GRAM_MATCHING = "tests/losses/test_teacher_similarities.py::test_gram_matching"
OF_SHARP_LOSSES = "tests/losses/test_named_cases.py::test_huge_logits"
OF_HYDRA = "tests/losses/test_hydra.py"
OF_HASHING = "tests/losses/test_hashing.py"
OF_SEVERAL_LABELS = "tests/losses/test_several_labels.py"
OF_TWO_SETS = "tests/losses/test_named_cases.py::test_two_sets"
OF_ALIGNMENT = "tests/losses/test_alignment.py"
OF_SCORED_PAIRS = "tests/losses/test_scored_pairs.py"
OF_OWN_RELEVANCE = "tests/losses/test_named_cases.py::test_each_pair_s_own_relevance_of_sms"
OF_DISTANCES = "tests/compat/test_pml.py"
OF_SQUARES = "tests/ops/row_stats/test_distances.py::test_gradients_are_those_of_differences"
OF_DERIVATIVES = (
    "tests/ops/row_stats/test_op.py::test_gradcheck_and_gradgradcheck_by_embeddings_and_scalar"
)
OF_REDUCTIONS = "tests/losses/test_reductions.py::test_reductions"
OF_AVERAGES = "tests/losses/test_reductions.py::test_averages_over_pairs"
OF_CPU = "tests/ops/engines/cpu/test_sweeps.py::test_every_served_term_equals_dense"
OF_CUDA_MEAN = "tests/ops/row_stats/test_cuda_mean.py"
OF_CUDA_TILE_BITS = (
    "tests/ops/engines/cuda/test_engine.py::test_tile_bits_change_no_result_by_one_bit"
)
OF_REPLAY = "tests/ops/engines/cuda/test_graphs.py::test_a_step_that_is_replayed_is_a_step"
OF_TRITON = "tests/ops/engines/triton/test_engine.py"
OF_TRITON_LISTS = "tests/ops/engines/triton/test_lists.py"
OF_CHUNKS = "tests/ops/engines/triton/test_chunks.py"
OF_SPLITS = "tests/ops/test_splits.py"
OF_TRITON_NUMERICS = "tests/ops/engines/triton/test_numerics.py"
OF_CHOICE = "tests/ops/engines/triton/test_declines.py"
OF_TRITON_ROUNDING = "tests/ops/engines/triton/test_rounding.py"
OF_WEIGHT_PARTS = "tests/ops/engines/test_weight_parts.py"
OF_RANKS = (
    "tests/ops/distributed/test_losses.py"
    "::test_value_and_gradient_are_those_of_one_process[ms_loss-uneven]"
)
OF_MEMORY = "tests/training/test_cross_batch_memory.py"
OF_CACHED_STEP = "tests/training/test_cached_step.py"
OF_RETRIEVAL = "tests/retrieval/test_metrics.py::test_every_engine_counts_what_a_sort_finds"
OF_PAIR_WEIGHTS = "tests/inspection/test_pair_weights.py"
OF_FIRST_USE = "tests/ops/engines/test_first_use.py"
OF_FIRST_USE_OF_MEAN = f"{OF_FIRST_USE}::test_a_mean_and_its_gradient_are_checked"
OF_KERNEL_CHECK = "tests/inspection/test_kernel_check.py"


def of_loss(loss: str, case: str) -> str:
    return f"{OF_LOSSES}[{loss}-{case}]"


MUTANTS = [
    # What one pair contributes.
    Mutant(
        "sign of affine's slope by its base", FUNCTIONS,
        "return scale, s - base, -scale", "return scale, s - base, scale",
        (OF_FUNCTIONS,),
    ),
    Mutant(
        "softplus's slope by its bias is multiplied by the scale", FUNCTIONS,
        "return share * scale, share * s, share", "return share * scale, share * s, share * scale",
        (OF_FUNCTIONS,),
    ),
    Mutant(
        "sign of a distance's slope by the norm of a column", DISTANCES,
        "return slope, -0.5 * slope, -0.5 * slope, 0.0 * slope",
        "return slope, -0.5 * slope, 0.5 * slope, 0.0 * slope",
        (OF_DISTANCES,),
    ),
    # How contributions become a statistic.
    Mutant(
        "merge shifts both log-sum-exps by the first maximum", ACCUMULATORS,
        "b[1] * torch.exp(b[0] - shift)", "b[1] * torch.exp(a[0] - shift)",
        (OF_STATISTICS,),
    ),
    Mutant(
        "of equal extremes the first tile's wins", ACCUMULATORS,
        "torch.minimum(_attained(a[0], value, a[1]), _attained(b[0], value, b[1]))",
        "torch.where(a[0] == value, a[1], b[1])",
        (OF_STATISTICS,),
    ),
    Mutant(
        "an extreme is named by its partner's place, not by its index", BLOCKWISE,
        "seen = t.term.monoid.from_tile(f, 1 - t.axis, grid.caller[1 - t.axis][partner])",
        "seen = t.term.monoid.from_tile(f, 1 - t.axis, grid.position_y[partner])",
        (OF_STATISTICS,),
    ),
    # Who is positive.
    Mutant(
        "an interval without its last place", INTERVALS,
        "end = torch.searchsorted(columns, rows, right=True)",
        "end = torch.searchsorted(columns, rows, right=True) - 1",
        (OF_INTERVALS,),
    ),
    Mutant(
        "a row that stands just after its positives is counted as one", RELATION,
        "((self_index >= begin) & (self_index < end))",
        "((self_index >= begin) & (self_index <= end))",
        (OF_INTERVALS,),
    ),
    Mutant(
        "own places are left in the order of the rows' indices", BY_LABEL,
        "self_index = self_index[relation.permutation_x]",
        "pass",
        (of_loss("supcon_loss", "named_by_ids"),),
    ),
    Mutant(
        "a row is listed as a positive of itself", POSITIVE_ROWS,
        "counts = self_index != column", "counts = self_index == self_index",
        (of_loss("lifted_structure_loss-form=original", "square"),),
    ),
    Mutant(
        "a list of all pairs leaves out those of a row with itself", PML_TUPLES,
        '"ref_emb": ref_emb, "exclude_self": False}', '"ref_emb": ref_emb}',
        (OF_PML_TUPLES,),
    ),
    Mutant(
        "every block of picked rows adds its gradient to the rows of the first", PICKED_ROWS,
        "_added_rows(by_x, picked[here], dx)", "_added_rows(by_x, picked[: last - first], dx)",
        (OF_POSITIVE_ROWS,),
    ),
    Mutant(
        "of picked rows every block's statistics are written where the first has its own",
        PICKED_ROWS,
        "whole[first : first + len(part)] = part", "whole[: len(part)] = part",
        (OF_POSITIVE_ROWS,),
    ),
    Mutant(
        "every block of picked rows has the tile masks of the first", PICKED_ROWS,
        "masks, offset = tile_masks[offset:end].view(shape), end",
        "masks = tile_masks[: end - offset].view(shape)",
        (OF_POSITIVE_ROWS,),
    ),
    Mutant(
        "columns get the gradient of the last block of picked rows alone", PICKED_ROWS,
        "by_y = dy if by_y is None or dy is None else _added(by_y, dy)", "by_y = dy",
        (OF_POSITIVE_ROWS,),
    ),
    # Scales.
    Mutant(
        "gradient through a scale without the scale", SIMILARITY,
        "        dx = r * dx\n", "",
        (OF_STATISTICS,),
    ),
    Mutant(
        "the rounding of a gradient stays along a unit row", SIMILARITY,
        "        dx = dx - rows * (rows * dx).sum(1, keepdim=True)\n", "",
        (OF_UNIT_ROWS,),
    ),
    Mutant(
        "rows times a rounded scale", SIMILARITY,
        "(x * scale.unsqueeze(1)).to(dtype)",
        "x.to(dtype) * scale.to(dtype).unsqueeze(1)",
        (OF_INTERVALS, OF_SHARP_LOSSES),
    ),
    Mutant(
        "the interval of a width without its last column", WIDTHS,
        "(c - v > width) | c.isnan()", "(c - v >= width) | c.isnan()",
        (OF_WIDTHS,),
    ),
    Mutant(
        "the interval of a width by a rounded bound", WIDTHS,
        "~(v - c > width)", "~(c < v - width)",
        (OF_WIDTHS,),
    ),
    Mutant(
        "an infinite number is within a width of another", WIDTHS,
        "torch.where(rows.isfinite(), end, begin)", "end",
        (OF_WIDTHS,),
    ),
    Mutant(
        "ranks count equal numbers alone", SHARDS,
        "(self_keys - key).abs() <= width", "self_keys == key",
        (OF_WIDTHS,),
    ),
    Mutant(
        "a prediction that is far makes a negative", REGRESSION,
        "return torch.where(z <= 0, pushed, torch.where(z > 0, -torch.inf, z))",
        "return torch.where(z <= 0, pushed, torch.where(z > 0, pushed, z))",
        (OF_NUMBERS,),
    ),
    Mutant(
        "a row's nearest neighbour is the row before it", NEIGHBOURS,
        "return queue[index]", "return queue[index - 1]",
        (OF_NEIGHBOURS,),
    ),
    Mutant(
        "the teacher's softmax has its logits turned", SOFT_TRIPLET,
        "torch.sigmoid(taught) * log1p_exp(-gap) + torch.sigmoid(-taught) * log1p_exp(gap)",
        "torch.sigmoid(-taught) * log1p_exp(-gap) + torch.sigmoid(taught) * log1p_exp(gap)",
        (OF_SOFT_TRIPLETS,),
    ),
    Mutant(
        "the shares of transport have no second derivative", TRANSPORT,
        "Earlier(reach, grad=True)", "reach",
        (OF_TRANSPORT,),
    ),
    Mutant(
        "the turned divergence keeps its mean in the gradient", DISTILLATION,
        "q * (delta - mean), -more", "q * delta, -more",
        (OF_DISTILLATION,),
    ),
    Mutant(
        "a teacher's weights are its cosines", TEACHER_SIMILARITIES,
        "(sums[:, :1] + count)", "sums[:, :1]",
        (OF_CWCL,),
    ),
    Mutant(
        "a Gram matrix adds the teacher's similarities", TEACHER_SIMILARITIES,
        "-_rows(unit, teacher)", "_rows(unit, teacher)",
        (OF_GRAM_MATCHING,),
    ),
    Mutant(
        "a list has a pair twice", LISTS,
        "key = torch.where(again, nobody, key).sort().values", "key = key.sort().values",
        (OF_LISTS,),
    ),
    Mutant(
        "blockwise puts a tile's list a tile farther", GRID,
        "row // extent[0] * self._tiles_in_a_row + position // extent[1])",
        "row // extent[0] * self._tiles_in_a_row + (position + 1) // extent[1])",
        (OF_LISTS,),
    ),
    Mutant(
        "Triton looks for a tile's entries one column too far", TRITON_LISTS,
        "mask=low < high, other=past) < first", "mask=low < high, other=past) <= first",
        (OF_TRITON_LISTS,),
    ),
    Mutant(
        "Triton takes one set with a list for symmetric", TRITON_OPERANDS,
        "self.same = pairs.symmetric", "self.same = pairs.y is None",
        (OF_TRITON_LISTS,),
    ),
    Mutant(
        "with a list, Triton takes the tile of a row and itself for a full one", TRITON_LISTS,
        "if not F.band_only:", "if F.band_only:",
        (OF_TRITON_LISTS,),
    ),
    Mutant(
        "a chunk's band ends before the tile that its last positives begin", TRITON_CHUNK,
        "last = tl.cdiv(tl.maximum(tl.load(band + 1) - chunk.first_j, 0).to(tl.int32), C)",
        "last = tl.maximum(tl.load(band + 1) - chunk.first_j, 0).to(tl.int32) // C",
        (OF_CHUNKS,),
    ),
    Mutant(
        "a chunk's rows have units of their own though columns add up their weights", TRITON_CHUNKS,
        "units.amin().expand(rows.n).contiguous() if wanted[1] else units", "units",
        (OF_CHUNKS,),
    ),
    Mutant(
        "all rows of a chunk have the unit of the largest weight", TRITON_CHUNKS,
        "units.amin().expand(rows.n).contiguous() if wanted[1] else units",
        "units.amin().expand(rows.n).contiguous()",
        (OF_CHUNKS,),
    ),
    Mutant(
        "the bound of a weight leaves out what the partner owes", TRITON_BOUNDS,
        "total = total + largest(bound)", "pass",
        (OF_CHUNKS,),
    ),
    Mutant(
        "a buffer of s for each chunk", TRITON_CHUNKS,
        "s = room[: len(a), : len(b)]", "s = torch.empty_like(room)[: len(a), : len(b)]",
        (OF_CHUNKS,),
    ),
    Mutant(
        "a wave that is not full costs what runs in it", DEVICES,
        "waves = -(-blocks * parts // at_a_time)", "waves = blocks * parts / at_a_time",
        (OF_SPLITS,),
    ),
    Mutant(
        "a row shares a label with itself", SHARED_LABELS,
        "(mine @ columns.T > 0.5) & (column != itself.unsqueeze(1))", "mine @ columns.T > 0.5",
        (OF_SHARED_LABELS,),
    ),
    Mutant(
        "the index of an extreme that nobody asked for", TERMS,
        "enumerate([z for z in terms if z.keeps_argument]) if term.index]",
        "enumerate([z for z in terms if z.index])]",
        (OF_INDEX,),
    ),
    Mutant(
        "the power of two that shrank a row is lost", SIMILARITY,
        "        pieces.append(inverse if factor is None else inverse * factor)",
        "        pieces.append(inverse)",
        (OF_HUGE_ROWS,),
    ),
    Mutant(
        "a differentiated norm vanishes below the root of its bound", SIMILARITY,
        "vanishes = square < 1e-24", "vanishes = square < 1e-12",
        (OF_INTERVALS,),
    ),
    # Tiles in plain torch.
    Mutant(
        "a window is dropped in the backward pass", BLOCKWISE,
        "share = share * torch.exp(_selected(t, f, drop, tile, -torch.inf))",
        "share = share * torch.exp(_selected(t, f, None, tile, -torch.inf))",
        (OF_STATISTICS,),
    ),
    Mutant(
        "a partner's argument is the owner's", GRID,
        "return TiledVector(1 - axis, self.cut(argument.values, 1 - axis))",
        "return TiledVector(axis, self.cut(argument.values, axis))",
        (OF_STATISTICS,),
    ),
    Mutant(
        "positives in the last column of a tile are out of the band", GRID,
        "< min(pos_end, (tile[1] + 1) * width)", "< min(pos_end, (tile[1] + 1) * width - 1)",
        (OF_STATISTICS,),
    ),
    Mutant(
        "of one set what rows owe as owners counts twice, and as partners not at all", BLOCKWISE,
        "dx = dx + dy if same else dx", "dx = dx + dx if same else dx",
        (OF_STATISTICS,),
    ),
    Mutant(
        "tile masks of another engine", BACKWARD,
        "serving, tile_masks = blockwise_engine, None", "serving = blockwise_engine",
        (OF_DERIVATIVES,),
    ),
    Mutant(
        "an extreme's partner gets itself for a gradient", BACKWARD,
        "add_rows(partners, at, weight * owner)", "add_rows(partners, at, weight * partner)",
        (OF_STATISTICS,),
    ),
    Mutant(
        "of one set no gradient leads through the squared norms of columns", BACKWARD,
        "(0,) if pairs.y is not None else (0, 1)", "(0,)",
        (OF_SQUARES,),
    ),
    Mutant(
        "no gradient leads through what snr divides by", DISTANCES,
        "by_square = by_square - self.share * (self.share * by_share)", "pass",
        (OF_SQUARES,),
    ),
    # Terms that refer to earlier ones.
    Mutant(
        "an earlier term has the last gradient that is passed on to it, and no other", LEVELS,
        "cotangents[at] = cotangents[at] + slope", "cotangents[at] = slope",
        (OF_EARLIER,),
    ),
    Mutant(
        "a column's term passes its gradient on to one of rows", LEVELS,
        "at = self.first(k) + a.place", "at = a.place",
        (OF_EARLIER,),
    ),
    Mutant(
        "a term that passes its gradient on goes the way of those that pass on none", PLAN,
        "kind.swept and all(kinds[kind.args[j]].swept for j in kind.onward)", "kind.swept",
        (OF_EARLIER,),
    ),
    Mutant(
        "of several earlier arguments the last alone may have found no pair", EARLIER,
        "missing = found if missing is None else missing | found", "missing = found",
        (OF_EARLIER,),
    ),
    Mutant(
        "owners without pairs are reset where no owner has any", NATIVE,
        "if (statistics[k] == neutral).any():", "if (statistics[k] == neutral).all():",
        (OF_EARLIER,),
    ),
    Mutant(
        "a term is not gathered again where a window of it was reset", NATIVE,
        "if any(a.place in changed for a in term.earlier()):",
        "if any(a.place in changed for a in term.earlier() if not a.window):",
        (OF_EARLIER,),
    ),
    Mutant(
        "columns have positives where all rows have", BY_LABEL,
        "all_positive = all_positive and (y is None or (labels is None and y.shape[0] == n))",
        "all_positive = bool(all_positive)",
        (OF_EARLIER,),
    ),
    # The short ways of the compiled engine.
    Mutant(
        "tiles of similarities are known before the first sweep", ADDRESSES,
        'known = torch.zeros(tiles, dtype=torch.uint8, device="cpu")',
        'known = torch.ones(tiles, dtype=torch.uint8, device="cpu")',
        (OF_SAVED,),
    ),
    Mutant(
        "a gradient beside that of an extreme is lost", EAGER,
        "and not again and (plan.few or not plan.extremes):", "and not again:",
        (OF_STATISTICS, OF_SAVED),
    ),
    Mutant(
        "a statistic that nobody used has a gradient", EAGER,
        "if g is None and k not in plan.constant:", "if g is None and k in plan.constant:",
        (OF_SAVED, OF_STATISTICS),
    ),
    Mutant(
        "a mean's gradient without what it is multiplied by", SMALL_MEAN,
        "cotangents = slopes if gradient.item() == 1 else slopes * gradient", "cotangents = slopes",
        (OF_SMALL_MEAN,),
    ),
    Mutant(
        "a number that is learned has the gradient of its first term alone", SMALL_MEAN,
        "if a is scalar]).sum()", "if a is scalar][:1]).sum()",
        (OF_SMALL_MEAN,),
    ),
    Mutant(
        "a mean goes the short way back also where an owner lacks pairs", SMALL_MEAN,
        "if again or not saved.whole or", "if again or",
        (OF_SMALL_MEAN,),
    ),
    # What engines are told.
    Mutant(
        "only the last statistic is asked where it lies", NATIVE,
        "if z.data_ptr() != following or not",
        "if z is statistics[-1] and z.data_ptr() != following or not",
        (OF_LAYOUT,),
    ),
    Mutant(
        "the compiled engine takes gradients for statistics", NATIVE,
        "cotangent_addresses = [(z.data_ptr(), z.stride(0)) for z in cotangents]",
        "cotangent_addresses = [(z.data_ptr(), z.stride(0)) for z in statistics]",
        (OF_CPU,),
    ),
    Mutant(
        "a recipe forgets which arguments are the partners'", RECIPES,
        '"p": Partner(holder)',
        '"p": holder',
        (OF_FUNCTIONS,),
    ),
    Mutant(
        "a block's band ends before its last row's positives do", BANDS,
        "first, last = relation.pos_begin[begin], relation.pos_end[end - 1]",
        "first, last = relation.pos_begin[begin], relation.pos_end[end - 1] - 1",
        (OF_STATISTICS,),
    ),
    # From losses to a number.
    Mutant(
        "a mining window on the wrong side of its slack", MULTI_SIMILARITY,
        "highest(NEG, 1.0, -slack, function=affine, grad=False)",
        "highest(NEG, 1.0, slack, function=affine, grad=False)",
        (of_loss("ms_loss", "square"),),
    ),
    Mutant(
        "a positive does not count in its own rank", RANKS_OF_POSITIVES,
        "_share(others, among + 0.5)", "_share(others, among)",
        (of_loss("smooth_ap_loss", "square"),),
    ),
    Mutant(
        "a pair in a bin is drawn the wrong way", RANKS_OF_POSITIVES,
        "slope * -scale * inside", "slope * scale * inside",
        (of_loss("fast_ap_loss", "square"),),
    ),
    Mutant(
        "a threshold has no gradient", SOFT_TOPK,
        "(sums - sums.detach()) / slope", "(sums - sums).detach() / slope",
        (of_loss("soft_topk_loss", "square"),),
    ),
    Mutant(
        "a threshold has no second derivatives", SOFT_TOPK,
        "for _ in range(2):", "for _ in range(1):",
        ("tests/losses/test_ranking.py",),
    ),
    Mutant(
        "an average over pairs divides by the anchors that have some", REDUCTION,
        "return _quotient(sums.sum(), counts.detach().sum(), group)",
        "return _quotient(sums.sum(), counts.count_nonzero(), group)",
        (OF_AVERAGES,),
    ),
    Mutant(
        "ignored anchors count in a mean", REDUCTION,
        "count = losses.new_tensor(len(losses)) if counted is None else counted.sum()",
        "count = losses.new_tensor(len(losses))",
        (OF_REDUCTIONS,),
    ),
    # Several ranks.
    Mutant(
        "a ring keeps the last block's statistics alone", SHARDED,
        "states[k] = term.monoid.merge(states[k], state)", "states[k] = state",
        (OF_RANKS,),
    ),
    Mutant(
        "a rank's own columns are counted from its first", SHARDS,
        "self_index = torch.where(self_index < 0, -1, self_index + sum(columns[: group.rank]))",
        "self_index = torch.where(self_index < 0, -1, self_index)",
        (OF_RANKS,),
    ),
    # Around the losses.
    Mutant(
        "a memory's rows are written one place on", MEMORY,
        "slots = torch.remainder(self.seen + age, self.memory_size)",
        "slots = torch.remainder(self.seen + age + 1, self.memory_size)",
        (OF_MEMORY,),
    ),
    Mutant(
        "every chunk draws the first chunk's random numbers again", CACHED_STEP,
        "random.restore(number)", "random.restore(0)",
        (OF_CACHED_STEP,),
    ),
    Mutant(
        "ranks begin at 0", RETRIEVAL,
        "ranks = k + torch.stack(nearer, 1).long()",
        "ranks = k - 1 + torch.stack(nearer, 1).long()",
        (OF_RETRIEVAL,),
    ),
    Mutant(
        "ties of a strip go the other way", RANKING,
        "torch.searchsorted(nearest, values, right=self._pessimistic)",
        "torch.searchsorted(nearest, values, right=not self._pessimistic)",
        (OF_RETRIEVAL,),
    ),
    Mutant(
        "positives of another rank overwrite those before", RANKING,
        "column = filled[:, None] + torch.arange(width, device=filled.device)",
        "column = 0 * filled[:, None] + torch.arange(width, device=filled.device)",
        ("tests/retrieval/test_over_ranks.py",),
    ),
    Mutant(
        "a query that is near to no hub is normalised too", HUBS,
        "hubs[-1] = False",
        "hubs[:] = True",
        ("tests/retrieval/test_hubs.py",),
    ),
    Mutant(
        "pair weights of columns look up the rows' statistics", PAIR_WEIGHTS,
        "owner, partner = self.index[axis], self.index[1 - axis]",
        "owner, partner = self.index[0], self.index[1]",
        (OF_PAIR_WEIGHTS,),
    ),
    Mutant(
        "an infinite product of a pair that is dropped counts", GRID,
        "self.finite = term.function.finite and not products",
        "self.finite = term.function.finite",
        (OF_BETWEEN,),
    ),
    Mutant(
        "an owner's other embedding gets itself for a gradient by an extreme", BACKWARD,
        "by_vector += [by_product * others[k][1], by_partners]",
        "by_vector += [by_product * others[k][0], by_partners]",
        (OF_BETWEEN,),
    ),
    Mutant(
        "a product of learned embeddings passes one gradient for two", EARLIER,
        "found += [None, None]", "found.append(None)",
        (OF_BETWEEN,),
    ),
    # Triton's twins.
    Mutant(
        "Triton's merge shifts both log-sum-exps by the first maximum", TRITON_MONOIDS,
        "b * exp(top_b - shift)", "b * exp(top_a - shift)",
        (OF_TRITON,),
    ),
    Mutant(
        "Triton's free tiles: the first tile of the band is one", TRITON_TILES,
        "tl.where(visit < first, visit, visit + width)",
        "tl.where(visit <= first, visit, visit + width)",
        (OF_TRITON,),
    ),
    Mutant(
        "a mask drops what is as near as the positive", DIRECTIONS,
        "self.bound = highest + slack(highest)", "self.bound = highest",
        (OF_INFO_NCE,),
    ),
    Mutant(
        "log q is that of negatives alone", DIRECTIONS,
        "return self.positive - self.log_q[: len(self.x)]", "return self.positive",
        (OF_INFO_NCE,),
    ),
    Mutant(
        "hardness has a gradient", HARD_NEGATIVE,
        "torch.where(held == -torch.inf, 0.0, share * (log_sum - held))",
        "torch.where(held == -torch.inf, 0.0, log_sum - held)",
        (OF_HARD_NEGATIVES,),
    ),
    # Losses of two classes for each anchor, of label vectors, of several labels.
    Mutant(
        "a reference of the anchor's own class is a negative of a gated pair", HYDRA,
        "return torch.where(mine == theirs, -torch.inf, z)", "return z",
        (OF_HYDRA,),
    ),
    Mutant(
        "a gate is not held to the norm of the other row", HYDRA,
        "return inverse, -0.5 * (s * inverse) * (inverse * inverse)", "return inverse, 0.0 * s",
        (OF_HYDRA,),
    ),
    Mutant(
        "an anchor that is ignored by its own class counts by its partner class", HYDRA,
        "partners = torch.where(is_number(labels, ignored), labels, partners)",
        "partners = partners + 0",
        (OF_HYDRA,),
    ),
    Mutant(
        "a similarity below 0 is pulled to a target", HASHING,
        "return torch.where(s <= 0, 0.0, slope), -slope * scale, -slope * target",
        "return slope, -slope * scale, -slope * target",
        (OF_HASHING,),
    ),
    Mutant(
        "labels that both have count twice among those of either", SEVERAL_LABELS,
        "either = mine + theirs - shared", "either = mine + theirs",
        (OF_SEVERAL_LABELS,),
    ),
    Mutant(
        "a weighted mean over positives without their weights", SEVERAL_LABELS,
        "mean = found[sums] / torch.where(found[weights] > 0, found[weights], 1)",
        "mean = found[sums] / pairs.positives().clamp(min=1)",
        (OF_SEVERAL_LABELS,),
    ),
    Mutant(
        "each pair is as relevant as can be, whatever its own relevance is", ALIGNMENT,
        "self_relevance = _checked_relevance(own, x)", "_checked_relevance(own, x)",
        (OF_OWN_RELEVANCE,),
    ),
    Mutant(
        "weights of positives have a gradient though they are to be constant", DECOUPLED,
        "(shares.detach() if detach_weights else shares)", "shares", (OF_TWO_SETS,),
    ),
    Mutant(
        "the first positives alone are compared with the negatives of all", MANN_WHITNEY,
        "for s in some.unbind()]", "for s in 0 * some + some[:1]]", (OF_TWO_SETS,),
    ),
    Mutant(
        "rows that coincide are at distance 1", UNIFORMITY,
        "torch.where(coincide, 0, apart**power)", "apart**power", (OF_ALIGNMENT,),
    ),
    Mutant(
        "pairs with equal scores are told apart", SCORED_PAIRS,
        "torch.where(scores[1:] != scores[:-1], following, 0)",
        "torch.where(scores[1:] == scores[1:], following, 0)", (OF_SCORED_PAIRS,),
    ),
    Mutant(
        "the second of two sums is added under a power of its own", SCORED_PAIRS,
        "return peak, a * torch.exp(p - peak) + b * torch.exp(q - peak)",
        "return peak, a * torch.exp(p - peak) + b", (OF_SCORED_PAIRS,),
    ),
    Mutant(
        "both sets must have few rows for weights of two parts", WEIGHT_PARTS,
        "min(n, m) <= FEW", "max(n, m) <= FEW", (OF_WEIGHT_PARTS,),
    ),
    Mutant(
        "Triton goes before cuda where cuda is ahead by the table", ENGINES,
        "x.dtype.itemsize != 2 or x.shape[1] > 256", "x.dtype.itemsize != 2 or x.shape[1] > 512",
        (OF_CHOICE,),
    ),
    Mutant(
        "Hopper's sweeps are turned on and not asked first", ENGINES,
        'device.type != "cuda" or cuda_kernels.on_hopper(device)', 'device.type != "cuda"',
        (OF_CHOICE,),
    ),
    Mutant(
        "Triton lists the tiles in which every view found a pair", TRITON_OPERANDS,
        "functools.reduce(torch.maximum, masks)", "functools.reduce(torch.minimum, masks)",
        (OF_TRITON,),
    ),
    Mutant(
        "Triton's gradient through a scale without the scale", TRITON_SCALE,
        "g = r[:, None] * (g - unit * along[:, None])", "g = g - unit * along[:, None]",
        (OF_TRITON,),
    ),
    Mutant(
        "Triton's text gives a partner's argument to the owner", TRITON_TERMS,
        "given.append(_spread(next(vectors), isinstance(a, Partner) != p.transposed))",
        "given.append(_spread(next(vectors), p.transposed))",
        (OF_TRITON,),
    ),
    # What 16-bit embeddings spare: maxima, a second exponential, wide partial tiles.
    Mutant(
        "Triton takes no maximum of a softmax that is too sharp", BOUNDED,
        "_SHARPEST = 52.0", "_SHARPEST = 520.0",
        (OF_TRITON_NUMERICS,),
    ),
    Mutant(
        "Triton gives the partner of a pair its owner's share", TRITON_TERMS,
        "({shares[0]} + {shares[1]})", "({shares[0]} + {shares[0]})",
        (OF_TRITON_NUMERICS,),
    ),
    Mutant(
        "Triton's gradient by a base has the sign of s", TRITON_TERMS,
        "by_vector[{at}] - row[{p.given[0]}]", "by_vector[{at}] + row[{p.given[0]}]",
        (OF_TRITON_NUMERICS,),
    ),
    Mutant(
        "Triton leaves the base in a log-sum-exp", TRITON_OPERANDS,
        "total.double().log() - scale * base", "total.double().log()",
        (OF_TRITON_NUMERICS,),
    ),
    Mutant(
        "Triton's tile mask is that of the last piece of a tile", TRITON_SWEEPS,
        "tl.where(piece == 0, 0, seen[k])", "(0 * seen[k])",
        (OF_TRITON,),
    ),
    # What is checked when kernels for GPUs are first used.
    Mutant(
        "an outcome is read before its event has passed", FIRST_USE,
        "(ready if z.event.query() else rest).append(z)", "ready.append(z)",
        (OF_FIRST_USE,),
    ),
    Mutant(
        "a rank leaves an engine out alone", FIRST_USE,
        "(AGREED if group else WRONG).get(engine)", "WRONG.get(engine)",
        (OF_FIRST_USE,),
    ),
    Mutant(
        "a sampled row of one set is an owner alone", SAMPLED_ROWS,
        "        if pairs.y is None:  # a row is", "        if False:  # a row is",
        (OF_FIRST_USE,),
    ),
    Mutant(
        "a pair at a window is compared", SAMPLED_ROWS,
        "(s - limit).abs() <= reach", "(s - limit).abs() < 0",
        (OF_FIRST_USE,),
    ),
    Mutant(
        "an engine of which one kernel hung passed", KERNEL_CHECK,
        '_BAD = "wrong", "trapped", "hung"', '_BAD = "wrong", "trapped"',
        (OF_KERNEL_CHECK,),
    ),
    Mutant(
        "an engine that serves and is wrong in the self-test counts as right", MAIN,
        'value.startswith("FAILED")', 'value.startswith("declined")',
        ("tests/test_main.py::test_a_wrong_engine_fails_the_self_test_and_the_others_pass",),
    ),
    Mutant(
        "a GPU is known by another build", PASSED,
        'z.get("build"))', 'z.get("gpu"))',
        (OF_KERNEL_CHECK,),
    ),
    Mutant(
        "Triton sums float32's products over a whole row of tiles", TRITON_SWEEPS,
        "part = tl.zeros_like(total)", "part, total = total, tl.zeros_like(total)",
        (OF_TRITON_ROUNDING,),
    ),
    Mutant(
        "Triton fuses float32's products into sums", TRITON_TABLE,
        "fused = self.precision.stored != torch.float32", "fused = True",
        (OF_TRITON_ROUNDING,),
    ),
    # What adapters add.
    Mutant(
        "a rank's own loss is that of all ranks", OPEN_CLIP,
        "of_rank=self.local_loss,", "of_rank=False,",
        (OF_OPEN_CLIP,),
    ),
    Mutant(
        "a bias that cancels out gets no gradient", OPEN_CLIP,
        "value = value + (0 * bias).to(value.dtype)", "value = value + (0 * bias.detach())",
        (OF_OPEN_CLIP,),
    ),
    Mutant(
        "every version that begins with a 2 is version 2", PML,
        'startswith("2.")', 'startswith("2")',
        (OF_PML_EDGES,),
    ),
    # A step of the engine `cuda`.
    Mutant(
        "a multiple of a mean has the mean's gradient on a GPU", CUDA_LAUNCH,
        "multiple = None if factor is None else self._hold(factor)", "multiple = None",
        (OF_CUDA_MEAN,),
    ),
    Mutant(
        "a slope of a mean is another term's on a GPU", CUDA_MEAN,
        "zip(saved.mean.terms, slopes)", "zip(saved.mean.terms, slopes[::-1])",
        (OF_CUDA_MEAN,),
    ),
    Mutant(
        "all tile masks of a call are one on a GPU", CUDA_PLANS,
        "masks.append(at if kind", "masks.append(0 if kind",
        (OF_CUDA_TILE_BITS,),
    ),
    Mutant(
        "an address is kept with a layout on a GPU", CUDA_LAUNCH,
        "(begin, end, self_index), band_x, band_y,\n",
        "plan.__dict__.setdefault('kept', (begin, end, self_index)), band_x, band_y,\n",
        (OF_REPLAY, OF_CUDA_MEAN),
    ),
    Mutant(
        "a step is launched by what its labels are", CUDA_LAUNCH,
        "None if pairs.complete else self._valid_x",
        "self._valid_x if pairs.complete or not pairs.relation.valid_x.all() else None",
        (OF_REPLAY,),
    ),
    Mutant(
        "at first use a mean's gradient is compared without its factor", SAMPLED_CALLS,
        "cotangents[k] if factor is None else cotangents[k] * factor", "cotangents[k]",
        (OF_FIRST_USE_OF_MEAN,),
    ),
]  # fmt: skip
