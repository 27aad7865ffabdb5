// The matrix products of a tile by mma.sync, and its copy to shared memory: similarities of pairs,
// and then sums of rows by weight.
#pragma once

#include "cuda/tile/epilogue.h"

namespace pairops::cuda {

// Copy rows [row, row + T::rows) of `panels` panels of every part, from panel `first` of each. A
// thread's pieces lie as far apart as the compiler knows, but for a part and a block of rows.
template <class T, int threads, int parts>
DEVICE void copy_tile(Shared to, const Set& set, int panels, int row, int first) {
    constexpr int pieces = T::panel_bytes / CHUNK_BYTES, each = T::panels / parts;
    constexpr int blocks = T::rows / T::block_rows, copies = blocks * T::panels * pieces / threads;
    static_assert(pieces % threads == 0, "a thread's pieces stand at one place of their panels");
    static_assert(blocks * T::panels * pieces % threads == 0, "no piece is left");
    const Shared mine = to + thread() * CHUNK_BYTES;
    const char* source = reinterpret_cast<const char*>(set.rows) +
                         (Index(row / PANEL_ROWS) * parts * panels + first) * PANEL_BYTES +
                         row % PANEL_ROWS * ROW_BYTES + thread() * CHUNK_BYTES;
    const Index part_bytes = Index(panels) * PANEL_BYTES;
    UNROLL
    for (int k = 0; k < copies; ++k) {
        const int piece = k * threads % pieces, panel = k * threads / pieces % T::panels;
        const int part = k * threads / pieces / T::panels * parts + panel / each;
        copy16(mine + k * threads * CHUNK_BYTES,
               source + part * part_bytes + (panel % each * PANEL_BYTES + piece * CHUNK_BYTES));
    }
}

// The address of row `row` of a tile for a lane, at chunk 0 or 1 of a panel. Chunk c (even) of its
// panel p is at (this ^ 16 c) + p · T::panel_bytes: the swizzle touches no other bit.
template <class T>
DEVICE Shared lane_row(Shared tile, int row, int chunk) {
    const int in_block = row % T::block_rows;
    return tile + row / T::block_rows * T::block_bytes + in_block * ROW_BYTES +
           ((chunk ^ (in_block % 8)) * CHUNK_BYTES);
}

// Three sums, of which two are swapped with x and y, or one.
template <class S>
using Products = float[S::parts == 1 ? 1 : 3][S::columns / 8][4];

// Tensor cores truncate: a sum loses up to a bit, always toward zero, with every 8 or 16 products
// that it takes up. What must be right to float32 is therefore summed on two levels, a few products
// by a tensor core, from zero on, and then the sums of these, rounded to nearest.
DEVICE void add(float (&sums)[4], const float (&few)[4]) {
    UNROLL
    for (int e = 0; e < 4; ++e) sums[e] += few[e];
}

// The 16 rows of a warp as its left operand, 16 numbers in each step.
template <class S>
struct RowsInShared {
    Shared x;

    DEVICE void get(int step, std::uint32_t (&a)[S::parts][4]) const {
        // Row lane % 8 of matrix lane / 8: rows 0-7 and 8-15 by two chunks.
        const int matrix = lane() / 8, row = 16 * warp() + matrix % 2 * 8 + lane() % 8;
        const Shared at = lane_row<typename S::X>(x, row, matrix / 2);
        const int panel = step / (PANEL / 16), in_panel = 2 * CHUNK_BYTES * (step % (PANEL / 16));
        UNROLL
        for (int part = 0; part < S::parts; ++part)
            load_matrices(a[part],
                          (at ^ in_panel) + (panel + part * S::chunk_panels) * S::X::panel_bytes);
    }
};
template <class S>
struct RowsInRegisters {
    std::uint32_t of_step[S::chunk / 16][S::parts][4];

    DEVICE void load(const RowsInShared<S>& from) {
        UNROLL
        for (int step = 0; step < S::chunk / 16; ++step) from.get(step, of_step[step]);
    }
    DEVICE void get(int step, std::uint32_t (&a)[S::parts][4]) const {
        UNROLL
        for (int part = 0; part < S::parts; ++part) {
            UNROLL
            for (int q = 0; q < 4; ++q) a[part][q] = of_step[step][part][q];
        }
    }
};

// Multiply x yᵀ of a warp's 16 rows and all columns, in the order of the numbers in every sweep: s
// has the same bits in both passes, and as s_ji. What is streamed is added to the products. Of two
// parts the products of the first are summed on two levels; the others are 2^-11 of them.
template <class S, class Rows>
DEVICE void multiply(Products<S>& products, const Rows& rows, Shared y) {
    constexpr int panels = S::chunk_panels;
    // Row lane % 8 of matrix lane / 8: two eights of y by two chunks.
    const int matrix = lane() / 8, row = lane() % 8;
    const Shared b_row = lane_row<typename S::Y>(y, matrix / 2 * 8 + row, matrix % 2);
    UNROLL
    for (int step = 0; step < panels * PANEL / 16; ++step) {
        const int panel = step / (PANEL / 16), in_panel = 2 * CHUNK_BYTES * (step % (PANEL / 16));
        const Shared b_at = (b_row ^ in_panel) + panel * S::Y::panel_bytes;
        const auto add_step = [&](float (&to)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                  std::uint32_t b1) {
            if (step == 0 && !S::streamed)
                multiply(to, a, b0, b1);
            else
                multiply_add(to, a, b0, b1);
        };
        std::uint32_t a[S::parts][4];
        rows.get(step, a);
        UNROLL
        for (int t = 0; t < S::columns / 16; ++t) {
            // 16 rows on, the swizzle is the same.
            std::uint32_t b[S::parts][4];
            UNROLL
            for (int part = 0; part < S::parts; ++part)
                load_matrices(b[part],
                              b_at + part * panels * S::Y::panel_bytes + t * 16 * ROW_BYTES);
            UNROLL
            for (int half = 0; half < 2; ++half) {
                const int at = 2 * t + half;
                if constexpr (S::parts == 2) {
                    float of_step[4];
                    multiply(of_step, a[0], b[0][2 * half], b[0][2 * half + 1]);
                    if (step == 0 && !S::streamed) {
                        UNROLL
                        for (int e = 0; e < 4; ++e) products[0][at][e] = of_step[e];
                    } else {
                        add(products[0][at], of_step);
                    }
                    add_step(products[1][at], a[1], b[0][2 * half], b[0][2 * half + 1]);
                    add_step(products[2][at], a[0], b[1][2 * half], b[1][2 * half + 1]);
                } else {
                    add_step(products[0][at], a[0], b[0][2 * half], b[0][2 * half + 1]);
                }
            }
        }
    }
}

template <class S>
DEVICE void similarities(const Products<S>& products, Fragment<S>& s) {
    UNROLL
    for (int t = 0; t < S::columns / 8; ++t) {
        UNROLL
        for (int e = 0; e < 4; ++e) {
            s[t][e] = products[0][t][e];
            if constexpr (S::parts == 2) s[t][e] += products[1][t][e] + products[2][t][e];
        }
    }
}

// Weights as rows of mma, of 16 columns each, in one float16 or two.
template <class S, int weight_parts>
DEVICE void pack_weights(const Fragment<S>& weights,
                         std::uint32_t (&packed)[weight_parts][S::columns / 16][4]) {
    UNROLL
    for (int t = 0; t < S::columns / 16; ++t) {
        UNROLL
        for (int q = 0; q < 4; ++q) {
            const float first = weights[2 * t + q / 2][2 * (q % 2)];
            const float second = weights[2 * t + q / 2][2 * (q % 2) + 1];
            packed[0][t][q] = pack(first, second);
            if constexpr (weight_parts == 2) {
                const Two high = unpack(packed[0][t][q]);
                packed[1][t][q] = pack(first - high.first, second - high.second);
            }
        }
    }
}

// Add weights · y over a chunk of numbers of the tile, the smallest parts first: S::chunk of them,
// those of the sums that begin at `first`. Where y has two parts, on two levels: a tile, then all.
template <class S, int weight_parts, int first>
DEVICE void accumulate(float (&sums)[S::slice / 8][4],
                       const std::uint32_t (&weights)[weight_parts][S::columns / 16][4], Shared y) {
    constexpr int panels = S::chunk_panels, steps = S::columns / 16;
    const int matrix = lane() / 8, row = lane() % 8;
    const Shared b_row = lane_row<typename S::Y>(y, matrix % 2 * 8 + row, matrix / 2);
    const auto load = [&](int t, int u, std::uint32_t (&b)[S::parts][4]) {
        const Shared at =
            (b_row ^ (2 * CHUNK_BYTES * (u % 4))) + u / 4 * S::Y::panel_bytes + t * 16 * ROW_BYTES;
        UNROLL
        for (int part = 0; part < S::parts; ++part)
            load_transposed(b[part], at + part * panels * S::Y::panel_bytes);
    };
    if constexpr (S::parts == 2) {
        UNROLL
        for (int u = 0; u < S::chunk / 16; ++u) {
            float of_tile[2][4] = {};
            std::uint32_t b[steps][2][4];
            UNROLL
            for (int t = 0; t < steps; ++t) {
                load(t, u, b[t]);
                UNROLL
                for (int half = 0; half < 2; ++half) {
                    multiply_add(of_tile[half], weights[0][t], b[t][1][2 * half],
                                 b[t][1][2 * half + 1]);
                    multiply_add(of_tile[half], weights[1][t], b[t][0][2 * half],
                                 b[t][0][2 * half + 1]);
                }
            }
            UNROLL
            for (int t = 0; t < steps; ++t) {
                UNROLL
                for (int half = 0; half < 2; ++half)
                    multiply_add(of_tile[half], weights[0][t], b[t][0][2 * half],
                                 b[t][0][2 * half + 1]);
            }
            add(sums[first / 8 + 2 * u], of_tile[0]);
            add(sums[first / 8 + 2 * u + 1], of_tile[1]);
        }
    } else {
        UNROLL
        for (int t = 0; t < steps; ++t) {
            UNROLL
            for (int u = 0; u < S::chunk / 16; ++u) {
                std::uint32_t b[S::parts][4];
                load(t, u, b);
                UNROLL
                for (int half = 0; half < 2; ++half) {
                    auto& sum = sums[first / 8 + 2 * u + half];
                    UNROLL
                    for (int part = weight_parts - 1; part >= 0; --part)
                        multiply_add(sum, weights[part][t], b[0][2 * half], b[0][2 * half + 1]);
                }
            }
        }
    }
}

}  // namespace pairops::cuda
