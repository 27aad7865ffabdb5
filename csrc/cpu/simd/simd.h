// A vector: a few registers of numbers with the arithmetic of one number. The functions and
// accumulators of math/ are written for a number and run on vectors too.
#pragma once

#include <utility>

#include "math/accumulators.h"

namespace pairops {
inline namespace PAIROPS_TARGET {

template <int bytes>
struct Integers;
template <>
struct Integers<4> {
    using Signed = std::int32_t;
    using Unsigned = std::uint32_t;
};
template <>
struct Integers<8> {
    using Signed = std::int64_t;
    using Unsigned = std::uint64_t;
};

template <class T, int n>
struct VectorOf {
    typedef T Type __attribute__((vector_size(n * sizeof(T))));
    // The same in an array of T, which need not be aligned to the vector.
    typedef T Loose __attribute__((vector_size(n * sizeof(T)), aligned(alignof(T)), may_alias));
};

// A vector has `registers` registers of n numbers each. With more than one, a chain of dependent
// operations, such as an exponential, has a neighbour to share its waiting time with.
template <class T, int n, int registers = 1>
struct Vector {
    using Register = typename VectorOf<T, n>::Type;
    using Loose = typename VectorOf<T, n>::Loose;
    using Mask = Vector<typename Integers<sizeof(T)>::Signed, n, registers>;  // -1 is true
    static constexpr int count = n * registers;

    Register v[registers];

    Vector() = default;
    HD Vector(T x) : Vector(each([&](auto) { return x - Register{}; })) {}

    HD static Vector load(const T* from) {
        return each([&](auto k) { return *reinterpret_cast<const Loose*>(from + k * n); });
    }
    HD void store(T* to) const {
        for (int k = 0; k < registers; ++k) *reinterpret_cast<Loose*>(to + k * n) = v[k];
    }
    T operator[](int k) const { return v[k / n][k % n]; }
    void set(int k, T x) { v[k / n][k % n] = x; }

    // Call f(k) for every register. A loop would not do: the registers of an array that is indexed
    // by a variable end up in memory.
    template <class F>
    HD static Vector each(F f) {
        return each(f, std::make_integer_sequence<int, registers>());
    }
    template <class F, int... k>
    HD static Vector each(F f, std::integer_sequence<int, k...>) {
        Vector result;
        ((result.v[k] = (Register)f(std::integral_constant<int, k>())), ...);
        return result;
    }

    HD friend Vector operator+(Vector a, Vector b) {
        return each([&](auto k) { return a.v[k] + b.v[k]; });
    }
    HD friend Vector operator-(Vector a, Vector b) {
        return each([&](auto k) { return a.v[k] - b.v[k]; });
    }
    HD friend Vector operator*(Vector a, Vector b) {
        return each([&](auto k) { return a.v[k] * b.v[k]; });
    }
    HD friend Vector operator/(Vector a, Vector b) {
        return each([&](auto k) { return a.v[k] / b.v[k]; });
    }
    HD friend Vector operator-(Vector a) {
        return each([&](auto k) { return -a.v[k]; });
    }
    HD friend Vector operator<<(Vector a, int bits) {
        return each([&](auto k) { return a.v[k] << bits; });
    }
    HD friend Vector operator>>(Vector a, int bits) {
        return each([&](auto k) { return a.v[k] >> bits; });
    }
    HD friend Mask operator<(Vector a, Vector b) {
        return Mask::each([&](auto k) { return a.v[k] < b.v[k]; });
    }
    HD friend Mask operator<=(Vector a, Vector b) {
        return Mask::each([&](auto k) { return a.v[k] <= b.v[k]; });
    }
    HD friend Mask operator==(Vector a, Vector b) {
        return Mask::each([&](auto k) { return a.v[k] == b.v[k]; });
    }
    HD friend Mask operator!=(Vector a, Vector b) {
        return Mask::each([&](auto k) { return a.v[k] != b.v[k]; });
    }
    HD friend Mask operator>(Vector a, Vector b) { return b < a; }
    HD friend Mask operator>=(Vector a, Vector b) { return b <= a; }

    // Operators of masks.
    HD friend Vector operator&(Vector a, Vector b) {
        return each([&](auto k) { return a.v[k] & b.v[k]; });
    }
    HD friend Vector operator|(Vector a, Vector b) {
        return each([&](auto k) { return a.v[k] | b.v[k]; });
    }
    HD friend Vector operator!(Vector a) {
        return each([&](auto k) { return ~a.v[k]; });
    }
};

template <class T, int n, int registers>
struct Traits<Vector<T, n, registers>> {
    using Scalar = T;
};
template <class T, int n, int registers>
struct ColumnsOf<Vector<T, n, registers>> {
    using Type = typename Vector<T, n, registers>::Mask;  // as wide as T, to select among
};

template <class T, int n, int registers>
HD inline Vector<T, n, registers> select(typename Vector<T, n, registers>::Mask mask,
                                         Vector<T, n, registers> yes, Vector<T, n, registers> no) {
    return Vector<T, n, registers>::each([&](auto k) { return mask.v[k] ? yes.v[k] : no.v[k]; });
}

template <class T, int n, int registers>
HD inline auto bits_of(Vector<T, n, registers> x) {
    using Bits = Vector<typename Integers<sizeof(T)>::Unsigned, n, registers>;
    return Bits::each([&](auto k) { return (typename Bits::Register)x.v[k]; });
}
template <int n, int registers>
HD inline auto from_bits(Vector<std::uint32_t, n, registers> bits) {
    using V = Vector<float, n, registers>;
    return V::each([&](auto k) { return (typename V::Register)bits.v[k]; });
}
template <int n, int registers>
HD inline auto from_bits(Vector<std::uint64_t, n, registers> bits) {
    using V = Vector<double, n, registers>;
    return V::each([&](auto k) { return (typename V::Register)bits.v[k]; });
}

// The letter of a register that holds a vector.
#if defined(__AVX512F__)
#define PAIROPS_REGISTER "v"
#elif defined(__aarch64__)
#define PAIROPS_REGISTER "w"
#else
#define PAIROPS_REGISTER "x"
#endif

// Round x. A contribution must have the same bits in forward and in backward; without this, its
// last product could be fused into the subtraction of a maximum or of a statistic, and not be
// rounded.
template <class T, int n, int registers>
HD inline Vector<T, n, registers> rounded(Vector<T, n, registers> x) {
    return Vector<T, n, registers>::each([&](auto k) {
        auto one = x.v[k];
        asm("" : "+" PAIROPS_REGISTER(one));
        return one;
    });
}

// The logarithm is taken once per row; a polynomial would gain nothing.
template <class T, int n, int registers>
HD inline Vector<T, n, registers> log(Vector<T, n, registers> x) {
    T numbers[n * registers];
    x.store(numbers);
    for (T& one : numbers) one = std::log(one);
    return Vector<T, n, registers>::load(numbers);
}

template <class T, int n, int registers>
HD inline bool any(Vector<T, n, registers> mask) {
    T found = 0;
    for (int k = 0; k < mask.count; ++k) found |= mask[k];
    return found != 0;
}

template <class T, int n, int registers>
HD inline T sum(Vector<T, n, registers> x) {
    // Halves added to halves round less often than one number after the other.
    for (int width = x.count / 2; width > 0; width /= 2)
        for (int k = 0; k < width; ++k) x.set(k, x[k] + x[k + width]);
    return x[0];
}

template <class T, int n, int registers>
inline T lowest(Vector<T, n, registers> x) {
    T result = x[0];
    for (int k = 1; k < x.count; ++k) result = x[k] < result ? x[k] : result;
    return result;
}
template <class T, int n, int registers>
inline T highest(Vector<T, n, registers> x) {
    return -lowest(-x);
}

// 0, 1, 2, ...
template <class V>
HD inline V iota() {
    V x(0);
    for (int k = 0; k < V::count; ++k) x.set(k, k);
    return x;
}

}  // namespace PAIROPS_TARGET
}  // namespace pairops
