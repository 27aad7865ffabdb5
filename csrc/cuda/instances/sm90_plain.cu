// Instances of Hopper's sweeps for embeddings that are one float16 each, and so are weights.
#include "cuda/kernels/launchers.h"

namespace pairops::cuda {

template void gather_in<Hopper64>(GatherCall, int, int, Stream);
template void gather_in<Hopper128>(GatherCall, int, int, Stream);
template void gather_in<Hopper256>(GatherCall, int, int, Stream);
template void gather_in<Hopper512>(GatherCall, int, int, Stream);

template void weigh_in<Hopper64, 1>(WeighCall, int, Stream);
template void weigh_in<Hopper128, 1>(WeighCall, int, Stream);
template void weigh_in<Hopper256, 1>(WeighCall, int, Stream);
template void weigh_in<Hopper512, 1>(WeighCall, int, Stream);

}  // namespace pairops::cuda
