// Instances of the backward kernel for embeddings that are one float16 each, where weights are two.
#include "cuda/kernels/launchers.h"

namespace pairops::cuda {

template void launch_backward<Plain64, 2>(BackwardCall, int, Stream);
template void launch_backward<Plain128, 2>(BackwardCall, int, Stream);
template void launch_backward<Plain256, 2>(BackwardCall, int, Stream);
template void launch_backward<PlainAny, 2>(BackwardCall, int, Stream);

}  // namespace pairops::cuda
