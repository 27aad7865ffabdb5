// Intrinsics: all that kernels need of a GPU and C++ has no name for. Kernels name no keyword,
// intrinsic or register of CUDA themselves: tests/support/cuda_on_host has this header's twin,
// whose bodies run on a CPU.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace pairops::cuda {

// A kernel is `template <...> KERNEL(threads of a block, blocks of a multiprocessor)
// name(PARAMETER(Call) call)`.
#define KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define PARAMETER(Type) const __grid_constant__ Type
#define DEVICE __device__ __forceinline__
// A lambda that is called at several places is a function unless it says so.
#define INLINE __attribute__((always_inline))
#define UNROLL _Pragma("unroll")
#define UNROLL_BY(n) DETAIL_PRAGMA(unroll n)
#define DETAIL_PRAGMA(text) _Pragma(#text)

// Shared memory: a byte offset from the start of the block's dynamic shared memory, which has no
// other. It is aligned to 1024 bytes.
using Shared = std::uint32_t;

DEVICE int thread() { return threadIdx.x; }
DEVICE int lane() { return threadIdx.x % 32; }
// The index of the warp. The compiler does not know that all lanes have the same, as `uniform`
// would tell it: some of them alone may ask.
DEVICE int warp() { return threadIdx.x / 32; }
DEVICE int block_x() { return blockIdx.x; }
DEVICE int block_y() { return blockIdx.y; }
DEVICE int block_z() { return blockIdx.z; }
DEVICE int blocks_y() { return gridDim.y; }

DEVICE void block_sync() { __syncthreads(); }
DEVICE void warp_sync() { __syncwarp(); }

// Warp collectives are reached by whole warps.
DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffff, value, mask); }
DEVICE int shuffle_xor(int value, int mask) { return __shfl_xor_sync(0xffffffff, value, mask); }
DEVICE double shuffle_xor(double value, int mask) {
    return __shfl_xor_sync(0xffffffff, value, mask);
}
// The value of another lane.
DEVICE float shuffle(float value, int from) { return __shfl_sync(0xffffffff, value, from); }
// The value that all lanes have, so that the compiler knows that they do; a T of 4 bytes.
template <class T>
DEVICE T uniform(T value) {
    return __shfl_sync(0xffffffff, value, 0);
}
DEVICE std::uint32_t ballot(bool vote) { return __ballot_sync(0xffffffff, vote); }
// The position of the lowest bit that is set.
DEVICE int first_bit(std::uint32_t bits) { return __ffs(int(bits)) - 1; }

namespace detail {
extern __shared__ __align__(1024) unsigned char shared[];
DEVICE std::uint32_t window(Shared at) {
    return std::uint32_t(__cvta_generic_to_shared(shared)) + at;
}
}  // namespace detail

// Read and write a T of 4, 8 or 16 bytes, at a multiple of its size.
template <class T>
DEVICE T load_shared(Shared at) {
    return *reinterpret_cast<const T*>(detail::shared + at);
}
// The same, of what the compiler may not keep in a register from an earlier reading.
template <class T>
DEVICE T reload_shared(Shared at) {
    return *reinterpret_cast<const volatile T*>(detail::shared + at);
}
template <class T>
DEVICE void store_shared(Shared at, T value) {
    *reinterpret_cast<T*>(detail::shared + at) = value;
}

// Read global memory that no block writes while the kernel runs.
template <class T>
DEVICE T load_global(const T* at) {
    return __ldg(at);
}

// Asynchronous copies from global memory. What `copies_wait<n>` has waited for, all but the last n
// groups that this thread committed, is visible to it, and after a barrier to the block.
DEVICE void copy16(Shared to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(detail::window(to)), "l"(from)
                 : "memory");
}
DEVICE void copy4(Shared to, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;\n" ::"r"(detail::window(to)), "l"(from)
                 : "memory");
}
DEVICE void copies_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int groups>
DEVICE void copies_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(groups) : "memory");
}

// Four 8×8 matrices of 16-bit numbers; lane l names row l % 8 of matrix l / 8, 16 bytes. Each lane
// gets the numbers (row l / 4, columns 2 (l % 4) and the next) of every matrix.
DEVICE void load_matrices(std::uint32_t (&to)[4], Shared row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(detail::window(row))
                 : "memory");
}
// Load the same of the transposed matrices.
DEVICE void load_transposed(std::uint32_t (&to)[4], Shared row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(detail::window(row))
                 : "memory");
}

// sums (16×8) += a (16×16) b (16×8), float16 in, float32 out; m16n8k16 as PTX lays it out:
// sums[0], [1] of row lane / 4, [2], [3] of that row + 8, columns 2 (lane % 4) and the next.
DEVICE void multiply_add(float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                         std::uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same from zero on.
DEVICE void multiply(float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                     std::uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%10, %10, %10, %10};\n"
        : "=f"(sums[0]), "=f"(sums[1]), "=f"(sums[2]), "=f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.f));
}

// Two float16, rounded to nearest; the first in the lower half.
DEVICE std::uint32_t pack(float first, float second) {
    const __half2 both = __floats2half2_rn(first, second);
    return *reinterpret_cast<const std::uint32_t*>(&both);
}
struct alignas(8) Two {
    float first, second;
};
DEVICE Two unpack(std::uint32_t both) {
    const float2 two = __half22float2(*reinterpret_cast<const __half2*>(&both));
    return {two.x, two.y};
}

DEVICE float multiply_then_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }

// 2^x within 2^-22 of it; 0 for what is below the normal numbers.
DEVICE float exp2(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(x));
    return result;
}

// End the launch with an error: the kernel is for another GPU than it was compiled for.
DEVICE void not_compiled() { __trap(); }

// Does this compilation know Hopper's own instructions? Kernels of them are `not_compiled`
// elsewhere.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH_FEAT_SM90_ALL
#define PAIROPS_SM_90A 1
#else
#define PAIROPS_SM_90A 0
#endif

#if PAIROPS_SM_90A
// ---- Hopper alone: sm_90a ----

// A barrier of 8 bytes in shared memory that completes a phase when as many threads as it counts
// have arrived, and as many bytes as expected. Phases alternate in parity, from 0.
DEVICE void barrier_init(Shared barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(detail::window(barrier)),
                 "r"(count)
                 : "memory");
}
// The thread that initialised barriers calls this, before the block's next barrier.
DEVICE void barriers_ready() {
    asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
DEVICE void barrier_arrive(Shared barrier) {
    asm volatile(
        "mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];\n" ::"r"(detail::window(barrier))
        : "memory");
}
// Arrive, and make the phase wait for this many bytes more.
DEVICE void barrier_expect(Shared barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;\n" ::"r"(
                     detail::window(barrier)),
                 "r"(bytes)
                 : "memory");
}
// Wait until the phase of this parity is complete.
DEVICE void barrier_wait(Shared barrier, int parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}\n" ::"r"(detail::window(barrier)),
        "r"(parity)
        : "memory");
}
// A copy by the tensor memory accelerator, issued by one thread: a multiple of 16 bytes.
DEVICE void bulk_copy(Shared to, const void* from, int bytes, Shared barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
        "[%3];\n" ::"r"(detail::window(to)),
        "l"(from), "r"(bytes), "r"(detail::window(barrier))
        : "memory");
}

// A fence makes stores of threads visible to wgmma and bulk copies. Each thread that stored calls
// it, before the barrier that the reader waits at.
DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

// A barrier among `threads` threads, whole warps; id from 1 to 15.
DEVICE void group_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}
// Arrive there and go on: of `threads` those count too that do not wait.
DEVICE void group_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

// Set the registers of each thread of this warpgroup from here on.
template <int count>
DEVICE void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(count));
}
template <int count>
DEVICE void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(count));
}
#endif

}  // namespace pairops::cuda
