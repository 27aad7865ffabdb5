// The CUDA sweeps as a Python module whose kernels run on the CPU: what ops/engines/cuda/ calls.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "host.h"

namespace pairops::cuda {
void bind(pybind11::module_& module);  // csrc/bindings/cuda.cpp
}

PYBIND11_MODULE(cuda_on_host, module) {
    namespace host = pairops::cuda::host;
    pairops::cuda::bind(module);
    module.def("forget_launches", &host::forget_launches);
    module.def("set_schedule",
               pybind11::overload_cast<const std::string&, std::uint64_t>(&host::set_schedule),
               "Which thread goes on when several could, from here on.", pybind11::arg("name"),
               pybind11::arg("seed") = 0);
    module.def("record", &host::record, "Whether launches from here on are kept.",
               pybind11::arg("on"));
    module.def("replay", &host::replay, "Run those that were kept once more.");
    module.def("launched", &host::launched, "Names of the kernels launched since then.");
}
