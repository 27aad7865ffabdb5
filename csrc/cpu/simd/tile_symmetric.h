// One term and one tile for its rows and for its columns at once, where one exponential can serve
// both.
#pragma once

#include <algorithm>

#include "cpu/simd/tile.h"

namespace pairops::cpu {
inline namespace PAIROPS_TARGET {

// The largest integer e with 2^e ≤ x, for a normal x; 128 or 1024 for an infinity or a NaN.
template <class L>
inline L exponent(L x) {
    using E = Elementary<typename Traits<L>::Scalar>;
    // An integer below 2^mantissa in the lowest bits of 2^mantissa is that much more.
    const L one(typename Traits<L>::Scalar(std::uint64_t(1) << E::mantissa));
    return (from_bits((bits_of(x) >> E::mantissa) | bits_of(one)) - one) - L(E::bias);
}

// A state under a common maximum `top`, of which its own contributions may all lie far below: then
// its sum is far below 1. `push` and `merge` ask for a state whose sum is not: such a one is
// settled.
template <class G>
struct UnderTop {
    // One state of several, which need not be settled.
    static G merged(const G* states, int count) {
        G total = G::identity();
        for (int k = 0; k < count; ++k) total.merge(states[k]);
        return total;
    }
};
template <class L>
struct UnderTop<LogSumExp<L>> {
    using G = LogSumExp<L>;
    using T = typename Traits<L>::Scalar;
    // How far below the top a state or a contribution may lie: its exponential is then far from the
    // least normal number, also if the sum of 2^31 of them is raised once more.
    static constexpr T reach = -Elementary<T>::least - T(27);

    // Where a state lies: within log 2 of its result.
    static L level(const G& state) {
        return state.max + exponent(state.sum) * L(T(0.6931471805599453));
    }
    static void raise(G& state, L top) {
        state.sum = state.sum * select(empty(state), L(T(0)), exp_within(state.max - top));
        state.max = top;
    }
    // Adds to a state that was raised. What is still empty is the identity again.
    static void add(G& state, L sum_of_exp, L top) {
        state.sum = state.sum + sum_of_exp;
        state.max = select(state.sum == L(T(0)), -infinity<L>(), top);
    }
    static void settle(G& state) {
        const auto low = (state.sum < L(T(1))) & !empty(state);
        const L max = select(low, level(state), state.max);
        state.sum = select(low, state.sum * exp(state.max - max), state.sum);
        state.max = max;
    }
    // Under the highest level, so that one exponential for each is enough.
    static G merged(const G* states, int count) {
        G total = G::identity();
        for (int k = 0; k < count; ++k) {
            const L one = level(states[k]);
            total.max = select(one > total.max, one, total.max);
        }
        for (int k = 0; k < count; ++k) {
            const L max = states[k].max;  // equal infinities are 0 apart
            const L apart = select(max == total.max, L(T(0)), max - total.max);
            total.sum = total.sum + states[k].sum * exp(apart);
        }
        return total;
    }
    static auto empty(const G& state) { return state.max == -infinity<L>(); }
};

// A log-sum-exp whose function sees the same numbers in both roles. States of rows are raised to
// one maximum, the tile's and theirs; columns get states of their own.
template <class Term, class L>
class OneExponential {
    using T = typename Traits<L>::Scalar;
    using G = typename Term::template Gather<L>;
    using Mask = typename L::Mask;
    using Under = UnderTop<G>;

   public:
    OneExponential(const Tile<T>& tile, const Operands<T>& of_rows, const Operands<T>& of_cols,
                   G* rows)
        : by_row_{tile, of_rows}, by_col_{tile, of_cols}, rows_(rows) {}

    // False, and the rows are settled, if something lies too far below the maximum, or if there is
    // no finite one.
    template <bool masked>
    bool raise() {
        L low = infinity<L>(), high = -infinity<L>();     // of contributions and levels
        L least_max = low, most_max = high, stale(T(0));  // of states
        for (int i = 0; i < by_row_.tile.rows; ++i) {
            const typename ByRow::template Kept<masked> kept(by_row_, i);
            for_each_pair(i, [&]([[maybe_unused]] int j, L, L f) {
                Mask is_lower = f < low;
                Mask is_higher = f > high;
                if constexpr (masked) {
                    const Mask pair = kept.is_pair(j);
                    is_lower = is_lower & pair;
                    is_higher = is_higher & pair;
                }
                low = select(is_lower, f, low);
                high = select(is_higher, f, high);
            });
            const L max = rows_[i].max, level = Under::level(rows_[i]);
            const Mask empty = Under::empty(rows_[i]);
            low = select((level < low) & !empty, level, low);
            least_max = select((max < least_max) & !empty, max, least_max);
            most_max = select(max > most_max, max, most_max);
            stale = select(empty & (rows_[i].sum != L(T(0))), L(T(1)), stale);
        }
        const T top = std::max(highest(high), highest(most_max));
        // A NaN is not within reach either.
        if (!(top > -infinity<T>() && top - lowest(low) <= Under::reach)) {
            for (int i = 0; i < by_row_.tile.rows; ++i) Under::settle(rows_[i]);
            return false;
        }
        top_ = L(top);
        if (lowest(least_max) < top || highest(stale) > T(0))
            for (int i = 0; i < by_row_.tile.rows; ++i) Under::raise(rows_[i], top_);
        return true;
    }

    template <bool masked>
    bool gather(G* cols) const {
        constexpr bool all = !masked && !Term::has_window;
        constexpr int col_states = TILE / L::count;
        Mask seen(0);
        L of_cols[col_states];
        for (L& sum : of_cols) sum = L(T(0));
        for (int i = 0; i < by_row_.tile.rows; ++i) {
            const typename ByRow::template Kept<masked> kept_by_row(by_row_, i);
            const typename ByCol::template Kept<masked> kept_by_col(by_col_, i);
            L of_row(T(0));
            for_each_pair(i, [&](int j, L s, L f) {
                const L e = exp_within(f - top_);
                L& col = of_cols[j / L::count];
                if constexpr (all) {
                    of_row = of_row + e;
                    col = col + e;
                } else {
                    const Mask keep_row = kept_by_row.at(s, j), keep_col = kept_by_col.at(s, j);
                    if constexpr (Term::has_window) seen = seen | keep_row | keep_col;
                    of_row = of_row + select(keep_row, e, L(T(0)));
                    col = col + select(keep_col, e, L(T(0)));
                }
            });
            Under::add(rows_[i], of_row, top_);
        }
        for (int k = 0; k < col_states; ++k) {
            G one = G::identity();
            Under::add(one, of_cols[k], top_);
            Under::settle(one);
            cols[k].merge(one);
        }
        return any(seen);
    }

   private:
    using ByRow = Visit<Term, L, true>;
    using ByCol = Visit<Term, L, false>;

    // visit(j, s, f) along row i.
    template <class F>
    void for_each_pair(int i, F visit) const {
        const Range range = by_row_.columns(i);
        by_row_.with_arguments(i, [&](auto... args) {
            for (int j = range.begin; j < range.end; j += L::count) {
                const L s = L::load(by_row_.tile.s + i * TILE + j);
                visit(j, s, rounded(Term::Function::value(s, args.at(j)...)));
            }
        });
    }

    const ByRow by_row_;
    const ByCol by_col_;
    G* rows_;
    L top_;
};

template <class Term, class L>
bool gather_both(const Tile<typename Traits<L>::Scalar>& tile,
                 const Operands<typename Traits<L>::Scalar>& of_rows,
                 const Operands<typename Traits<L>::Scalar>& of_cols, void* rows, void* cols) {
    using G = typename Term::template Gather<L>;
    OneExponential<Term, L> both(tile, of_rows, of_cols, static_cast<G*>(rows));
    const auto gather = [&](auto masked) -> bool {
        constexpr bool is_masked = decltype(masked)::value;
        if (both.template raise<is_masked>())
            return both.template gather<is_masked>(static_cast<G*>(cols));
        const bool kept = gather_tile<Term, L, true>(tile, of_rows, rows);
        return gather_tile<Term, L, false>(tile, of_cols, cols) || kept;
    };
    if constexpr (Term::side == Side::pos)
        return gather(std::true_type());
    else
        return tile.masked ? gather(std::true_type()) : gather(std::false_type());
}

}  // namespace PAIROPS_TARGET
}  // namespace pairops::cpu
