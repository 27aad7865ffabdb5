// Probes on a GPU: a thread for each number of the array, or one for all of them.
#include "probe/probe.h"

namespace pairops::cuda {
namespace {

void check(cudaError_t code, const char* call) {
    if (code == cudaSuccess) return;
    throw std::runtime_error(std::string(call) + ": " + cudaGetErrorName(code) + ", " +
                             cudaGetErrorString(code));
}

template <class F, class T>
__global__ void function_kernel(FunctionProbe<T> probe) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < probe.n) probe.template at<F>(i);
}

template <class Acc, class T>
__global__ void accumulator_kernel(AccumulatorProbe<T> probe) {
    probe.template run<Acc>();
}

}  // namespace

template <class T>
void run(const std::string& function, const FunctionProbe<T>& probe, std::uintptr_t stream) {
    constexpr int threads = 128;
    const unsigned blocks = unsigned((probe.n + threads - 1) / threads);
    visit_named<Functions>(function, [&](auto named) {
        using F = decltype(named);
        if (blocks == 0) return;
        function_kernel<F><<<blocks, threads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(probe);
        check(cudaGetLastError(), "launch of function_kernel");
    });
}

template <class T>
void run(const std::string& accumulator, const AccumulatorProbe<T>& probe, std::uintptr_t stream) {
    visit_named<Accumulators<T>>(accumulator, [&](auto named) {
        using Acc = decltype(named);
        accumulator_kernel<Acc><<<1, 1, 0, reinterpret_cast<cudaStream_t>(stream)>>>(probe);
        check(cudaGetLastError(), "launch of accumulator_kernel");
    });
}

template void run(const std::string&, const FunctionProbe<float>&, std::uintptr_t);
template void run(const std::string&, const FunctionProbe<double>&, std::uintptr_t);
template void run(const std::string&, const AccumulatorProbe<float>&, std::uintptr_t);
template void run(const std::string&, const AccumulatorProbe<double>&, std::uintptr_t);

}  // namespace pairops::cuda
