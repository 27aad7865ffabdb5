// Instances of Hopper's weigh for embeddings that are one float16 each, where weights are two.
#include "cuda/kernels/launchers.h"

namespace pairops::cuda {

template void weigh_in<Hopper64, 2>(WeighCall, int, Stream);
template void weigh_in<Hopper128, 2>(WeighCall, int, Stream);
template void weigh_in<Hopper256, 2>(WeighCall, int, Stream);
template void weigh_in<Hopper512, 2>(WeighCall, int, Stream);

}  // namespace pairops::cuda
