// The mean, after the sweeps, of losses that are sums of log(1 + exp R) over few statistics, and
// its gradient by every statistic.
#pragma once

#include "cuda/device/intrinsics.h"
#include "cuda/params/calls.h"
#include "math/functions.h"

namespace pairops::cuda {

constexpr int AVERAGED_AT_A_TIME = 512;  // rows, one for each thread of the one block

// The gradient by statistic k of row i, of which every row's loss has this share.
template <class Call>
DEVICE float slope(const Call& call, int k, int i, float share) {
    if (call.valid && !call.valid[i]) return 0.f;
    return share / call.divisors[k] *
           Softplus::slopes(load_global(call.statistics[k] + i), 1.f, 0.f).by[2];
}

// Sums are float64, and always added in the same order.
KERNEL(AVERAGED_AT_A_TIME, 1)
soft_mean(PARAMETER(SoftMeanCall) call) {
    double sum = 0.0;
    int count = 0;
    for (int k = 0; k < call.n_statistics; ++k) {
        double one = 0.0;
        count = 0;
        for (int i = thread(); i < call.n; i += AVERAGED_AT_A_TIME) {
            if (call.valid && !call.valid[i]) continue;
            ++count;
            one += double(Softplus::value(load_global(call.statistics[k] + i), 1.f, 0.f));
        }
        sum += one / double(call.divisors[k]);
    }
    constexpr int warps = AVERAGED_AT_A_TIME / 32;
    constexpr Shared counts = 8 * warps;
    UNROLL
    for (int offset = 16; offset > 0; offset /= 2) {
        sum += shuffle_xor(sum, offset);
        count += shuffle_xor(count, offset);
    }
    const Shared at = Shared(warp());
    if (lane() == 0) {
        store_shared(8 * at, sum);
        store_shared(counts + 4 * at, count);
    }
    block_sync();
    sum = 0.0;
    count = 0;
    for (int other = 0; other < warps; ++other) {
        sum += load_shared<double>(Shared(8 * other));
        count += load_shared<int>(Shared(counts + 4 * other));
    }
    if (count == 0) count = 1;
    for (int k = 0; k < call.n_statistics; ++k) {
        if (!call.slopes[k]) continue;
        for (int i = thread(); i < call.n; i += AVERAGED_AT_A_TIME)
            call.slopes[k][i] = slope(call, k, i, 1.f / float(count));
    }
    if (thread() != 0) return;
    if (call.count) *call.count = float(count);
    *call.loss = float(sum / count);
}
constexpr int SOFT_MEAN_BYTES = 12 * (AVERAGED_AT_A_TIME / 32);

constexpr int SLOPES_AT_A_TIME = 128;  // rows of a block, one for each thread

KERNEL(SLOPES_AT_A_TIME, 1)
soft_mean_slopes(PARAMETER(SoftMeanSlopesCall) call) {
    const int i = block_x() * SLOPES_AT_A_TIME + thread();
    if (i >= call.n) return;
    const float share = load_global(call.gradient) / load_global(call.count);
    for (int k = 0; k < call.n_statistics; ++k) call.cotangents[k][i] = slope(call, k, i, share);
}

}  // namespace pairops::cuda
