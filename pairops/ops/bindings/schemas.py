"""Schemas of all ops, for torch, its compiler and its exported programs.

An op's body and its fake are in the module that uses it, with parameters of the same names.
"""

from torch.library import Library

library = Library("pairops", "DEF")

# Relations by label: pairs/intervals.py.
library.define(
    "sort_by_label(Tensor x, Tensor? y, Tensor? labels, Tensor? ref_labels, SymInt? ignore_index, "
    "bool exclude_self, bool normalize, str level, ScalarType scales) -> Tensor[]"
)

# Relations by numbers and a width: pairs/widths.py.
library.define("sort_by_number(Tensor values, Tensor? ref_values, float width) -> Tensor[]")

# Relations by several labels of a row: pairs/shared_labels.py.
library.define("shared_labels(Tensor labels, Tensor? ref_labels, Tensor self_index) -> Tensor[]")

# Which rows of y the rows of x are, for a compiler, which knows no memory: pairs/checks.py.
library.define("self_rows(Tensor x, Tensor y) -> Tensor")

# Embeddings packed for the CUDA kernels: bindings/packing.py.
library.define("pack(Tensor z, Tensor? scale, Tensor order, Tensor valid, str level) -> Tensor[]")

# Row statistics and their gradient: row_stats/bodies.py. relation, picked: the fields
# of `Relation`. measure: the key of a `Measure`, or "".
_CALL = (
    "Tensor x, Tensor? y, Tensor? scale_x, Tensor? scale_y, Tensor[] relation, Tensor? picked, "
    "str measure, Tensor[] prepared, Tensor[] vectors, float[] numbers, str recipe, str engine, "
    "Tensor? traced"
)
library.define(
    f"row_stats({_CALL}) -> (Tensor[] statistics, Tensor[] arguments, Tensor tile_masks)"
)
library.define(
    f"row_stats_backward({_CALL}, Tensor[] statistics, Tensor[] arguments, Tensor tile_masks, "
    "Tensor[] cotangents, bool need_x, bool need_y, bool[] need_vectors) -> (Tensor dx, Tensor dy, "
    "Tensor[] dvectors)"
)

# The mean of log(1 + exp R): row_stats/softplus_mean.py.
library.define(
    "soft_mean(Tensor[] statistics, float[] divisors, Tensor? valid) -> (Tensor loss, Tensor count)"
)
library.define(
    "soft_mean_slopes(Tensor gradient, Tensor count, Tensor[] statistics, float[] divisors, "
    "Tensor? valid) -> Tensor[] cotangents"
)
