// The kernel of the forward pass on Hopper.
#pragma once

#include "cuda/kernels/forward.h"
#include "cuda/kernels/sm90/mainloop.h"

namespace pairops::cuda {

template <class S>
KERNEL(S::threads, 1)
forward_hopper(PARAMETER(ForwardCall) call) {
#if PAIROPS_SM_90A
    start_states<S>(call);
    start_stages<S>(call);
    block_sync();
    if (warp() >= S::warps) {
        bring<S>(call, [&](int k, int tile, int stage) { write_bit<S>(call, k, tile, stage); });
    } else {
        Running running;
        work<S>(call, [&](int tile, bool partial, int stage, Fragment<S>& s, auto scaled) {
            forward_tile<S>(call, tile, partial, stage, s, running, scaled);
        });
        store_running<S>(call, running);
        group_sync(1, S::workers);
        write_states<S>(call);
    }
#else
    not_compiled();
#endif
}

}  // namespace pairops::cuda
