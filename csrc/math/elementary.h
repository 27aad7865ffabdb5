// Elementary functions without branches (exp, log1p, select), written once for a scalar and for
// a Vector, on host and device.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#ifdef __FAST_MATH__
#error "a NaN must come out as a NaN: build without -ffast-math"
#endif

// Functions are always inline: a call inside a loop over pairs would pass its vectors through
// memory.
#ifdef __CUDACC__
#define HD __host__ __device__
#else
#define HD __attribute__((always_inline))
#endif

// A file that is compiled for one processor names it here, so that the linker never takes its
// instantiations for those of a file that is compiled for another.
#ifndef PAIROPS_TARGET
#define PAIROPS_TARGET portable
#endif

namespace pairops {
inline namespace PAIROPS_TARGET {

// The numbers that a type is made of: `Vector<float, 16>` (cpu/simd/simd.h) has 16 floats, a float
// one.
template <class T>
struct Traits {
    using Scalar = T;
};

template <class T>
HD inline T select(bool condition, T yes, T no) {
    return condition ? yes : no;
}

// Round x before it is used: a product may otherwise be fused into a sum, unrounded. Vectors have
// their own (cpu/simd/simd.h); numbers one by one are only probed.
template <class T>
HD inline T rounded(T x) {
    return x;
}

HD inline std::uint32_t bits_of(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof x);
    return bits;
}
HD inline std::uint64_t bits_of(double x) {
    std::uint64_t bits;
    std::memcpy(&bits, &x, sizeof x);
    return bits;
}
HD inline float from_bits(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
HD inline double from_bits(std::uint64_t bits) {
    double x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

template <class T>
HD inline T magnitude(T x) {
#ifdef __CUDA_ARCH__
    return ::fabs(x);
#else
    return select(x < T(0), -x, x);
#endif
}

// −|x|
template <class T>
HD inline T minus_magnitude(T x) {
#ifdef __CUDA_ARCH__
    return -magnitude(x);
#else
    // The sign bit alone: a comparison and a selection would be two operations more.
    return from_bits(bits_of(x) | bits_of(T(typename Traits<T>::Scalar(-0.0))));
#endif
}

// Σ c[k] x^k for first ≤ k < end, where powers[p] is x^(2^p): in halves, which can be computed at
// the same time, and not term by term.
template <int first, int end, class T, class Scalar, int n>
HD inline T polynomial(const T* powers, const Scalar (&c)[n]) {
    if constexpr (end - first == 1) {
        return T(c[first]);
    } else {
        constexpr int p = end - first > 8 ? 3 : end - first > 4 ? 2 : end - first > 2 ? 1 : 0;
        constexpr int middle = first + (1 << p);
        return polynomial<first, middle>(powers, c) +
               powers[p] * polynomial<middle, end>(powers, c);
    }
}
template <class T, class Scalar, int n>
HD inline T polynomial(T x, const Scalar (&c)[n]) {
    const T square = x * x, fourth = square * square;
    const T powers[] = {x, square, fourth, fourth * fourth};
    return polynomial<0, n>(powers, c);
}

// exp r = 1 + r + r² P(r) for |r| ≤ ½ log 2, and log1p e = t (2 + t² Q(t²)) with t = e / (2 + e)
// for 0 ≤ e ≤ 1. P and Q minimise the largest relative error of the whole: 3e-9 and 5e-9 for float,
// 4e-18 and 5e-17 for double. `shift` is 1.5 · 2^mantissa: a number plus it has the nearest integer
// in its lowest bits. `ln2_high` has so few bits that n · ln2_high is exact.
template <class Scalar>
struct Elementary;

template <>
struct Elementary<float> {
    static constexpr int mantissa = 23, bias = 127;
    static constexpr float shift = 12582912.f, least = -87.33f, most = 88.37f;
    static constexpr float ln2_high = 0.693359375f, ln2_low = -2.1219444e-4f;
    static constexpr float p[] = {0.499999934475f, 0.166665206314f, 0.0416683881267f,
                                  0.00836871691769f, 0.00138145941918f};
    static constexpr float q[] = {0.666664131246f, 0.400216993868f, 0.279991369317f,
                                  0.280244757078f};
};

template <>
struct Elementary<double> {
    static constexpr int mantissa = 52, bias = 1023;
    static constexpr double shift = 6755399441055744., least = -708.39, most = 709.43;
    static constexpr double ln2_high = 0.6931471804855391, ln2_low = 7.440617110012397e-11;
    static constexpr double p[] = {0.50000000000000106271,     0.16666666666666412551,
                                   0.041666666666530159359,    0.0083333333334944459052,
                                   0.0013888888943629925011,   0.00019841269506607020995,
                                   0.000024801493099026790015, 2.7557586353524057071e-6,
                                   2.7630248368101586271e-7,   2.5000066625491786513e-8};
    static constexpr double q[] = {
        0.66666666666677872843, 0.39999999995997700943,  0.28571429063174210293,
        0.22222192655404880125, 0.1818282071192295298,   0.15364192454547182848,
        0.13587242463194214589, 0.098983265030800888062, 0.17748808617502782049};
};

// The exponential for `least` ≤ x ≤ `most`, within 2 units in the last place; NaN of a NaN.
// exp(least) is the least normal number, exp(most) a factor of 1.42 below the largest.
template <class T>
HD inline T exp_within(T x) {
#ifdef __CUDA_ARCH__
    return ::exp(x);
#else
    using Scalar = typename Traits<T>::Scalar;
    using E = Elementary<Scalar>;
    const T shifted = x * T(Scalar(1.4426950408889634)) + T(E::shift);
    const T n = shifted - T(E::shift);
    const T r = (x - n * T(E::ln2_high)) - n * T(E::ln2_low);
    const T fraction = T(1) + (r + (r * r) * polynomial(r, E::p));
    const auto power = (bits_of(shifted) << E::mantissa) + bits_of(T(1));
    return fraction * from_bits(power);
#endif
}

// The same with 0 below `least`, for an x that is not above 0 but for rounding.
template <class T>
HD inline T exp_to_one(T x) {
#ifdef __CUDA_ARCH__
    return ::exp(x);
#else
    using E = Elementary<typename Traits<T>::Scalar>;
    return select(x < T(E::least), T(0), exp_within(x));
#endif
}

// The same for every x, with infinity above `most`.
template <class T>
HD inline T exp(T x) {
#ifdef __CUDA_ARCH__
    return ::exp(x);
#else
    using Scalar = typename Traits<T>::Scalar;
    using E = Elementary<Scalar>;
    constexpr Scalar infinite = std::numeric_limits<Scalar>::infinity();
    return select(x > T(E::most), T(infinite), exp_to_one(x));
#endif
}

// The logarithm of 1 + e for 0 ≤ e ≤ 1, with the relative precision of e; within 3 units in the
// last place.
template <class T>
HD inline T log1p(T e) {
#ifdef __CUDA_ARCH__
    return ::log1p(e);
#else
    using E = Elementary<typename Traits<T>::Scalar>;
    const T t = e / (T(2) + e), square = t * t;
    return t * (T(2) + square * polynomial(square, E::q));
#endif
}

}  // namespace PAIROPS_TARGET
}  // namespace pairops
