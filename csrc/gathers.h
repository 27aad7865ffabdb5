// How the contributions of a row's pairs become one statistic: the monoids, on host and device.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>

#include "functions.h"

namespace pairops {

using Column = std::int32_t;

template <class T>
inline constexpr T infinity = std::numeric_limits<T>::infinity();

// What a row keeps: weigh needs no more of it than this. `argument` is the column of an extreme and
// -1 for every other gather and for an empty side.
template <class T>
struct Statistic {
    T value;
    Column argument;
};

// Every gather offers identity(), push(f, j), merge(other), result(), and
// share(f, j, statistic) = the derivative of the statistic by the contribution f of column j.
template <class T>
struct Sum {
    static constexpr const char* name = "sum";
    T sum;

    HD static Sum identity() { return {T(0)}; }
    HD void push(T f, Column) { sum += f; }
    HD void merge(const Sum& other) { sum += other.sum; }
    HD Statistic<T> result() const { return {sum, -1}; }
    HD static T share(T, Column, const Statistic<T>&) { return T(1); }
};

// Invariant: `max` is never NaN; a NaN lives in `sum`, and no later push or merge can remove it.
template <class T>
struct LogSumExp {
    static constexpr const char* name = "lse";
    T max;
    T sum;  // of exp(f - max)

    HD static LogSumExp identity() { return {-infinity<T>, T(0)}; }
    HD void push(T f, Column) {
        if (f > max) {
            sum = sum * std::exp(max - f) + 1;
            max = f;
        } else {
            sum += rescale(f, max);
        }
    }
    HD void merge(const LogSumExp& other) {
        const T top = other.max > max ? other.max : max;
        sum = sum * rescale(max, top) + other.sum * rescale(other.max, top);
        max = top;
    }
    HD Statistic<T> result() const { return {max + std::log(sum), -1}; }
    HD static T share(T f, Column, const Statistic<T>& of) {
        return of.value == -infinity<T> ? T(0) : std::exp(f - of.value);
    }

   private:
    // exp(from - to), where equal infinities are a factor of 1.
    HD static T rescale(T from, T to) { return from == to ? T(1) : std::exp(from - to); }
};

// The lowest or the highest contribution and its column. A NaN wins; ties go to the lowest column,
// in whatever order the columns come.
template <class T, bool lowest>
struct Extreme {
    static constexpr const char* name = lowest ? "lowest" : "highest";
    T value;
    Column argument;

    HD static Extreme identity() { return {lowest ? infinity<T> : -infinity<T>, -1}; }
    HD void push(T f, Column j) {
        if (beaten_by(f, j)) {
            value = f;
            argument = j;
        }
    }
    HD void merge(const Extreme& other) { push(other.value, other.argument); }
    HD Statistic<T> result() const { return {value, argument}; }
    HD static T share(T, Column j, const Statistic<T>& of) { return T(j == of.argument); }

   private:
    HD bool beaten_by(T f, Column j) const {
        const bool nan_here = value != value, nan_there = f != f;
        if (nan_here != nan_there) return nan_there;
        const bool better = lowest ? f < value : f > value;
        const bool worse = lowest ? f > value : f < value;
        // Unsigned, the -1 of the identity comes after every column: a pushed infinity still wins.
        return better || (!worse && std::uint32_t(j) < std::uint32_t(argument));
    }
};
template <class T>
using Lowest = Extreme<T, true>;
template <class T>
using Highest = Extreme<T, false>;

template <class T>
using Gathers = std::tuple<Sum<T>, LogSumExp<T>, Lowest<T>, Highest<T>>;

}  // namespace pairops
