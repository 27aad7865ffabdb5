// Instances of weigh for embeddings that are one float16 each, where weights are two.
#include "cuda/kernels/launchers.h"

namespace pairops::cuda {

template void weigh_in<Plain64, 2>(WeighCall, int, Stream);
template void weigh_in<Plain128, 2>(WeighCall, int, Stream);
template void weigh_in<Plain256, 2>(WeighCall, int, Stream);
template void weigh_in<PlainAny, 2>(WeighCall, int, Stream);

}  // namespace pairops::cuda
