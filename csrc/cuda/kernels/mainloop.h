// The main loop of both sweeps: tiles are copied while the one before is worked on.
#pragma once

#include "cuda/tile/mma.h"

namespace pairops::cuda {

// A step is one copy that is waited for: a tile, or a chunk of its numbers. The first `products`
// steps of a tile are multiplied, and then it is known; those after them, or the one and only, are
// what weights are multiplied with.
template <class S>
struct Steps {
    int products, all;

    DEVICE bool multiplies(int step) const { return step < products; }
    DEVICE bool is_known_at(int step) const { return step == products - 1; }
};

// Load the slots of this block's rows, and those of columns that are numbers.
template <class S>
DEVICE void load_slots(const Sweep& call) {
    const int n_valid = load_global(call.rows.n_valid);
    const int n_row_slots = FIRST_OPERAND + call.n_row_operands;
    for (int k = thread(); k < n_row_slots * S::held_rows; k += S::threads) {
        const int slot = k / S::held_rows, row = block_x() * S::rows + k % S::held_rows % S::rows;
        float value = 0.f;
        if (slot < FIRST_OPERAND) {
            value = load_global((slot == HIGH ? call.rows.high : call.rows.rest) + row);
        } else {
            const Operand& operand = call.row_operands[slot - FIRST_OPERAND];
            value = operand.number;
            if (operand.values && row < n_valid)
                value = load_global(operand.values +
                                    operand.stride * load_global(call.rows.permutation + row));
        }
        store_shared(Shared(call.at.row_slots + 4 * k), value);
    }
    for (int k = thread(); k < S::stages * call.n_col_slots() * S::columns; k += S::threads) {
        const int slot = k / S::columns % call.n_col_slots();
        if (slot < FIRST_OPERAND || call.col_operands[slot - FIRST_OPERAND].values) continue;
        store_shared(Shared(call.at.col_slots + 4 * k),
                     call.col_operands[slot - FIRST_OPERAND].number);
    }
}

// The caller's index of the tile's column `in_tile`, for the thread that copies its operands; -1
// beyond the valid ones.
template <class S>
DEVICE Index column_index(const Sweep& call, int tile, int in_tile) {
    const int column = tile * S::columns + in_tile;
    if (in_tile >= S::columns || column >= load_global(call.cols.n_valid)) return -1;
    return load_global(call.cols.permutation + column);
}

// Copy the operands of a tile's columns, by copy(to, from).
template <class S, class Copy>
DEVICE void copy_columns(const Sweep& call, int tile, int stage, int in_tile, Index index,
                         Copy copy) {
    if (in_tile >= S::columns) return;
    const int column = tile * S::columns + in_tile;
    const auto slot = [&](int k) {
        return Shared(call.at.col_slots +
                      4 * ((stage * call.n_col_slots() + k) * S::columns + in_tile));
    };
    copy(slot(HIGH), call.cols.high + column);
    if (S::parts == 2) copy(slot(REST), call.cols.rest + column);
    UNROLL_BY(1)
    for (int k = 0; k < call.n_copied; ++k) {
        const int which = call.copied[k];
        const Operand& operand = call.col_operands[which];
        if (index < 0)
            store_shared(slot(FIRST_OPERAND + which), 0.f);
        else
            copy(slot(FIRST_OPERAND + which), operand.values + (operand.stride ? index : 0));
    }
    store_shared(Shared(call.at.at + 4 * (stage * S::columns + in_tile)), int(index));
}

// Visit the tiles of this block, and call
//   known(tile, partial, stage, products) once s of a tile is known; its columns are in `stage`;
//   sum(part, y) for each chunk of numbers of the gradient, of which the block has `sums`;
//   synced() whenever all threads have done what they were called for before.
template <class S, class Call, class Known, class Sum, class Synced>
DEVICE void stream(const Call& call, int sums, Known known, Sum sum, Synced synced) {
    const Walk<S> walk(call);
    const Steps<S> steps{S::streamed ? call.chunks : 1, S::streamed ? call.chunks + sums : 1};
    const auto issue = [&](int tile, int step, int buffer) {
        const bool for_sums = !steps.multiplies(step);
        const int panel = for_sums ? (block_z() * sums + step - steps.products) * S::chunk_panels
                                   : step * S::chunk_panels;
        copy_tile<typename S::Y, S::threads, S::parts>(call.at.y + buffer * S::Y::bytes, call.cols,
                                                       call.panels, tile * S::columns, panel);
        if (S::streamed && !for_sums)
            copy_tile<typename S::X, S::threads, S::parts>(call.at.x + buffer * S::X::bytes,
                                                           call.rows, call.panels,
                                                           block_x() * S::rows, panel);
    };
    const auto copy = [](Shared to, const float* from) { copy4(to, from); };
    load_slots<S>(call);
    int visit = next_visit(call, walk, walk.begin);
    if (visit < walk.end) {
        const int tile = walk.tile(visit);
        if (!S::streamed)
            copy_tile<typename S::X, S::threads, S::parts>(call.at.x, call.rows, call.panels,
                                                           block_x() * S::rows, 0);
        issue(tile, 0, 0);
        copy_columns<S>(call, tile, 0, thread(), column_index<S>(call, tile, thread()), copy);
    }
    copies_commit();
    Products<S> products;
    // Rows that stay are held in registers where no sums of gradients fill these.
    constexpr bool holds = !S::streamed && std::is_same_v<Call, ForwardCall>;
    RowsInRegisters<S> held;
    bool holding = false;
    int step = 0, buffer = 0, stage = 0, after = visit;
    Index index = -1;
    while (visit < walk.end) {
        if (step == 0) after = next_visit(call, walk, visit + 1);
        const bool ends = step + 1 == steps.all;
        copies_wait<0>();
        block_sync();
        synced();
        if (!ends)
            issue(walk.tile(visit), step + 1, buffer ^ 1);
        else if (after < walk.end)
            issue(walk.tile(after), 0, buffer ^ 1);
        const RowsInShared<S> x{Shared(call.at.x + (S::streamed ? buffer * S::X::bytes : 0))};
        const Shared y = call.at.y + buffer * S::Y::bytes;
        // The index is read now and needed when s is known, so that nobody waits for it.
        const bool columns = steps.is_known_at(step) && after < walk.end;
        if (columns) index = column_index<S>(call, walk.tile(after), thread());
        if (steps.multiplies(step)) {
            if constexpr (S::streamed) {
                if (step == 0) {
                    UNROLL
                    for (auto& of : products) {
                        UNROLL
                        for (auto& four : of) {
                            UNROLL
                            for (float& one : four) one = 0.f;
                        }
                    }
                }
            }
            if constexpr (holds) {
                if (!holding) held.load(x);
                holding = true;
                multiply<S>(products, held, y);
            } else {
                multiply<S>(products, x, y);
            }
        }
        if (columns) copy_columns<S>(call, walk.tile(after), stage ^ 1, thread(), index, copy);
        copies_commit();
        if (steps.is_known_at(step)) known(walk.tile(visit), walk.partial(visit), stage, products);
        if (!S::streamed)
            sum(0, y);
        else if (!steps.multiplies(step))
            sum(step - steps.products, y);
        buffer ^= 1;
        ++step;
        if (ends) {
            step = 0;
            stage ^= 1;
            visit = after;
        }
    }
    copies_wait<0>();
    block_sync();
    synced();
}

}  // namespace pairops::cuda
