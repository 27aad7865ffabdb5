// The launch of a kernel on a stream. If the runtime refuses, the error names kernel and grid.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/device/shared_limits.h"

namespace pairops::cuda {

using Stream = std::uintptr_t;  // the driver's handle

inline void check(cudaError_t code, const std::string& what) {
    if (code == cudaSuccess) return;
    cudaGetLastError();  // an error that does not last must not be the next launch's
    throw std::runtime_error(what + ": " + cudaGetErrorName(code) + ", " +
                             cudaGetErrorString(code));
}

// The reason why this kernel cannot run on the current device, or nothing.
inline std::string refusal(const void* kernel) {
    cudaFuncAttributes attributes;
    const cudaError_t code = cudaFuncGetAttributes(&attributes, kernel);
    if (code == cudaSuccess) return "";
    cudaGetLastError();
    return std::string(cudaGetErrorName(code)) + ", " + cudaGetErrorString(code);
}

struct Grid {
    std::int64_t x, y, z;
};

// `kernel` has one parameter, taken by value. `shared` bytes of dynamic shared memory.
template <class Call>
void launch(const std::string& name, void (*kernel)(Call), Grid grid, int threads, int shared,
            Stream stream, const Call& call) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    const auto require = [&](cudaError_t code) {
        if (code == cudaSuccess) return;
        check(code, name + " of " + std::to_string(grid.x) + "×" + std::to_string(grid.y) + "×" +
                        std::to_string(grid.z) + " blocks, " + std::to_string(shared) +
                        " bytes of shared memory each");
    };
    const auto* function = reinterpret_cast<const void*>(kernel);
    int device = 0;
    require(cudaGetDevice(&device));
    shared_limits().admit(device, function, shared, [&] {
        require(
            cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    });
    Call copy = call;
    void* parameters[] = {&copy};
    require(cudaLaunchKernel(function, dim3(unsigned(grid.x), unsigned(grid.y), unsigned(grid.z)),
                             dim3(unsigned(threads)), parameters, std::size_t(shared),
                             reinterpret_cast<cudaStream_t>(stream)));
}

}  // namespace pairops::cuda
