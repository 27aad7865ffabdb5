// The kernel of the backward pass on Hopper.
#pragma once

#include "cuda/kernels/backward.h"
#include "cuda/kernels/sm90/mainloop.h"

namespace pairops::cuda {

template <class S, int weight_parts>
KERNEL(S::threads, 1)
backward_hopper(PARAMETER(BackwardCall) call) {
#if PAIROPS_SM_90A
    start_sums<S>(call);
    start_stages<S>(call);
    block_sync();
    if (warp() >= S::warps) {
        bring<S>(call, [](int, int, int) {});
    } else {
        const bool embeddings = call.gradient != nullptr;
        float sums[S::slice / 8][4] = {};
        // Units wait in shared memory between two tiles: the terms fill the registers that sums
        // leave, and the compiler would spill these.
        const Shared waiting = Shared(call.at.units + sizeof(Units) * thread());
        store_shared(waiting, Units());
        work<S>(call, [&](int tile, bool partial, int stage, Fragment<S>& s, Shared y) {
            Fragment<S> weights = {};
            backward_tile<S>(call, tile, partial, stage, s, load_shared<Units>(waiting), weights);
            if (!embeddings) return;
            std::uint32_t packed[weight_parts][S::columns / 16][4];
            warp_sync();  // else the compiler would keep them in registers meanwhile
            Units units = load_shared<Units>(waiting);
            fit<S, weight_parts>(call, weights, units, sums, packed);
            store_shared(waiting, units);
            accumulate_group<S, weight_parts>(sums, packed, y);
        });
        group_sync(1, S::workers);
        if (embeddings) write_gradient<S>(call, sums, load_shared<Units>(waiting));
        if (block_z() == 0) write_sums<S>(call);
    }
#else
    not_compiled();
#endif
}

}  // namespace pairops::cuda
