// The twin of csrc/cuda/device/intrinsics.h, whose bodies run on a CPU under the machine of
// machine.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace pairops::cuda {

#define KERNEL(threads, blocks) void
#define PARAMETER(Type) const Type
#define DEVICE inline
#define INLINE __attribute__((always_inline))
#define UNROLL
#define UNROLL_BY(n)

using Shared = std::uint32_t;

namespace host {

// Where the kernel calls a wrapper from: the default argument of each.
struct Where {
    const char* file;
    int line;
};
#define PAIROPS_HERE \
    ::pairops::cuda::host::Where where = {__builtin_FILE(), static_cast<int>(__builtin_LINE())}

// Written by the scheduler before a thread goes on, read by the thread.
struct Place {
    int thread, x, y, z, blocks_y;
};
extern Place place;

// Defined by the .cpp files beside machine.h.
void block_sync(Where where);
void warp_sync(Where where);
std::uint32_t shuffle_xor(std::uint32_t value, int mask, Where where);
std::uint32_t shuffle(std::uint32_t value, int from, Where where);
std::uint32_t ballot(bool vote, Where where);
std::uint32_t uniform(std::uint32_t value, Where where);
void load(void* to, Shared at, int bytes, Where where);
void store(Shared at, const void* from, int bytes, Where where);
void copy(Shared to, const void* from, int bytes, Where where);
void copies_commit();
void copies_wait(int groups, Where where);
void load_matrices(std::uint32_t (&to)[4], Shared row, bool transposed, Where where);
void multiply_add(float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                  Where where);
void barrier_init(Shared barrier, int count, Where where);
void barriers_ready(Where where);
void barrier_arrive(Shared barrier, int bytes, Where where);
void barrier_wait(Shared barrier, int parity, Where where);
void bulk_copy(Shared to, const void* from, int bytes, Shared barrier, Where where);
void fence_async();
void group_sync(int id, int threads, bool waits, Where where);

template <class To, class From>
To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(To));
    return to;
}

}  // namespace host

inline int thread() { return host::place.thread; }
inline int lane() { return host::place.thread % 32; }
inline int warp() { return host::place.thread / 32; }
inline int block_x() { return host::place.x; }
inline int block_y() { return host::place.y; }
inline int block_z() { return host::place.z; }
inline int blocks_y() { return host::place.blocks_y; }

inline void block_sync(PAIROPS_HERE) { host::block_sync(where); }
inline void warp_sync(PAIROPS_HERE) { host::warp_sync(where); }

inline float shuffle_xor(float value, int mask, PAIROPS_HERE) {
    return host::bits<float>(host::shuffle_xor(host::bits<std::uint32_t>(value), mask, where));
}
inline int shuffle_xor(int value, int mask, PAIROPS_HERE) {
    return host::bits<int>(host::shuffle_xor(host::bits<std::uint32_t>(value), mask, where));
}
inline double shuffle_xor(double value, int mask, PAIROPS_HERE) {
    const auto bits = host::bits<std::uint64_t>(value);
    const std::uint64_t low = host::shuffle_xor(std::uint32_t(bits), mask, where);
    const std::uint64_t high = host::shuffle_xor(std::uint32_t(bits >> 32), mask, where);
    return host::bits<double>(high << 32 | low);
}
inline float shuffle(float value, int from, PAIROPS_HERE) {
    return host::bits<float>(host::shuffle(host::bits<std::uint32_t>(value), from, where));
}
inline std::uint32_t ballot(bool vote, PAIROPS_HERE) { return host::ballot(vote, where); }
template <class T>
T uniform(T value, PAIROPS_HERE) {
    return host::bits<T>(host::uniform(host::bits<std::uint32_t>(value), where));
}

template <class T>
T load_shared(Shared at, PAIROPS_HERE) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
    static_assert(std::is_trivially_copyable_v<T>);
    T value;
    host::load(&value, at, sizeof(T), where);
    return value;
}
template <class T>
T reload_shared(Shared at, PAIROPS_HERE) {
    return load_shared<T>(at, where);
}
template <class T>
void store_shared(Shared at, T value, PAIROPS_HERE) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
    static_assert(std::is_trivially_copyable_v<T>);
    host::store(at, &value, sizeof(T), where);
}

// In this header so that the kernel's own sanitizer sees the access.
template <class T>
T load_global(const T* at) {
    return *at;
}

inline void copy16(Shared to, const void* from, PAIROPS_HERE) { host::copy(to, from, 16, where); }
inline void copy4(Shared to, const void* from, PAIROPS_HERE) { host::copy(to, from, 4, where); }
inline void copies_commit() { host::copies_commit(); }
template <int groups>
void copies_wait(PAIROPS_HERE) {
    host::copies_wait(groups, where);
}

inline void load_matrices(std::uint32_t (&to)[4], Shared row, PAIROPS_HERE) {
    host::load_matrices(to, row, false, where);
}
inline void load_transposed(std::uint32_t (&to)[4], Shared row, PAIROPS_HERE) {
    host::load_matrices(to, row, true, where);
}

inline void multiply_add(float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                         std::uint32_t b1, PAIROPS_HERE) {
    host::multiply_add(sums, a, b0, b1, where);
}

inline void multiply(float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                     std::uint32_t b1, PAIROPS_HERE) {
    for (float& sum : sums) sum = 0;
    host::multiply_add(sums, a, b0, b1, where);
}

inline std::uint32_t pack(float first, float second) {
    return host::bits<std::uint16_t>(_Float16(first)) |
           std::uint32_t(host::bits<std::uint16_t>(_Float16(second))) << 16;
}
struct alignas(8) Two {
    float first, second;
};
inline Two unpack(std::uint32_t both) {
    return {float(host::bits<_Float16>(std::uint16_t(both))),
            float(host::bits<_Float16>(std::uint16_t(both >> 16)))};
}

inline float exp2(float x) {
    const float result = std::exp2(x);
    return result < std::numeric_limits<float>::min() ? 0.0F : result;
}

#define PAIROPS_SM_90A 1
inline void not_compiled() {}

// ---- Hopper alone ----

inline void barrier_init(Shared barrier, int count, PAIROPS_HERE) {
    host::barrier_init(barrier, count, where);
}
inline void barriers_ready(PAIROPS_HERE) { host::barriers_ready(where); }
inline void barrier_arrive(Shared barrier, PAIROPS_HERE) {
    host::barrier_arrive(barrier, 0, where);
}
inline void barrier_expect(Shared barrier, int bytes, PAIROPS_HERE) {
    host::barrier_arrive(barrier, bytes, where);
}
inline void barrier_wait(Shared barrier, int parity, PAIROPS_HERE) {
    host::barrier_wait(barrier, parity, where);
}
inline void bulk_copy(Shared to, const void* from, int bytes, Shared barrier, PAIROPS_HERE) {
    host::bulk_copy(to, from, bytes, barrier, where);
}
inline void fence_async() { host::fence_async(); }
inline void group_sync(int id, int threads, PAIROPS_HERE) {
    host::group_sync(id, threads, true, where);
}
inline void group_arrive(int id, int threads, PAIROPS_HERE) {
    host::group_sync(id, threads, false, where);
}

// The pool of registers is not modelled.
template <int count>
void fewer_registers() {
    static_assert(count % 8 == 0 && count >= 24 && count <= 256);
}
template <int count>
void more_registers() {
    static_assert(count % 8 == 0 && count >= 24 && count <= 256);
}

inline int first_bit(std::uint32_t bits) { return __builtin_ctz(bits); }
inline float multiply_then_add(float a, float b, float c) { return std::fma(a, b, c); }

}  // namespace pairops::cuda
