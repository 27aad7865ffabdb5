// The kernel of the backward pass on Hopper at D = 512: each group of four warps sums one half of
// the numbers of the same 64 rows' gradient, and weighs the pairs of every second tile.
//
// A group gives its weights to the other through shared memory, where wgmma reads them: threads
// store, each then calls `fence_async`, and a barrier follows. There is one place for each group's.
// A group gives weights only after those of the tile before, the other's, have been multiplied with
// its half: so whoever waits for a group's weights knows that it has read all earlier ones.
//
// Units of the sums go from tile to tile with the weights: whoever gives weights gives exponents.
#pragma once

#include "cuda/kernels/sm90/backward.h"

namespace pairops::cuda {

#if PAIROPS_SM_90A

// Exponents of the two rows of a quad, in 4 bytes; one of its lanes stores them.
DEVICE void load_exponents(Shared at, int (&exponents)[2]) {
    const auto both = load_shared<std::uint32_t>(at);
    exponents[0] = int(both & 0xffff);
    exponents[1] = int(both >> 16);
}
DEVICE void store_exponents(Shared at, const int (&exponents)[2]) {
    warp_sync();
    if (lane() % 4 == 0)
        store_shared(at, std::uint32_t(exponents[0]) | std::uint32_t(exponents[1]) << 16);
}

template <class S>
using HalfSums = float[S::half / 8][4];

// A group's half of the work, and where it gives weights and finds those of the other.
template <class S>
class Half {
   public:
    DEVICE explicit Half(const BackwardCall& call)
        : group_(uniform(warp() / 4)), exponents_(call.at.units + thread() % S::group / 4 * 4) {}

    DEVICE int first_number() const { return group_ * S::half; }
    DEVICE bool is_second() const { return group_ == 1; }

    // A group's weights are there to be read: arrived at by each of its warps.
    static DEVICE Shared given(const BackwardCall& call, int group) {
        return Shared(call.at.barriers + 8 * (2 * S::stages + group));
    }
    // The exponents that this group gave last, or the other one; 0 before any.
    DEVICE Shared exponents(bool theirs) const {
        return Shared(exponents_ + S::group * (group_ ^ int(theirs)));
    }

    // Give the weights of a tile. A row has 128 bytes: 32 columns of the one group's tile, and then
    // of the other's; chunks are swizzled as those of embeddings.
    DEVICE void give(const BackwardCall& call,
                     const std::uint32_t (&packed)[S::weight_parts][S::columns / 16][4]) const {
        const int in_eight = lane() / 4;
        const Shared row =
            call.at.weights + row_in_block<S>() * ROW_BYTES + lane() % 4 * sizeof(std::uint32_t);
        UNROLL
        for (int part = 0; part < S::weight_parts; ++part) {
            UNROLL
            for (int t = 0; t < S::columns / 16; ++t) {
                UNROLL
                for (int q = 0; q < 4; ++q) {
                    const int chunk = (group_ * S::columns / 8 + 2 * t + q / 2) ^ in_eight;
                    store_shared(Shared(row + part * S::Weights::bytes + q % 2 * 8 * ROW_BYTES +
                                        chunk * CHUNK_BYTES),
                                 packed[part][t][q]);
                }
            }
        }
        fence_async();
        warp_sync();
        if (lane() == 0) barrier_arrive(given(call, group_));
    }

    // The numbers of a tile that this half sums.
    DEVICE Panels numbers(Shared y) const {
        return Panels(uniform(Shared(y + first_number() / PANEL * S::Y::panel_bytes)),
                      S::Y::panel_bytes);
    }
    static DEVICE void change_units(const int (&from)[2], const int (&to)[2], HalfSums<S>& sums) {
        float shrink[2];
        UNROLL
        for (int h = 0; h < 2; ++h)
            shrink[h] = from_bits(std::uint32_t(larger(127 + from[h] - to[h], 0)) << 23);
        UNROLL
        for (int t = 0; t < S::half / 8; ++t) {
            UNROLL
            for (int e = 0; e < 4; ++e) sums[t][e] *= shrink[e / 2];
        }
    }
    // Add the other group's weights · y, the smallest parts first, in the unit that came with them.
    DEVICE void add_theirs(const BackwardCall& call, Shared y, HalfSums<S>& sums) const {
        int mine[2], theirs[2];
        load_exponents(exponents(false), mine);
        load_exponents(exponents(true), theirs);
        if (ballot(mine[0] != theirs[0] || mine[1] != theirs[1])) change_units(mine, theirs, sums);
        const Panels weights(uniform(Shared(call.at.weights + (group_ ^ 1) * 2 * S::columns)));
        const Panels b = numbers(y);
        wgmma_fence(sums);
        UNROLL
        for (int t = 0; t < S::columns / 16; ++t) {
            UNROLL
            for (int part = S::weight_parts - 1; part >= 0; --part)
                multiply_stored<S::half>(sums, weights + (part * S::Weights::bytes + 32 * t),
                                         b + t * 16 * ROW_BYTES);
        }
        wgmma_commit();
        wgmma_wait<0>(sums);
    }

   private:
    int group_;
    Shared exponents_;
};

// Work on tiles, by one group of four warps: weigh every second one, sum one half of all.
template <class S>
DEVICE void work_on_half(const BackwardCall& call) {
    more_registers<WORKER_REGISTERS>();
    const Half<S> half(call);
    const bool embeddings = call.gradient != nullptr;
    const Walk<S> walk(call);
    float sums[S::half / 8][4] = {};
    std::uint32_t packed[S::weight_parts][S::columns / 16][4] = {};
    Turn<S> turn, held, before;
    bool holds = false, has_before = false;
    int parity = 0;  // of the other's next weights
    int visit = next_visit(call, walk, walk.begin);
    const auto step_over = [&] {  // the other group's tile
        has_before = visit < walk.end;
        if (!has_before) return;
        before = turn;
        turn.next();
        visit = next_visit(call, walk, visit + 1);
    };
    if (half.is_second()) {
        if (visit < walk.end)
            barrier_wait(turn.full(call), turn.parity());  // X comes with this tile
        step_over();
    }
    while (visit < walk.end || has_before) {
        const bool mine = visit < walk.end;  // else the last tile is the other's
        Fragment<S> s, weights = {};
        if (mine) multiply_next<S>(call, turn, s);
        wgmma_wait<0>(s, sums, packed);
        if (holds) leave<S>(call, held);
        Units units;
        load_exponents(half.exponents(false), units.of_sums);
        if (mine) {
            units.raise<S>(call, 0, units.of_sums[0]);
            units.raise<S>(call, 1, units.of_sums[1]);
            backward_tile<S>(call, walk.tile(visit), walk.partial(visit), turn.stage(), s, units,
                             weights, [] {});
        }
        if (has_before) {
            // Also where nothing is read of it: else a stage would be left for a tile to come, and
            // be taken from whoever has not left it for this one.
            barrier_wait(before.full(call), before.parity());
            if (embeddings) {
                barrier_wait(Half<S>::given(call, half.is_second() ? 0 : 1), parity);
                parity ^= 1;
                half.add_theirs(call, before.y(call), sums);
                load_exponents(half.exponents(true), units.of_sums);
            }
            leave<S>(call, before);
        }
        holds = mine;
        has_before = false;
        if (!mine) continue;
        if (embeddings) {
            fit<S, S::weight_parts>(call, weights, units, sums, packed);
            store_exponents(half.exponents(false), units.of_sums);
            half.give(call, packed);
            accumulate_group<S, S::weight_parts>(sums, packed, half.numbers(turn.y(call)));
        }
        held = turn;
        turn.next();
        visit = next_visit(call, walk, visit + 1);
        step_over();
    }
    wgmma_wait<0>(sums, packed);
    if (holds) leave<S>(call, held);
    group_sync(1, S::workers);
    if (!embeddings) return;
    // Exponents of one tile are larger than those of the one before, or the same.
    Units units;
    int theirs[2];
    load_exponents(half.exponents(false), units.of_sums);
    load_exponents(half.exponents(true), theirs);
    UNROLL
    for (int h = 0; h < 2; ++h) units.of_sums[h] = larger(units.of_sums[h], theirs[h]);
    write_gradient<S>(call, half.first_number(), sums, units);
}

template <class S>
KERNEL(S::threads, 1)
backward_halves(PARAMETER(BackwardCall) call) {
    start_sums<S>(call);
    start_stages<S>(call);
    if (thread() < S::workers) store_exponents(Shared(call.at.units + thread() / 4 * 4), {0, 0});
    if (thread() == 0) {
        for (int group = 0; group < 2; ++group)
            barrier_init(Half<S>::given(call, group), S::group / 32);
        barriers_ready();
    }
    block_sync();
    if (warp() >= S::warps) {
        bring<S>(call, [](int, int, int) {});
    } else {
        work_on_half<S>(call);
        write_sums<S>(call);
    }
}

#else

template <class S>
KERNEL(S::threads, 1)
backward_halves(PARAMETER(BackwardCall)) {
    not_compiled();
}

#endif

}  // namespace pairops::cuda
