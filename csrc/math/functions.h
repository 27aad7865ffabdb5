// Pair functions: what one pair contributes to a statistic, and its slopes, on host and device;
// the twins of ops/terms/functions.py. T is a number or a Vector (cpu/simd/simd.h): either way a
// function sees one similarity.
#pragma once

#include <limits>
#include <tuple>

#include "math/elementary.h"

namespace pairops {
inline namespace PAIROPS_TARGET {

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

// The sum counts pairs, a NaN among them.
struct One {
    static constexpr const char* name = "one";
    static constexpr const char* arguments = "";
    static constexpr int arity = 0;

    template <class T>
    HD static T value(T) {
        return T(1);
    }
    template <class T>
    HD static Slopes<T, arity> slopes(T) {
        return {{T(0)}};
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
        return select(z <= T(0), T(0), z);
    }
    template <class T>
    HD static Slopes<T, arity> slopes(T s, T scale, T base) {
        const T z = scale * (s - base);
        const T flat = select(z <= T(0), T(0), z);
        const auto rises = z > T(0);
        return {{select(rises, scale, flat), select(rises, s - base, flat),
                 select(rises, -scale, flat)}};
    }
};

// 1 / (1 + exp(-z)) with z = scale * (s - base), by exponentials of -|z| alone.
struct Sigmoid {
    static constexpr const char* name = "sigmoid";
    static constexpr const char* arguments = "scale, base";
    static constexpr int arity = 2;

    template <class T>
    HD static T of(T z) {
        const T small = exp_to_one(minus_magnitude(z));
        return select(z > T(0), T(1), small) / (T(1) + small);
    }
    template <class T>
    HD static T value(T s, T scale, T base) {
        return of(scale * (s - base));
    }
    template <class T>
    HD static Slopes<T, arity> slopes(T s, T scale, T base) {
        const T small = exp_to_one(minus_magnitude(scale * (s - base)));
        const T slope = small / ((T(1) + small) * (T(1) + small));
        return {{slope * scale, slope * (s - base), -(slope * scale)}};
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
        return select(z < T(0), T(0), z) + log1p(exp_to_one(minus_magnitude(z)));
    }
    template <class T>
    HD static Slopes<T, arity> slopes(T s, T scale, T bias) {
        const T sigmoid = Sigmoid::of(scale * s + bias);
        return {{sigmoid * scale, sigmoid * s, sigmoid}};
    }
};

// log(1 + exp(z)) with z = scale * (s - base) + bias: where s and base are large and near, what is
// left of them is exact.
struct SoftplusFrom {
    static constexpr const char* name = "softplus_from";
    static constexpr const char* arguments = "scale, base, bias";
    static constexpr int arity = 3;

    template <class T>
    HD static T value(T s, T scale, T base, T bias) {
        return Softplus::value(s - base, scale, bias);
    }
    template <class T>
    HD static Slopes<T, arity> slopes(T s, T scale, T base, T bias) {
        const Slopes<T, 2> of = Softplus::slopes(s - base, scale, bias);
        return {{of.by[0], of.by[1], -of.by[0], of.by[2]}};
    }
};

// max(0, x), and NaN of a NaN: the weight of a pair in circle loss, held constant in every slope.
template <class T>
HD inline T circle_weight(T x) {
    return select(x <= T(0), T(0), x);
}

// -gamma * weight * (s - (1 - margin))
struct CirclePull {
    static constexpr const char* name = "circle_pull";
    static constexpr const char* arguments = "gamma, margin";
    static constexpr int arity = 2;

    template <class T>
    HD static T value(T s, T gamma, T margin) {
        return -gamma * circle_weight(T(1) + margin - s) * (s - (T(1) - margin));
    }
    template <class T>
    HD static Slopes<T, arity> slopes(T s, T gamma, T margin) {
        const T weight = circle_weight(T(1) + margin - s);
        return {{-gamma * weight, -weight * (s - (T(1) - margin)), -gamma * weight}};
    }
};

// gamma * weight * (s - margin)
struct CirclePush {
    static constexpr const char* name = "circle_push";
    static constexpr const char* arguments = "gamma, margin";
    static constexpr int arity = 2;

    template <class T>
    HD static T value(T s, T gamma, T margin) {
        return gamma * circle_weight(s + margin) * (s - margin);
    }
    template <class T>
    HD static Slopes<T, arity> slopes(T s, T gamma, T margin) {
        const T weight = circle_weight(s + margin);
        return {{gamma * weight, weight * (s - margin), -gamma * weight}};
    }
};

// (s - shift / scale) * exp(scale * s - shift), the exponential held constant. The product is
// rounded as it is in the log-sum-exp that is the shift: weights add up to 1 only if it is.
struct Attended {
    static constexpr const char* name = "attended";
    static constexpr const char* arguments = "scale, shift";
    static constexpr int arity = 2;

    template <class T>
    HD static T weight_of(T s, T scale, T shift) {
        return exp(rounded(scale * s) - shift);
    }
    template <class T>
    HD static T value(T s, T scale, T shift) {
        return (s - shift / scale) * weight_of(s, scale, shift);
    }
    template <class T>
    HD static Slopes<T, arity> slopes(T s, T scale, T shift) {
        const T weight = weight_of(s, scale, shift);
        return {{weight, shift / (scale * scale) * weight, -weight / scale}};
    }
};

// scale * s where t <= bar, else -inf: a log-sum-exp leaves the pair out. A NaN stays one.
struct Gated {
    static constexpr const char* name = "gated";
    static constexpr const char* arguments = "t, scale, bar";
    static constexpr int arity = 3;

    template <class T>
    HD static T value(T s, T t, T scale, T bar) {
        constexpr auto out = -std::numeric_limits<typename Traits<T>::Scalar>::infinity();
        const T z = (t - bar) + T(0) * s;
        return select(z <= T(0), scale * s, select(z > T(0), T(out), z));
    }
    template <class T>
    HD static Slopes<T, arity> slopes(T s, T t, T scale, T bar) {
        const T z = (t - bar) + T(0) * s;
        const auto below = z <= T(0);
        const T flat = select(z > T(0), T(0), z);
        const T by_gate = select(below, T(0), flat);
        return {{select(below, scale, flat), by_gate, select(below, s, flat), by_gate}};
    }
};

using Functions = std::tuple<Identity, One, Affine, Hinge, Sigmoid, Softplus, SoftplusFrom,
                             CirclePull, CirclePush, Attended, Gated>;

}  // namespace PAIROPS_TARGET
}  // namespace pairops
