// Instances of the forward kernel for embeddings that are two float16 each.
#include "cuda/kernels/launchers.h"

namespace pairops::cuda {

template void launch_forward<Split64>(ForwardCall, int, int, Stream);
template void launch_forward<Split128>(ForwardCall, int, int, Stream);
template void launch_forward<SplitAny>(ForwardCall, int, int, Stream);

}  // namespace pairops::cuda
