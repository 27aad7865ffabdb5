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

template <class G, class T>
__global__ void gather_kernel(GatherProbe<T> probe) {
    probe.template run<G>();
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
void run(const std::string& gather, const GatherProbe<T>& probe, std::uintptr_t stream) {
    visit_named<Gathers<T>>(gather, [&](auto named) {
        using G = decltype(named);
        gather_kernel<G><<<1, 1, 0, reinterpret_cast<cudaStream_t>(stream)>>>(probe);
        check(cudaGetLastError(), "launch of gather_kernel");
    });
}

template void run(const std::string&, const FunctionProbe<float>&, std::uintptr_t);
template void run(const std::string&, const FunctionProbe<double>&, std::uintptr_t);
template void run(const std::string&, const GatherProbe<float>&, std::uintptr_t);
template void run(const std::string&, const GatherProbe<double>&, std::uintptr_t);

}  // namespace pairops::cuda
