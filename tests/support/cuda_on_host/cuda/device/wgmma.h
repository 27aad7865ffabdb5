// The twin of csrc/cuda/device/wgmma.h: a product is done when a warp waits for it, no sooner.
#pragma once

#include <cstddef>

#include "cuda/device/intrinsics.h"

namespace pairops::cuda {

namespace host {

// Registers that a kernel gives to a fence or a wait.
struct Registers {
    const void* begin;
    std::size_t bytes;
};
template <class A>
Registers registers_of(const A& a) {
    return {&a, sizeof(a)};
}

void wgmma_fence(Where where);
void wgmma_commit(Where where);
void wgmma_wait(int groups, Registers a, Where where);
// `a` in registers, or null for shared memory at `a_at`; `stride`: 0 where rows of
// `b` are columns of the sums, else bytes between its panels.
void wgmma(float* sums, int n, const std::uint32_t* a, Shared a_at, Shared b, int stride, bool add,
           Where where);

}  // namespace host

// Sums matter to a compiler alone, as what is given to a fence does; the registers of `a` must be
// those of the multiplications that are waited for. No pack of them, as `where` would follow it.
inline void wgmma_fence(PAIROPS_HERE) { host::wgmma_fence(where); }
template <class Sums>
void wgmma_fence(Sums&, PAIROPS_HERE) {
    host::wgmma_fence(where);
}
template <class Sums, class A>
void wgmma_fence(Sums&, A&, PAIROPS_HERE) {
    host::wgmma_fence(where);
}
inline void wgmma_commit(PAIROPS_HERE) { host::wgmma_commit(where); }
template <int groups>
void wgmma_wait(PAIROPS_HERE) {
    host::wgmma_wait(groups, {nullptr, 0}, where);
}
template <int groups, class Sums>
void wgmma_wait(Sums&, PAIROPS_HERE) {
    host::wgmma_wait(groups, {nullptr, 0}, where);
}
template <int groups, class Sums, class A>
void wgmma_wait(Sums&, A& a, PAIROPS_HERE) {
    host::wgmma_wait(groups, host::registers_of(a), where);
}
template <int groups, class S, class Sums, class A>
void wgmma_wait(S&, Sums&, A& a, PAIROPS_HERE) {
    host::wgmma_wait(groups, host::registers_of(a), where);
}

class Panels {
   public:
    explicit Panels(Shared at, int leading = 16) : at(at), leading(leading) {}
    Panels operator+(int bytes) const { return Panels(at + Shared(bytes), leading); }

    Shared at;
    int leading;
};

// The machine keeps the addresses of `sums` and `a` until the wait: they must still be theirs then.
template <int n>
void multiply_tiles(float (&sums)[n / 8][4], Panels a, Panels b, bool add, PAIROPS_HERE) {
    static_assert(n == 32 || n == 64);
    host::wgmma(sums[0], n, nullptr, a.at, b.at, 0, add, where);
}
template <int n>
void multiply_weights(float (&sums)[n / 8][4], const std::uint32_t (&a)[4], Panels b,
                      PAIROPS_HERE) {
    static_assert(n == 64 || n == 128 || n == 192 || n == 256);
    host::wgmma(sums[0], n, a, 0, b.at, b.leading, true, where);
}
template <int n>
void multiply_stored(float (&sums)[n / 8][4], Panels a, Panels b, PAIROPS_HERE) {
    static_assert(n == 256);
    host::wgmma(sums[0], n, nullptr, a.at, b.at, b.leading, true, where);
}

}  // namespace pairops::cuda
