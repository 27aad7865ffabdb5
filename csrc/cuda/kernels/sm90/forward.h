// The kernel of the forward pass, gather, on Hopper.
#pragma once

#include "cuda/kernels/forward.h"
#include "cuda/kernels/sm90/mainloop.h"

namespace pairops::cuda {

template <class S>
KERNEL(S::threads, 1)
gather_hopper(PARAMETER(GatherCall) call) {
#if PAIROPS_SM_90A
    start_states<S>(call);
    start_stages<S>(call);
    block_sync();
    if (warp() >= S::warps) {
        bring<S>(call,
                 [&](int place, int tile, int stage) { write_bit<S>(call, place, tile, stage); });
    } else {
        work<S>(call, [&](int tile, bool masked, int stage, const Fragment<S>& s, Shared) {
            gather_tile<S>(call, tile, masked, stage, s);
        });
        finish_states<S>(call);
    }
#else
    not_compiled();
#endif
}

}  // namespace pairops::cuda
