// Threads of a sweep: those that torch has already, or our own where they cannot be had.
#include "cpu/threads.h"

#include <dlfcn.h>
#include <sched.h>
#include <unistd.h>

#include <thread>
#include <vector>

namespace pairops::cpu {

namespace {

// The way every compiler calls an OpenMP runtime; torch makes the names of its own one global. To
// ask that runtime for threads means no second pool: none that spins while ours works, or is woken
// for each call.
using Parallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);

Parallel parallel_of_torch() {
    static const auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return parallel;
}

// A forked child inherits the runtime's records of threads, but no threads. (One that was forked
// from a process with such records and only then loads this looks alike; torch itself hangs
// there.)
const pid_t loaded_by = getpid();

const void* this_thread() {
    static thread_local char mark;
    return &mark;
}

}  // namespace

void on_a_team(int threads, const std::function<void()>& work) {
    if (threads <= 1) return work();
    if (getpid() == loaded_by)
        if (const Parallel parallel = parallel_of_torch()) {
            const auto run = [](void* given) {
                (*static_cast<const std::function<void()>*>(given))();
            };
            return parallel(run, const_cast<void*>(static_cast<const void*>(&work)),
                            unsigned(threads), 0);
        }
    std::vector<std::thread> others;
    others.reserve(threads - 1);
    try {
        for (int k = 1; k < threads; ++k) others.emplace_back(std::ref(work));
    } catch (const std::exception&) {
        // The system gives no more: fewer do the same.
    }
    work();
    for (std::thread& other : others) other.join();
}

Wavefront::Wavefront(int blocks, int columns, const std::function<bool()>& interrupted)
    : blocks_(blocks),
      columns_(columns),
      interrupted_(interrupted),
      progress_(new Padded[blocks]),
      caller_(this_thread()) {}

void Wavefront::run(int threads, const std::function<bool(int, int)>& block) {
    std::atomic<int> joined{0};
    on_a_team(threads, [&] {
        const int thread = joined++;
        for (int r; (r = next()) >= 0;)
            if (!block(r, thread)) return;
    });
    if (stopped()) throw Interrupted();
}

int Wavefront::next() {
    if (interrupted_ && this_thread() == caller_ && interrupted_()) stop_ = true;
    if (stopped()) return -1;
    const int block = next_.fetch_add(1, std::memory_order_relaxed);
    return block < blocks_ ? block : -1;
}

bool Wavefront::wait(int block, int column) const {
    int above = done_.load(std::memory_order_acquire);
    for (; above < block; ++above) {
        for (int turn = 0;; ++turn) {
            const int progress = progress_[above].value.load(std::memory_order_acquire);
            if (progress > column) break;
            if (stopped()) return false;
            if (turn > 1000) sched_yield();  // more threads than cores
        }
    }
    // The later of two threads that store here may store less, which is true as well.
    int done = done_.load(std::memory_order_acquire);
    while (done < block && progress_[done].value.load(std::memory_order_acquire) == columns_)
        ++done;
    done_.store(done, std::memory_order_release);
    return true;
}

}  // namespace pairops::cpu
