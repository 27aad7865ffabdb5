// A tile for its rows and for its columns at once, where one exponential can serve both.
#pragma once

#include <algorithm>

#include "tile.h"

namespace pairops::cpu {
inline namespace PAIROPS_TARGET {

// A log-sum-exp whose function sees the same numbers in both roles. States of rows are raised to
// one maximum, the tile's and theirs; columns get states of their own.
template <class Term, class L>
class OneExponential {
    using T = typename Traits<L>::Scalar;
    using G = typename Term::template Gather<L>;
    using Mask = typename L::Mask;

   public:
    OneExponential(const Tile<T>& tile, const Operands<T>& of_rows, const Operands<T>& of_cols,
                   G* rows)
        : by_row_{tile, of_rows}, by_col_{tile, of_cols}, rows_(rows) {}

    // False, and nothing is changed, if something lies too far below the maximum, or if there is no
    // finite one.
    template <bool masked>
    bool raise() {
        L low = infinity<L>(), high = -infinity<L>(), low_state = low, high_state = high;
        L stale(T(0));
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
            const L max = rows_[i].max;
            const Mask empty = max == -infinity<L>();
            low_state = select((max < low_state) & !empty, max, low_state);
            high_state = select(max > high_state, max, high_state);
            stale = select(empty & (rows_[i].sum != L(T(0))), L(T(1)), stale);
        }
        const T least = lowest(low_state), most = highest(high_state);
        const T top = std::max(highest(high), most), bottom = std::min(lowest(low), least);
        // A NaN is not within reach either.
        if (!(top > -infinity<T>() && top - bottom <= G::reach)) return false;
        top_ = L(top);
        if (least < top || highest(stale) > T(0))
            for (int i = 0; i < by_row_.tile.rows; ++i) rows_[i].raise(top_);
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
            rows_[i].add(of_row, top_);
        }
        for (int k = 0; k < col_states; ++k) {
            G one = G::identity();
            one.add(of_cols[k], top_);
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
