// Instances of gather for embeddings that are two float16 each.
#include "cuda/kernels/launchers.h"

namespace pairops::cuda {

template void gather_in<Split64>(GatherCall, int, int, Stream);
template void gather_in<Split128>(GatherCall, int, int, Stream);
template void gather_in<SplitAny>(GatherCall, int, int, Stream);

}  // namespace pairops::cuda
