// How much dynamic shared memory each kernel may have on each device: a limit that only ever rises.
//
// The limit belongs to the kernel, not to a launch. A call with fewer operands that lowered it
// would do so for a CUDA graph, too, which has captured a larger launch and is not instantiated
// yet.
#pragma once

#include <map>
#include <mutex>
#include <utility>

namespace pairops::cuda {

class SharedLimits {
   public:
    // Call raise() if the kernel has had no launch with as many bytes on this device so far. What
    // raise() throws leaves the limit as it was.
    template <class Raise>
    void admit(int device, const void* kernel, int bytes, Raise raise) {
        const std::lock_guard<std::mutex> held(one_at_a_time_);
        int& limit = limits_.try_emplace({device, kernel}, WITHOUT_ASKING).first->second;
        if (bytes <= limit) return;
        raise();
        limit = bytes;
    }

   private:
    static constexpr int WITHOUT_ASKING = 48 * 1024;
    std::mutex one_at_a_time_;
    std::map<std::pair<int, const void*>, int> limits_;
};

// Those of this process.
inline SharedLimits& shared_limits() {
    static SharedLimits limits;
    return limits;
}

}  // namespace pairops::cuda
