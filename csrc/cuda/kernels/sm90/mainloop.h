// The main loop of both sweeps on Hopper: four warps bring tiles, eight work on them.
//
// Of the four, one has the tensor memory accelerator copy embeddings, which wgmma alone reads:
// both are of the asynchronous proxy, and a barrier is all that orders them. The next ones store
// columns' operands, which the eight load: ordinary accesses on either side, for which a barrier is
// enough too. No byte is accessed through both proxies, so nothing here needs `fence_async`.
#pragma once

#include "cuda/device/wgmma.h"
#include "cuda/kernels/mainloop.h"

namespace pairops::cuda {

#if PAIROPS_SM_90A

// Registers of each thread, in eights: of three groups 504, as launch bounds leave 168 to each.
// With 24 and 240 those that bring spill, and backward at D = 256 needs no more than these.
constexpr int BRINGER_REGISTERS = 40, WORKER_REGISTERS = 232;

// One stage after the other, and the parity of its barriers' phase: in one register.
template <class S>
struct Turn {
    static constexpr int ODD = 16;
    int packed = 0;

    DEVICE int stage() const { return packed & (ODD - 1); }
    DEVICE int parity() const { return packed >> 4; }
    DEVICE void next() {
        packed = stage() + 1 == S::stages ? packed & ODD : packed + 1;
        packed ^= stage() == 0 ? ODD : 0;
    }
    // The next one, or this one if there is no more.
    DEVICE Turn following_if(bool more) const {
        Turn turn(*this);
        if (more) turn.next();
        return turn;
    }
    // The stage holds a tile and the operands of its columns.
    DEVICE Shared full(const Sweep& call) const { return Shared(call.at.barriers + 8 * stage()); }
    // Every warp has done with it.
    DEVICE Shared empty(const Sweep& call) const { return full(call) + 8 * S::stages; }
    DEVICE Shared y(const Sweep& call) const { return Shared(call.at.y + stage() * S::Y::bytes); }
};

// All threads call this; a barrier of the block follows.
template <class S>
DEVICE void start_stages(const Sweep& call) {
    load_slots<S>(call);
    if (thread() != 0) return;
    Turn<S> turn;
    for (int k = 0; k < S::stages; ++k, turn.next()) {
        barrier_init(turn.full(call), 1 + S::columns);
        barrier_init(turn.empty(call), S::warps);
    }
    barriers_ready();
}

// Bring whole panels of rows [row, row + T::rows), by one thread.
template <class T>
DEVICE void bring_tile(Shared to, const Set& set, int row, Shared barrier) {
    const char* from = reinterpret_cast<const char*>(set.rows) +
                       Index(row / PANEL_ROWS) * T::panels * PANEL_BYTES +
                       row % PANEL_ROWS * ROW_BYTES;
    if constexpr (T::rows % PANEL_ROWS == 0) {
        for (int block = 0; block < T::rows / PANEL_ROWS; ++block)
            bulk_copy(to + block * T::block_bytes, from + block * T::block_bytes, T::block_bytes,
                      barrier);
    } else {
        for (int panel = 0; panel < T::panels; ++panel)
            bulk_copy(to + panel * T::panel_bytes, from + panel * PANEL_BYTES, T::panel_bytes,
                      barrier);
    }
}

// Bring embeddings, by one warp: X with the first tile.
template <class S, class Call>
DEVICE void bring_embeddings(const Call& call, const Walk<S>& walk) {
    bool first = true;
    Turn<S> turn;
    for (int visit = next_visit(call, walk, walk.begin); visit < walk.end;
         visit = next_visit(call, walk, visit + 1), turn.next()) {
        if (lane() == 0) {  // the others wait for nothing that they could miss a phase of
            const Shared full = turn.full(call);
            barrier_wait(turn.empty(call), turn.parity() ^ 1);
            barrier_expect(full, S::Y::bytes + (first ? S::X::bytes : 0));
            if (first) bring_tile<typename S::X>(call.at.x, call.rows, block_x() * S::rows, full);
            bring_tile<typename S::Y>(turn.y(call), call.cols, walk.tile(visit) * S::columns, full);
        }
        first = false;
    }
}

// Bring columns' operands, one column for each thread, and call left(in_tile, tile, stage) when
// every warp has done with the tile; -1 means that there was none.
template <class S, class Call, class Left>
DEVICE void bring_columns(const Call& call, const Walk<S>& walk, int in_tile, Left left) {
    const auto copy = [](Shared to, const float* from) { store_shared(to, load_global(from)); };
    int tiles[S::stages];  // in the stages, the one to be left next first
    UNROLL
    for (int& tile : tiles) tile = -1;
    const auto wait = [&](const Turn<S>& turn, int next) {
        barrier_wait(turn.empty(call), turn.parity() ^ 1);
        left(in_tile, tiles[0], turn.stage());
        UNROLL
        for (int k = 0; k + 1 < S::stages; ++k) tiles[k] = tiles[k + 1];
        tiles[S::stages - 1] = next;
    };
    Turn<S> turn;
    for (int visit = next_visit(call, walk, walk.begin); visit < walk.end;
         visit = next_visit(call, walk, visit + 1), turn.next()) {
        const int tile = walk.tile(visit);
        const Index index = column_index<S>(call, tile, in_tile);
        wait(turn, tile);
        copy_columns<S>(call, tile, turn.stage(), in_tile, index, copy);
        barrier_arrive(turn.full(call));
    }
    UNROLL
    for (int k = 0; k < S::stages; ++k, turn.next()) wait(turn, -1);
}

// Bring tiles, by the last four warps.
template <class S, class Call, class Left>
DEVICE void bring(const Call& call, Left left) {
    fewer_registers<BRINGER_REGISTERS>();
    const Walk<S> walk(call);
    const int bringer = warp() - S::warps;
    if (bringer == 0)
        bring_embeddings<S>(call, walk);
    else if (bringer <= S::columns / 32)
        bring_columns<S>(call, walk, 32 * (bringer - 1) + lane(), left);
}

// Begin with s of a group's 64 rows and all columns, in the order of the numbers, in both sweeps.
template <class S>
DEVICE void multiply_group(Panels x, Panels y, Fragment<S>& s) {
    wgmma_fence(s);
    UNROLL
    for (int step = 0; step < S::chunk / 16; ++step) {
        const int panel = step / 4, in_panel = step % 4 * 2 * CHUNK_BYTES;
        multiply_tiles<S::columns>(s, x + (panel * S::X::panel_bytes + in_panel),
                                   y + (panel * S::Y::panel_bytes + in_panel), step > 0);
    }
    wgmma_commit();
}

// Begin to add weights · y to sums, the smallest parts first.
template <class S, int weight_parts, int n>
DEVICE void accumulate_group(float (&sums)[n][4],
                             std::uint32_t (&packed)[weight_parts][S::columns / 16][4], Panels y) {
    wgmma_fence(sums, packed);
    UNROLL
    for (int t = 0; t < S::columns / 16; ++t) {
        UNROLL
        for (int part = weight_parts - 1; part >= 0; --part)
            multiply_weights<8 * n>(sums, packed[part][t], y + t * 16 * ROW_BYTES);
    }
    wgmma_commit();
}

// Copy products, which the next ones replace.
template <class S>
DEVICE void take(const Fragment<S>& products, Fragment<S>& s) {
    UNROLL
    for (int t = 0; t < S::columns / 8; ++t) {
        UNROLL
        for (int e = 0; e < 4; ++e) s[t][e] = products[t][e];
    }
}

// Say that a warp has done with a stage.
template <class S>
DEVICE void leave(const Sweep& call, const Turn<S>& turn) {
    warp_sync();
    if (lane() == 0) barrier_arrive(turn.empty(call));
}

// Begin with s of a tile as soon as it is there. Where X begins is told to the compiler anew for
// each tile: else it would keep the descriptors of all steps in registers, and spill them.
template <class S>
DEVICE void multiply_next(const Sweep& call, const Turn<S>& turn, Fragment<S>& products) {
    const int block = S::X::rows == PANEL_ROWS ? 0 : warp() / 4;
    barrier_wait(turn.full(call), turn.parity());
    multiply_group<S>(Panels(uniform(Shared(call.at.x + block * S::X::block_bytes))),
                      Panels(uniform(turn.y(call))), products);
}

// Work on tiles, by the first eight warps: call known(tile, partial, stage, s, scaled) with the
// products of a tile and its columns' operands in `stage`. It calls scaled() when s is another
// number than its product; the products of the next tile are then under way. Those of the last one
// are once more, for nothing: no branch may lead around a product, or the compiler waits at once.
template <class S, class Call, class Known>
DEVICE void work(const Call& call, Known known) {
    more_registers<WORKER_REGISTERS>();
    const Walk<S> walk(call);
    Fragment<S> products;
    Turn<S> turn;
    int visit = next_visit(call, walk, walk.begin);
    if (visit < walk.end) multiply_next<S>(call, turn, products);
    while (visit < walk.end) {
        const int next = next_visit(call, walk, visit + 1);
        const Turn<S> coming = turn.following_if(next < walk.end);
        Fragment<S> s;
        wgmma_wait<0>(products);
        take<S>(products, s);
        known(walk.tile(visit), walk.partial(visit), turn.stage(), s,
              [&] { multiply_next<S>(call, coming, products); });
        leave<S>(call, turn);
        visit = next;
        turn = coming;
    }
    wgmma_wait<0>(products);
}

#endif

}  // namespace pairops::cuda
