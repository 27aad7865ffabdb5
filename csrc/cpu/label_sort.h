// The sort of labels: it finds the sorted order of the rows, and of each row the interval of its
// positives.
#pragma once

#include "cpu/simd/kernel_table.h"

namespace pairops::cpu {

// One set of labels, and what sort_labels writes of it. Ignored rows come last.
struct Labels {
    const std::int64_t* values;  // (n,)
    Index n;
    Index* permutation;  // (n,) stable
    bool* valid;         // (n,) in the caller's order
};

// lo, hi (x.n,): the places in y's order that have the label of a row, in x's order; of an ignored
// row those of the ignored. For the same set y is x.
void sort_labels(const Labels& x, const Labels& y, const std::int64_t* ignored, Position* pos_begin,
                 Position* pos_end);

}  // namespace pairops::cpu
