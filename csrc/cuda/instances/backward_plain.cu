// Instances of the backward kernel for embeddings that are one float16 each, and so are weights.
#include "cuda/kernels/launchers.h"

namespace pairops::cuda {

template void launch_backward<Plain64, 1>(BackwardCall, int, Stream);
template void launch_backward<Plain128, 1>(BackwardCall, int, Stream);
template void launch_backward<Plain256, 1>(BackwardCall, int, Stream);
template void launch_backward<PlainAny, 1>(BackwardCall, int, Stream);

}  // namespace pairops::cuda
