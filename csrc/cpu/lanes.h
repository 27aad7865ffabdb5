// As many numbers as a register holds, with the arithmetic of one: functions.h and gathers.h are
// written for a number and run on these too.
#pragma once

#include "gathers.h"

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
    // In an array of T, which need not be aligned to the vector.
    typedef T Loose __attribute__((vector_size(n * sizeof(T)), aligned(alignof(T)), may_alias));
};

template <class T, int n>
struct Lanes {
    using Vector = typename VectorOf<T, n>::Type;
    using Loose = typename VectorOf<T, n>::Loose;
    using Mask = Lanes<typename Integers<sizeof(T)>::Signed, n>;  // -1 is true
    static constexpr int count = n;

    Vector v;

    Lanes() = default;
    Lanes(T x) : v(x - Vector{}) {}
    explicit Lanes(Vector v) : v(v) {}

    static Lanes load(const T* from) { return Lanes(Vector(*reinterpret_cast<const Loose*>(from))); }
    void store(T* to) const { *reinterpret_cast<Loose*>(to) = v; }

    friend Lanes operator+(Lanes a, Lanes b) { return Lanes(a.v + b.v); }
    friend Lanes operator-(Lanes a, Lanes b) { return Lanes(a.v - b.v); }
    friend Lanes operator*(Lanes a, Lanes b) { return Lanes(a.v * b.v); }
    friend Lanes operator/(Lanes a, Lanes b) { return Lanes(a.v / b.v); }
    friend Lanes operator-(Lanes a) { return Lanes(-a.v); }
    friend Lanes operator<<(Lanes a, int bits) { return Lanes(a.v << bits); }
    friend Mask operator<(Lanes a, Lanes b) { return Mask(typename Mask::Vector(a.v < b.v)); }
    friend Mask operator<=(Lanes a, Lanes b) { return Mask(typename Mask::Vector(a.v <= b.v)); }
    friend Mask operator>(Lanes a, Lanes b) { return Mask(typename Mask::Vector(a.v > b.v)); }
    friend Mask operator>=(Lanes a, Lanes b) { return Mask(typename Mask::Vector(a.v >= b.v)); }
    friend Mask operator==(Lanes a, Lanes b) { return Mask(typename Mask::Vector(a.v == b.v)); }
    friend Mask operator!=(Lanes a, Lanes b) { return Mask(typename Mask::Vector(a.v != b.v)); }
    // Of masks.
    friend Lanes operator&(Lanes a, Lanes b) { return Lanes(a.v & b.v); }
    friend Lanes operator|(Lanes a, Lanes b) { return Lanes(a.v | b.v); }
    friend Lanes operator!(Lanes a) { return Lanes(~a.v); }
};

template <class T, int n>
struct Traits<Lanes<T, n>> {
    using Scalar = T;
};
template <class T, int n>
struct ColumnsOf<Lanes<T, n>> {
    using Type = typename Lanes<T, n>::Mask;  // integers of the width of T, to select among
};

template <class T, int n>
inline Lanes<T, n> select(typename Lanes<T, n>::Mask mask, Lanes<T, n> yes, Lanes<T, n> no) {
    return Lanes<T, n>(mask.v ? yes.v : no.v);
}

template <class T, int n>
inline Lanes<typename Integers<sizeof(T)>::Unsigned, n> bits_of(Lanes<T, n> x) {
    using Bits = Lanes<typename Integers<sizeof(T)>::Unsigned, n>;
    return Bits(reinterpret_cast<typename Bits::Vector>(x.v));
}
template <int n>
inline Lanes<float, n> from_bits(Lanes<std::uint32_t, n> bits) {
    return Lanes<float, n>(reinterpret_cast<typename Lanes<float, n>::Vector>(bits.v));
}
template <int n>
inline Lanes<double, n> from_bits(Lanes<std::uint64_t, n> bits) {
    return Lanes<double, n>(reinterpret_cast<typename Lanes<double, n>::Vector>(bits.v));
}

// Once per row; a polynomial would gain nothing.
template <class T, int n>
inline Lanes<T, n> log(Lanes<T, n> x) {
    for (int k = 0; k < n; ++k) x.v[k] = std::log(x.v[k]);
    return x;
}

template <class T, int n>
inline bool any(Lanes<T, n> mask) {
    T found = 0;
    for (int k = 0; k < n; ++k) found |= mask.v[k];
    return found != 0;
}

template <class T, int n>
inline T sum(Lanes<T, n> x) {
    // Halves onto halves: fewer roundings than one after the other.
    for (int width = n / 2; width > 0; width /= 2)
        for (int k = 0; k < width; ++k) x.v[k] += x.v[k + width];
    return x.v[0];
}

// 0, 1, 2, ...
template <class L>
inline L iota() {
    L x(0);
    for (int k = 0; k < L::count; ++k) x.v[k] = k;
    return x;
}

}  // namespace PAIROPS_TARGET
}  // namespace pairops
