// The micro-kernel: a few rows times two registers of columns, held in registers along the whole
// sum.
#pragma once

#include "cpu/simd/kernel_table.h"
#include "cpu/simd/simd.h"

namespace pairops::cpu {
inline namespace PAIROPS_TARGET {

template <int... k, class F>
inline __attribute__((always_inline)) void unrolled(std::integer_sequence<int, k...>, F f) {
    (f(k), ...);
}

constexpr int AHEAD = 16;

// Rows of `a` and their sums with a panel b (depth, 2 L::count).
template <class V, int n_rows>
struct MicroKernel {
    using T = typename Traits<V>::Scalar;
    static constexpr int cols = 2 * V::count;
    using Rows = std::make_integer_sequence<int, n_rows>;

    V sums[n_rows][2];

    // a[i * by_row + k * by_depth]. Every sum runs along k alone, so that s_ij has the same bits
    // wherever it stands, and as s_ji.
    template <int by_row, int by_depth>
    inline __attribute__((always_inline)) void run(Index depth, const T* a, const T* b) {
        unrolled(Rows(), [&](int i) { sums[i][0] = sums[i][1] = V(T(0)); });
        for (Index k = 0; k < depth; ++k, a += by_depth, b += cols) {
            const V left = V::load(b), right = V::load(b + V::count);
            __builtin_prefetch(b + AHEAD * cols);
            __builtin_prefetch(b + AHEAD * cols + V::count);
            unrolled(Rows(), [&](int i) {
                const V x(a[i * by_row]);
                sums[i][0] = sums[i][0] + x * left;
                sums[i][1] = sums[i][1] + x * right;
            });
        }
    }
};

// The depth up to which a panel of columns stays in the first cache; sums of sums also round less.
constexpr int DEPTH = 256;

template <class V, int n_rows>
void multiply(const typename Traits<V>::Scalar* rows, const typename Traits<V>::Scalar* cols,
              int row_count, int col_count, Index d, const Range* ranges,
              typename Traits<V>::Scalar* s) {
    using Micro = MicroKernel<V, n_rows>;
    using T = typename Traits<V>::Scalar;
    for (Index k = 0; k < d; k += DEPTH) {
        const Index depth = d - k < DEPTH ? d - k : DEPTH;
        for (int j = 0; j < col_count; j += Micro::cols) {
            for (int i = 0; i < row_count; i += n_rows) {
                if (ranges) {
                    const Range range = ranges[i / n_rows];
                    if (range.end <= j || j + Micro::cols <= range.begin) continue;
                }
                Micro micro;
                micro.template run<1, n_rows>(depth, rows + i * d + k * n_rows,
                                              cols + j * d + k * Micro::cols);
                T* out = s + i * TILE + j;
                unrolled(typename Micro::Rows(), [&](int r) {
                    for (int half = 0; half < 2; ++half) {
                        T* to = out + r * TILE + half * V::count;
                        (k == 0 ? micro.sums[r][half] : V::load(to) + micro.sums[r][half])
                            .store(to);
                    }
                });
            }
        }
    }
}

template <class V, int n_rows, bool transposed>
void accumulate(const typename Traits<V>::Scalar* w, int n_out, int n_in,
                const typename Traits<V>::Scalar* slices, std::size_t stride, Index d,
                const Range* ranges, typename Traits<V>::Scalar* const* out) {
    using Micro = MicroKernel<V, n_rows>;
    using T = typename Traits<V>::Scalar;
    constexpr int by_row = transposed ? 1 : TILE, by_depth = transposed ? TILE : 1;
    for (Index k = 0; k < d; k += Micro::cols, slices += stride) {
        const int width = int(d - k < Micro::cols ? d - k : Micro::cols);
        for (int i = 0; i < n_out; i += n_rows) {
            const Range range = ranges ? ranges[i / n_rows] : Range{0, n_in};
            if (range.begin >= range.end) continue;
            const int here = n_out - i < n_rows ? n_out - i : n_rows;
            for (int r = 0; r < here; ++r) {
                __builtin_prefetch(out[i + r] + k, 1);
                __builtin_prefetch(out[i + r] + k + V::count, 1);
            }
            Micro micro;
            micro.template run<by_row, by_depth>(range.end - range.begin,
                                                 w + i * by_row + range.begin * by_depth,
                                                 slices + range.begin * Micro::cols);
            // Unrolled, so that no compiler keeps sums in memory, where a variable could index
            // them.
            unrolled(typename Micro::Rows(), [&](int r) {
                if (r >= here) return;
                T* to = out[i + r] + k;
                if (width == Micro::cols) {
                    for (int half = 0; half < 2; ++half, to += V::count)
                        (V::load(to) + micro.sums[r][half]).store(to);
                } else {
                    T last[Micro::cols];
                    for (int half = 0; half < 2; ++half)
                        micro.sums[r][half].store(last + half * V::count);
                    for (int c = 0; c < width; ++c) to[c] += last[c];
                }
            });
        }
    }
}

template <class V, int n_rows>
void accumulate(const typename Traits<V>::Scalar* w, bool transposed, int row_count, int col_count,
                const typename Traits<V>::Scalar* slices, std::size_t stride, Index d,
                const Range* ranges, typename Traits<V>::Scalar* const* out) {
    if (transposed)
        accumulate<V, n_rows, true>(w, col_count, row_count, slices, stride, d, ranges, out);
    else
        accumulate<V, n_rows, false>(w, row_count, col_count, slices, stride, d, ranges, out);
}

template <class V>
double peak(std::int64_t rounds) {
    V sums[24];
    for (int k = 0; k < 24; ++k) sums[k] = V(k);
    V x(typename Traits<V>::Scalar(0.999)), y(typename Traits<V>::Scalar(1e-3));
    for (std::int64_t round = 0; round < rounds; ++round) {
        unrolled(std::make_integer_sequence<int, 24>(), [&](int k) { sums[k] = sums[k] * x + y; });
    }
    V total(0);
    for (const V& sum : sums) total = total + sum;
    volatile auto total_sum = sum(total);
    (void)total_sum;
    return 2.0 * 24 * V::count * double(rounds);
}

}  // namespace PAIROPS_TARGET
}  // namespace pairops::cpu
