// What a test asks of the machine that runs kernels on a CPU: schedules, counts, one execution.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace pairops::cuda::host {

// Which thread of a block goes on when several could. first_warp and last_warp run one warp as far
// as it gets.
enum class Schedule { lockstep, reversed, first_warp, last_warp, random_thread, random_warp };

// For the launches from here on. Before the first call: $PAIROPS_HOST_SCHEDULE, a name from above,
// or lockstep; and $PAIROPS_HOST_SEED.
void set_schedule(Schedule schedule, std::uint64_t seed = 0);
// The same by name; std::invalid_argument for none of them.
void set_schedule(const std::string& name, std::uint64_t seed = 0);

// Launches of this process, and the names of those since `forget_launches`.
std::int64_t launches();
std::vector<std::string> launched();
void forget_launches();

// What a CUDA graph does: keep the launches from here on, with the parameters that they have, and
// run them once more, in turn.
void record(bool on);
bool recording();
void keep(std::function<void()> launch);
void replay();

// Transactions of load_matrices beyond one a matrix, since `forget_launches`.
std::int64_t bank_conflicts();

// What cudaFuncSetAttribute does: `bytes` of dynamic shared memory, which launches of the kernel
// may have from here on. std::runtime_error where the kernel had more.
void set_shared_limit(const void* kernel, int bytes);

struct Execution {
    std::string name;
    const void* kernel;
    std::int64_t x, y, z;
    int threads, shared;
    void (*run)(const void* call);
    const void* call;
};
// Runs every block. std::runtime_error for what a GPU would refuse, hang at or leave undefined,
// as far as the machine sees it; under a sanitizer prints it and aborts.
void execute(const Execution& execution);

}  // namespace pairops::cuda::host
