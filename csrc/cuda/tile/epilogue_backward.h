// The epilogue of a tile in the backward pass: the weights of its pairs, for the gradient by the
// embeddings and by a term's arguments.
#pragma once

#include "cuda/tile/epilogue_forward.h"
#include "cuda/tile/mma.h"

namespace pairops::cuda {

// The units of the weights of the thread's two rows, and of the sums of rows by them: powers of
// two, as biased exponents.
//   of_sums: that of the largest weight so far; 0: there was none yet.
//   of_tile: near it, so that a tile's weights need no multiplication of their own. float32 is
//            weighed in units of 1: what cancels among terms is not yet rounded then.
struct Units {
    int of_sums[2] = {0, 0}, of_tile[2] = {127, 127};

    template <class S>
    DEVICE void raise(const Sweep& call, int h, int to) {
        of_sums[h] = to;
        // No weight of unit rows overflows, nor does an exponential in this unit.
        const int near = smaller(larger(to, 127 - 40), 127 + 24);
        of_tile[h] = S::parts == 2 || !call.normalized || to == 0 ? 127 : near;
    }
    DEVICE float inverse(int h) const { return inverse_of(of_tile[h]); }
    DEVICE float log2(int h) const { return log2_of(of_tile[h]); }

    static DEVICE float inverse_of(int exponent) {
        return from_bits(std::uint32_t(254 - exponent) << 23);
    }
    static DEVICE float log2_of(int exponent) { return float(exponent - 127); }
};

// The units of a tile, read from shared memory whenever they are asked for, where a thread has no
// register to keep them in.
class WaitingUnits {
   public:
    // at: where a thread's Units are.
    DEVICE explicit WaitingUnits(Shared at) : of_tile_(at + sizeof(int[2])) {}
    DEVICE float inverse(int h) const { return Units::inverse_of(of_tile(h)); }
    DEVICE float log2(int h) const { return Units::log2_of(of_tile(h)); }

   private:
    DEVICE int of_tile(int h) const { return reload_shared<int>(of_tile_ + 4 * h); }
    Shared of_tile_;
};

// Call visit(t, e, valid, share, slopes) for every pair: the cotangent times its share, and its
// slopes by s and by each argument. every: all pairs are valid.
template <class S, class K, bool transposed, bool every, class Visit>
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
            const bool valid = every || (pairs >> (4 * t + e) & 1);
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

// Add r_j times the weights, in their units (U: Units or WaitingUnits). The weight of a pair that
// does not count is 0; its slope may be infinite or NaN.
template <class S, class K, bool transposed, bool every, class U>
DEVICE void add_weights(const Sweep& call, const TermCall& term, int stage, const Fragment<S>& s,
                        std::uint32_t pairs, const U& units, Fragment<S>& weights) {
    const Operands<S, false> columns(call, HIGH, stage);
    each_share<S, K, transposed, every>(
        call, term, stage, s, pairs,
        [&](int t, int e, bool valid, float share, const auto& slopes) INLINE {
            float weight = share * slopes.by[0];
            if constexpr (S::parts == 1) {
                float r[4];
                columns.get(t, r);
                weight *= r[e] * units.inverse(e / 2);
            }
            weights[t][e] += valid ? weight : 0.f;
        });
}

// The factors of a tile's weights for both views of its pairs in one set: of (i, j) it is
// 2^(a s - offset_i) (factor_i + factor_j), an exponential for both.
template <class S>
struct Joint {
    static constexpr int each = S::columns / 32;
    float a[2], offset[2];   // with the unit of each row
    float of_row[2];         // factor_i
    float of_columns[each];  // r_j factor_j of the lane's own columns

    // folded: the similarities lack r_i.
    template <class U>
    DEVICE Joint(const Sweep& call, const TermCall& term, const TermCall& twin, int stage,
                 const U& units, bool folded) {
        const Operands<S, true> high(call, HIGH, stage), scales(call, term.args[0], stage),
            bases(call, term.args[1], stage), statistics(call, term.statistic, stage),
            cotangents(call, term.cotangent, stage);
        float r[4], scale[4], base[4], statistic[4], cotangent[4];
        high.get(0, r);
        scales.get(0, scale);
        bases.get(0, base);
        statistics.get(0, statistic);
        cotangents.get(0, cotangent);
        const float of_s = scale[0] * LOG2_E;
        // Neither the exponential nor the factors leave float's range, whatever a statistic is.
        const float middle = magnitude(of_s) / 4;
        // The cotangent times the slope times 2^(middle - a base - R). An empty side has no weight.
        const auto factor = [&](float cotangent, float base, float statistic) {
            const float exponent = middle - multiply_then_add(of_s, base, statistic * LOG2_E);
            return cotangent * scale[0] *
                   exp2(statistic == -infinity<float>() ? -infinity<float>() : exponent);
        };
        UNROLL
        for (int h = 0; h < 2; ++h) {
            a[h] = folded ? of_s * r[2 * h] : of_s;
            of_row[h] = factor(cotangent[2 * h], base[2 * h], statistic[2 * h]);
            offset[h] = middle + units.log2(h);
        }
        const auto in_slot = [&](int slot, int k) {
            const int index = stage * call.n_col_slots() + slot;
            return load_shared<float>(
                Shared(call.at.col_slots + 4 * (index * S::columns + each * lane() + k)));
        };
        UNROLL
        for (int k = 0; k < each; ++k)
            of_columns[k] =
                in_slot(HIGH, k) * factor(in_slot(twin.cotangent, k), in_slot(twin.args[1], k),
                                          in_slot(twin.statistic, k));
    }
    // r_j factor_j of the k-th of two columns of the t-th sums: all lanes ask together.
    DEVICE float of_column(int t, int k) const {
        return shuffle(of_columns[k % each], 8 / each * t + (2 * (lane() % 4) + k) / each);
    }
};

// The same as `add_weights` for both views of a pair at once.
//   every: all pairs are valid in both.
template <class S, bool every>
DEVICE void add_joint(const Sweep& call, const Joint<S>& joint, int stage, const Fragment<S>& s,
                      std::uint32_t row_pairs, std::uint32_t column_pairs, Fragment<S>& weights) {
    const Operands<S, false> columns(call, HIGH, stage);
    UNROLL
    for (int t = 0; t < S::columns / 8; ++t) {
        float r[4];
        columns.get(t, r);
        const float of[2] = {joint.of_column(t, 0), joint.of_column(t, 1)};
        UNROLL
        for (int e = 0; e < 4; ++e) {
            const bool by_row = every || (row_pairs >> (4 * t + e) & 1),
                       by_column = every || (column_pairs >> (4 * t + e) & 1);
            const float one =
                exp2(multiply_then_add(s[t][e], joint.a[e / 2], -joint.offset[e / 2]));
            const float factor = multiply_then_add(by_row ? joint.of_row[e / 2] : 0.f, r[e],
                                                   by_column ? of[e % 2] : 0.f);
            weights[t][e] =
                multiply_then_add(by_row || by_column ? one : 0.f, factor, weights[t][e]);
        }
    }
}

// Add to the sums over the rows of the gradients by arguments that stand along them.
template <class S, class K, bool transposed>
DEVICE void add_slopes(const Sweep& call, const TermCall& term, int stage, const Fragment<S>& s,
                       std::uint32_t pairs) {
    constexpr int arity = K::Function::arity;
    if constexpr (arity > 0) {
        float sums[2][arity] = {};
        each_share<S, K, transposed, false>(
            call, term, stage, s, pairs,
            [&](int, int e, bool valid, float share, const auto& slopes) INLINE {
                UNROLL
                for (int k = 0; k < arity; ++k)
                    sums[e / 2][k] += valid ? share * slopes.by[1 + k] : 0.f;
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
template <class S, class U>
DEVICE void backward_term(const Sweep& call, const TermCall& term, int stage, const Fragment<S>& s,
                          const Masks& masks, const U& units, Fragment<S>& weights,
                          bool embeddings) {
    const std::uint32_t side = masks.of(term.side);
    if (!ballot(side != 0)) return;
    visit_kind(term.kind, [&](auto kind) INLINE {
        using K = decltype(kind);
        if constexpr (!K::Accumulator::extreme) {
            const auto both = [&](auto direction) INLINE {
                constexpr bool transposed = decltype(direction)::value;
                const std::uint32_t pairs = windowed<S, transposed>(call, term, stage, s, side);
                if (!ballot(pairs != 0)) return;
                // First, or on Hopper at D = 256 a register would be spilled.
                if (term.by_arg[0] >= 0 || term.by_arg[1] >= 0)
                    add_slopes<S, K, transposed>(call, term, stage, s, pairs);
                constexpr bool often = std::is_same_v<typename K::Accumulator, LogSumExp<float>>;
                if (embeddings && often && !ballot(pairs != every_pair<S>))
                    add_weights<S, K, transposed, often>(call, term, stage, s, pairs, units,
                                                         weights);
                else if (embeddings)
                    add_weights<S, K, transposed, false>(call, term, stage, s, pairs, units,
                                                         weights);
            };
            if (term.transposed)
                both(std::true_type());
            else
                both(std::false_type());
        }
    });
}

// Add the weights of one term in both views. folded: the similarities lack r_i.
template <class S, class U>
DEVICE void joint_term(const Sweep& call, const TermCall& term, const TermCall& twin, int stage,
                       const Fragment<S>& s, const Masks& masks, const U& units, bool folded,
                       Fragment<S>& weights) {
    const std::uint32_t side = masks.of(term.side);
    if (!ballot(side != 0)) return;
    const std::uint32_t row_pairs = windowed<S, false>(call, term, stage, s, side);
    const std::uint32_t column_pairs = windowed<S, true>(call, twin, stage, s, side);
    if (!ballot((row_pairs | column_pairs) != 0)) return;
    const Joint<S> joint(call, term, twin, stage, units, folded);
    if (!ballot((row_pairs & column_pairs) != every_pair<S>))
        add_joint<S, true>(call, joint, stage, s, row_pairs, column_pairs, weights);
    else
        add_joint<S, false>(call, joint, stage, s, row_pairs, column_pairs, weights);
}

// Pack weights as rows of mma, in units of a power of two per row that brings the largest so far to
// [1, 2), for float16 holds nothing below 6e-8 and nothing above 65504. The sums change units with
// it.
template <class S, int weight_parts, int n>
DEVICE void fit(const Sweep& call, Fragment<S>& weights, Units& units, float (&sums)[n][4],
                std::uint32_t (&packed)[weight_parts][S::columns / 16][4]) {
    if constexpr (S::parts == 1) {
        pack_weights<S, weight_parts>(weights, packed);
        // This bit says that a float16 is 2 or more.
        std::uint32_t bits = 0;
        UNROLL
        for (const auto& of : packed[0]) {
            UNROLL
            for (std::uint32_t two : of) bits |= two;
        }
        const bool stays = (bits & 0x40004000) == 0 && units.of_sums[0] == units.of_tile[0] &&
                           units.of_sums[1] == units.of_tile[1];
        if (!ballot(!stays)) return;
    }
    float shrink[2];
    bool changes = false;
    UNROLL
    for (int h = 0; h < 2; ++h) {
        float largest = 0.f;
        UNROLL
        for (int t = 0; t < S::columns / 8; ++t) {
            UNROLL
            for (int e = 2 * h; e < 2 * h + 2; ++e)
                largest = std::fmax(largest, magnitude(weights[t][e]));
        }
        int here = largest > 0.f ? larger(int(bits_of(largest) >> 23), 1) : 0;
        here = larger(here, shuffle_xor(here, 1));
        here = larger(here, shuffle_xor(here, 2));
        const int before = units.of_sums[h], of_tile = units.of_tile[h];
        if (here > 0) here = smaller(larger(here + of_tile - 127, 1), 253);
        const int now = larger(before, here);
        const float unit =
            now == 0 ? 1.f : from_bits(std::uint32_t(larger(127 + of_tile - now, 0)) << 23);
        UNROLL
        for (int t = 0; t < S::columns / 8; ++t) {
            UNROLL
            for (int e = 2 * h; e < 2 * h + 2; ++e) weights[t][e] *= unit;
        }
        shrink[h] = from_bits(std::uint32_t(larger(127 + before - now, 0)) << 23);
        changes = changes || now != before;
        units.template raise<S>(call, h, now);
    }
    pack_weights<S, weight_parts>(weights, packed);
    if (!ballot(changes)) return;
    UNROLL
    for (int t = 0; t < n; ++t) {
        UNROLL
        for (int e = 0; e < 4; ++e) sums[t][e] *= shrink[e / 2];
    }
}

}  // namespace pairops::cuda
