// The state of the one block that runs, shared by the .cpp files of the machine.
#pragma once

#include <cstdint>

#include "cuda/device/wgmma.h"
#include "host.h"

namespace pairops::cuda::host {

constexpr int max_threads = 512, max_warps = max_threads / 32, max_shared = 232448;
constexpr int max_barriers = 32, max_copies = 256;

// Who acts on shared memory, as indices of clocks: the copies that complete at a barrier, the
// asynchronous multiplications of a warp, the threads.
constexpr int of_barrier = 0, of_multiplications = max_barriers,
              of_thread = max_barriers + max_warps, actors = of_thread + max_threads;

// What an actor has seen of every other: anything at or before that tick.
using Clock = std::int32_t[actors];

struct Copy {
    Shared to;
    const unsigned char* from;
    int bytes, group;
};

struct Fiber {
    void* stack_pointer;
    unsigned char* stack;
    void* tsan;
    void* asan;
    const char* at;  // the wrapper that it waits in, or null
    Where where;
    Shared barrier;  // of barrier_wait
    int parity;
    bool done;
    std::uint32_t fences;  // fence_async calls so far
    Copy copies[max_copies];
    int first_copy, copies_end, group;
    // What a lane brings to a collective of its warp, and what it takes away.
    std::uint32_t in[6], out[4];
    float sums[4];
    float* accumulators;
    const std::uint32_t* multiplied;  // by wgmma, from registers
    Registers pinned;                 // given to wgmma_wait
    Clock clock;
};

struct Warp {
    const char* op;  // the collective that lanes have arrived at, or null
    Where where;
    std::uint32_t arrived, runnable, done;
    const char* gate;  // the barrier beyond the warp that lanes wait at, or null
    Where gate_where;
    int syncs;
};

struct Machine {
    const Execution* execution;
    Place place;
    int threads, live;
    int current;  // the thread that runs, or -1
    Fiber fibers[max_threads];
    Warp warps[max_warps];
    unsigned char* shared;
    int block_arrived, block_syncs;
    std::int32_t tick;  // of the last release
    char error[4096];
    bool failed;
};
extern Machine machine;

inline Fiber& me() { return machine.fibers[machine.current]; }
inline Warp& my_warp() { return machine.warps[machine.current / 32]; }
inline void wake(int thread) {
    machine.warps[thread / 32].runnable |= 1U << thread % 32;
    machine.fibers[thread].at = nullptr;
}

// fibers.cpp
void renew_fibers();   // one for each thread of the next block
void forget_fibers();  // at the beginning and the end of a launch
void to_fiber(int thread);
void to_main(bool for_good);
void wait(const char* at, Where where);  // stops the running thread until `wake`
unsigned char* fresh_pages(std::size_t bytes);
void give_pages_back(unsigned char* pages, std::size_t bytes);

// schedule.cpp
// Ends the execution with an error that names the kernel, the block and the thread.
[[noreturn]] void fail(Where where, const char* format, ...) __attribute__((format(printf, 2, 3)));
std::uint64_t random_number();
bool random_schedule();
int among(int count);  // which of several asynchronous actions comes next

// memory.cpp. The bytes there, checked for alignment and range.
unsigned char* reach(Shared at, int bytes, int alignment, const char* what, Where where);
// The check of races: the running thread reads or writes whole words; `actor` is who is noted for
// it, as of `tick`.
void note_read(Shared at, int bytes, int actor, std::int32_t tick, Where where);
void note_write(Shared at, int bytes, Where where);
void note_landing(Shared at, int bytes, int actor, std::int32_t tick);
void note_flight(Shared at, int bytes, int actor);
// Every word must have been fenced by the thread that stored it.
void note_async(Shared at, int bytes, const char* what, Where where);
void forget_words();
void new_block_of_shared();
inline int me_actor() { return of_thread + machine.current; }
inline std::int32_t me_tick() { return me().clock[me_actor()]; }

// warp.cpp. True in the last lane to arrive, which works for all and then calls `depart`.
bool meet(const char* op, Where where);
void depart();
void join(Clock& clock, const Clock& with);
void leave();  // by a thread that ends
void enter_gate(const char* gate, Where where);
void gather_rows(float (&a)[16][16], const Fiber* lanes);
// How many products a tensor core adds at once, and 2^(23 + the bits that it has beyond 24).
struct TensorCore {
    int step;
    float units;
};
constexpr TensorCore AMPERE{8, 0x1p24F}, HOPPER{16, 0x1p25F};
void multiply(float* sums, int stride, const float (&a)[16][16], const float* b, int columns,
              TensorCore core);
float half_to_float(std::uint16_t half);
extern std::int64_t conflicts;

// hopper.cpp
void new_block_of_hopper();
bool copy_engine();   // performs one bulk copy, if there is one
void hopper_ends();   // complains of what a block leaves behind
void hopper_waits();  // prints the barriers into the report of a deadlock

// wgmma.cpp
void new_block_of_multiplications();
void multiplications_end();

// Sanitizers: present if the process is linked with one. Tokens are fresh in each block, as memory
// that was used by another block would order the two.
bool under_tsan();
bool sanitized();
enum Token {
    token_block = 0,
    token_warp = 2,
    token_group = token_warp + 2 * max_warps,
    token_copy = token_group + 32,
    token_issue = token_copy + max_barriers,
    token_done = token_issue + max_warps,
    tokens = token_done + max_warps
};
unsigned char* token(int which);
void tsan_release(const void* at);
void tsan_acquire(const void* at);
void tsan_read(const void* at, int bytes);
void tsan_write(const void* at, int bytes);
// Between the two, what is reported is the work of an agent, not of the running thread: of the
// copies that complete at one barrier, or of one warp's multiplications. As of_barrier and so on.
void tsan_become(int agent);
void tsan_return();
void append(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace pairops::cuda::host
