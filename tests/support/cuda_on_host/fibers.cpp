// The threads of a block as fibers of one thread of the CPU: stacks, switches, schedules, errors.
#include <sys/mman.h>

#include <cstdlib>
#include <stdexcept>

#include "machine.h"

// ---- The switch ----
#if defined(__x86_64__)
extern "C" void pairops_host_switch(void** from, void* to);
asm(R"(
.text
.type pairops_host_switch, @function
pairops_host_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size pairops_host_switch, .-pairops_host_switch
)");
#else
#include <ucontext.h>
#endif

// Null in a process without the sanitizer.
#define WEAK __attribute__((weak))
extern "C" {
WEAK void __sanitizer_start_switch_fiber(void** save, const void* bottom, std::size_t size);
WEAK void __sanitizer_finish_switch_fiber(void* save, const void** bottom, std::size_t* size);
WEAK void __asan_unpoison_memory_region(const volatile void* at, std::size_t size);
WEAK void* __tsan_get_current_fiber();
WEAK void* __tsan_create_fiber(unsigned flags);
WEAK void __tsan_destroy_fiber(void* fiber);
WEAK void __tsan_switch_to_fiber(void* fiber, unsigned flags);
WEAK void __tsan_acquire(void* at);
WEAK void __tsan_release(void* at);
WEAK void __tsan_read_range(void* at, std::size_t bytes);
WEAK void __tsan_write_range(void* at, std::size_t bytes);
}

namespace pairops::cuda::host {

namespace {

// ThreadSanitizer knows of 8128 fibers at a time, and takes the next for one that was destroyed:
// none is, until there would be too many.
constexpr int max_fibers = 7500, agents = max_barriers + max_warps;
constexpr std::size_t stack_bytes = 256 << 10;
constexpr unsigned no_order = 1;

void* fibers_made[max_fibers];
int fibers_count;
void* agent_fibers[agents];
void *main_stack_pointer, *main_tsan, *main_asan;
const void* main_bottom;
std::size_t main_size;
unsigned char* stacks;
char ends;  // what the end of a launch waits for

[[noreturn]] void body();

#if defined(__x86_64__)
void prepare(Fiber& fiber) {
    // As after the pushes of a switch from a call at 16-byte alignment, which `ret` takes to body.
    auto** top = reinterpret_cast<void**>(fiber.stack + stack_bytes) - 2;
    *top = reinterpret_cast<void*>(&body);
    fiber.stack_pointer = top - 6;
}
void jump(void** from, void* to) { pairops_host_switch(from, to); }
#else
ucontext_t contexts[max_threads + 1];
void prepare(Fiber& fiber) {
    ucontext_t& context = contexts[&fiber - machine.fibers];
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack;
    context.uc_stack.ss_size = stack_bytes;
    context.uc_link = nullptr;
    makecontext(&context, reinterpret_cast<void (*)()>(&body), 0);
    fiber.stack_pointer = &context;
}
void jump(void** from, void* to) {
    if (from == &main_stack_pointer) *from = &contexts[max_threads];
    swapcontext(static_cast<ucontext_t*>(*from), static_cast<ucontext_t*>(to));
}
#endif

void arrived(void* asan, bool at_main) {
    if (!__sanitizer_finish_switch_fiber) return;
    if (at_main) {
        __sanitizer_finish_switch_fiber(asan, nullptr, nullptr);
    } else {
        __sanitizer_finish_switch_fiber(asan, &main_bottom, &main_size);
    }
}

void* make_tsan_fiber() {
    if (!__tsan_create_fiber) return nullptr;
    return fibers_made[fibers_count++] = __tsan_create_fiber(0);
}

}  // namespace

void to_fiber(int thread) {
    Fiber& fiber = machine.fibers[thread];
    machine.current = thread;
    place.thread = thread;
    if (__sanitizer_start_switch_fiber) {
        __sanitizer_start_switch_fiber(&main_asan, fiber.stack, stack_bytes);
    }
    if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(fiber.tsan, no_order);
    jump(&main_stack_pointer, fiber.stack_pointer);
    arrived(main_asan, true);
    machine.current = -1;
}

void to_main(bool for_good) {
    Fiber& fiber = me();
    if (__sanitizer_start_switch_fiber) {
        __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.asan, main_bottom, main_size);
    }
    if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(main_tsan, no_order);
    jump(&fiber.stack_pointer, main_stack_pointer);
    arrived(fiber.asan, false);
}

namespace {

void body() {
    arrived(nullptr, false);
    machine.execution->run(machine.execution->call);
    leave();
    machine.live--;
    tsan_release(&ends);
    to_main(true);
    std::abort();
}

}  // namespace

void wait(const char* at, Where where) {
    Fiber& fiber = me();
    fiber.at = at;
    fiber.where = where;
    my_warp().runnable &= ~(1U << machine.current % 32);
    to_main(false);
}

void renew_fibers() {
    const std::size_t all = std::size_t(max_threads) * stack_bytes;
    // Pages that another block used would look like races between the two to ThreadSanitizer.
    if (stacks && __tsan_create_fiber) {
        munmap(stacks, all);
        stacks = nullptr;
    }
    if (!stacks) stacks = fresh_pages(all);
    if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(stacks, all);
    const int needed = machine.threads + agents;
    if (fibers_count + needed > max_fibers) forget_fibers();
    for (int i = 0; i < machine.threads; i++) {
        Fiber& fiber = machine.fibers[i];
        fiber.stack = stacks + std::size_t(i) * stack_bytes;
        fiber.tsan = make_tsan_fiber();
        prepare(fiber);
    }
    for (void*& agent : agent_fibers) agent = nullptr;
}

void forget_fibers() {
    if (__tsan_get_current_fiber) main_tsan = __tsan_get_current_fiber();
    tsan_acquire(&ends);
    for (int i = 0; i < fibers_count; i++) __tsan_destroy_fiber(fibers_made[i]);
    fibers_count = 0;
}

unsigned char* fresh_pages(std::size_t bytes) {
    void* got = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (got == MAP_FAILED) throw std::runtime_error("no memory for a block");
    return static_cast<unsigned char*>(got);
}
void give_pages_back(unsigned char* pages, std::size_t bytes) { munmap(pages, bytes); }

bool under_tsan() { return __tsan_create_fiber != nullptr; }
bool sanitized() { return under_tsan() || __sanitizer_start_switch_fiber; }
void tsan_release(const void* at) {
    if (__tsan_release) __tsan_release(const_cast<void*>(at));
}
void tsan_acquire(const void* at) {
    if (__tsan_acquire) __tsan_acquire(const_cast<void*>(at));
}
void tsan_read(const void* at, int bytes) {
    if (__tsan_read_range) __tsan_read_range(const_cast<void*>(at), std::size_t(bytes));
}
void tsan_write(const void* at, int bytes) {
    if (__tsan_write_range) __tsan_write_range(const_cast<void*>(at), std::size_t(bytes));
}
void tsan_become(int agent) {
    if (!__tsan_switch_to_fiber) return;
    if (!agent_fibers[agent]) agent_fibers[agent] = make_tsan_fiber();
    __tsan_switch_to_fiber(agent_fibers[agent], no_order);
}
void tsan_return() {
    if (!__tsan_switch_to_fiber) return;
    __tsan_switch_to_fiber(machine.current < 0 ? main_tsan : me().tsan, no_order);
}

}  // namespace pairops::cuda::host
