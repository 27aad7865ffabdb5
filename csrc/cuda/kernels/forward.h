// The kernel of the forward pass: every row's statistics, of the pairs in a block's tiles.
#pragma once

#include "cuda/kernels/mainloop.h"
#include "cuda/tile/epilogue_forward.h"

namespace pairops::cuda {

// Write the statistic of one row, at the caller's index.
template <class Acc>
DEVICE void write_statistic(const Acc& state, Index at, float* value, Index* argument) {
    const Statistic<float> found = state.finalize();
    value[at] = found.value;
    if (argument) argument[at] = found.argument;
}

// Clear the bits of a block of rows. Of several splits the first one clears the bytes of the tiles
// that none visits: beyond the valid columns, or outside the band.
template <class S>
DEVICE void clear_bits(const ForwardCall& call) {
    const Walk<S> walk(call);
    const Index tiles = (call.cols.n + S::columns - 1) / S::columns;
    const int begin = call.band_only ? walk.first : 0;
    const int end = walk.visits == 0 ? begin : begin + (call.band_only ? walk.width : walk.tiles);
    if (block_y() != 0) return;
    for (int k = 0; k < call.n_terms; ++k) {
        if (!call.tile_bits[k]) continue;
        const Index bytes = call.states ? tiles : bytes_of(tiles);
        for (int byte = thread(); byte < bytes; byte += S::threads)
            if (!call.states || byte < begin || byte >= end)
                call.tile_bits[k][block_x() * bytes + byte] = 0;
    }
}

template <class S>
DEVICE void start_states(const ForwardCall& call) {
    clear_bits<S>(call);
    for (int k = 0; k < call.n_terms; ++k)
        visit_kind(call.terms[k].kind, [&](auto kind) {
            const Floats floats = floats_of(decltype(kind)::Accumulator::init());
            for (int row = thread(); row < S::rows; row += S::threads) {
                store_shared(state_at<S>(call, k, 0, row), floats.of[0]);
                store_shared(state_at<S>(call, k, 1, row), floats.of[1]);
            }
        });
}

// Write a statistic of every row of the block or, of several splits of the columns, a state. An
// ignored row has no pair.
template <class S>
DEVICE void write_states(const ForwardCall& call) {
    for (int row = thread(); row < S::rows; row += S::threads) {
        const int i = block_x() * S::rows + row;
        if (i >= call.rows.n) continue;
        const bool valid = i < load_global(call.rows.n_valid);
        for (int k = 0; k < call.n_terms; ++k)
            visit_kind(call.terms[k].kind, [&](auto kind) {
                using Acc = typename decltype(kind)::Accumulator;
                const Floats floats{{load_shared<float>(state_at<S>(call, k, 0, row)),
                                     load_shared<float>(state_at<S>(call, k, 1, row))}};
                const Acc state = valid ? state_of<Acc>(floats) : Acc::init();
                if (!call.states)
                    return write_statistic(state, load_global(call.rows.permutation + i),
                                           call.values[k], call.arguments[k]);
                float* to =
                    call.states + (Index(block_y()) * call.n_terms + k) * 2 * call.rows.n + i;
                const Floats out = floats_of(state);
                to[0] = out.of[0];
                to[call.rows.n] = out.of[1];
            });
    }
}

// A flag says that a term has a pair of the tile inside its windows: each warp says so, and once
// all have, the block.
template <class S>
DEVICE Shared flag_at(const ForwardCall& call, int k, int stage, int warp) {
    return call.at.flags + 4 * ((stage * MOST_TERMS + k) * S::warps + warp);
}
template <class S>
DEVICE void note_bit(const ForwardCall& call, int k, int stage, bool found) {
    if (call.tile_bits[k] && lane() == 0)
        store_shared(flag_at<S>(call, k, stage, warp()), int(found));
}
// The k-th thread calls this for term k, as many threads as there may be terms. Tile -1 is none.
template <class S>
DEVICE void write_bit(const ForwardCall& call, int k, int tile, int stage) {
    if (tile < 0 || k >= call.n_terms || !call.tile_bits[k]) return;
    int any = 0;
    for (int w = 0; w < S::warps; ++w) any |= load_shared<int>(flag_at<S>(call, k, stage, w));
    const Index tiles = (call.cols.n + S::columns - 1) / S::columns;
    if (call.states)
        call.tile_bits[k][block_x() * tiles + tile] = std::uint8_t(any);
    else if (any)
        call.tile_bits[k][block_x() * bytes_of(tiles) + tile / 8] |= std::uint8_t(1 << tile % 8);
}

// Add a tile's similarities to the states of the warp's rows. s is not scaled yet; scaled() is
// called when it is.
template <class S, class Scaled>
DEVICE void forward_tile(const ForwardCall& call, int tile, bool partial, int stage, Fragment<S>& s,
                         Running& running, Scaled scaled) {
    scale<S>(call, stage, s);
    scaled();
    const int row = block_x() * S::rows + 16 * warp() + lane() / 4;
    const Masks of = partial ? masks<S>(call, row, tile) : full_masks<S>();
    if (!running.started) start<S>(call, running);
    for (int k = 0; k < call.n_terms; ++k) {
        const TermCall& term = call.terms[k];
        const std::uint32_t pairs = windowed<S, false>(call, term, stage, s, of.of(term.side));
        const bool any = ballot(pairs != 0) != 0;
        note_bit<S>(call, k, stage, any);
        if (!any) continue;
        const bool every = !ballot(pairs != every_pair<S>);
        if (k == call.running && running.bounded) {
            if (every)
                add_bounded<S, true>(running, s, pairs);
            else
                add_bounded<S, false>(running, s, pairs);
            continue;
        }
        visit_kind(term.kind, [&](auto kind) INLINE {
            using K = decltype(kind);
            constexpr bool often = std::is_same_v<typename K::Accumulator, LogSumExp<float>>;
            if (often && every)
                forward_term<S, K, often>(call, term, k, stage, s, pairs, running);
            else
                forward_term<S, K, false>(call, term, k, stage, s, pairs, running);
        });
    }
}

template <class S>
KERNEL(S::threads, 1)
forward(PARAMETER(ForwardCall) call) {
    start_states<S>(call);
    Running running;
    int noted = -1, noted_in = 0;
    const auto known = [&](int tile, bool partial, int stage, const Products<S>& products) {
        Fragment<S> s;
        similarities<S>(products, s);
        forward_tile<S>(call, tile, partial, stage, s, running, [] {});
        noted = tile;
        noted_in = stage;
    };
    stream<S>(
        call, 0, known, [](int, Shared) {}, [&] { write_bit<S>(call, thread(), noted, noted_in); });
    store_running<S>(call, running);
    block_sync();
    write_states<S>(call);
}

}  // namespace pairops::cuda
