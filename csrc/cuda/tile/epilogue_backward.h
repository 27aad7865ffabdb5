// The epilogue of a tile in the backward pass: the weights of its pairs, for the gradient by the
// embeddings and by a term's arguments.
#pragma once

#include "cuda/tile/epilogue_forward.h"

namespace pairops::cuda {

// Call visit(t, e, valid, share, slopes) for every pair: the cotangent times its share, and its
// slopes by s and by each argument.
template <class S, class K, bool transposed, class Visit>
DEVICE void each_share(const Sweep& call, const TermCall& term, int stage, const Fragment<S>& s,
                       std::uint32_t pairs, Visit visit) {
    using Acc = typename K::Accumulator;
    using F = typename K::Function;
    constexpr bool exponential = std::is_same_v<Acc, LogSumExp<float>>;
    const Operands<S, K::by_partner(0) == transposed> first(call, larger(term.args[0], 0), stage);
    const Operands<S, K::by_partner(1) == transposed> second(call, larger(term.args[1], 0), stage);
    const Operands<S, !transposed> statistics(call, larger(term.statistic, 0), stage);
    const Operands<S, !transposed> cotangents(call, term.cotangent, stage);
    UNROLL
    for (int t = 0; t < S::columns / 8; ++t) {
        float a[4], b[4], statistic[4], cotangent[4];
        first.get(t, a);
        second.get(t, b);
        statistics.get(t, statistic);
        cotangents.get(t, cotangent);
        UNROLL
        for (int e = 0; e < 4; ++e) {
            const bool valid = pairs >> (4 * t + e) & 1;
            float share = cotangent[e];
            if (exponential) {
                // An empty side has no share.
                const float of =
                    statistic[e] == -infinity<float>() ? infinity<float>() : statistic[e];
                share *= exp2((value_of<F>(s[t][e], a[e], b[e]) - of) * LOG2_E);
            }
            visit(t, e, valid, share, slopes_of<F>(s[t][e], a[e], b[e]));
        }
    }
}

// The weight of a pair that does not count is 0; its slope may be infinite or NaN.
template <class S, class K, bool transposed>
DEVICE void add_weights(const Sweep& call, const TermCall& term, int stage, const Fragment<S>& s,
                        std::uint32_t pairs, Fragment<S>& weights) {
    each_share<S, K, transposed>(call, term, stage, s, pairs,
                                 [&](int t, int e, bool valid, float share, const auto& slopes) {
                                     weights[t][e] += valid ? share * slopes.by[0] : 0.f;
                                 });
}

// Add to the sums over the rows of the gradients by arguments that stand along them.
template <class S, class K, bool transposed>
DEVICE void add_slopes(const Sweep& call, const TermCall& term, int stage, const Fragment<S>& s,
                       std::uint32_t pairs) {
    constexpr int arity = K::Function::arity;
    if constexpr (arity > 0) {
        float sums[2][arity] = {};
        each_share<S, K, transposed>(call, term, stage, s, pairs,
                                     [&](int, int e, bool valid, float share, const auto& slopes) {
                                         UNROLL
                                         for (int k = 0; k < arity; ++k)
                                             sums[e / 2][k] +=
                                                 valid ? share * slopes.by[1 + k] : 0.f;
                                     });
        UNROLL
        for (int k = 0; k < arity; ++k) {
            if (K::by_partner(k) != transposed || term.by_arg[k] < 0) continue;
            UNROLL
            for (int h = 0; h < 2; ++h) {
                float sum = sums[h][k];
                sum += shuffle_xor(sum, 1);
                sum += shuffle_xor(sum, 2);
                if (lane() % 4 != 0) continue;
                const int row = 16 * warp() + lane() / 4 + 8 * h;
                const Shared address[2] = {state_at<S>(call, term.by_arg[k], 0, row),
                                           state_at<S>(call, term.by_arg[k], 1, row)};
                Sum<float> total{load_shared<float>(address[0]), load_shared<float>(address[1])};
                total.update(sum, 0);
                store_shared(address[0], total.sum);
                store_shared(address[1], total.lost);
            }
        }
    }
}

// Add the weights and sums of one term.
template <class S>
DEVICE void backward_term(const Sweep& call, const TermCall& term, int stage, const Fragment<S>& s,
                          const Masks& masks, Fragment<S>& weights, bool embeddings) {
    const std::uint32_t side = masks.of(term.side);
    if (!ballot(side != 0)) return;
    visit_kind(term.kind, [&](auto kind) {
        using K = decltype(kind);
        if constexpr (!K::Accumulator::extreme) {
            const auto both = [&](auto direction) {
                constexpr bool transposed = decltype(direction)::value;
                const std::uint32_t pairs = windowed<S, transposed>(call, term, stage, s, side);
                if (!ballot(pairs != 0)) return;
                if (embeddings) add_weights<S, K, transposed>(call, term, stage, s, pairs, weights);
                if (term.by_arg[0] >= 0 || term.by_arg[1] >= 0)
                    add_slopes<S, K, transposed>(call, term, stage, s, pairs);
            };
            if (term.transposed)
                both(std::true_type());
            else
                both(std::false_type());
        }
    });
}

// Weights in units of a power of two per row that brings the largest so far to [1, 2), for float16
// holds nothing below 6e-8 and nothing above 65504. The sums change units with it.
//   exponents: biased, of the thread's two rows; from 1 on.
template <class S, int n>
DEVICE void fit(Fragment<S>& weights, int (&exponents)[2], float (&sums)[n][4]) {
    float shrink[2];
    bool changes = false;
    UNROLL
    for (int h = 0; h < 2; ++h) {
        float largest = 0.f;
        UNROLL
        for (int t = 0; t < S::columns / 8; ++t) {
            UNROLL
            for (int e = 2 * h; e < 2 * h + 2; ++e)
                largest = magnitude(weights[t][e]) > largest ? magnitude(weights[t][e]) : largest;
        }
        int here = int(bits_of(largest) >> 23 & 255);
        here = larger(here, shuffle_xor(here, 1));
        here = larger(here, shuffle_xor(here, 2));
        const int now = larger(exponents[h], smaller(here, 253));
        const float unit = from_bits(std::uint32_t(254 - now) << 23);
        UNROLL
        for (int t = 0; t < S::columns / 8; ++t) {
            UNROLL
            for (int e = 2 * h; e < 2 * h + 2; ++e) weights[t][e] *= unit;
        }
        shrink[h] = from_bits(std::uint32_t(larger(127 + exponents[h] - now, 0)) << 23);
        changes = changes || now != exponents[h];
        exponents[h] = now;
    }
    if (!ballot(changes)) return;
    UNROLL
    for (int t = 0; t < n; ++t) {
        UNROLL
        for (int e = 0; e < 4; ++e) sums[t][e] *= shrink[e / 2];
    }
}

}  // namespace pairops::cuda
