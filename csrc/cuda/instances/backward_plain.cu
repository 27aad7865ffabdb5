// Instances of weigh for embeddings that are one float16 each, and so are weights.
#include "cuda/kernels/launchers.h"

namespace pairops::cuda {

template void weigh_in<Plain64, 1>(WeighCall, int, Stream);
template void weigh_in<Plain128, 1>(WeighCall, int, Stream);
template void weigh_in<Plain256, 1>(WeighCall, int, Stream);
template void weigh_in<PlainAny, 1>(WeighCall, int, Stream);

}  // namespace pairops::cuda
