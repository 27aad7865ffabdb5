// What one pair contributes to a statistic: value and slopes at one similarity, on host and device;
// the twins of pairops/functions.py.
#pragma once

#include <cmath>
#include <tuple>

#ifdef __FAST_MATH__
#error "a NaN must come out as a NaN: build without -ffast-math"
#endif

#ifdef __CUDACC__
#define HD __host__ __device__
#else
#define HD
#endif

namespace pairops {

// Derivatives by s, then by each argument in the order in which value() takes them.
template <class T, int arity>
struct Slopes {
    T by[1 + arity];
};

struct Identity {
    static constexpr const char* name = "identity";
    static constexpr const char* arguments = "";
    static constexpr int arity = 0;

    template <class T>
    HD static T value(T s) {
        return s;
    }
    template <class T>
    HD static Slopes<T, arity> slopes(T) {
        return {{T(1)}};
    }
};

// scale * (s - base)
struct Affine {
    static constexpr const char* name = "affine";
    static constexpr const char* arguments = "scale, base";
    static constexpr int arity = 2;

    template <class T>
    HD static T value(T s, T scale, T base) {
        return scale * (s - base);
    }
    template <class T>
    HD static Slopes<T, arity> slopes(T s, T scale, T base) {
        return {{scale, s - base, -scale}};
    }
};

// max(0, z) with z = scale * (s - base). Its slopes at z = 0 are 0, and NaN at a NaN, so that a
// poisoned row never shows a silent zero gradient.
struct Hinge {
    static constexpr const char* name = "hinge";
    static constexpr const char* arguments = "scale, base";
    static constexpr int arity = 2;

    template <class T>
    HD static T value(T s, T scale, T base) {
        const T z = scale * (s - base);
        return z <= 0 ? T(0) : z;
    }
    template <class T>
    HD static Slopes<T, arity> slopes(T s, T scale, T base) {
        const T z = scale * (s - base);
        if (z > 0) return {{scale, s - base, -scale}};
        const T flat = z <= 0 ? T(0) : z;
        return {{flat, flat, flat}};
    }
};

// log(1 + exp(z)) with z = scale * s + bias. Exponentials are taken of -|z| alone: they cannot
// overflow, and log1p keeps every digit of a small one.
struct Softplus {
    static constexpr const char* name = "softplus";
    static constexpr const char* arguments = "scale, bias";
    static constexpr int arity = 2;

    template <class T>
    HD static T value(T s, T scale, T bias) {
        const T z = scale * s + bias;
        return (z > 0 ? z : T(0)) + std::log1p(std::exp(-std::fabs(z)));
    }
    template <class T>
    HD static Slopes<T, arity> slopes(T s, T scale, T bias) {
        const T z = scale * s + bias;
        const T small = std::exp(-std::fabs(z));
        const T sigmoid = (z > 0 ? T(1) : small) / (1 + small);
        return {{sigmoid * scale, sigmoid * s, sigmoid}};
    }
};

using Functions = std::tuple<Identity, Affine, Hinge, Softplus>;

}  // namespace pairops
