// The kernel of the backward pass on Hopper.
#pragma once

#include "cuda/kernels/backward.h"
#include "cuda/kernels/sm90/mainloop.h"

namespace pairops::cuda {

#if PAIROPS_SM_90A

// Are there registers for s of a tile beside the products of the next one?
template <class S>
constexpr bool multiplies_ahead = S::slice <= 128;

// Where there are not, the two groups take turns to multiply s, so that one weighs pairs while
// tensor cores work for the other. The second group lets the first one begin.
template <class S>
class InTurn {
   public:
    DEVICE InTurn() {
        if (!multiplies_ahead<S> && group() == 1) pass();
    }
    DEVICE void wait() const { group_sync(2 + group(), S::workers); }
    DEVICE void pass() const { group_arrive(2 + (group() ^ 1), S::workers); }
    // The last turn that the second group passed on is for nothing.
    DEVICE void end() const {
        if (!multiplies_ahead<S> && group() == 0) wait();
    }

   private:
    // Anew each time: it would be kept in a register, and spilled.
    static DEVICE int group() { return uniform(warp() / 4); }
};

// The block's walk waits in shared memory, too: one thread stores it before the block's barrier.
struct Four {
    int of[4];
};
template <class S>
DEVICE void store_walk(const Sweep& call) {
    const Walk<S> walk(call);
    store_shared(Shared(call.at.walk), Four{{walk.first, walk.width, walk.full_tiles, walk.tiles}});
    store_shared(Shared(call.at.walk + 16), Four{{walk.visits, walk.begin, walk.end, 0}});
}
template <class S>
DEVICE Walk<S> load_walk(const Sweep& call) {
    const Four one = load_shared<Four>(Shared(call.at.walk)),
               two = load_shared<Four>(Shared(call.at.walk + 16));
    Walk<S> walk;
    walk.first = one.of[0];
    walk.width = one.of[1];
    walk.full_tiles = one.of[2];
    walk.tiles = one.of[3];
    walk.visits = two.of[0];
    walk.begin = two.of[1];
    walk.end = two.of[2];
    return walk;
}

// Work on tiles, by the first eight warps. Where s of a tile is multiplied ahead, that goes on
// while pairs of the one before are weighed; no branch leads around such a product, or the compiler
// would wait at once: after the last tile it is multiplied again, for nothing.
template <class S, int weight_parts>
DEVICE void work_backward(const BackwardCall& call) {
    more_registers<WORKER_REGISTERS>();
    constexpr bool ahead = multiplies_ahead<S>;
    const auto walk = [&] { return load_walk<S>(call); };
    float sums[S::slice / 8][4] = {};
    // Units wait in shared memory between two tiles: the terms fill the registers that sums leave,
    // and the compiler would spill these.
    const Shared waiting = Shared(call.at.units + sizeof(Units) * thread());
    store_shared(waiting, Units());
    const auto units_in_terms = [&] {
        if constexpr (ahead)
            return load_shared<Units>(waiting);
        else
            return WaitingUnits(waiting);
    };
    const InTurn<S> in_turn;
    Fragment<S> products;
    Turn<S> turn;
    int visit = next_visit(call, walk(), walk().begin);
    if (ahead && visit < walk().end) {
        multiply_next<S>(call, turn, products);
        wgmma_wait<0>(products);
    }
    while (visit < walk().end) {
        if constexpr (!ahead) {
            in_turn.wait();
            multiply_next<S>(call, turn, products);
            wgmma_wait<0>(products);
            in_turn.pass();
        }
        const int next = ahead ? next_visit(call, walk(), visit + 1) : 0;
        const Turn<S> coming = turn.following_if(next < walk().end);
        Fragment<S> s, weights = {};
        take<S>(products, s);
        backward_tile<S>(call, walk().tile(visit), walk().partial(visit), turn.stage(), s,
                         units_in_terms(), weights, [&] {
                             if constexpr (ahead) multiply_next<S>(call, coming, products);
                         });
        std::uint32_t packed[weight_parts][S::columns / 16][4];
        if (call.gradient) {
            warp_sync();  // else the compiler would keep them in registers meanwhile
            Units units = load_shared<Units>(waiting);
            fit<S, weight_parts>(call, weights, units, sums, packed);
            store_shared(waiting, units);
        } else {
            pack_weights<S, weight_parts>(weights, packed);
        }
        const Shared slice = turn.y(call) + block_z() * (S::slice / PANEL * S::Y::panel_bytes);
        accumulate_group<S, weight_parts>(sums, packed, Panels(uniform(slice), S::Y::panel_bytes));
        if constexpr (ahead)
            wgmma_wait<0>(products, sums, packed);
        else
            wgmma_wait<0>(sums, packed);
        leave<S>(call, turn);
        if constexpr (ahead) {
            visit = next;
            turn = coming;
        } else {
            visit = next_visit(call, walk(), visit + 1);
            turn.next();
        }
    }
    in_turn.end();
    group_sync(1, S::workers);
    if (!call.gradient) return;
    write_gradient<S>(call, block_z() * S::slice, sums, load_shared<Units>(waiting));
}

#endif

template <class S, int weight_parts>
KERNEL(S::threads, 1)
backward_hopper(PARAMETER(BackwardCall) call) {
#if PAIROPS_SM_90A
    start_sums<S>(call);
    start_stages<S>(call);
    if (thread() == 0) store_walk<S>(call);
    block_sync();
    if (warp() >= S::warps) {
        bring<S>(call, [](int, int, int) {});
    } else {
        work_backward<S, weight_parts>(call);
        if (block_z() == 0) write_sums<S>(call);
    }
#else
    not_compiled();
#endif
}

}  // namespace pairops::cuda
