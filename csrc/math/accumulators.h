// Accumulators: monoids that make one statistic of the contributions of a row's pairs, on host and
// device.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>

#include "math/functions.h"

namespace pairops {
inline namespace PAIROPS_TARGET {

using Column = std::int32_t;

// Column indices, as many as T has numbers.
template <class T>
struct ColumnsOf {
    using Type = Column;
};
template <class T>
using Columns = typename ColumnsOf<T>::Type;

template <class T>
HD inline T infinity() {
    constexpr auto value = std::numeric_limits<typename Traits<T>::Scalar>::infinity();
    return T(value);
}
// The column of the initial state is above every other, so that an infinity wins against it.
template <class T>
HD inline Columns<T> nowhere() {
    constexpr auto value = std::numeric_limits<Column>::max();
    return Columns<T>(value);
}

// The statistic of a row; backward needs no more of it than this. `argument` is the column of an
// extreme, and -1 for every other accumulator and for an empty side.
template <class T>
struct Statistic {
    T value;
    Columns<T> argument;
};

// Every accumulator offers init(), update(f, j), merge(other), finalize(), and
// share(f, j, statistic) = the derivative of the statistic by the contribution f of column j.
// An update by (neutral(), nowhere()) does not change the result.
//
// A sum also adds up what rounding loses of it, for a row may be as long as a data set.
template <class T>
struct Sum {
    static constexpr const char* name = "sum";
    static constexpr bool extreme = false, has_argument = false;
    T sum;
    T lost;  // NaN beside an infinite sum

    HD static T neutral() { return T(0); }
    HD static Sum init() { return {T(0), T(0)}; }
    HD void update(T f, Columns<T>) {
        const T total = sum + f, added = total - sum;
        lost = lost + ((sum - (total - added)) + (f - added));
        sum = total;
    }
    HD void merge(const Sum& other) {
        update(other.sum, nowhere<T>());
        lost = lost + other.lost;
    }
    HD Statistic<T> finalize() const {
        return {select(lost == lost, sum + lost, sum), Columns<T>(-1)};
    }
    HD static T share(T, Columns<T>, const Statistic<T>&) { return T(1); }
};

// Invariant: `max` is never NaN; a NaN lives in `sum`, and no later update or merge can remove it.
template <class T>
struct LogSumExp {
    static constexpr const char* name = "lse";
    static constexpr bool extreme = false, has_argument = false;
    T max;
    T sum;  // of exp(f - max); anything as long as max is -inf

    HD static T neutral() { return -infinity<T>(); }
    HD static LogSumExp init() { return {-infinity<T>(), T(0)}; }
    HD void update(T f, Columns<T>) {
        const auto grows = f > max;
        const T apart = exp_to_one(minus_magnitude(difference(f, max)));
        sum = select(grows, sum * apart + T(1), sum + apart);
        max = select(grows, f, max);
    }
    HD void merge(const LogSumExp& other) {
        const T top = select(other.max > max, other.max, max);
        sum = sum * exp_to_one(difference(max, top)) +
              other.sum * exp_to_one(difference(other.max, top));
        max = top;
    }
    HD Statistic<T> finalize() const {
        using std::log;
        return {max + log(sum), Columns<T>(-1)};
    }
    HD static T share(T f, Columns<T>, const Statistic<T>& of) {
        return select(of.value == -infinity<T>(), T(0), exp(f - of.value));
    }

   private:
    // a - b, where equal infinities are 0 apart.
    HD static T difference(T a, T b) { return select(a == b, T(0), a - b); }
};

// The lowest or the highest contribution and, if it is wanted, its column. A NaN wins; ties go to
// the lowest column, in whatever order the columns come.
template <class T, bool lowest, bool with_argument>
struct Extreme {
    static constexpr const char* name = lowest ? "lowest" : "highest";
    static constexpr bool extreme = true, has_argument = with_argument;
    T value;
    Columns<T> argument;

    HD static T neutral() { return lowest ? infinity<T>() : -infinity<T>(); }
    HD static Extreme init() { return {neutral(), nowhere<T>()}; }
    HD void update(T f, Columns<T> j) {
        auto wins = (lowest ? f < value : f > value) | (f != f);
        if (with_argument) {
            const auto nan = value != value;
            const auto ties = (f == value) | ((f != f) & nan);
            wins = (ties & (j < argument)) | ((!ties) & (!nan) & wins);
            argument = select(wins, j, argument);
        }
        value = select(wins, f, value);
    }
    HD void merge(const Extreme& other) { update(other.value, other.argument); }
    HD Statistic<T> finalize() const {
        return {value, select(argument == nowhere<T>(), Columns<T>(-1), argument)};
    }
    HD static T share(T, Columns<T> j, const Statistic<T>& of) {
        return select(j == of.argument, T(1), T(0));
    }
};
template <class T>
using Lowest = Extreme<T, true, true>;
template <class T>
using Highest = Extreme<T, false, true>;
// Thresholds: nobody asks where they were attained.
template <class T>
using LowestValue = Extreme<T, true, false>;
template <class T>
using HighestValue = Extreme<T, false, false>;

template <class T>
using Accumulators = std::tuple<Sum<T>, LogSumExp<T>, Lowest<T>, Highest<T>>;

}  // namespace PAIROPS_TARGET
}  // namespace pairops
