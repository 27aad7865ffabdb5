// Instances of Hopper's sweeps for embeddings that are one float16 each, and so are weights.
#include "cuda/kernels/launchers.h"

namespace pairops::cuda {

template void launch_forward<Hopper64>(ForwardCall, int, int, Stream);
template void launch_forward<Hopper128>(ForwardCall, int, int, Stream);
template void launch_forward<Hopper256>(ForwardCall, int, int, Stream);
template void launch_forward<Hopper512>(ForwardCall, int, int, Stream);

template void launch_backward<Hopper64, 1>(BackwardCall, int, Stream);
template void launch_backward<Hopper128, 1>(BackwardCall, int, Stream);
template void launch_backward<Hopper256, 1>(BackwardCall, int, Stream);
template void launch_backward<Hopper512, 1>(BackwardCall, int, Stream);

}  // namespace pairops::cuda
