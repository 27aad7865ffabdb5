// Distances: a tile of similarities becomes one of closeness, minus the distance, and pair weights
// by closeness become weights by similarity.
#pragma once

#include <cmath>
#include <limits>

#include "cpu/simd/kernel_table.h"
#include "cpu/simd/packing.h"
#include "cpu/simd/simd.h"

namespace pairops::cpu {
inline namespace PAIROPS_TARGET {

template <class T>
void squares(const Embeddings& set, Place first, int count, T* out) {
    for (Place place = first; place < first + count; ++place) {
        if (set.scale) {
            out[place - first] = T(scale_of(set, place) > 0);
            continue;
        }
        visit_row(set, set.order[place], [&](const auto* row) {
            // NaN of a row with an infinity, which so differs from one whose square overflows.
            out[place - first] = T(sum_along(set.d, [&](Index k) {
                const double value = widened(row[k]);
                return value * value + 0 * value;
            }));
        });
    }
}

template <class T, int n, int registers>
inline Lanes<T, n, registers> square_root(Lanes<T, n, registers> x) {
    T numbers[n * registers];
    x.store(numbers);
    for (T& one : numbers) one = std::sqrt(one);
    return Lanes<T, n, registers>::load(numbers);
}

// visit(i, j) for as many columns at a time as there are lanes, where the tile has similarities.
template <class L, class Visit>
inline void for_each_known(int rows, int cols, int panel_rows, const Range* ranges, Visit visit) {
    for (int i = 0; i < rows; ++i) {
        const Range range = ranges ? ranges[i / panel_rows] : Range{0, cols};
        for (int j = range.begin / L::count * L::count; j < range.end; j += L::count) visit(i, j);
    }
}

// Squared distances q = a + b - 2 s. One that rounding alone may have made counts as 0; where
// squares overflow q is infinite, whatever s is.
template <class L, int panel_rows>
void closeness(Distance distance, const typename Traits<L>::Scalar* a,
               const typename Traits<L>::Scalar* b, int rows, int cols, const Range* ranges,
               typename Traits<L>::Scalar* s) {
    using T = typename Traits<L>::Scalar;
    const L floor(16 * std::numeric_limits<T>::epsilon());
    const auto run = [&](auto of_square) {
        for_each_known<L>(rows, cols, panel_rows, ranges, [&](int i, int j) {
            T* at = s + i * TILE + j;
            const L sum = L(a[i]) + L::load(b + j);
            const auto finite = sum < infinity<L>();
            const L q = select(finite, sum - L(T(2)) * L::load(at), sum);
            const auto vanishes = finite & (q <= floor * sum);
            select(vanishes, L(T(0)), -of_square(q)).store(at);
        });
    };
    if (distance == Distance::l2)
        run([](L q) { return square_root(q); });
    else
        run([](L q) { return q; });
}

template <class L>
void times_share(const typename Traits<L>::Scalar* t, const typename Traits<L>::Scalar* of_rows,
                 const typename Traits<L>::Scalar* of_cols, int rows, int cols,
                 typename Traits<L>::Scalar* out) {
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < cols; j += L::count) {
            const L share = of_rows ? L(of_rows[i]) : L::load(of_cols + j);
            (share * L::load(t + i * TILE + j)).store(out + i * TILE + j);
        }
}

// Closeness whose distance is 0 has no slope. A weight of 0 stays 0: where there is no pair there
// may be any closeness.
template <class L, int panel_rows>
void through_closeness(const ThroughCloseness<typename Traits<L>::Scalar>& given, int rows,
                       int cols, const Range* ranges) {
    using T = typename Traits<L>::Scalar;
    const auto times = [](L weight, L x) { return select(weight == L(T(0)), L(T(0)), weight * x); };
    const auto slope_of_square = [](L t) {
        return select(t == L(T(0)), L(T(0)), select(t == t, L(T(2)), t));
    };
    // Of each row what its squared norm's gradient is, times its entries.
    L of_row[TILE];
    for (int i = 0; i < rows; ++i) of_row[i] = L(T(0));
    const auto add = [&](int i, int j, L by_row, L by_col) {
        of_row[i] = of_row[i] - by_row;
        if (given.of_cols) (L::load(given.of_cols + j) - by_col).store(given.of_cols + j);
    };
    if (given.share_rows) {
        for_each_known<L>(rows, cols, panel_rows, ranges, [&](int i, int j) {
            const int at = i * TILE + j;
            const L t = L::load(given.t + at), w = L::load(given.w + at);
            const L w_cols = L::load(given.w_cols + at);
            const L share_row(given.share_rows[i]), share_col = L::load(given.share_cols + j);
            const L weight = times(share_row * w + share_col * w_cols, slope_of_square(t));
            weight.store(given.w + at);
            const L two(T(2));
            add(i, j, weight + two * share_row * share_row * times(w, t),
                weight + two * share_col * share_col * times(w_cols, t));
        });
    } else {
        const auto run = [&](auto slope) {
            for_each_known<L>(rows, cols, panel_rows, ranges, [&](int i, int j) {
                const int at = i * TILE + j;
                const L weight = times(L::load(given.w + at), slope(L::load(given.t + at)));
                weight.store(given.w + at);
                if (given.of_rows || given.of_cols) add(i, j, weight, weight);
            });
        };
        if (given.distance == Distance::l2)
            run([](L t) { return select(t == L(T(0)), L(T(0)), L(T(-1)) / t); });
        else
            run(slope_of_square);
    }
    if (given.of_rows)
        for (int i = 0; i < rows; ++i) given.of_rows[i] += sum(of_row[i]);
}

}  // namespace PAIROPS_TARGET
}  // namespace pairops::cpu
