// Instances of the forward kernel for embeddings that are one float16 each.
#include "cuda/kernels/launchers.h"

namespace pairops::cuda {

template void launch_forward<Plain64>(ForwardCall, int, int, Stream);
template void launch_forward<Plain128>(ForwardCall, int, int, Stream);
template void launch_forward<Plain256>(ForwardCall, int, int, Stream);
template void launch_forward<PlainAny>(ForwardCall, int, int, Stream);

}  // namespace pairops::cuda
