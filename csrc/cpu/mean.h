// The mean of losses that are small functions of an anchor's statistics, and its slopes.
#pragma once

#include <vector>

#include "cpu/simd/kernel_table.h"

namespace pairops::cpu {

// A shape gives an anchor, with u = plus - minus + offset: weight log(1 + e^u), 0 where plus is
// -inf; weight [u]+; weight plus; weight plus / positives; or weight (plus - minus / positives) if
// it has two or more. per_pair is of all anchors together: weight times the sum of plus over that
// of minus, which are counts; without minus they are the positives.
enum class Shape { log1p_exp, hinge, linear, mean, less_mean, per_pair };

struct Piece {
    Shape shape;
    int plus, minus;  // which statistics; minus may be -1: none
    double offset, weight;
};

// Statistics and slopes are (n,) each; slopes are zeros to add to. Positives (n,) are
// read by mean, less_mean and per_pair alone.
template <class T>
double mean(const std::vector<Piece>& pieces, Index n, const std::vector<const T*>& statistics,
            const Index* positives, const std::vector<T*>& slopes);

}  // namespace pairops::cpu
