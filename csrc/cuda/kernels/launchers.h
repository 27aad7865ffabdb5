// Launchers of the sweeps, one for each shape of tiles. The files of instances/ each hold some of
// these, so that they compile side by side.
#pragma once

#include "cuda/device/launch.h"
#include "cuda/kernels/short_ways.h"
#include "cuda/kernels/sm90/backward.h"
#include "cuda/kernels/sm90/forward.h"
#include "cuda/kernels/sm90/halves.h"
#include "cuda/params/shape_table.h"

namespace pairops::cuda {

template <class S>
void prepare(Sweep& call, int d, int states) {
    call.at = layout<S>(FIRST_OPERAND + call.n_row_operands, call.n_col_slots(), states);
    call.chunks = (d + S::chunk - 1) / S::chunk;
    call.n_copied = 0;
    for (int k = 0; k < call.n_col_operands; ++k)
        if (call.col_operands[k].values) call.copied[call.n_copied++] = std::int8_t(k);
}

template <class S>
std::int64_t blocks_of(const Sweep& call) {
    return (call.rows.n + S::rows - 1) / S::rows;
}

template <class S>
std::string named(const char* sweep, const Sweep& call, int d) {
    return std::string(sweep) + (S::hopper ? " on Hopper" : "") +
           " (N = " + std::to_string(call.rows.n) + ", M = " + std::to_string(call.cols.n) +
           ", D = " + std::to_string(d) + ")";
}

template <class S>
auto forward_kernel() {
    if constexpr (S::hopper)
        return forward_hopper<S>;
    else
        return forward<S>;
}
template <class S, int weight_parts>
auto backward_kernel() {
    if constexpr (is_halves<S>)
        return backward_halves<S>;
    else if constexpr (S::hopper)
        return backward_hopper<S, weight_parts>;
    else
        return backward<S, weight_parts>;
}

template <class S>
void launch_forward(ForwardCall call, int d, int splits, Stream stream) {
    prepare<S>(call, d, 2 * call.n_terms);
    choose_short_ways<S>(call);
    launch(named<S>("forward", call, d), forward_kernel<S>(), {blocks_of<S>(call), splits, 1},
           S::threads, call.at.bytes, stream, call);
}

template <class Asked, int weight_parts>
void launch_backward(BackwardCall call, int splits, Stream stream) {
    using S = typename OfBackward<Asked, weight_parts>::Type;
    prepare<S>(call, call.width, 2 * call.n_sums);
    choose_short_ways<S>(call);
    const int slices = call.gradient ? (call.width + S::slice - 1) / S::slice : 1;
    launch(named<S>("backward", call, call.width), backward_kernel<S, weight_parts>(),
           {blocks_of<S>(call), splits, slices}, S::threads, call.at.bytes, stream, call);
}

}  // namespace pairops::cuda
