// Instances of weigh for embeddings that are two float16 each, and so are weights.
#include "cuda/kernels/launchers.h"

namespace pairops::cuda {

template void weigh_in<Split64, 2>(WeighCall, int, Stream);
template void weigh_in<Split128, 2>(WeighCall, int, Stream);
template void weigh_in<SplitAny, 2>(WeighCall, int, Stream);

}  // namespace pairops::cuda
