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
void squares(const Embeddings& set, Position first, int count, T* out) {
    for (Position position = first; position < first + count; ++position) {
        if (set.scale) {
            out[position - first] = T(scale_of(set, position) > 0);
            continue;
        }
        visit_row(set, set.permutation[position], [&](const auto* row) {
            // A row with an infinity has NaN, and so differs from one whose square overflows.
            out[position - first] = T(sum_along(set.d, [&](Index k) {
                const double value = widened(row[k]);
                return value * value + 0 * value;
            }));
        });
    }
}

template <class T, int n, int registers>
inline Vector<T, n, registers> square_root(Vector<T, n, registers> x) {
    T numbers[n * registers];
    x.store(numbers);
    for (T& one : numbers) one = std::sqrt(one);
    return Vector<T, n, registers>::load(numbers);
}

// Call visit(i, j), a vector of columns at a time, where the tile has similarities.
template <class V, class Visit>
inline void for_each_known(int rows, int cols, int panel_rows, const Range* ranges, Visit visit) {
    for (int i = 0; i < rows; ++i) {
        const Range range = ranges ? ranges[i / panel_rows] : Range{0, cols};
        for (int j = range.begin / V::count * V::count; j < range.end; j += V::count) visit(i, j);
    }
}

// Squared distances q = a + b - 2 s. One that rounding alone may have made counts as 0; where
// squares overflow q is infinite, whatever s is.
template <class V, int panel_rows>
void closeness(Distance distance, const typename Traits<V>::Scalar* a,
               const typename Traits<V>::Scalar* b, int rows, int cols, const Range* ranges,
               typename Traits<V>::Scalar* s) {
    using T = typename Traits<V>::Scalar;
    const V floor(16 * std::numeric_limits<T>::epsilon());
    const auto run = [&](auto of_square) {
        for_each_known<V>(rows, cols, panel_rows, ranges, [&](int i, int j) {
            T* at = s + i * TILE + j;
            const V sum = V(a[i]) + V::load(b + j);
            const auto finite = sum < infinity<V>();
            const V q = select(finite, sum - V(T(2)) * V::load(at), sum);
            const auto vanishes = finite & (q <= floor * sum);
            select(vanishes, V(T(0)), -of_square(q)).store(at);
        });
    };
    if (distance == Distance::l2)
        run([](V q) { return square_root(q); });
    else
        run([](V q) { return q; });
}

template <class V>
void times_share(const typename Traits<V>::Scalar* t, const typename Traits<V>::Scalar* of_rows,
                 const typename Traits<V>::Scalar* of_cols, int rows, int cols,
                 typename Traits<V>::Scalar* out) {
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < cols; j += V::count) {
            const V share = of_rows ? V(of_rows[i]) : V::load(of_cols + j);
            (share * V::load(t + i * TILE + j)).store(out + i * TILE + j);
        }
}

// Closeness whose distance is 0 has no slope. A weight of 0 stays 0: where there is no pair there
// may be any closeness.
template <class V, int panel_rows>
void through_closeness(const ThroughCloseness<typename Traits<V>::Scalar>& given, int rows,
                       int cols, const Range* ranges) {
    using T = typename Traits<V>::Scalar;
    const auto times = [](V weight, V x) { return select(weight == V(T(0)), V(T(0)), weight * x); };
    const auto slope_of_square = [](V t) {
        return select(t == V(T(0)), V(T(0)), select(t == t, V(T(2)), t));
    };
    // The gradient through a row's squared norm is this factor times its entries.
    V of_row[TILE];
    for (int i = 0; i < rows; ++i) of_row[i] = V(T(0));
    const auto add = [&](int i, int j, V by_row, V by_col) {
        of_row[i] = of_row[i] - by_row;
        if (given.of_cols) (V::load(given.of_cols + j) - by_col).store(given.of_cols + j);
    };
    if (given.share_rows) {
        for_each_known<V>(rows, cols, panel_rows, ranges, [&](int i, int j) {
            const int at = i * TILE + j;
            const V t = V::load(given.t + at), w = V::load(given.w + at);
            const V w_cols = V::load(given.w_cols + at);
            const V share_row(given.share_rows[i]), share_col = V::load(given.share_cols + j);
            const V weight = times(share_row * w + share_col * w_cols, slope_of_square(t));
            weight.store(given.w + at);
            const V two(T(2));
            add(i, j, weight + two * share_row * share_row * times(w, t),
                weight + two * share_col * share_col * times(w_cols, t));
        });
    } else {
        const auto run = [&](auto slope) {
            for_each_known<V>(rows, cols, panel_rows, ranges, [&](int i, int j) {
                const int at = i * TILE + j;
                const V weight = times(V::load(given.w + at), slope(V::load(given.t + at)));
                weight.store(given.w + at);
                if (given.of_rows || given.of_cols) add(i, j, weight, weight);
            });
        };
        if (given.distance == Distance::l2)
            run([](V t) { return select(t == V(T(0)), V(T(0)), V(T(-1)) / t); });
        else
            run(slope_of_square);
    }
    if (given.of_rows)
        for (int i = 0; i < rows; ++i) given.of_rows[i] += sum(of_row[i]);
}

}  // namespace PAIROPS_TARGET
}  // namespace pairops::cpu
