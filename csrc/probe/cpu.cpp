// Probes on the host, as loops over the array.
#include "probe/probe.h"

namespace pairops::cpu {

template <class T>
void run(const std::string& function, const FunctionProbe<T>& probe) {
    visit_named<Functions>(function, [&](auto named) {
        for (std::int64_t i = 0; i < probe.n; ++i) probe.template at<decltype(named)>(i);
    });
}

template <class T>
void run(const std::string& accumulator, const AccumulatorProbe<T>& probe) {
    visit_named<Accumulators<T>>(accumulator,
                                 [&](auto named) { probe.template run<decltype(named)>(); });
}

template void run(const std::string&, const FunctionProbe<float>&);
template void run(const std::string&, const FunctionProbe<double>&);
template void run(const std::string&, const AccumulatorProbe<float>&);
template void run(const std::string&, const AccumulatorProbe<double>&);

}  // namespace pairops::cpu
