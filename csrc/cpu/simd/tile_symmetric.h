// One term and one tile for its rows and for its columns at once, where one exponential can serve
// both.
#pragma once

#include <algorithm>

#include "cpu/simd/tile.h"

namespace pairops::cpu {
inline namespace PAIROPS_TARGET {

// The largest integer e with 2^e ≤ x, for a normal x; 128 or 1024 for an infinity or a NaN.
template <class V>
inline V exponent(V x) {
    using E = Elementary<typename Traits<V>::Scalar>;
    // An integer below 2^mantissa in the lowest bits of 2^mantissa is that much more.
    const V one(typename Traits<V>::Scalar(std::uint64_t(1) << E::mantissa));
    return (from_bits((bits_of(x) >> E::mantissa) | bits_of(one)) - one) - V(E::bias);
}

// A state under a common maximum `top`, of which its own contributions may all lie far below: then
// its sum is far below 1. `update` and `merge` need a state whose sum is not: a settled one.
template <class Acc>
struct UnderTop {
    // One state of several, which need not be settled.
    static Acc merged(const Acc* states, int count) {
        Acc total = Acc::init();
        for (int k = 0; k < count; ++k) total.merge(states[k]);
        return total;
    }
};
template <class V>
struct UnderTop<LogSumExp<V>> {
    using Acc = LogSumExp<V>;
    using T = typename Traits<V>::Scalar;
    // The distance below the top that a state or a contribution may lie at: its exponential is then
    // far from the least normal number, also if the sum of 2^31 of them is raised once more.
    static constexpr T reach = -Elementary<T>::least - T(27);

    // The level of a state, within log 2 of its result.
    static V level(const Acc& state) {
        return state.max + exponent(state.sum) * V(T(0.6931471805599453));
    }
    static void raise(Acc& state, V top) {
        state.sum = state.sum * select(empty(state), V(T(0)), exp_within(state.max - top));
        state.max = top;
    }
    // Add to a state that was raised. One that is still empty becomes the initial one again.
    static void add(Acc& state, V sum_of_exp, V top) {
        state.sum = state.sum + sum_of_exp;
        state.max = select(state.sum == V(T(0)), -infinity<V>(), top);
    }
    static void settle(Acc& state) {
        const auto low = (state.sum < V(T(1))) & !empty(state);
        const V max = select(low, level(state), state.max);
        state.sum = select(low, state.sum * exp(state.max - max), state.sum);
        state.max = max;
    }
    // Merge under the highest level, so that one exponential for each is enough.
    static Acc merged(const Acc* states, int count) {
        Acc total = Acc::init();
        for (int k = 0; k < count; ++k) {
            const V one = level(states[k]);
            total.max = select(one > total.max, one, total.max);
        }
        for (int k = 0; k < count; ++k) {
            const V max = states[k].max;  // equal infinities are 0 apart
            const V apart = select(max == total.max, V(T(0)), max - total.max);
            total.sum = total.sum + states[k].sum * exp(apart);
        }
        return total;
    }
    static auto empty(const Acc& state) { return state.max == -infinity<V>(); }
};

// A log-sum-exp whose function has the same numbers in both views of a pair. States of rows are
// raised to one maximum, the tile's and theirs; columns get states of their own.
template <class Term, class V>
class OneExponential {
    using T = typename Traits<V>::Scalar;
    using Acc = typename Term::template Accumulator<V>;
    using Mask = typename V::Mask;
    using Under = UnderTop<Acc>;

   public:
    OneExponential(const Tile<T>& tile, const Operands<T>& of_rows, const Operands<T>& of_cols,
                   Acc* rows)
        : by_row_{tile, of_rows}, by_col_{tile, of_cols}, rows_(rows) {}

    // Raise the rows to one maximum. False means that the rows are settled instead: something lies
    // too far below the maximum, or there is no finite one.
    template <bool partial>
    bool raise() {
        V low = infinity<V>(), high = -infinity<V>();     // of contributions and levels
        V least_max = low, most_max = high, stale(T(0));  // of states
        for (int i = 0; i < by_row_.tile.rows; ++i) {
            const typename ByRow::template RowPairs<partial> pairs(by_row_, i);
            for_each_pair(i, [&]([[maybe_unused]] int j, V, V f) {
                Mask is_lower = f < low;
                Mask is_higher = f > high;
                if constexpr (partial) {
                    const Mask pair = pairs.is_pair(j);
                    is_lower = is_lower & pair;
                    is_higher = is_higher & pair;
                }
                low = select(is_lower, f, low);
                high = select(is_higher, f, high);
            });
            const V max = rows_[i].max, level = Under::level(rows_[i]);
            const Mask empty = Under::empty(rows_[i]);
            low = select((level < low) & !empty, level, low);
            least_max = select((max < least_max) & !empty, max, least_max);
            most_max = select(max > most_max, max, most_max);
            stale = select(empty & (rows_[i].sum != V(T(0))), V(T(1)), stale);
        }
        const T top = std::max(highest(high), highest(most_max));
        // A NaN is not within reach either.
        if (!(top > -infinity<T>() && top - lowest(low) <= Under::reach)) {
            for (int i = 0; i < by_row_.tile.rows; ++i) Under::settle(rows_[i]);
            return false;
        }
        top_ = V(top);
        if (lowest(least_max) < top || highest(stale) > T(0))
            for (int i = 0; i < by_row_.tile.rows; ++i) Under::raise(rows_[i], top_);
        return true;
    }

    template <bool partial>
    bool forward(Acc* cols) const {
        constexpr bool all = !partial && !Term::has_window;
        constexpr int col_states = TILE / V::count;
        Mask seen(0);
        V of_cols[col_states];
        for (V& sum : of_cols) sum = V(T(0));
        for (int i = 0; i < by_row_.tile.rows; ++i) {
            const typename ByRow::template RowPairs<partial> pairs_by_row(by_row_, i);
            const typename ByCol::template RowPairs<partial> pairs_by_col(by_col_, i);
            V of_row(T(0));
            for_each_pair(i, [&](int j, V s, V f) {
                const V e = exp_within(f - top_);
                V& col = of_cols[j / V::count];
                if constexpr (all) {
                    of_row = of_row + e;
                    col = col + e;
                } else {
                    const Mask valid_row = pairs_by_row.at(s, j), valid_col = pairs_by_col.at(s, j);
                    if constexpr (Term::has_window) seen = seen | valid_row | valid_col;
                    of_row = of_row + select(valid_row, e, V(T(0)));
                    col = col + select(valid_col, e, V(T(0)));
                }
            });
            Under::add(rows_[i], of_row, top_);
        }
        for (int k = 0; k < col_states; ++k) {
            Acc one = Acc::init();
            Under::add(one, of_cols[k], top_);
            Under::settle(one);
            cols[k].merge(one);
        }
        return any(seen);
    }

   private:
    using ByRow = Visit<Term, V, true>;
    using ByCol = Visit<Term, V, false>;

    // Call visit(j, s, f) along row i.
    template <class F>
    void for_each_pair(int i, F visit) const {
        const Range range = by_row_.columns(i);
        by_row_.with_arguments(i, [&](auto... args) {
            for (int j = range.begin; j < range.end; j += V::count) {
                const V s = V::load(by_row_.tile.s + i * TILE + j);
                visit(j, s, rounded(Term::Function::value(s, args.at(j)...)));
            }
        });
    }

    const ByRow by_row_;
    const ByCol by_col_;
    Acc* rows_;
    V top_;
};

template <class Term, class V>
bool forward_both(const Tile<typename Traits<V>::Scalar>& tile,
                  const Operands<typename Traits<V>::Scalar>& of_rows,
                  const Operands<typename Traits<V>::Scalar>& of_cols, void* rows, void* cols) {
    using Acc = typename Term::template Accumulator<V>;
    OneExponential<Term, V> both(tile, of_rows, of_cols, static_cast<Acc*>(rows));
    const auto forward = [&](auto partial) -> bool {
        constexpr bool is_partial = decltype(partial)::value;
        if (both.template raise<is_partial>())
            return both.template forward<is_partial>(static_cast<Acc*>(cols));
        const bool pairs = forward_tile<Term, V, true>(tile, of_rows, rows);
        return forward_tile<Term, V, false>(tile, of_cols, cols) || pairs;
    };
    if constexpr (Term::side == Side::pos)
        return forward(std::true_type());
    else
        return tile.partial || (tile.listed && tile.positives) ? forward(std::true_type())
                                                               : forward(std::false_type());
}

}  // namespace PAIROPS_TARGET
}  // namespace pairops::cpu
