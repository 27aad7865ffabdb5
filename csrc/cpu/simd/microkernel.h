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
template <class L, int n_rows>
struct MicroKernel {
    using T = typename Traits<L>::Scalar;
    static constexpr int cols = 2 * L::count;
    using Rows = std::make_integer_sequence<int, n_rows>;

    L sums[n_rows][2];

    // a[i * by_row + k * by_depth]. Every sum runs along k alone, so that s_ij has the same bits
    // wherever it stands, and as s_ji.
    template <int by_row, int by_depth>
    inline __attribute__((always_inline)) void run(Index depth, const T* a, const T* b) {
        unrolled(Rows(), [&](int i) { sums[i][0] = sums[i][1] = L(T(0)); });
        for (Index k = 0; k < depth; ++k, a += by_depth, b += cols) {
            const L left = L::load(b), right = L::load(b + L::count);
            __builtin_prefetch(b + AHEAD * cols);
            __builtin_prefetch(b + AHEAD * cols + L::count);
            unrolled(Rows(), [&](int i) {
                const L x(a[i * by_row]);
                sums[i][0] = sums[i][0] + x * left;
                sums[i][1] = sums[i][1] + x * right;
            });
        }
    }
};

// As deep as the panel of columns stays in the first cache; sums of sums also round less.
constexpr int DEPTH = 256;

template <class L, int n_rows>
void multiply(const typename Traits<L>::Scalar* rows, const typename Traits<L>::Scalar* cols,
              int row_count, int col_count, Index d, const Range* ranges,
              typename Traits<L>::Scalar* s) {
    using Micro = MicroKernel<L, n_rows>;
    using T = typename Traits<L>::Scalar;
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
                        T* to = out + r * TILE + half * L::count;
                        (k == 0 ? micro.sums[r][half] : L::load(to) + micro.sums[r][half])
                            .store(to);
                    }
                });
            }
        }
    }
}

template <class L, int n_rows, bool transposed>
void accumulate(const typename Traits<L>::Scalar* w, int n_out, int n_in,
                const typename Traits<L>::Scalar* slices, std::size_t stride, Index d,
                const Range* ranges, typename Traits<L>::Scalar* const* out) {
    using Micro = MicroKernel<L, n_rows>;
    using T = typename Traits<L>::Scalar;
    constexpr int by_row = transposed ? 1 : TILE, by_depth = transposed ? TILE : 1;
    for (Index k = 0; k < d; k += Micro::cols, slices += stride) {
        const int width = int(d - k < Micro::cols ? d - k : Micro::cols);
        for (int i = 0; i < n_out; i += n_rows) {
            const Range range = ranges ? ranges[i / n_rows] : Range{0, n_in};
            if (range.begin >= range.end) continue;
            const int here = n_out - i < n_rows ? n_out - i : n_rows;
            for (int r = 0; r < here; ++r) {
                __builtin_prefetch(out[i + r] + k, 1);
                __builtin_prefetch(out[i + r] + k + L::count, 1);
            }
            Micro micro;
            micro.template run<by_row, by_depth>(range.end - range.begin,
                                                 w + i * by_row + range.begin * by_depth,
                                                 slices + range.begin * Micro::cols);
            for (int r = 0; r < here; ++r) {
                T* to = out[i + r] + k;
                if (width == Micro::cols) {
                    for (int half = 0; half < 2; ++half, to += L::count)
                        (L::load(to) + micro.sums[r][half]).store(to);
                } else {
                    T last[Micro::cols];
                    for (int half = 0; half < 2; ++half)
                        micro.sums[r][half].store(last + half * L::count);
                    for (int c = 0; c < width; ++c) to[c] += last[c];
                }
            }
        }
    }
}

template <class L, int n_rows>
void accumulate(const typename Traits<L>::Scalar* w, bool transposed, int row_count, int col_count,
                const typename Traits<L>::Scalar* slices, std::size_t stride, Index d,
                const Range* ranges, typename Traits<L>::Scalar* const* out) {
    if (transposed)
        accumulate<L, n_rows, true>(w, col_count, row_count, slices, stride, d, ranges, out);
    else
        accumulate<L, n_rows, false>(w, row_count, col_count, slices, stride, d, ranges, out);
}

template <class L>
double peak(std::int64_t rounds) {
    L sums[24];
    for (int k = 0; k < 24; ++k) sums[k] = L(k);
    L x(typename Traits<L>::Scalar(0.999)), y(typename Traits<L>::Scalar(1e-3));
    for (std::int64_t round = 0; round < rounds; ++round) {
        unrolled(std::make_integer_sequence<int, 24>(), [&](int k) { sums[k] = sums[k] * x + y; });
    }
    L total(0);
    for (const L& sum : sums) total = total + sum;
    volatile auto keep = sum(total);
    (void)keep;
    return 2.0 * 24 * L::count * double(rounds);
}

}  // namespace PAIROPS_TARGET
}  // namespace pairops::cpu
