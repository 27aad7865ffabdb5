// Hopper's asynchronous multiplications by a warpgroup of 128 threads. This header, like
// intrinsics.h, has a twin in tests/support/cuda_on_host.
//
// The order of use: wgmma_fence(sums, a) after the threads wrote those registers, multiplications,
// wgmma_commit(), and wgmma_wait<n>(sums, a), n groups at most left, before the threads read `sums`
// or write `a`, which is read until then. Registers that are given to the fence and the wait stay
// on the right side of them, which the compiler does not know of itself.
#pragma once

#include "cuda/device/intrinsics.h"

namespace pairops::cuda {

#if PAIROPS_SM_90A

namespace detail {

template <int columns>
DEVICE void pin(float (&sums)[columns][4]) {
    UNROLL
    for (int t = 0; t < columns; t++) {
        UNROLL
        for (int e = 0; e < 4; e++) asm volatile("" : "+f"(sums[t][e])::"memory");
    }
}
DEVICE void pin(std::uint32_t (&a)[4]) {
    UNROLL
    for (int i = 0; i < 4; i++) asm volatile("" : "+r"(a[i])::"memory");
}
template <int parts, int steps>
DEVICE void pin(std::uint32_t (&a)[parts][steps][4]) {
    UNROLL
    for (int part = 0; part < parts; part++) {
        UNROLL
        for (int k = 0; k < steps; k++) pin(a[part][k]);
    }
}

}  // namespace detail

// An operand in shared memory: rows of 128 bytes whose chunks of 16 bytes are swizzled by the row,
// groups of 8 rows 1024 bytes apart; `leading` bytes between panels, where it has several. It moves
// by an addition to the lower word, one instruction, where all lanes are known to have the same.
class Panels {
   public:
    DEVICE explicit Panels(Shared at, int leading = 16)
        : low_(detail::window(at) >> 4 & 0x3fff | std::uint32_t(leading >> 4) << 16) {}
    DEVICE Panels operator+(int bytes) const {
        Panels moved(*this);
        moved.low_ += std::uint32_t(bytes >> 4);
        return moved;
    }
    DEVICE std::uint64_t descriptor() const {
        return std::uint64_t(0x40000000 | 1024 >> 4) << 32 | low_;
    }

   private:
    std::uint32_t low_;
};

template <class... Registers>
DEVICE void wgmma_fence(Registers&... registers) {
    (detail::pin(registers), ...);
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
template <int groups, class... Registers>
DEVICE void wgmma_wait(Registers&... registers) {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(groups) : "memory");
    (detail::pin(registers), ...);
}

// Names and constraints of the accumulators in the instructions below.
#define PAIROPS_TEN(d)                                                                     \
    "%" #d "0, %" #d "1, %" #d "2, %" #d "3, %" #d "4, %" #d "5, %" #d "6, %" #d "7, %" #d \
    "8, %" #d "9, "
#define PAIROPS_1(t) "+f"(sums[t][0]), "+f"(sums[t][1]), "+f"(sums[t][2]), "+f"(sums[t][3])
#define PAIROPS_4(t) PAIROPS_1(t), PAIROPS_1(t + 1), PAIROPS_1(t + 2), PAIROPS_1(t + 3)
#define PAIROPS_8(t) PAIROPS_4(t), PAIROPS_4(t + 4)

// sums (64×n) = or += a (64×16) bᵀ (n×16), all float16 but the sums. `a`, `b`: a step of 16
// numbers, 32 bytes, in the first row of a panel, rows of 64 numbers. sums[t][e] is of row 16 (warp
// in the group) + lane / 4, 8 more for e of 2 and 3, and of column 8 t + 2 (lane % 4) + e % 2.
template <int n>
DEVICE void multiply_tiles(float (&sums)[n / 8][4], Panels a, Panels b, bool add) {
    static_assert(n == 32 || n == 64);
    const std::uint64_t first = a.descriptor(), second = b.descriptor();
    if constexpr (n == 32) {
        asm volatile(
            "{\n.reg .pred add;\nsetp.ne.b32 add, %18, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {"
            PAIROPS_TEN() "%10, %11, %12, %13, %14, %15"
            "}, %16, %17, add, 1, 1, 0, 0;\n}\n"
            : PAIROPS_4(0)
            : "l"(first), "l"(second), "r"(int(add))
            : "memory");
    } else if constexpr (n == 64) {
        asm volatile(
            "{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
            PAIROPS_TEN() PAIROPS_TEN(1) PAIROPS_TEN(2) "%30, %31"
            "}, %32, %33, add, 1, 1, 0, 0;\n}\n"
            : PAIROPS_8(0)
            : "l"(first), "l"(second), "r"(int(add))
            : "memory");
    }
}

// sums (64×n) += a (64×16) b (16×n). `a` as multiply_add has it of the warp's 16 rows; `b`: the
// first of 16 rows of a panel of 64 columns, a multiple of 1024, `leading` bytes before the next 64
// columns.
template <int n>
DEVICE void multiply_weights(float (&sums)[n / 8][4], const std::uint32_t (&a)[4], Panels b) {
    static_assert(n == 64 || n == 128 || n == 192 || n == 256);
    const std::uint64_t second = b.descriptor();
    if constexpr (n == 64) {
        asm volatile(
            "{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
            PAIROPS_TEN() PAIROPS_TEN(1) PAIROPS_TEN(2) "%30, %31"
            "}, {%32, %33, %34, %35}, %36, add, 1, 1, 1;\n}\n"
            : PAIROPS_8(0)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(second), "r"(1)
            : "memory");
    } else if constexpr (n == 128) {
        asm volatile(
            "{\n.reg .pred add;\nsetp.ne.b32 add, %69, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
            PAIROPS_TEN() PAIROPS_TEN(1) PAIROPS_TEN(2) PAIROPS_TEN(3) PAIROPS_TEN(4) PAIROPS_TEN(5) "%60, %61, %62, %63"
            "}, {%64, %65, %66, %67}, %68, add, 1, 1, 1;\n}\n"
            : PAIROPS_8(0), PAIROPS_8(8)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(second), "r"(1)
            : "memory");
    } else if constexpr (n == 192) {
        asm volatile(
            "{\n.reg .pred add;\nsetp.ne.b32 add, %101, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n192k16.f32.f16.f16 {"
            PAIROPS_TEN() PAIROPS_TEN(1) PAIROPS_TEN(2) PAIROPS_TEN(3) PAIROPS_TEN(4) PAIROPS_TEN(5) PAIROPS_TEN(6) PAIROPS_TEN(7) PAIROPS_TEN(8) "%90, %91, %92, %93, %94, %95"
            "}, {%96, %97, %98, %99}, %100, add, 1, 1, 1;\n}\n"
            : PAIROPS_8(0), PAIROPS_8(8), PAIROPS_8(16)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(second), "r"(1)
            : "memory");
    } else if constexpr (n == 256) {
        asm volatile(
            "{\n.reg .pred add;\nsetp.ne.b32 add, %133, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {"
            PAIROPS_TEN() PAIROPS_TEN(1) PAIROPS_TEN(2) PAIROPS_TEN(3) PAIROPS_TEN(4) PAIROPS_TEN(5) PAIROPS_TEN(6) PAIROPS_TEN(7) PAIROPS_TEN(8) PAIROPS_TEN(9) PAIROPS_TEN(10) PAIROPS_TEN(11) "%120, %121, %122, %123, %124, %125, %126, %127"
            "}, {%128, %129, %130, %131}, %132, add, 1, 1, 1;\n}\n"
            : PAIROPS_8(0), PAIROPS_8(8), PAIROPS_8(16), PAIROPS_8(24)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(second), "r"(1)
            : "memory");
    }
}

// The same with `a` in shared memory: a step of 16 columns, 32 bytes, in the first of 64 rows.
template <int n>
DEVICE void multiply_stored(float (&sums)[n / 8][4], Panels a, Panels b) {
    static_assert(n == 256);
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {"
        PAIROPS_TEN() PAIROPS_TEN(1) PAIROPS_TEN(2) PAIROPS_TEN(3) PAIROPS_TEN(4) PAIROPS_TEN(5) PAIROPS_TEN(6) PAIROPS_TEN(7) PAIROPS_TEN(8) PAIROPS_TEN(9) PAIROPS_TEN(10) PAIROPS_TEN(11) "%120, %121, %122, %123, %124, %125, %126, %127"
        "}, %128, %129, add, 1, 1, 0, 1;\n}\n"
        : PAIROPS_8(0), PAIROPS_8(8), PAIROPS_8(16), PAIROPS_8(24)
        : "l"(a.descriptor()), "l"(b.descriptor()), "r"(1)
        : "memory");
}

#undef PAIROPS_TEN
#undef PAIROPS_1
#undef PAIROPS_4
#undef PAIROPS_8
#endif

}  // namespace pairops::cuda
