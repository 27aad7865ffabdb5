// Instances of the backward kernel for embeddings that are two float16 each, and so are weights.
#include "cuda/kernels/launchers.h"

namespace pairops::cuda {

template void launch_backward<Split64, 2>(BackwardCall, int, Stream);
template void launch_backward<Split128, 2>(BackwardCall, int, Stream);
template void launch_backward<SplitAny, 2>(BackwardCall, int, Stream);

}  // namespace pairops::cuda
