// Packing for the micro-kernel: embeddings are converted, scaled, sorted and cut into panels.
#pragma once

#include <cmath>

#include "cpu/simd/kernel_table.h"
#include "cpu/simd/simd.h"

namespace pairops::cpu {
inline namespace PAIROPS_TARGET {

inline float widened(float x) { return x; }
inline double widened(double x) { return x; }

struct Bfloat16 {
    std::uint16_t bits;
};
inline float widened(Bfloat16 x) { return from_bits(std::uint32_t(x.bits) << 16); }

struct Float16 {
    std::uint16_t bits;
};
inline float widened(Float16 x) {
    const std::uint32_t sign = std::uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
    // A subnormal float would not do: a thread may be set to read it as 0.
    const float small = float(int(rest)) * 0x1p-24f;
    const std::uint32_t exponent = rest < 0x7c00 ? 127 - 15 : 255 - 31;
    const std::uint32_t normal = (rest << 13) + (exponent << 23);
    return from_bits((rest < 0x400 ? bits_of(small) : normal) | sign);
}

// Call visit with a pointer to row `index` in the type it has.
template <class Visit>
inline void visit_row(const Embeddings& set, Index index, Visit visit) {
    const Index at = index * set.d;
    switch (set.dtype) {
        case Dtype::float16:
            return visit(static_cast<const Float16*>(set.z) + at);
        case Dtype::bfloat16:
            return visit(static_cast<const Bfloat16*>(set.z) + at);
        case Dtype::float32:
            return visit(static_cast<const float*>(set.z) + at);
        case Dtype::float64:
            return visit(static_cast<const double*>(set.z) + at);
    }
}

inline double scale_of(const Embeddings& set, Position position) {
    return set.scale ? set.scale[set.permutation[position]] : 1.0;
}

// `count` numbers of a row times its scale, if there is one, rounded once: a rounded scale would be
// an error common to a whole row of similarities, and a loss multiplies it by its sharpness.
template <class Number, class T>
HD inline void scaled(const Number* __restrict row, bool has_scale, double r, int count,
                      T* __restrict out) {
    if (has_scale)
        for (int c = 0; c < count; ++c) out[c] = T(r * double(widened(row[c])));
    else
        for (int c = 0; c < count; ++c) out[c] = T(widened(row[c]));
}

constexpr int CHUNK = 64;  // columns of a panel's rows, on their way

// Element k of each of two pairs in turn; compilers make one shuffle of it.
template <int k, class Four>
HD inline Four zipped(Four a, Four b) {
    return Four{a[k], b[k], a[k + 1], b[k + 1]};
}
template <int k, class Four>
HD inline Four joined(Four a, Four b) {
    return Four{a[k], a[k + 1], b[k], b[k + 1]};
}

// out[c * rows + i] = in[i][c] for i < rows and c < count, as far as squares of four go.
template <class T, int rows, int width>
void transpose_squares(const T (*in)[width], int count, T* out) {
    using Four = typename VectorOf<T, 4>::Type;
    using Loose = typename VectorOf<T, 4>::Loose;
    for (int i = 0; i + 4 <= rows; i += 4)
        for (int c = 0; c + 4 <= count; c += 4) {
            Four row[4];
            for (int k = 0; k < 4; ++k) row[k] = *reinterpret_cast<const Loose*>(in[i + k] + c);
            const Four a = zipped<0>(row[0], row[1]), b = zipped<0>(row[2], row[3]);
            const Four e = zipped<2>(row[0], row[1]), f = zipped<2>(row[2], row[3]);
            const Four columns[] = {joined<0>(a, b), joined<2>(a, b), joined<0>(e, f),
                                    joined<2>(e, f)};
            for (int k = 0; k < 4; ++k)
                *reinterpret_cast<Loose*>(out + (c + k) * rows + i) = columns[k];
        }
}

template <class T, int rows>
void transpose(const T (*in)[CHUNK], int count, T* out) {
    transpose_squares<T, rows>(in, count, out);
    for (int i = 0; i < rows; ++i)
        for (int c = i < rows / 4 * 4 ? count / 4 * 4 : 0; c < count; ++c)
            out[c * rows + i] = in[i][c];
}

template <class T, int panel_rows>
void pack_rows(const Embeddings& set, Position first, int count, T* panels) {
    alignas(64) T chunk[panel_rows][CHUNK];
    for (int begin = 0; begin < count; begin += panel_rows, panels += set.d * panel_rows) {
        for (Index k = 0; k < set.d; k += CHUNK) {
            const int here = int(set.d - k < CHUNK ? set.d - k : CHUNK);
            for (int i = 0; i < panel_rows; ++i) {
                const Position position = first + begin + i;
                if (begin + i < count && position < set.n_valid)
                    visit_row(set, set.permutation[position], [&](const auto* row) {
                        scaled(row + k, set.scale, scale_of(set, position), here, chunk[i]);
                    });
                else
                    for (int c = 0; c < here; ++c) chunk[i][c] = T(0);
            }
            transpose<T, panel_rows>(chunk, here, panels + k * panel_rows);
        }
    }
}

template <class T, int panel_cols>
void pack_cols(const Embeddings& set, Position first, T* panel) {
    pack_rows<T, panel_cols>(set, first, panel_cols, panel);
}

template <class T, int panel_cols>
void pack_slices(const Embeddings& set, Position first, int count, std::size_t stride, T* slices) {
    for (Position position = first; position < first + count; ++position) {
        visit_row(set, set.permutation[position], [&](const auto* row) {
            const double r = scale_of(set, position);
            for (Index k = 0; k < set.d; k += panel_cols) {
                T* out = slices + (k / panel_cols) * stride + (position - first) * panel_cols;
                if (set.d - k >= panel_cols) {  // a number that the compiler knows
                    scaled(row + k, set.scale, r, panel_cols, out);
                    continue;
                }
                const int here = int(set.d - k);
                scaled(row + k, set.scale, r, here, out);
                for (int c = here; c < panel_cols; ++c) out[c] = T(0);
            }
        });
    }
}

constexpr int CHAINS = 8;  // of a sum: as many as a register has doubles

// Σ_k term(k)
template <class Term>
inline double sum_along(Index d, Term term) {
    double sums[CHAINS] = {};
    Index k = 0;
    for (; k + CHAINS <= d; k += CHAINS)
        for (int c = 0; c < CHAINS; ++c) sums[c] += term(k + c);
    for (; k < d; ++k) sums[0] += term(k);
    double sum = 0;
    for (double s : sums) sum += s;
    return sum;
}

inline void inverse_norm(const Embeddings& set, Index first, int count, const bool* valid,
                         double* out) {
    for (Index row = first; row < first + count; ++row) {
        out[row] = 0;
        if (!valid[row]) continue;
        visit_row(set, row, [&](const auto* z) {
            const auto norm_times = [&](double factor) {
                return std::sqrt(sum_along(set.d, [&](Index k) {
                    const double value = factor * double(widened(z[k]));
                    return value * value;
                }));
            };
            const double norm = norm_times(1);
            // Squares of float64 overflow from 2^512 on. Of an infinite row 1/norm is still 0.
            if (norm == HUGE_VAL)
                out[row] = 0x1p-524 / norm_times(0x1p-524);
            else if (!(norm < 1e-12))
                out[row] = 1 / norm;
        });
    }
}

template <class T>
void through_scale(const Embeddings& set, Position first, int count, const T* factors, T* g) {
    for (Position position = first; position < first + count; ++position) {
        T* out = g + set.permutation[position] * set.d;
        visit_row(set, set.permutation[position], [&](const auto* row) {
            if (!set.scale) {
                // A dot product's gradient is finite where slopes are constant; a NaN has to show.
                const T factor = factors ? factors[position] : T(0);
                for (Index k = 0; k < set.d; ++k) out[k] += factor * T(widened(row[k]));
                return;
            }
            // Entries of the unit row are within range; those of the row, or r², need not be.
            const double r = scale_of(set, position);
            const auto unit = [&](Index k) { return r * double(widened(row[k])); };
            const double dot = sum_along(set.d, [&](Index k) { return unit(k) * double(out[k]); });
            for (Index k = 0; k < set.d; ++k) out[k] = T(r * (double(out[k]) - dot * unit(k)));
        });
    }
}

}  // namespace PAIROPS_TARGET
}  // namespace pairops::cpu
