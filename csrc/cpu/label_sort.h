// The sort of labels: a permutation of the rows, and the interval of each row's positives.
#pragma once

#include "cpu/simd/kernel_table.h"

namespace pairops::cpu {

// One set of labels, and the outputs of sort_labels for it. Ignored rows come last.
struct Labels {
    const std::int64_t* values;  // (n,)
    Index n;
    Index* permutation;  // (n,) stable
    bool* valid;         // (n,) in the caller's order
};

// Find the interval [pos_begin, pos_end) of positions in y that have the label of a row, (x.n,) in
// x's sorted order. An ignored row gets that of the ignored ones. For the same set y is x.
void sort_labels(const Labels& x, const Labels& y, const std::int64_t* ignored, Position* pos_begin,
                 Position* pos_end);

}  // namespace pairops::cpu
