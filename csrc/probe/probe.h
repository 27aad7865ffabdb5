// Probes: every function and accumulator of math/ evaluated over one array, so that tests can hold
// host and device code against formulas and against the Python twins.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "math/accumulators.h"
#include "math/functions.h"

namespace pairops {

// Addresses are in the memory of the device that runs the probe.
template <class T>
struct FunctionProbe {
    T args[3];
    std::int64_t n;
    const T* s;  // (n,)
    T* value;    // (n,)
    T* slopes;   // (n, 1 + arity)

    template <class F>
    HD void at(std::int64_t i) const {
        at<F>(i, std::make_integer_sequence<int, F::arity>());
    }

   private:
    template <class F, int... k>
    HD void at(std::int64_t i, std::integer_sequence<int, k...>) const {
        value[i] = F::value(s[i], args[k]...);
        const auto derivatives = F::slopes(s[i], args[k]...);
        for (int a = 0; a <= F::arity; ++a) slopes[i * (1 + F::arity) + a] = derivatives.by[a];
    }
};

// Two states take the contributions before and from `split` on, and are merged.
template <class T>
struct AccumulatorProbe {
    std::int64_t n, split;
    const T* contributions;  // (n,)
    T* value;                // (1,)
    Column* argument;        // (1,)
    T* shares;               // (n,)

    template <class Acc>
    HD void run() const {
        Acc first = Acc::init(), second = Acc::init();
        for (Column j = 0; j < split; ++j) first.update(contributions[j], j);
        for (Column j = Column(split); j < n; ++j) second.update(contributions[j], j);
        first.merge(second);
        const Statistic<T> statistic = first.finalize();
        *value = statistic.value;
        *argument = statistic.argument;
        for (Column j = 0; j < n; ++j) shares[j] = Acc::share(contributions[j], j, statistic);
    }
};

// Call visit with the type in `Types` that is called `name`.
template <class... Types, class Visit>
void visit_named(const std::tuple<Types...>*, const std::string& name, Visit visit) {
    if (((name == Types::name && (visit(Types()), true)) || ...)) return;
    std::string known;
    ((known += std::string(known.empty() ? "" : ", ") + Types::name), ...);
    throw std::invalid_argument("name is '" + name + "'; it must be one of " + known);
}
template <class Types, class Visit>
void visit_named(const std::string& name, Visit visit) {
    visit_named(static_cast<const Types*>(nullptr), name, visit);
}

namespace cpu {
template <class T>
void run(const std::string& function, const FunctionProbe<T>& probe);
template <class T>
void run(const std::string& accumulator, const AccumulatorProbe<T>& probe);
}  // namespace cpu

namespace cuda {
// Enqueue on the stream, given as the driver's handle, and return; a refusal of the CUDA runtime is
// a std::runtime_error.
template <class T>
void run(const std::string& function, const FunctionProbe<T>& probe, std::uintptr_t stream);
template <class T>
void run(const std::string& accumulator, const AccumulatorProbe<T>& probe, std::uintptr_t stream);
}  // namespace cuda

}  // namespace pairops
