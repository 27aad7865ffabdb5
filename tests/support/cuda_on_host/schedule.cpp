// Which fiber goes on, launches block after block, errors and deadlocks.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>

#include "machine.h"

namespace pairops::cuda::host {

Machine machine;
Place place;

namespace {

int last;  // the thread that ran
std::uint64_t state;
std::mutex alone;
std::int64_t launch_count;
std::vector<std::string> names;
constexpr const char* schedule_names[] = {"lockstep",  "reversed",      "first_warp",
                                          "last_warp", "random_thread", "random_warp"};

// The dynamic shared memory that a kernel may have; 48 KiB without asking.
int& shared_limit(const void* kernel) {
    static std::map<const void*, int> limits;
    return limits.try_emplace(kernel, 48 * 1024).first->second;
}

Schedule named(const std::string& name) {
    for (int i = 0; i < 6; i++) {
        if (name == schedule_names[i]) return Schedule(i);
    }
    throw std::invalid_argument("no schedule: " + name);
}
Schedule& schedule() {
    static Schedule chosen = [] {
        const char* seed = std::getenv("PAIROPS_HOST_SEED");
        if (seed) state = std::strtoull(seed, nullptr, 10);
        const char* name = std::getenv("PAIROPS_HOST_SCHEDULE");
        return name ? named(name) : Schedule::lockstep;
    }();
    return chosen;
}

// The first thread that can run from this one on, around, or the last up to it.
int from(int start) {
    const int warps = machine.threads / 32;
    std::uint32_t within = ~0U << start % 32;
    for (int i = 0; i <= warps; i++, within = ~0U) {
        const int warp = (start / 32 + i) % warps;
        const std::uint32_t some = machine.warps[warp].runnable & within;
        if (some) return 32 * warp + __builtin_ctz(some);
    }
    return -1;
}
int up_to(int start) {
    const int warps = machine.threads / 32;
    std::uint32_t within = ~0U >> (31 - start % 32);
    for (int i = 0; i <= warps; i++, within = ~0U) {
        const int warp = (start / 32 - i + 2 * warps) % warps;
        const std::uint32_t some = machine.warps[warp].runnable & within;
        if (some) return 32 * warp + 31 - __builtin_clz(some);
    }
    return -1;
}

int pick() {
    const int threads = machine.threads;
    switch (schedule()) {
        case Schedule::lockstep:
            return from((last + 1) % threads);
        case Schedule::reversed:
            return up_to((last + threads - 1) % threads);
        case Schedule::first_warp:
            return from(0);
        case Schedule::last_warp:
            return up_to(threads - 1);
        case Schedule::random_thread:
            return from(int(random_number() % std::uint64_t(threads)));
        case Schedule::random_warp:
            if (machine.warps[last / 32].runnable) return from(last / 32 * 32);
            return from(int(random_number() % std::uint64_t(threads / 32)) * 32);
    }
    return -1;
}

[[noreturn]] void deadlock() {
    append("deadlock");
    for (int warp = 0; warp < machine.threads / 32; warp++) {
        for (int first = 32 * warp, next = first; next < 32 * warp + 32; first = next) {
            const Fiber& one = machine.fibers[first];
            for (; next < 32 * warp + 32; next++) {
                const Fiber& two = machine.fibers[next];
                if (two.done != one.done || two.at != one.at) break;
                if (two.at && two.where.line != one.where.line) break;
            }
            append("\n  warp %d, lanes %d to %d: ", warp, first % 32, (next - 1) % 32);
            if (one.done) {
                append("ended");
            } else {
                append("%s at %s:%d", one.at, one.where.file, one.where.line);
                if (std::strcmp(one.at, "barrier_wait") == 0) {
                    append(", barrier %u, parity %d", one.barrier, one.parity);
                }
            }
        }
    }
    hopper_waits();
    fail({nullptr, 0}, "%s", "");
}

void begin_block() {
    new_block_of_shared();  // first: ThreadSanitizer orders it before the fibers that it creates
    renew_fibers();
    machine.tick++;
    const int used = of_thread + machine.threads;
    // What another block stored needs no fence of this one, also where it had more threads.
    for (Fiber& fiber : machine.fibers) fiber.fences++;
    for (int i = 0; i < machine.threads; i++) {
        Fiber& fiber = machine.fibers[i];
        fiber.at = nullptr;
        fiber.done = false;
        fiber.first_copy = fiber.copies_end = fiber.group = 0;
        for (int j = 0; j < used; j++) fiber.clock[j] = machine.tick;
        fiber.clock[of_thread + i] = machine.tick + 1;
    }
    machine.tick++;
    std::memset(machine.warps, 0, sizeof(machine.warps));
    for (int i = 0; i < machine.threads / 32; i++) machine.warps[i].runnable = ~0U;
    machine.block_arrived = machine.block_syncs = 0;
    machine.live = machine.threads;
    machine.current = -1;
    last = schedule() == Schedule::lockstep ? machine.threads - 1 : 0;
    new_block_of_hopper();
}

void run_block() {
    begin_block();
    while (machine.live > 0) {
        if (random_schedule() && random_number() % 8 == 0) copy_engine();
        const int next = pick();
        if (next >= 0) {
            last = next;
            to_fiber(next);
        } else if (!copy_engine()) {
            deadlock();
        }
        if (machine.failed) throw std::runtime_error(machine.error);
    }
    hopper_ends();
}

}  // namespace

void append(const char* format, ...) {
    const std::size_t length = std::strlen(machine.error);
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(machine.error + length, sizeof(machine.error) - length, format, arguments);
    va_end(arguments);
}

void fail(Where where, const char* format, ...) {
    char details[sizeof(machine.error)];
    std::strcpy(details, machine.error);  // by deadlock
    machine.error[0] = 0;
    append("%s, block (%d, %d, %d)", machine.execution->name.c_str(), place.x, place.y, place.z);
    if (machine.current >= 0) append(", thread %d", machine.current);
    append(": %s", details);
    const std::size_t length = std::strlen(machine.error);
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(machine.error + length, sizeof(machine.error) - length, format, arguments);
    va_end(arguments);
    if (where.file) append(" (%s:%d)", where.file, where.line);
    if (sanitized()) {
        std::fprintf(stderr, "%s\n", machine.error);
        std::abort();
    }
    machine.failed = true;
    if (machine.current < 0) throw std::runtime_error(machine.error);
    to_main(true);  // never to come back: the other threads are abandoned too
    std::abort();
}

std::uint64_t random_number() {
    state += 0x9e3779b97f4a7c15;
    std::uint64_t mixed = state;
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111eb;
    return mixed ^ mixed >> 31;
}
bool random_schedule() { return schedule() >= Schedule::random_thread; }
int among(int count) {
    if (random_schedule()) return int(random_number() % std::uint64_t(count));
    return schedule() == Schedule::reversed || schedule() == Schedule::last_warp ? count - 1 : 0;
}

void set_schedule(Schedule to, std::uint64_t seed) {
    const std::lock_guard<std::mutex> lock(alone);
    schedule() = to;
    state = seed;
}
void set_schedule(const std::string& name, std::uint64_t seed) { set_schedule(named(name), seed); }

std::int64_t launches() { return launch_count; }
std::vector<std::string> launched() {
    const std::lock_guard<std::mutex> lock(alone);
    return names;
}
void forget_launches() {
    const std::lock_guard<std::mutex> lock(alone);
    names.clear();
    conflicts = 0;
}
std::int64_t bank_conflicts() { return conflicts; }

namespace {
bool keeps = false;
std::vector<std::function<void()>> kept;
}  // namespace

void record(bool on) {
    if (on) kept.clear();
    keeps = on;
}
bool recording() { return keeps; }
void keep(std::function<void()> launch) { kept.push_back(std::move(launch)); }
void replay() {
    for (const auto& launch : kept) launch();
}

void set_shared_limit(const void* kernel, int bytes) {
    const std::lock_guard<std::mutex> lock(alone);
    int& limit = shared_limit(kernel);
    if (bytes < limit) {
        throw std::runtime_error("a kernel's limit of shared memory falls from " +
                                 std::to_string(limit) + " to " + std::to_string(bytes) +
                                 " bytes: a launch that a graph has captured may have more");
    }
    limit = bytes;
}

void execute(const Execution& execution) {
    const std::lock_guard<std::mutex> lock(alone);
    machine.execution = &execution;
    machine.threads = execution.threads;
    machine.current = -1;
    machine.failed = false;
    machine.error[0] = 0;
    place = {0, 0, 0, 0, int(execution.y)};
    const Where nowhere = {nullptr, 0};
    const std::int64_t x = execution.x, y = execution.y, z = execution.z;
    if (x < 0 || y < 0 || z < 0 || x > 0x7fffffff || y > 65535 || z > 65535) {
        fail(nowhere, "a grid of %ld×%ld×%ld blocks", long(x), long(y), long(z));
    }
    if (execution.threads <= 0 || execution.threads > max_threads || execution.threads % 32) {
        fail(nowhere, "%d threads a block", execution.threads);
    }
    if (execution.shared < 0 || execution.shared > max_shared) {
        fail(nowhere, "%d bytes of shared memory", execution.shared);
    }
    const int limit = shared_limit(execution.kernel);
    if (execution.shared > limit) {
        fail(nowhere, "%d bytes of shared memory, where the kernel may have %d", execution.shared,
             limit);
    }
    launch_count++;
    names.push_back(execution.name);
    if (machine.tick > 1 << 25) {  // readers are noted in 32 bits: tick and lane
        machine.tick = 0;
        forget_words();
    }
    forget_fibers();
    const bool backwards = schedule() == Schedule::reversed || schedule() == Schedule::last_warp;
    const std::int64_t blocks = x * y * z;
    for (std::int64_t i = 0; i < blocks; i++) {
        const std::int64_t block = backwards ? blocks - 1 - i : i;
        place = {0, int(block % x), int(block / x % y), int(block / x / y), int(y)};
        run_block();
    }
    forget_fibers();
}

}  // namespace pairops::cuda::host
