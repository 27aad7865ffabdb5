// Shared memory of the block that runs, who last wrote and read each word of it, and copies to it.
#include <cstdio>
#include <cstring>

#include "machine.h"

namespace pairops::cuda::host {

namespace {

constexpr int groups_of_readers = 2 * max_warps;  // warps, then their multiplications
constexpr std::size_t pages = max_shared + 8 * std::size_t(tokens);

struct Word {
    std::int32_t tick;  // of the last write
    std::uint16_t writer;
    bool in_flight;                          // a copy may write it at any time
    bool by_thread;                          // stored by a thread, not by the engine of bulk copies
    std::uint32_t fences;                    // of the writer by then
    std::uint32_t readers;                   // bits of `reads` that are later than the last write
    std::uint32_t reads[groups_of_readers];  // tick, then 5 bits: the lane
};
Word words[max_shared / 4];

void describe(char (&text)[64], int actor) {
    if (actor >= of_thread) {
        std::snprintf(text, sizeof(text), "thread %d", actor - of_thread);
    } else if (actor >= of_multiplications) {
        std::snprintf(text, sizeof(text), "wgmma of warp %d", actor - of_multiplications);
    } else {
        std::snprintf(text, sizeof(text), "a bulk copy (barrier %d)", actor - of_barrier);
    }
}

[[noreturn]] void race(Shared at, const char* now, const char* before, int actor, Where where) {
    char text[64];
    describe(text, actor);
    fail(where, "race: %s shared memory at %u that %s %s, with no barrier in between", now, at,
         text, before);
}

void check_flight(const Word& word, Shared at, const char* now, Where where) {
    if (!word.in_flight) return;
    fail(where, "%s shared memory at %u while a copy to it is in flight (issued by %s %d)", now, at,
         word.by_thread ? "thread" : "the bulk copies of barrier",
         word.writer - (word.by_thread ? of_thread : of_barrier));
}

void check_writer(const Word& word, Shared at, const char* now, Where where) {
    if (word.writer == me_actor() || me().clock[word.writer] >= word.tick) return;
    race(at, now, "wrote", word.writer, where);
}

void set_writer(Word& word, int actor, std::int32_t tick) {
    word.tick = tick;
    word.writer = std::uint16_t(actor);
    word.by_thread = actor >= of_thread;
    if (word.by_thread) word.fences = machine.fibers[actor - of_thread].fences;
    word.readers = 0;
}

}  // namespace

unsigned char* token(int which) { return machine.shared + max_shared + 8 * which; }

void new_block_of_shared() {
    if (machine.shared && under_tsan()) {
        give_pages_back(machine.shared, pages);
        machine.shared = nullptr;
    }
    if (!machine.shared) machine.shared = fresh_pages(pages);
    std::memset(machine.shared, 0xff, std::size_t(machine.execution->shared));
    const int used = (machine.execution->shared + 3) / 4;
    for (int i = 0; i < used; i++) {
        words[i].in_flight = false;
        // Nobody waits for another block, whose threads may be more than there are clocks of now.
        words[i].tick = 0;
        words[i].readers = 0;
    }
}

void forget_words() { std::memset(words, 0, sizeof(words)); }

unsigned char* reach(Shared at, int bytes, int alignment, const char* what, Where where) {
    if (at % std::uint32_t(alignment))
        fail(where, "%s at %u, not at a multiple of %d", what, at, alignment);
    const int shared = machine.execution->shared;
    if (bytes < 0 || bytes > shared || at > std::uint32_t(shared - bytes)) {
        fail(where, "%s of %d bytes at %u, out of range: the block has %d bytes", what, bytes, at,
             shared);
    }
    return machine.shared + at;
}

void note_read(Shared at, int bytes, int actor, std::int32_t tick, Where where) {
    const bool thread = actor >= of_thread;
    const int who = thread ? actor - of_thread : actor - of_multiplications;
    const int group = thread ? who / 32 : max_warps + who;
    const std::uint32_t entry = std::uint32_t(tick) << 5 | (thread ? std::uint32_t(who) % 32 : 0);
    for (Shared i = at / 4; i < (at + Shared(bytes)) / 4; i++) {
        Word& word = words[i];
        check_flight(word, 4 * i, "reads", where);
        check_writer(word, 4 * i, "reads", where);
        word.readers |= 1U << group;
        word.reads[group] = entry;
    }
}

void note_write(Shared at, int bytes, Where where) {
    for (Shared i = at / 4; i < (at + Shared(bytes)) / 4; i++) {
        Word& word = words[i];
        check_flight(word, 4 * i, "writes", where);
        check_writer(word, 4 * i, "writes", where);
        for (std::uint32_t left = word.readers; left; left &= left - 1) {
            const int group = __builtin_ctz(left);
            const std::uint32_t entry = word.reads[group];
            const int who = group < max_warps ? of_thread + 32 * group + int(entry % 32)
                                              : of_multiplications + group - max_warps;
            if (who == me_actor() || me().clock[who] >= std::int32_t(entry >> 5)) continue;
            race(4 * i, "writes", "read", who, where);
        }
        set_writer(word, me_actor(), me_tick());
    }
}

void note_flight(Shared at, int bytes, int actor) {
    for (Shared i = at / 4; i < (at + Shared(bytes)) / 4; i++) {
        words[i].in_flight = true;
        words[i].writer = std::uint16_t(actor);
        words[i].by_thread = actor >= of_thread;
    }
}

void note_landing(Shared at, int bytes, int actor, std::int32_t tick) {
    for (Shared i = at / 4; i < (at + Shared(bytes)) / 4; i++) {
        words[i].in_flight = false;
        set_writer(words[i], actor, tick);
    }
}

void note_async(Shared at, int bytes, const char* what, Where where) {
    for (Shared i = at / 4; i < (at + Shared(bytes)) / 4; i++) {
        const Word& word = words[i];
        if (!word.by_thread) continue;
        const int writer = word.writer - of_thread;
        if (writer < 0 || machine.fibers[writer].fences != word.fences) continue;
        fail(where, "%s shared memory at %u that thread %d stored, with no fence_async of it since",
             what, 4 * i, writer);
    }
}

void load(void* to, Shared at, int bytes, Where where) {
    const unsigned char* from = reach(at, bytes, bytes, "load_shared", where);
    tsan_read(from, bytes);
    note_read(at, bytes, me_actor(), me_tick(), where);
    std::memcpy(to, from, std::size_t(bytes));
}

void store(Shared at, const void* from, int bytes, Where where) {
    unsigned char* to = reach(at, bytes, bytes, "store_shared", where);
    tsan_write(to, bytes);
    note_write(at, bytes, where);
    std::memcpy(to, from, std::size_t(bytes));
}

void copy(Shared to, const void* from, int bytes, Where where) {
    unsigned char* at = reach(to, bytes, bytes, "an asynchronous copy", where);
    const auto* source = static_cast<const unsigned char*>(from);
    if (reinterpret_cast<std::uintptr_t>(from) % std::uintptr_t(bytes)) {
        fail(where, "an asynchronous copy of %d bytes from a misaligned address", bytes);
    }
    // Read now for the sanitizers' sake, which then name this line, and again when it is due.
    unsigned char now[16];
    std::memcpy(now, source, std::size_t(bytes));
    tsan_read(source, bytes);
    tsan_write(at, bytes);
    note_write(to, bytes, where);
    note_flight(to, bytes, me_actor());
    std::memset(at, 0xff, std::size_t(bytes));
    Fiber& fiber = me();
    if (fiber.copies_end - fiber.first_copy == max_copies) {
        fail(where, "more than %d copies of a thread in flight", max_copies);
    }
    fiber.copies[fiber.copies_end++ % max_copies] = {to, source, bytes, fiber.group};
}

void copies_commit() { me().group++; }

void copies_wait(int groups, Where) {
    Fiber& fiber = me();
    for (; fiber.first_copy < fiber.copies_end; fiber.first_copy++) {
        const Copy& due = fiber.copies[fiber.first_copy % max_copies];
        if (due.group >= fiber.group - groups) break;
        unsigned char* at = machine.shared + due.to;
        tsan_read(due.from, due.bytes);
        tsan_write(at, due.bytes);
        std::memcpy(at, due.from, std::size_t(due.bytes));
        note_landing(due.to, due.bytes, me_actor(), me_tick());
    }
}

}  // namespace pairops::cuda::host
