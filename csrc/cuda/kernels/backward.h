// The kernel of the backward pass: every pair's weight, and at once the sums of rows by weight.
#pragma once

#include "cuda/kernels/mainloop.h"
#include "cuda/tile/epilogue_backward.h"

namespace pairops::cuda {

// Write the part of the gradient that the block's rows have, in the caller's order.
//   first: the number that the first sums are of.
template <class S, int n>
DEVICE void write_gradient(const BackwardCall& call, int first, const float (&sums)[n][4],
                           const Units& units) {
    UNROLL
    for (int h = 0; h < 2; ++h) {
        const int i = block_x() * S::rows + row_in_block<S>() + 8 * h;
        if (i >= smaller(call.rows.n, load_global(call.rows.n_valid))) continue;
        const float unit = from_bits(std::uint32_t(units.of_sums[h]) << 23);
        float* to =
            call.gradient +
            (Index(block_y()) * call.rows.n + load_global(call.rows.permutation + i)) * call.width;
        UNROLL
        for (int t = 0; t < n; ++t) {
            const int d = first + 8 * t + 2 * (lane() % 4);
            if (d < call.width) to[d] = sums[t][2 * h] * unit;
            if (d + 1 < call.width) to[d + 1] = sums[t][2 * h + 1] * unit;
        }
    }
}

template <class S>
DEVICE void write_sums(const BackwardCall& call) {
    for (int row = thread(); row < S::rows; row += S::threads) {
        const int i = block_x() * S::rows + row;
        if (i >= call.rows.n) continue;
        const Index at = load_global(call.rows.permutation + i);
        const bool valid =
            i < load_global(call.rows.n_valid);  // else full tiles counted it a partner
        for (int k = 0; k < call.n_sums; ++k) {
            Sum<float> sum{0.f, 0.f};
            for (int held = row; held < S::held_rows; held += S::rows)
                sum.merge({load_shared<float>(state_at<S>(call, k, 0, held)),
                           load_shared<float>(state_at<S>(call, k, 1, held))});
            call.sums[(Index(block_y()) * call.n_sums + k) * call.rows.n + at] =
                valid ? sum.finalize().value : 0.f;
        }
    }
}

template <class S>
DEVICE void start_sums(const BackwardCall& call) {
    for (int k = thread(); k < 2 * call.n_sums * S::held_rows; k += S::threads)
        store_shared(Shared(call.at.states + 4 * k), 0.f);
}

// Compute the weights of a tile's pairs, r_j times the sum over all terms, in their units, and add
// to the sums by arguments. s is not scaled yet; scaled() is called when it is.
template <class S, class U, class Scaled>
DEVICE void backward_tile(const BackwardCall& call, int tile, bool partial, int stage,
                          Fragment<S>& s, const U& units, Fragment<S>& weights, Scaled scaled) {
    // The row is computed here alone: in a register it would cost a spill on Hopper.
    const auto row = [] { return uniform(block_x()) * S::rows + row_in_block<S>(); };
    const Masks of = partial ? masks<S>(call, row(), tile) : full_masks<S>();
    const bool folded = may_fold<S> && call.folds && !partial;
    if (folded)
        scale_columns<S>(call, stage, s);
    else
        scale<S>(call, stage, s);
    scaled();
    for (int k = 0; k < call.n_terms; ++k) {
        const TermCall& term = call.terms[k];
        if (term.twin < 0)
            backward_term<S>(call, term, stage, s, of, units, weights, call.gradient != nullptr);
        else if (term.twin > k)
            joint_term<S>(call, term, call.terms[term.twin], stage, s, of, units, folded, weights);
    }
    if constexpr (S::parts == 2) {
        const Operands<S, false> columns(call, HIGH, stage);
        UNROLL
        for (int t = 0; t < S::columns / 8; ++t) {
            float r[4];
            columns.get(t, r);
            UNROLL
            for (int e = 0; e < 4; ++e) weights[t][e] *= r[e];
        }
    }
}

template <class S, int weight_parts>
KERNEL(S::threads, 1)
backward(PARAMETER(BackwardCall) call) {
    start_sums<S>(call);
    const bool embeddings = call.gradient != nullptr;
    float sums[S::slice / 8][4] = {};
    Units units;
    std::uint32_t packed[weight_parts][S::columns / 16][4];
    const auto known = [&](int tile, bool partial, int stage, const Products<S>& products) {
        Fragment<S> s, weights = {};
        similarities<S>(products, s);
        backward_tile<S>(call, tile, partial, stage, s, units, weights, [] {});
        fit<S, weight_parts>(call, weights, units, sums, packed);
    };
    const auto sum = [&](int part, Shared y) {
        if (!embeddings) return;
        if constexpr (S::slice == S::chunk) {
            accumulate<S, weight_parts, 0>(sums, packed, y);
        } else {
            static_assert(S::slice == 2 * S::chunk, "two halves of a slice");
            if (part == 0)
                accumulate<S, weight_parts, 0>(sums, packed, y);
            else
                accumulate<S, weight_parts, S::chunk>(sums, packed, y);
        }
    };
    stream<S>(call, embeddings && S::streamed ? S::slice / S::chunk : 0, known, sum, [] {});
    if (embeddings) write_gradient<S>(call, block_z() * S::slice, sums, units);
    if (block_z() == 0) write_sums<S>(call);
}

}  // namespace pairops::cuda
