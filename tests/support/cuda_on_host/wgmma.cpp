// Hopper's asynchronous multiplications: read at issue and at the wait, sums unreadable in between.
#include "cuda/device/wgmma.h"

#include <cstring>
#include <initializer_list>

#include "machine.h"

namespace pairops::cuda::host {

namespace {

constexpr int max_issues = 128, max_held = 8;

// Accumulators in flight: what they will become, while the lanes' own are NaN.
struct Held {
    float* sums[32];
    int n, uses;
    float values[16 * 256];
};
struct Issue {
    bool stored, add;  // is a in shared memory?
    Shared a, b;
    int stride, n, group, held;
    std::int32_t tick;
    float rows[16][16];             // of a, where it comes from registers,
    const std::uint32_t* from[32];  // and where those of each lane are
    Where where;
};
struct Queue {
    Issue issues[max_issues];
    Held held[max_held];
    int first, end, group;
    bool fenced;
    std::uint64_t issued, hash;  // to compare the warps of a group
};
Queue queues[max_warps];

Queue& mine() { return queues[machine.current / 32]; }
const unsigned char* issue_token() { return token(token_issue + machine.current / 32); }
const unsigned char* done_token() { return token(token_done + machine.current / 32); }
Shared swizzled(Shared at) { return at ^ (at >> 7 & 7) << 4; }

// Shared memory that the warp reads, a piece within a row at a time.
template <class Visit>
void operands(const Issue& issue, Visit visit) {
    if (issue.stored) {
        const Shared first = issue.a + Shared(machine.current / 32 % 4) * 16 * 128;
        for (Shared row = 0; row < 16; row++) visit(swizzled(first + row * 128) & ~31U, 32);
    }
    if (!issue.stride) {
        for (Shared row = 0; row < Shared(issue.n); row++) {
            visit(swizzled(issue.b + row * 128) & ~31U, 32);
        }
    } else {
        for (int panel = 0; panel < issue.n / 64; panel++) {
            visit(issue.b + Shared(panel * issue.stride), 16 * 128);
        }
    }
}

void report(const Issue& issue, bool wait) {
    const int warp = machine.current / 32;
    tsan_become(of_multiplications + warp);
    tsan_acquire(issue_token());
    operands(issue, [](Shared at, int bytes) { tsan_read(machine.shared + at, bytes); });
    if (wait) tsan_release(done_token());
    tsan_return();
    operands(issue, [&](Shared at, int bytes) {
        if (!wait) {
            reach(at, bytes, 16, "wgmma", issue.where);
            note_async(at, bytes, "wgmma reads", issue.where);
        }
        note_read(at, bytes, of_multiplications + warp, issue.tick, issue.where);
    });
}

float number(Shared at) {
    std::uint16_t half;
    std::memcpy(&half, machine.shared + swizzled(at), 2);
    return half_to_float(half);
}

// The number of a warp's accumulators that a lane holds at [t][e].
float& place_in(Held& held, int lane, int t, int e) {
    return held.values[(lane / 4 + e / 2 * 8) * held.n + 8 * t + lane % 4 * 2 + e % 2];
}

// Takes the lanes' accumulators and leaves NaN, or finds them taken.
int hold(Queue& queue, float* const (&sums)[32], int n, Where where) {
    int free = -1;
    for (int i = 0; i < max_held; i++) {
        Held& held = queue.held[i];
        if (!held.uses) free = i;
        if (!held.uses || held.sums[0] != sums[0]) continue;
        if (held.n != n) fail(where, "wgmma of %d columns into sums in flight of %d", n, held.n);
        return i;
    }
    if (free < 0) fail(where, "wgmma into more than %d sums at a time", max_held);
    if (!queue.fenced) fail(where, "wgmma into sums of the thread's with no wgmma_fence before");
    Held& held = queue.held[free];
    held.n = n;
    for (int lane = 0; lane < 32; lane++) {
        held.sums[lane] = sums[lane];
        for (int i = 0; i < n / 2; i++) {
            place_in(held, lane, i / 4, i % 4) = sums[lane][i];
            sums[lane][i] = bits<float>(0xffffffffU);
        }
    }
    return free;
}

void give_back(Held& held, Where where) {
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < held.n / 2; i++) {
            if (bits<std::uint32_t>(held.sums[lane][i]) != 0xffffffffU) {
                fail(where, "lane %d changed its sums while wgmma was to add to them", lane);
            }
            held.sums[lane][i] = place_in(held, lane, i / 4, i % 4);
        }
    }
}

void perform(Queue& queue, Issue& issue) {
    Held& held = queue.held[issue.held];
    float b[16 * 256];
    for (int k = 0; k < 16; k++) {
        for (int j = 0; j < issue.n; j++) {
            const int at =
                !issue.stride ? j * 128 + 2 * k : j / 64 * issue.stride + k * 128 + j % 64 * 2;
            b[k * issue.n + j] = number(issue.b + Shared(at));
        }
    }
    if (issue.stored) {
        const Shared first = issue.a + Shared(machine.current / 32 % 4) * 16 * 128;
        for (Shared row = 0; row < 16; row++) {
            for (Shared k = 0; k < 16; k++) issue.rows[row][k] = number(first + row * 128 + 2 * k);
        }
    }
    if (!issue.add) {
        for (volatile float& value : held.values) value = 0;  // no memset, as of clocks
    }
    multiply(held.values, held.n, issue.rows, b, held.n, HOPPER);
    if (--held.uses == 0) give_back(held, issue.where);
}

// Of multiplications that are waited for, the registers of a are read until then.
void check_registers(const Issue& issue, Fiber* lanes, Where where) {
    for (int lane = 0; lane < 32; lane++) {
        const auto* from = reinterpret_cast<const unsigned char*>(issue.from[lane]);
        const auto* pinned = static_cast<const unsigned char*>(lanes[lane].pinned.begin);
        if (!pinned || from < pinned || from + 16 > pinned + lanes[lane].pinned.bytes) {
            fail(where, "wgmma_wait is not given the registers of a: it was to read them");
        }
        std::memcpy(lanes[lane].in, from, 16);
    }
    float now[16][16];
    gather_rows(now, lanes);
    for (int row = 0; row < 16; row++) {
        for (int k = 0; k < 16; k++) {
            if (bits<std::uint32_t>(now[row][k]) == bits<std::uint32_t>(issue.rows[row][k]))
                continue;
            fail(where, "row %d of a changed while wgmma was to read it", row);
        }
    }
}

}  // namespace

void new_block_of_multiplications() {
    for (Queue& queue : queues) {
        for (Held& held : queue.held) held.uses = 0;
        queue.first = queue.end = queue.group = 0;
        queue.fenced = false;
        queue.issued = queue.hash = 0;
    }
}

void multiplications_end() {
    for (int warp = 0; warp < machine.threads / 32; warp++) {
        const Queue& queue = queues[warp];
        const Queue& first = queues[warp / 4 * 4];
        if (queue.first < queue.end) fail({nullptr, 0}, "warp %d ends with wgmma in flight", warp);
        if (queue.issued != first.issued || queue.hash != first.hash) {
            fail({nullptr, 0}, "warps %d and %d differ in their wgmmas", warp / 4 * 4, warp);
        }
    }
}

void wgmma_fence(Where where) {
    if (meet("wgmma_fence", where)) {
        mine().fenced = true;
        depart();
    }
}

void wgmma_commit(Where where) {
    if (meet("wgmma_commit", where)) {
        mine().group++;
        depart();
    }
}

void wgmma(float* sums, int n, const std::uint32_t* a, Shared a_at, Shared b, int stride, bool add,
           Where where) {
    if (machine.threads % 128) fail(where, "wgmma in a block of %d threads", machine.threads);
    Fiber& fiber = me();
    Fiber* const lanes = machine.fibers + machine.current / 32 * 32;
    fiber.accumulators = sums;
    fiber.multiplied = a;
    if (a) std::memcpy(fiber.in, a, 16);
    fiber.in[4] = b;
    fiber.in[5] = a ? std::uint32_t(stride) : a_at;
    tsan_release(issue_token());
    if (!meet("wgmma", where)) return;
    // A panel begins at a multiple of 1024, a step of 16 numbers in it 32 bytes on.
    if (b % 1024 % (stride ? 1024 : 32) || b % 1024 > 96 ||
        (!a && (a_at % 32 || a_at % 1024 > 96))) {
        fail(where, "wgmma of operands at %u and %u, not where a panel's step begins", a_at, b);
    }
    if (stride % 1024 || stride < 0) fail(where, "panels %d apart", stride);
    float* all[32];
    for (int lane = 0; lane < 32; lane++) {
        all[lane] = lanes[lane].accumulators;
        if (lanes[lane].in[4] != b || lanes[lane].in[5] != fiber.in[5]) {
            fail(where, "wgmma of operands that differ between lanes");
        }
    }
    Queue& queue = mine();
    if (queue.end - queue.first == max_issues) fail(where, "too many wgmmas in flight");
    Issue& issue = queue.issues[queue.end++ % max_issues];
    issue.stored = !a;
    issue.add = add;
    issue.a = a_at;
    issue.b = b;
    issue.stride = stride;
    issue.n = n;
    issue.group = queue.group;
    issue.where = where;
    issue.tick = ++machine.tick;
    if (a) gather_rows(issue.rows, lanes);
    for (int lane = 0; lane < 32; lane++) issue.from[lane] = lanes[lane].multiplied;
    issue.held = hold(queue, all, n, where);
    queue.held[issue.held].uses++;
    queue.issued++;
    for (const std::uint64_t part : {std::uint64_t(b), std::uint64_t(fiber.in[5]), std::uint64_t(n),
                                     std::uint64_t(add), std::uint64_t(where.line)}) {
        queue.hash = (queue.hash ^ part) * 0x100000001b3;
    }
    report(issue, false);
    depart();
}

void wgmma_wait(int groups, Registers a, Where where) {
    Fiber* const lanes = machine.fibers + machine.current / 32 * 32;
    me().pinned = a;
    if (meet("wgmma_wait", where)) {
        Queue& queue = mine();
        for (; queue.first < queue.end; queue.first++) {
            Issue& issue = queue.issues[queue.first % max_issues];
            if (issue.group >= queue.group - groups) break;
            if (!issue.stored) check_registers(issue, lanes, where);
            report(issue, true);
            perform(queue, issue);
            for (int lane = 0; lane < 32; lane++) {
                lanes[lane].clock[of_multiplications + machine.current / 32] = issue.tick;
            }
            queue.fenced = false;  // the sums are the threads' again
        }
        depart();
    }
    tsan_acquire(done_token());
}

}  // namespace pairops::cuda::host
