// Threads of a sweep, the order in which they may write, and how they are stopped.
#pragma once

#include <atomic>
#include <functional>
#include <memory>

namespace pairops::cpu {

// Call work() on this thread and on up to `threads` - 1 others, and return when all have returned.
// How many there are may not change a result: work has to ask for its share until none is left.
void on_a_team(int threads, const std::function<void()>& work);

// The exception of a sweep that was asked to stop.
struct Interrupted {};

// Blocks of rows are handed out in order, and each goes through the tiles from left to right. What
// belongs to a column is added by one block after the other, from top to bottom: a block waits
// until those above it have left the column behind. So the order of every sum is fixed, whatever
// the number of threads.
class Wavefront {
   public:
    // The calling thread asks `interrupted` now and then, between blocks.
    Wavefront(int blocks, int columns, const std::function<bool()>& interrupted);

    // Call block(r, thread) for every block of rows on a team of `threads`, until one says false;
    // throw Interrupted if the sweep was to stop.
    void run(int threads, const std::function<bool(int, int)>& block);
    // Block `block` is done with columns up to `column`.
    void pass(int block, int column) {
        progress_[block].value.store(column + 1, std::memory_order_release);
    }
    // Wait until the blocks above are done with `column`; false if the sweep is to stop.
    bool wait(int block, int column) const;
    void finish(int block) { pass(block, columns_ - 1); }

   private:
    // The next block of rows, or -1 when there is none or the sweep is to stop.
    int next();
    bool stopped() const { return stop_.load(std::memory_order_relaxed); }

    struct alignas(64) Padded {
        std::atomic<int> value{0};
    };

    int blocks_, columns_;
    const std::function<bool()>& interrupted_;
    std::unique_ptr<Padded[]> progress_;
    std::atomic<int> next_{0};
    mutable std::atomic<int> done_{0};  // blocks above this one have finished
    std::atomic<bool> stop_{false};
    const void* caller_;
};

}  // namespace pairops::cpu
