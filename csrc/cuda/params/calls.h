// Parameters of the kernels: sets, operands and terms, as addresses on the device.
#pragma once

#include <cstdint>

#include "cuda/params/tile_shape.h"
#include "recipes.h"

namespace pairops::cuda {

using Index = std::int64_t;

// One set in sorted order, as pack_set left it. All but the permutation is padded to PADDED_ROWS.
struct Set {
    const std::uint16_t* rows;    // panels of float16
    const float *high, *rest;     // (n,) r = high (1 + rest)
    const Index* permutation;     // (n,) the caller's index
    const std::int32_t* n_valid;  // () how many are not ignored; those come first
    std::int32_t n;
};

// One value per row of a set, in the caller's order, or (null) a number for all.
struct Operand {
    const float* values;
    std::int32_t stride;  // 1, or 0
    float number;
};
inline bool operator==(const Operand& a, const Operand& b) {
    return a.values == b.values && a.stride == b.stride && (a.values || a.number == b.number);
}

// A term, its operands by slot in shared memory; -1: it has none.
struct TermCall {
    std::int32_t kind;  // in Kinds
    Side side;
    bool transposed;  // are its owners the columns of the sweep?
    std::int8_t args[2], above, below, statistic, cotangent;
    std::int8_t by_arg[2];  // backward: the sum over a row that is the gradient by this argument
    std::int8_t twin;       // backward: the other view of this term, if the two go together, or -1
    const std::uint8_t* bits;  // backward: (blocks of owners, bytes of tiles of partners), or null
};

constexpr int HIGH = 0, REST = 1, FIRST_OPERAND = 2;  // slots of every row and column

// Bits of tiles are packed into bytes, row by row of blocks.
HD inline Index bytes_of(Index tiles) { return (tiles + 7) / 8; }

// The parameters of both sweeps.
struct Sweep {
    Set rows, cols;
    const Index *pos_begin, *pos_end, *self_index;  // of the rows of x, wherever these stand
    // (blocks, 2) the columns that a block's intervals touch; null: those of its first and last
    // row.
    const Index* band;
    bool transposed;      // are the rows of the sweep those of y?
    bool normalized;      // are scales inverse norms, in two parts, or powers of two?
    bool band_only;       // are there POS terms only?
    std::int32_t panels;  // of one part of a row
    std::int32_t chunks;  // of S::chunk numbers that hold all of D, where those are streamed
    std::int32_t n_terms, n_row_operands, n_col_operands;
    Layout at;
    Operand row_operands[MOST_OPERANDS], col_operands[MOST_OPERANDS];
    std::int32_t n_copied;
    std::int8_t copied[MOST_OPERANDS];  // the columns' operands that are not one number for all
    TermCall terms[MOST_TERMS];

    HD int n_col_slots() const { return FIRST_OPERAND + n_col_operands; }
};

struct ForwardCall : Sweep {
    std::int32_t running;  // the term whose states stay in registers, or -1
    bool bounded;          // are its contributions, but for their bases, within MOST_EXPONENT?
    float* states;         // (splits, 2 · terms, n of rows), or null: one split, which finalizes
    float* values[MOST_TERMS];     // (n of rows,)
    Index* arguments[MOST_TERMS];  // likewise, or null
    // (blocks, bytes of tiles), or null. Of several splits two may share a byte: each tile then has
    // one, (blocks, tiles), and finalize_states makes bits of them.
    std::uint8_t* tile_bits[MOST_TERMS];
};

struct BackwardCall : Sweep {
    bool by_bits;  // has every term bits?
    bool folds;    // may r_i join the scales of a full tile's terms?
    std::int32_t n_sums;
    std::int32_t width;  // D
    float* gradient;     // (splits, n of rows, D), or null: not wanted
    float* sums;         // (splits, n_sums, n of rows)
};

struct PackCall {
    const void* z;        // (n, d), of dtype
    const double* scale;  // (n,) r, or null: 1
    const Index* permutation;
    const bool* valid;  // (n,)
    std::int32_t n, d, panels;
    std::uint16_t* rows;
    float *high, *rest;
    std::int32_t* n_valid;
};

// Outputs that are null are not wanted; see _by_torch in intervals.py for what they hold.
struct SortByLabelCall {
    const void* z;        // (n, d), of dtype
    const Index* labels;  // (n,), or null: row i belongs to row i of the other set
    const Index* others;  // (n_others,) labels of the other set, or null: the same set
    std::int32_t n, n_others, d, panels;
    Index ignored;
    bool ignores, excludes_self, normalized;
    // (n,) by sorted position; of the last three all or none.
    Index *permutation, *pos_begin, *pos_end, *self_index;
    Index* positives;     // (n,) in the caller's order
    bool* valid;          // (n,)
    double* scale;        // (n,)
    std::uint16_t* rows;  // these and the next as in PackCall
    float *high, *rest;
    std::int32_t* n_valid;
};

struct FinalizeCall {
    const float* states;  // (splits, 2 · terms, n)
    const Index* permutation;
    std::int32_t n, splits, n_terms;
    std::int32_t kinds[MOST_TERMS];
    float* values[MOST_TERMS];
    Index* arguments[MOST_TERMS];
    Index blocks, tiles;
    const std::uint8_t* tile_bytes[MOST_TERMS];  // (blocks, tiles), or null
    std::uint8_t* tile_bits[MOST_TERMS];         // (blocks, bytes of tiles), likewise
};

// dx = c r (g - u <u, g>), u = r x, of g = the sum over all splits, in the caller's order.
struct ScaleCall {
    const float* gradient;  // (splits, n, d)
    const void* x;          // (n, d)
    const double* scale;    // (n,) or null: dx = c g
    const bool* valid;      // (n,)
    const float* factor;    // () c, or null: 1
    std::int32_t n, d, splits;
    void* out;     // (n, d) of float32, or
    bool rounded;  // of the dtype of x
};

constexpr int MOST_STATISTICS = 4;

// The mean over valid rows of the sum over k of log(1 + exp R_k) / divisor_k.
struct SoftMeanCall {
    const float* statistics[MOST_STATISTICS];  // (n,) each
    float divisors[MOST_STATISTICS];
    const bool* valid;  // (n,), or null: all rows
    std::int32_t n, n_statistics;
    float* loss;                     // ()
    float* count;                    // () how many are valid, at least 1; or null
    float* slopes[MOST_STATISTICS];  // (n,) each, the gradient by every statistic; all or none
};

// The gradient by every statistic: `gradient` times that of the mean.
struct SoftMeanSlopesCall {
    const float *gradient, *count;  // (), ()
    const float* statistics[MOST_STATISTICS];
    float divisors[MOST_STATISTICS];
    const bool* valid;
    std::int32_t n, n_statistics;
    float* cotangents[MOST_STATISTICS];  // (n,) each
};

}  // namespace pairops::cuda
