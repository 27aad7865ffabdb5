// Barriers of threads, and what the lanes of a warp do together.
#include <algorithm>
#include <cstring>

#include "machine.h"

namespace pairops::cuda::host {

std::int64_t conflicts;

namespace {

bool same(Where a, Where b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

void join_warp() {
    Fiber* const lanes = machine.fibers + machine.current / 32 * 32;
    machine.tick++;
    for (int i = 1; i < 32; i++) join(lanes[0].clock, lanes[i].clock);
    for (int i = 31; i >= 0; i--) {
        if (i) join(lanes[i].clock, lanes[0].clock);
        lanes[i].clock[of_thread + int(lanes - machine.fibers) + i] = machine.tick;
    }
}

void join_block() {
    Fiber* const all = machine.fibers;
    Clock joined;
    for (int j = 0; j < of_thread; j++) joined[j] = all[0].clock[j];
    for (int i = 0; i < machine.threads; i++) {
        for (int j = 0; j < of_thread; j++) joined[j] = std::max(joined[j], all[i].clock[j]);
        joined[of_thread + i] = all[i].clock[of_thread + i];
    }
    machine.tick++;
    for (int i = 0; i < machine.threads; i++) {
        join(all[i].clock, joined);
        all[i].clock[of_thread + i] = machine.tick;
    }
}

}  // namespace

// Not memcpy anywhere, which ThreadSanitizer would see, and take for an access of the kernel's.
void join(Clock& clock, const Clock& with) {
    const int used = of_thread + machine.threads;
    for (int i = 0; i < used; i++) clock[i] = clock[i] > with[i] ? clock[i] : with[i];
}

void enter_gate(const char* gate, Where where) {
    Warp& warp = my_warp();
    if (warp.done) fail(where, "%s after lanes %08x of the warp ended", gate, warp.done);
    if (warp.op) {
        fail(where, "divergent: %s while lanes %08x of the warp wait in %s (%s:%d)", gate,
             warp.arrived, warp.op, warp.where.file, warp.where.line);
    }
    if (warp.gate && (std::strcmp(warp.gate, gate) != 0 || !same(warp.gate_where, where))) {
        fail(where, "divergent: %s while lanes of the warp wait in %s (%s:%d)", gate, warp.gate,
             warp.gate_where.file, warp.gate_where.line);
    }
    warp.gate = gate;
    warp.gate_where = where;
}

void block_sync(Where where) {
    if (machine.live < machine.threads) fail(where, "block_sync after a thread of the block ended");
    enter_gate("block_sync", where);
    // Two tokens in turn: none gets the next barrier's release before all have acquired this one's.
    const unsigned char* order = token(token_block + machine.block_syncs % 2);
    tsan_release(order);
    if (++machine.block_arrived < machine.threads) {
        wait("block_sync", where);
    } else {
        join_block();
        machine.block_arrived = 0;
        machine.block_syncs++;
        for (int i = 0; i < machine.threads / 32; i++) machine.warps[i].gate = nullptr;
        for (int i = 0; i < machine.threads; i++) wake(i);
    }
    tsan_acquire(order);
}

bool meet(const char* op, Where where) {
    Warp& warp = my_warp();
    if (warp.done) fail(where, "divergent: %s after lanes %08x of the warp ended", op, warp.done);
    if (warp.gate) {
        fail(where, "divergent: %s while lanes of the warp wait in %s (%s:%d)", op, warp.gate,
             warp.gate_where.file, warp.gate_where.line);
    }
    if (warp.op && (std::strcmp(warp.op, op) != 0 || !same(warp.where, where))) {
        fail(where, "divergent: %s while lanes %08x of the warp wait in %s (%s:%d)", op,
             warp.arrived, warp.op, warp.where.file, warp.where.line);
    }
    warp.op = op;
    warp.where = where;
    warp.arrived |= 1U << machine.current % 32;
    if (warp.arrived == ~0U) return true;
    wait(op, where);
    return false;
}

void depart() {
    Warp& warp = my_warp();
    warp.op = nullptr;
    warp.arrived = 0;
    for (int lane = 0; lane < 32; lane++) wake(machine.current / 32 * 32 + lane);
}

void leave() {
    Warp& warp = my_warp();
    Fiber& fiber = me();
    const Where nowhere = {nullptr, 0};
    if (fiber.first_copy < fiber.copies_end) {
        fail(nowhere, "ends with %d asynchronous copies in flight",
             fiber.copies_end - fiber.first_copy);
    }
    if (warp.op) {
        fail(warp.where, "divergent: ends while lanes %08x of the warp wait in %s", warp.arrived,
             warp.op);
    }
    if (warp.gate) {
        fail(warp.gate_where, "divergent: ends while lanes of the warp wait in %s", warp.gate);
    }
    if (machine.block_arrived) {
        fail(nowhere, "ends while %d threads wait in block_sync", machine.block_arrived);
    }
    warp.done |= 1U << machine.current % 32;
    warp.runnable &= ~(1U << machine.current % 32);
    fiber.done = true;
}

void warp_sync(Where where) {
    Warp& warp = my_warp();
    const int which = token_warp + machine.current / 32 * 2 + warp.syncs % 2;
    tsan_release(token(which));
    if (meet("warp_sync", where)) {
        join_warp();
        warp.syncs++;
        depart();
    }
    tsan_acquire(token(which));
}

std::uint32_t shuffle_xor(std::uint32_t value, int mask, Where where) {
    Fiber& fiber = me();
    Fiber* const lanes = machine.fibers + machine.current / 32 * 32;
    fiber.in[0] = value;
    fiber.in[1] = std::uint32_t(mask);
    if (mask < 0 || mask > 31) fail(where, "shuffle_xor by %d", mask);
    if (meet("shuffle_xor", where)) {
        for (int i = 0; i < 32; i++) {
            if (lanes[i].in[1] != fiber.in[1]) fail(where, "shuffle_xor by masks that differ");
            lanes[i].out[0] = lanes[i ^ mask].in[0];
        }
        depart();
    }
    return fiber.out[0];
}

std::uint32_t shuffle(std::uint32_t value, int from, Where where) {
    Fiber& fiber = me();
    const Fiber* const lanes = machine.fibers + machine.current / 32 * 32;
    fiber.in[0] = value;
    fiber.in[1] = std::uint32_t(from);
    if (from < 0 || from > 31) fail(where, "shuffle from lane %d", from);
    if (meet("shuffle", where)) {
        for (int i = 0; i < 32; i++) {
            Fiber& to = machine.fibers[machine.current / 32 * 32 + i];
            to.out[0] = lanes[to.in[1]].in[0];
        }
        depart();
    }
    return fiber.out[0];
}

std::uint32_t ballot(bool vote, Where where) {
    Fiber& fiber = me();
    Fiber* const lanes = machine.fibers + machine.current / 32 * 32;
    fiber.in[0] = vote;
    if (meet("ballot", where)) {
        std::uint32_t all = 0;
        for (int i = 0; i < 32; i++) all |= lanes[i].in[0] << i;
        for (int i = 0; i < 32; i++) lanes[i].out[0] = all;
        depart();
    }
    return fiber.out[0];
}

std::uint32_t uniform(std::uint32_t value, Where where) {
    Fiber* const lanes = machine.fibers + machine.current / 32 * 32;
    me().in[0] = value;
    if (meet("uniform", where)) {
        for (int i = 0; i < 32; i++) {
            if (lanes[i].in[0] != value)
                fail(where, "uniform of a value that differs in lane %d", i);
        }
        depart();
    }
    return value;
}

void load_matrices(std::uint32_t (&to)[4], Shared row, bool transposed, Where where) {
    const char* op = transposed ? "load_transposed" : "load_matrices";
    Fiber& fiber = me();
    Fiber* const lanes = machine.fibers + machine.current / 32 * 32;
    // Each lane reads the row that it names, when it arrives; the order of lanes is none.
    tsan_read(reach(row, 16, 16, op, where), 16);
    note_read(row, 16, me_actor(), me_tick(), where);
    fiber.in[0] = row;
    if (meet(op, where)) {
        for (int matrix = 0; matrix < 4; matrix++) {
            std::uint16_t numbers[8][8];
            int banks[8] = {};
            for (int i = 0; i < 8; i++) {
                const Shared at = lanes[8 * matrix + i].in[0];
                std::memcpy(numbers[i], machine.shared + at, 16);
                bool again = false;
                for (int j = 0; j < i; j++) again |= lanes[8 * matrix + j].in[0] == at;
                if (!again) banks[at / 16 % 8]++;
            }
            conflicts += *std::max_element(banks, banks + 8) - 1;
            for (int i = 0; i < 32; i++) {
                const int x = i / 4, y = i % 4 * 2;
                const std::uint32_t low = transposed ? numbers[y][x] : numbers[x][y];
                const std::uint32_t high = transposed ? numbers[y + 1][x] : numbers[x][y + 1];
                lanes[i].out[matrix] = low | high << 16;
            }
        }
        depart();
    }
    std::memcpy(to, fiber.out, sizeof(to));
}

}  // namespace pairops::cuda::host
