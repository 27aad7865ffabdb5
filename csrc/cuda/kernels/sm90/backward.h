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
        // Exponents wait in shared memory between two tiles' fits: the terms fill the registers
        // that sums leave, and the compiler would spill these two.
        struct Exponents {
            int of[2];
        };
        const Shared waiting = Shared(call.at.exponents + 8 * thread());
        store_shared(waiting, Exponents{{0, 0}});
        work<S>(call, [&](int tile, bool partial, int stage, const Fragment<S>& s, Shared y) {
            Fragment<S> weights = {};
            Exponents exponents = load_shared<Exponents>(waiting);
            const Units<S> units(call, exponents.of);
            backward_tile<S>(call, tile, partial, stage, s, units, weights);
            if (!embeddings) return;
            std::uint32_t packed[weight_parts][S::columns / 16][4];
            fit<S, weight_parts>(weights, units, exponents.of, sums, packed);
            store_shared(waiting, exponents);
            accumulate_group<S, weight_parts>(sums, packed, y);
        });
        if (embeddings) write_gradient<S>(call, sums, load_shared<Exponents>(waiting).of);
        if (block_z() == 0) write_sums<S>(call);
    }
#else
    not_compiled();
#endif
}

}  // namespace pairops::cuda
