// Instances of gather for embeddings that are one float16 each.
#include "cuda/kernels/launchers.h"

namespace pairops::cuda {

template void gather_in<Plain64>(GatherCall, int, int, Stream);
template void gather_in<Plain128>(GatherCall, int, int, Stream);
template void gather_in<Plain256>(GatherCall, int, int, Stream);
template void gather_in<PlainAny>(GatherCall, int, int, Stream);

}  // namespace pairops::cuda
