// Finalizing, after the sweeps: states of all splits become statistics, and sums of all splits
// become gradients.
#pragma once

#include "cuda/around/pack.h"
#include "cuda/kernels/forward.h"

namespace pairops::cuda {

constexpr int FINALIZED_AT_A_TIME = 128;  // rows of a block, one for each thread

KERNEL(FINALIZED_AT_A_TIME, 1)
finalize_states(PARAMETER(FinalizeCall) call) {
    const int i = block_x() * FINALIZED_AT_A_TIME + thread();
    if (i >= call.n) return;
    const Index at = call.permutation[i];
    for (int k = 0; k < call.n_terms; ++k)
        visit_kind(call.kinds[k], [&](auto kind) {
            using Acc = typename decltype(kind)::Accumulator;
            Acc state = Acc::init();
            for (int split = 0; split < call.splits; ++split) {
                const float* from =
                    call.states + (Index(split) * call.n_terms + k) * 2 * call.n + i;
                state.merge(state_of<Acc>(Floats{{from[0], from[call.n]}}));
            }
            write_statistic(state, at, call.values[k], call.arguments[k]);
        });
    const Index row = bytes_of(call.tiles);
    for (int k = 0; k < call.n_terms; ++k) {
        if (!call.tile_bits[k]) continue;
        for (Index byte = i; byte < call.blocks * row; byte += call.n) {
            const std::uint8_t* from =
                call.tile_bytes[k] + byte / row * call.tiles + byte % row * 8;
            const int count = smaller(8, int(call.tiles - byte % row * 8));
            int bits = 0;
            for (int tile = 0; tile < count; ++tile) bits |= (from[tile] ? 1 : 0) << tile;
            call.tile_bits[k][byte] = std::uint8_t(bits);
        }
    }
}

constexpr int SCALED_AT_A_TIME = 8;  // rows of a block, one for each warp

// In double: where rows nearly coincide, a gradient is almost along them, and float would leave its
// rounding.
template <Number number>
KERNEL(32 * SCALED_AT_A_TIME, 1)
through_scale(PARAMETER(ScaleCall) call) {
    const int i = block_x() * SCALED_AT_A_TIME + warp();
    if (i >= call.n) return;
    const bool valid = call.valid[i];
    const Index row = Index(i) * call.d;
    const auto total = [&](int d) {
        float g = call.gradient[row + d];
        for (int split = 1; split < call.splits; ++split)
            g += call.gradient[Index(split) * call.n * call.d + row + d];
        return g;
    };
    const double r = valid && call.scale ? call.scale[i] : 1;
    const float factor = call.factor ? load_global(call.factor) : 1.f;
    const auto unit = [&](int d) { return r * double(read<number>(call.x, row + d)); };
    double along = 0;
    if (valid && call.scale)
        for (int d = lane(); d < call.d; d += 32) along += unit(d) * double(total(d));
    UNROLL
    for (int offset = 16; offset > 0; offset /= 2) along += shuffle_xor(along, offset);
    for (int d = lane(); d < call.d; d += 32) {
        float out = 0.f;
        if (valid) {
            // A NaN or Inf in a row always reaches its gradient.
            out = call.scale ? float(double(factor) * r * (double(total(d)) - unit(d) * along))
                             : factor * total(d) + 0.f * read<number>(call.x, row + d);
        }
        if (call.rounded)
            write<number>(call.out, row + d, out);
        else
            static_cast<float*>(call.out)[row + d] = out;
    }
}

}  // namespace pairops::cuda
