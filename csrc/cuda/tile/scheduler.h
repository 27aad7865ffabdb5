// The scheduler of tiles: which ones a block of rows visits, in which order, and the masks of the
// positives in them.
#pragma once

#include "cuda/device/intrinsics.h"
#include "cuda/params/calls.h"

namespace pairops::cuda {

DEVICE int smaller(int a, int b) { return a < b ? a : b; }
DEVICE int larger(int a, int b) { return a > b ? a : b; }

// The first of a thread's two rows, among the block's and among those that its warps hold.
DEVICE int held_row() { return 16 * warp() + lane() / 4; }
template <class S>
DEVICE int row_in_block() {
    return held_row() % S::rows;
}

// The tiles of a block: full ones, of negatives only, from left to right; then the partial ones,
// which its intervals touch, and a ragged last one. Visits [begin, end) of them are this block's
// part.
template <class S>
struct Walk {
    int first, width, full_tiles, tiles, visits, begin, end;

    Walk() = default;
    DEVICE explicit Walk(const Sweep& call) {
        const int n_valid_rows = load_global(call.rows.n_valid),
                  n_valid_cols = load_global(call.cols.n_valid);
        const int row = block_x() * S::rows;
        tiles = (n_valid_cols + S::columns - 1) / S::columns;
        Index low = 0, high = 0;
        if (call.band) {
            const int block = row / S::noted_rows;
            low = load_global(call.band + 2 * block);
            high = load_global(call.band + 2 * block + 1);
        } else {
            low = load_global(call.pos_begin + row);
            high = load_global(call.pos_end + smaller(row + S::rows, call.rows.n) - 1);
        }
        first = smaller(int(low / S::columns), tiles);
        const int last = smaller(int((high + S::columns - 1) / S::columns), tiles);
        width = larger(last - first, 0);
        const bool ragged = n_valid_cols % S::columns != 0 && (width == 0 || last < tiles);
        visits = row >= n_valid_rows ? 0 : call.band_only ? width : tiles;
        full_tiles = visits == 0 || call.band_only ? 0 : tiles - width - (ragged ? 1 : 0);
        begin = int(Index(visits) * block_y() / blocks_y());
        end = int(Index(visits) * (block_y() + 1) / blocks_y());
    }

    DEVICE bool partial(int visit) const { return visit >= full_tiles; }
    DEVICE int tile(int visit) const {
        if (visit < full_tiles) return visit < first ? visit : visit + width;
        return visit - full_tiles < width ? first + visit - full_tiles : tiles - 1;
    }
};

// Does any term have a pair of this tile inside its windows, with its rows as owners or partners?
template <class S>
DEVICE bool has_pairs(const BackwardCall& call, int tile) {
    constexpr int noted = S::noted_columns, ratio = S::rows / noted;  // tiles of a block
    static_assert(8 % ratio == 0, "a block's tiles lie in one byte");
    const Index row_bytes = bytes_of((call.rows.n + noted - 1) / noted);
    const Index col_bytes = bytes_of((call.cols.n + noted - 1) / noted);
    for (int k = 0; k < call.n_terms; ++k) {
        const bool transposed = call.terms[k].transposed;
        const int block = (transposed ? tile * S::columns : block_x() * S::rows) / S::noted_rows;
        const int first = transposed ? block_x() * ratio : tile * S::columns / noted;
        const Index at = block * (transposed ? row_bytes : col_bytes) + first / 8;
        const int bits = transposed ? (1 << ratio) - 1 : 1;
        if (load_global(call.terms[k].bits + at) >> first % 8 & bits) return true;
    }
    return false;
}

// The first visit from `visit` on of a tile that has pairs; all lanes of a warp ask together.
template <class S>
DEVICE int next_visit(const BackwardCall& call, const Walk<S>& walk, int visit) {
    if (!call.by_bits) return visit;
    for (; visit < walk.end; visit += 32) {
        const int mine = visit + lane();
        const std::uint32_t found = ballot(mine < walk.end && has_pairs<S>(call, walk.tile(mine)));
        if (found) return visit + first_bit(found);
    }
    return visit;
}
template <class S>
DEVICE int next_visit(const ForwardCall&, const Walk<S>&, int visit) {
    return visit;
}

// Masks of a thread's pairs of a tile have bit 4 t + e for element e of its t-th 16×8 sums.
struct Masks {
    std::uint32_t positive, present;

    DEVICE std::uint32_t of(Side side) const {
        return side == Side::pos ? positive : side == Side::neg ? present & ~positive : present;
    }
};

template <class S>
constexpr std::uint32_t every_pair = S::columns == 64 ? 0xffffffff : (1u << S::columns / 2) - 1;

template <class S>
DEVICE Masks full_masks() {
    return {0, every_pair<S>};
}

// The masks of rows i, i + 8 (positions of the sweep's rows) and the columns of `tile`.
template <class S>
DEVICE Masks masks(const Sweep& call, int i, int tile) {
    const int n_valid_cols = load_global(call.cols.n_valid),
              n_valid_rows = load_global(call.rows.n_valid);
    Masks found{0, 0};
    UNROLL
    for (int h = 0; h < 2; ++h) {
        if (i + 8 * h >= n_valid_rows) continue;
        const auto row = std::uint32_t(i + 8 * h);  // no sign that the compiler would keep
        Index pos_begin = 0, pos_end = 0, self_index = -1;
        if (!call.transposed) {
            pos_begin = load_global(call.pos_begin + row);
            pos_end = load_global(call.pos_end + row);
            self_index = load_global(call.self_index + row);
        }
        UNROLL
        for (int k = 0; k < S::columns / 4; ++k) {
            const int column = tile * S::columns + 8 * (k / 2) + 2 * (lane() % 4) + k % 2;
            if (column >= n_valid_cols) continue;
            if (call.transposed) {
                pos_begin = load_global(call.pos_begin + column);
                pos_end = load_global(call.pos_end + column);
                self_index = load_global(call.self_index + column);
            }
            const Index position = call.transposed ? Index(row) : column;
            if (position == self_index) continue;
            const std::uint32_t bit = 1u << (4 * (k / 2) + 2 * h + k % 2);
            found.present |= bit;
            if (pos_begin <= position && position < pos_end) found.positive |= bit;
        }
    }
    return found;
}

}  // namespace pairops::cuda
