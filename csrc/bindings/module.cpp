// The module pairops._native. It takes names, sizes and raw addresses, and every argument is
// checked before its use.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <optional>
#include <vector>

#include "probe/probe.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;
// The driver's handle of a stream; no stream means the host.
using Stream = std::optional<std::uintptr_t>;

#ifdef PAIROPS_CUDA_TOOLKIT
constexpr const char* cuda_toolkit = PAIROPS_CUDA_TOOLKIT;
constexpr const char* cuda_architectures = PAIROPS_CUDA_ARCHITECTURES;
constexpr const char* cuda_sources = PAIROPS_CUDA_SOURCES;  // a digest
#else
constexpr const char* cuda_toolkit = nullptr;
constexpr const char* cuda_architectures = nullptr;
constexpr const char* cuda_sources = nullptr;
#endif

void require(bool holds, const std::string& argument, const std::string& was,
             const std::string& must) {
    if (!holds) throw py::value_error(argument + " is " + was + "; it must be " + must);
}

void require_length(std::int64_t n) {
    constexpr std::int64_t most = std::numeric_limits<pairops::Column>::max();
    require(0 <= n && n <= most, "n", std::to_string(n), "from 0 to " + std::to_string(most));
}

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// Call visit with a value of the type that torch calls `dtype`.
template <class Visit>
void visit_dtype(const std::string& dtype, Visit visit) {
    require(dtype == "float32" || dtype == "float64", "dtype", "'" + dtype + "'",
            "float32 or float64");
    dtype == "float32" ? visit(float()) : visit(double());
}

template <class Probe>
void run(const std::string& name, const Probe& probe, const Stream& stream) {
    if (!stream) return pairops::cpu::run(name, probe);
#ifdef PAIROPS_CUDA_TOOLKIT
    pairops::cuda::run(name, probe, *stream);
#else
    require(false, "stream", std::to_string(*stream), "None: this build has no CUDA kernels");
#endif
}

void probe_function(const std::string& name, const std::string& dtype,
                    const std::vector<double>& args, std::int64_t n, Address s, Address value,
                    Address slopes, const Stream& stream) {
    require_length(n);
    pairops::visit_named<pairops::Functions>(name, [&](auto named) {
        require(args.size() == named.arity, "args", std::to_string(args.size()) + " numbers",
                std::to_string(named.arity) + " (" + named.arguments + ") for " + name);
    });
    visit_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        pairops::FunctionProbe<T> probe{{}, n, at<T>(s), at<T>(value), at<T>(slopes)};
        for (std::size_t k = 0; k < args.size(); ++k) probe.args[k] = T(args[k]);
        run(name, probe, stream);
    });
}

void probe_accumulator(const std::string& name, const std::string& dtype, std::int64_t n,
                       std::int64_t split, Address contributions, Address value, Address argument,
                       Address shares, const Stream& stream) {
    require_length(n);
    require(0 <= split && split <= n, "split", std::to_string(split),
            "from 0 to n = " + std::to_string(n));
    visit_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        const pairops::AccumulatorProbe<T> probe{n,
                                                 split,
                                                 at<T>(contributions),
                                                 at<T>(value),
                                                 at<pairops::Column>(argument),
                                                 at<T>(shares)};
        run(name, probe, stream);
    });
}

py::dict features() {
    py::dict found;
    found["version"] = PAIROPS_VERSION;
    found["cuda"] = cuda_toolkit != nullptr;
    found["cuda_toolkit"] = cuda_toolkit;
    found["cuda_architectures"] = cuda_architectures;
    found["cuda_sources"] = cuda_sources;
    found["compiler"] = PAIROPS_COMPILER;
    found["build_type"] = PAIROPS_BUILD_TYPE;
    return found;
}

}  // namespace

namespace pairops::cpu {
void bind(py::module_& module);  // bindings/cpu.cpp
}
namespace pairops::cuda {
void bind(py::module_& module);  // bindings/cuda.cpp
}

PYBIND11_MODULE(_native, module, py::mod_gil_not_used()) {
    module.doc() = "The compiled half of pairops: raw addresses in, nothing of torch.";
    module.def("version", [] { return PAIROPS_VERSION; });
    module.def("features", &features, "What this build was made of.");
    module.def("probe_function", &probe_function,
               "Write a pair function's value (n,) and slopes (n, 1 + number of args) over s (n,).",
               py::arg("name"), py::kw_only(), py::arg("dtype"), py::arg("args"), py::arg("n"),
               py::arg("s"), py::arg("value"), py::arg("slopes"), py::arg("stream") = py::none());
    module.def("probe_accumulator", &probe_accumulator,
               "Write the statistic of n contributions, split in two and merged: value (1,), int32 "
               "argument (1,) and shares (n,).",
               py::arg("name"), py::kw_only(), py::arg("dtype"), py::arg("n"), py::arg("split"),
               py::arg("contributions"), py::arg("value"), py::arg("argument"), py::arg("shares"),
               py::arg("stream") = py::none());
    pairops::cpu::bind(module);
    module.attr("cuda") = py::none();
#ifdef PAIROPS_CUDA_TOOLKIT
    auto cuda = module.def_submodule("cuda", "The sweeps on a GPU.");
    pairops::cuda::bind(cuda);
#endif
}
