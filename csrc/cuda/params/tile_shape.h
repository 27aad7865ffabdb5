// The shapes of tiles, and where they lie in shared memory, for kernels and launchers alike.
#pragma once

#include <cstdint>

namespace pairops::cuda {

// Embeddings are stored as pack_set writes them: float16 in panels of 64 numbers, 64 rows of 128
// bytes one after the other, so that a tile is a few contiguous pieces. Within its row, chunk c of
// 16 bytes stands at c ^ (row % 8): eight rows' chunks c then lie in different banks, and it
// is the order that wgmma reads.
constexpr int PANEL = 64, PANEL_ROWS = 64, ROW_BYTES = 2 * PANEL, CHUNK_BYTES = 16;
constexpr int PANEL_BYTES = PANEL_ROWS * ROW_BYTES;
constexpr int PADDED_ROWS = 128;  // sets are padded with rows of zeros to a multiple of this

constexpr int MOST_TERMS = 8, MOST_OPERANDS = 24;

// `rows` rows of `panels` panels in shared memory: whole blocks of 64 rows, or a part of one.
template <int rows_, int panels_>
struct Tile {
    static constexpr int rows = rows_, panels = panels_;
    static constexpr int block_rows = rows < PANEL_ROWS ? rows : PANEL_ROWS;
    static constexpr int panel_bytes = block_rows * ROW_BYTES;
    static constexpr int block_bytes = panels * panel_bytes;
    static constexpr int bytes = rows / block_rows * block_bytes;
    static_assert(rows % block_rows == 0 && PANEL_ROWS % block_rows == 0, "whole pieces of blocks");
};

// A block of threads owns `rows` rows, 16 for each warp, and streams tiles of `columns` columns.
//   slice: numbers of the gradient that it sums.
//   parts: float16 numbers that an embedding's number is the sum of.
//   chunk: 0: X stays, and whole tiles of Y come, two at a time. Else both come in chunks of this
//          many numbers, as often as they are multiplied; D is then as large as it may be.
template <int slice_, int warps_, int columns_, int parts_, int chunk_ = 0>
struct Shape {
    static constexpr int slice = slice_, warps = warps_, columns = columns_, parts = parts_;
    static constexpr bool hopper = false, streamed = chunk_ > 0;
    static constexpr int stages = 2;
    static constexpr int chunk = streamed ? chunk_ : slice;
    static constexpr int rows = 16 * warps, threads = 32 * warps;
    static constexpr int held_rows = rows, noted_rows = rows, noted_columns = columns;
    static constexpr int chunk_panels = chunk / PANEL;
    using X = Tile<rows, parts * chunk_panels>;
    using Y = Tile<columns, parts * chunk_panels>;
    static_assert(slice % chunk == 0 && chunk % PANEL == 0, "whole panels");
    static_assert(rows % columns == 0 && PADDED_ROWS % rows == 0, "whole tiles");
};

// held_rows: those of all warps, each of which has slots and states of its own for its 16.
// noted_rows, noted_columns: the tiles that forward writes bits of, and bands are of as many rows.
//
// The shape for Hopper: eight warps own 16 rows each, as above, and the last four bring `stages`
// tiles ahead, whole ones, of embeddings whose `numbers` all fit beside X.
template <int slice_, int columns_, int stages_, int numbers = slice_>
struct HopperShape {
    static constexpr int slice = slice_, warps = 8, columns = columns_, parts = 1;
    static constexpr bool hopper = true, streamed = false;
    static constexpr int stages = stages_, chunk = numbers, chunk_panels = chunk / PANEL;
    static constexpr int group = 128;  // threads that multiply together
    static constexpr int rows = 16 * warps, workers = 32 * warps, threads = workers + group;
    static constexpr int held_rows = rows, noted_rows = rows, noted_columns = columns;
    using X = Tile<rows, chunk_panels>;
    using Y = Tile<columns, chunk_panels>;
    static_assert(slice % PANEL == 0 && chunk % slice == 0, "whole panels");
    static_assert(columns % 16 == 0 && columns <= PANEL_ROWS && rows == PADDED_ROWS, "whole tiles");
};

// The shape of backward for Hopper where the sums of a row fill two threads' registers: both groups
// of four workers own the same 64 rows, each one half of the numbers, and work on every second
// tile.
//   weight_parts: float16 numbers that a weight is the sum of.
//   noted: columns of a tile of forward.
template <int slice_, int columns_, int stages_, int weight_parts_, int noted>
struct HalvesShape {
    static constexpr int slice = slice_, warps = 8, columns = columns_, parts = 1;
    static constexpr bool hopper = true, streamed = false;
    static constexpr int stages = stages_, chunk = slice, chunk_panels = chunk / PANEL;
    static constexpr int half = slice / 2, weight_parts = weight_parts_;
    static constexpr int group = 128;
    static constexpr int rows = PANEL_ROWS, workers = 32 * warps, threads = workers + group;
    static constexpr int held_rows = 16 * warps, noted_rows = PADDED_ROWS, noted_columns = noted;
    using X = Tile<rows, chunk_panels>;
    using Y = Tile<columns, chunk_panels>;
    using Weights = Tile<rows, 1>;  // of a tile of each group, side by side
    static_assert(half % PANEL == 0 && 2 * columns == PANEL, "whole panels");
    static_assert(stages >= 3, "a group has yet to leave a tile when it needs the next but one");
    static_assert(noted % columns == 0 && held_rows == 2 * rows, "whole tiles, and two groups");
};

template <class S>
constexpr bool is_halves = false;
template <int slice, int columns, int stages, int weight_parts, int noted>
constexpr bool is_halves<HalvesShape<slice, columns, stages, weight_parts, noted>> = true;

// Offsets of a block's parts of shared memory, in bytes. Columns' slots and indices, and flags, are
// there once for each stage: for this tile and those to come.
struct Layout {
    int x, y, weights, col_slots, at, row_slots, states, flags, units, walk, barriers, bytes;
};

// Slots are vectors along rows and columns; `states` are floats per row.
template <class S>
constexpr Layout layout(int row_slots, int col_slots, int states) {
    Layout l{};
    l.y = (S::streamed ? 2 : 1) * S::X::bytes;
    l.weights = l.y + S::stages * S::Y::bytes;
    l.col_slots = l.weights;
    if constexpr (is_halves<S>) l.col_slots += S::weight_parts * S::Weights::bytes;
    l.at = l.col_slots + S::stages * 4 * col_slots * S::columns;
    l.row_slots = l.at + S::stages * 4 * S::columns;
    l.states = l.row_slots + 4 * row_slots * S::held_rows;
    l.flags = l.states + 4 * states * S::held_rows;
    l.units = l.flags + (is_halves<S> ? 0 : S::stages * 4 * MOST_TERMS * S::warps);
    l.walk = l.units + (S::hopper ? (is_halves<S> ? 1 : 16) * 32 * S::warps : 0);
    l.barriers = l.walk + (S::hopper ? 32 : 0);
    l.bytes = l.barriers + (S::hopper ? 2 * 8 * (S::stages + is_halves<S>) : 0);
    return l;
}

}  // namespace pairops::cuda
