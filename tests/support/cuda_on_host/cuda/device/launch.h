// The twin of csrc/cuda/device/launch.h: a launch runs its blocks to the end before it returns.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

#include "cuda/device/shared_limits.h"
#include "host.h"

namespace pairops::cuda {

using Stream = std::uintptr_t;

struct Grid {
    std::int64_t x, y, z;
};

inline std::string refusal(const void*) { return ""; }

template <class Call>
void launch(const std::string& name, void (*kernel)(Call), Grid grid, int threads, int shared,
            Stream, const Call& call) {
    static_assert(std::is_trivially_copyable_v<Call>);
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    struct Run {
        void (*kernel)(Call);
        Call call;
    };
    const Run run{kernel, call};
    const auto* function = reinterpret_cast<const void*>(kernel);
    shared_limits().admit(0, function, shared, [&] { host::set_shared_limit(function, shared); });
    const auto execute = [=] {
        host::execute({name, function, grid.x, grid.y, grid.z, threads, shared,
                       [](const void* of) {
                           const Run& run = *static_cast<const Run*>(of);
                           run.kernel(run.call);
                       },
                       &run});
    };
    if (host::recording()) host::keep(execute);
    execute();
}

}  // namespace pairops::cuda
