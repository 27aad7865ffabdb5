// Hopper's barriers in shared memory, bulk copies by an engine of their own, barriers of some
// warps.
#include <algorithm>
#include <cstring>

#include "machine.h"

namespace pairops::cuda::host {

namespace {

struct Barrier {
    Shared at;
    int count, arrived, thread;  // which initialised it
    bool ready;                  // by its barriers_ready
    long bytes;                  // that the phase waits for
    int phase;
    std::int32_t init_tick, phase_tick;
    Clock gathering, complete[2];  // of the phase, of the last of each parity
};
Barrier barriers[max_barriers];
int barriers_count;

struct Bulk {
    Shared to;
    const unsigned char* from;
    int bytes, barrier;
};
constexpr int max_bulks = 4096;
Bulk bulks[max_bulks];
int bulks_count;

struct Group {
    int threads, arrived, syncs;
    std::uint32_t members[max_warps], waiting[max_warps];
    Clock clock;
};
Group groups[16];
constexpr const char* group_names[16] = {
    nullptr,          "group_sync(1)",  "group_sync(2)",  "group_sync(3)",
    "group_sync(4)",  "group_sync(5)",  "group_sync(6)",  "group_sync(7)",
    "group_sync(8)",  "group_sync(9)",  "group_sync(10)", "group_sync(11)",
    "group_sync(12)", "group_sync(13)", "group_sync(14)", "group_sync(15)"};

// Volatile, or it becomes a memset, which ThreadSanitizer takes for an access of the kernel's.
void clear(Clock& clock) {
    for (volatile std::int32_t& tick : clock) tick = 0;
}

Barrier* find(Shared at) {
    for (int i = 0; i < barriers_count; i++) {
        if (barriers[i].at == at) return &barriers[i];
    }
    return nullptr;
}

Barrier& use(Shared at, const char* what, Where where) {
    reach(at, 8, 8, what, where);
    Barrier* const barrier = find(at);
    if (!barrier) fail(where, "%s before barrier_init of the barrier at %u", what, at);
    if (!barrier->ready) {
        fail(where, "%s of the barrier at %u before barriers_ready by thread %d", what, at,
             barrier->thread);
    }
    if (me().clock[of_thread + barrier->thread] < barrier->init_tick &&
        machine.current != barrier->thread) {
        fail(where, "%s of the barrier at %u with no barrier after barrier_init by thread %d", what,
             at, barrier->thread);
    }
    return *barrier;
}

// The release of a phase and its acquisition, for ThreadSanitizer.
const unsigned char* order(const Barrier& barrier, int parity) {
    return machine.shared + barrier.at + parity;
}

void complete_if_due(Barrier& barrier) {
    if (barrier.arrived < barrier.count || barrier.bytes) return;
    const int parity = barrier.phase % 2;
    barrier.gathering[of_barrier + (&barrier - barriers)] = barrier.phase_tick;
    clear(barrier.complete[parity]);
    join(barrier.complete[parity], barrier.gathering);
    clear(barrier.gathering);
    barrier.arrived = 0;
    barrier.phase++;
    barrier.phase_tick = ++machine.tick;
    for (int i = 0; i < machine.threads; i++) {
        const Fiber& fiber = machine.fibers[i];
        if (!fiber.at || std::strcmp(fiber.at, "barrier_wait") != 0) continue;
        if (fiber.barrier == barrier.at && fiber.parity == parity) wake(i);
    }
}

}  // namespace

void new_block_of_hopper() {
    barriers_count = bulks_count = 0;
    for (Group& group : groups) {
        if (group.syncs || group.arrived) clear(group.clock);
        group.arrived = group.syncs = 0;
    }
    new_block_of_multiplications();
}

void barrier_init(Shared at, int count, Where where) {
    unsigned char* to = reach(at, 8, 8, "barrier_init", where);
    if (find(at)) fail(where, "barrier_init again of the barrier at %u", at);
    if (count < 1 || count >= 1 << 20) fail(where, "barrier_init with a count of %d", count);
    if (barriers_count == max_barriers) fail(where, "more than %d barriers", max_barriers);
    tsan_write(to, 8);
    note_write(at, 8, where);
    Barrier& barrier = barriers[barriers_count++];
    barrier.at = at;
    barrier.count = count;
    barrier.thread = machine.current;
    barrier.ready = false;
    barrier.arrived = barrier.phase = 0;
    barrier.bytes = 0;
    barrier.init_tick = me_tick();
    barrier.phase_tick = ++machine.tick;
    clear(barrier.gathering);
    clear(barrier.complete[0]);
    clear(barrier.complete[1]);
}

void barriers_ready(Where) {
    for (int i = 0; i < barriers_count; i++) {
        if (barriers[i].thread == machine.current) barriers[i].ready = true;
    }
}

void barrier_arrive(Shared at, int bytes, Where where) {
    const char* what = bytes ? "barrier_expect" : "barrier_arrive";
    Barrier& barrier = use(at, what, where);
    if (bytes < 0 || bytes >= 1 << 20) fail(where, "barrier_expect of %d bytes", bytes);
    if (barrier.arrived == barrier.count) {
        fail(where, "%s: more than %d arrivals at the barrier at %u in phase %d", what,
             barrier.count, at, barrier.phase);
    }
    tsan_release(order(barrier, barrier.phase % 2));
    join(barrier.gathering, me().clock);
    me().clock[me_actor()] = ++machine.tick;
    barrier.arrived++;
    barrier.bytes += bytes;
    complete_if_due(barrier);
}

void barrier_wait(Shared at, int parity, Where where) {
    Barrier& barrier = use(at, "barrier_wait", where);
    if (parity != 0 && parity != 1) fail(where, "barrier_wait for a parity of %d", parity);
    Fiber& fiber = me();
    if (barrier.phase % 2 == parity) {
        fiber.barrier = at;
        fiber.parity = parity;
        wait("barrier_wait", where);
        if (barrier.phase % 2 == parity) {
            fail(where, "the barrier at %u went two phases on while a thread waited for one", at);
        }
    }
    tsan_acquire(order(barrier, parity));
    join(fiber.clock, barrier.complete[parity]);
}

void bulk_copy(Shared to, const void* from, int bytes, Shared at, Where where) {
    unsigned char* target = reach(to, bytes, 16, "bulk_copy", where);
    const auto* source = static_cast<const unsigned char*>(from);
    if (bytes <= 0 || bytes % 16) fail(where, "bulk_copy of %d bytes", bytes);
    if (reinterpret_cast<std::uintptr_t>(from) % 16) {
        fail(where, "bulk_copy from a misaligned address");
    }
    Barrier& barrier = use(at, "bulk_copy", where);
    if (bulks_count == max_bulks) fail(where, "more than %d bulk copies in flight", max_bulks);
    const int index = int(&barrier - barriers);
    // Reads and writes from now on: those of the thread stand for the engine's first.
    unsigned char now[16];
    for (int i = 0; i < bytes; i += 16) std::memcpy(now, source + i, 16);
    tsan_read(source, bytes);
    tsan_write(target, bytes);
    note_async(to, bytes, "bulk_copy overwrites", where);
    note_write(to, bytes, where);
    note_flight(to, bytes, of_barrier + index);
    std::memset(target, 0xff, std::size_t(bytes));
    tsan_release(token(token_copy + index));
    bulks[bulks_count++] = {to, source, bytes, index};
}

bool copy_engine() {
    if (!bulks_count) return false;
    const int which = among(bulks_count);
    const Bulk bulk = bulks[which];
    bulks_count--;
    for (int i = which; i < bulks_count; i++) bulks[i] = bulks[i + 1];
    Barrier& barrier = barriers[bulk.barrier];
    unsigned char* to = machine.shared + bulk.to;
    tsan_become(of_barrier + bulk.barrier);
    tsan_acquire(token(token_copy + bulk.barrier));
    tsan_read(bulk.from, bulk.bytes);
    tsan_write(to, bulk.bytes);
    std::memcpy(to, bulk.from, std::size_t(bulk.bytes));
    tsan_release(order(barrier, barrier.phase % 2));
    tsan_return();
    note_landing(bulk.to, bulk.bytes, of_barrier + bulk.barrier, barrier.phase_tick);
    barrier.bytes -= bulk.bytes;
    complete_if_due(barrier);
    return true;
}

void hopper_ends() {
    if (bulks_count) fail({nullptr, 0}, "ends with %d bulk copies in flight", bulks_count);
    for (int id = 1; id < 16; id++) {
        const int arrived = groups[id].arrived;
        if (arrived) fail({nullptr, 0}, "ends with %d arrivals at group_sync(%d)", arrived, id);
    }
    multiplications_end();
}

void hopper_waits() {
    for (int i = 0; i < barriers_count; i++) {
        const Barrier& barrier = barriers[i];
        append("\n  barrier at %u: phase %d, %d of %d arrivals, %ld bytes to come", barrier.at,
               barrier.phase, barrier.arrived, barrier.count, barrier.bytes);
    }
}

void fence_async() { me().fences++; }

// Threads that arrive without waiting count, too, but get nothing of what the others did.
void group_sync(int id, int threads, bool waits, Where where) {
    const char* what = waits ? "group_sync" : "group_arrive";
    if (id < 1 || id > 15) fail(where, "%s with the id %d", what, id);
    if (threads <= 0 || threads % 32 || threads > machine.threads) {
        fail(where, "%s of %d threads", what, threads);
    }
    Group& group = groups[id];
    if (waits) enter_gate(group_names[id], where);
    const int warp = machine.current / 32;
    const std::uint32_t lane = 1U << machine.current % 32;
    if (group.arrived && group.threads != threads) {
        fail(where, "%s(%d) of %d threads, and of %d", what, id, group.threads, threads);
    }
    if (!group.arrived) {
        std::memset(group.waiting, 0, sizeof(group.waiting));
        std::memset(group.members, 0, sizeof(group.members));
    }
    if (group.members[warp] & lane) fail(where, "%s(%d) again in one phase", what, id);
    group.threads = threads;
    const unsigned char* token_now = token(token_group + 2 * id + group.syncs % 2);
    tsan_release(token_now);
    join(group.clock, me().clock);
    group.members[warp] |= lane;
    if (waits)
        group.waiting[warp] |= lane;
    else
        me().clock[me_actor()] = ++machine.tick;  // what follows is not what others wait for
    if (++group.arrived < threads) {
        if (!waits) return;
        wait(group_names[id], where);
    } else {
        machine.tick++;
        for (int i = 0; i < machine.threads; i++) {
            if (!(group.waiting[i / 32] >> i % 32 & 1)) continue;
            join(machine.fibers[i].clock, group.clock);
            machine.fibers[i].clock[of_thread + i] = machine.tick;
            machine.warps[i / 32].gate = nullptr;
            wake(i);
        }
        clear(group.clock);
        group.arrived = 0;
        group.syncs++;
    }
    if (waits) tsan_acquire(token_now);
}

}  // namespace pairops::cuda::host
