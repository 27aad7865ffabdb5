// Instances of Hopper's backward kernel for embeddings that are one float16 each, where weights are
// two.
#include "cuda/kernels/launchers.h"

namespace pairops::cuda {

template void launch_backward<Hopper64, 2>(BackwardCall, int, Stream);
template void launch_backward<Hopper128, 2>(BackwardCall, int, Stream);
template void launch_backward<Hopper256, 2>(BackwardCall, int, Stream);
template void launch_backward<Hopper512, 2>(BackwardCall, int, Stream);

}  // namespace pairops::cuda
