// The CUDA sweeps as Python calls them: tuples of addresses in, everything checked by
// engines/cuda.py. A call enqueues kernels on a stream and returns.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "cuda/sweeps.h"

namespace py = pybind11;

namespace pairops::cuda {
namespace {

using Address = std::uintptr_t;

template <class T>
T* pointer(const py::handle& address) {
    return address.is_none() ? nullptr : reinterpret_cast<T*>(address.cast<Address>());
}

// (rows, high, rest, order, kept, n)
Set set_of(const py::tuple& given) {
    return {pointer<std::uint16_t>(given[0]), pointer<float>(given[1]),
            pointer<float>(given[2]),         pointer<Index>(given[3]),
            pointer<std::int32_t>(given[4]),  given[5].cast<std::int32_t>()};
}

// (address or None, stride, number)
int operands_of(const py::list& given, Operand* operands) {
    if (given.size() > MOST_OPERANDS) throw py::value_error("too many operands");
    int n = 0;
    for (const auto& item : given) {
        const auto one = item.cast<py::tuple>();
        operands[n++] = {pointer<float>(one[0]), one[1].cast<std::int32_t>(), one[2].cast<float>()};
    }
    return n;
}

// (kind, side, across, (slots of two arguments, above, below, statistic, cotangent), (sums by two
// arguments), bits or None)
TermCall term_of(const py::tuple& given) {
    const auto side = given[1].cast<std::string>();
    const auto slots = given[3].cast<std::vector<int>>(),
               by_arg = given[4].cast<std::vector<int>>();
    TermCall term{};
    term.kind = given[0].cast<std::int32_t>();
    term.side = side == "pos" ? Side::pos : side == "neg" ? Side::neg : Side::all;
    term.across = given[2].cast<bool>();
    std::int8_t* places[] = {&term.args[0], &term.args[1],   &term.above,
                             &term.below,   &term.statistic, &term.cotangent};
    for (int k = 0; k < 6; ++k) *places[k] = std::int8_t(slots.at(k));
    for (int k = 0; k < 2; ++k) term.by_arg[k] = std::int8_t(by_arg.at(k));
    term.bits = pointer<std::uint8_t>(given[5]);
    return term;
}

// (rows, cols, (lo, hi, own), band or None, transposed, normalized, band_only, panels,
// row operands, column operands, terms)
void read_sweep(const py::tuple& given, Sweep& sweep) {
    sweep.rows = set_of(given[0].cast<py::tuple>());
    sweep.cols = set_of(given[1].cast<py::tuple>());
    const auto relation = given[2].cast<py::tuple>();
    sweep.lo = pointer<Index>(relation[0]);
    sweep.hi = pointer<Index>(relation[1]);
    sweep.own = pointer<Index>(relation[2]);
    sweep.band = pointer<Index>(given[3]);
    sweep.transposed = given[4].cast<bool>();
    sweep.normalized = given[5].cast<bool>();
    sweep.band_only = given[6].cast<bool>();
    sweep.panels = given[7].cast<std::int32_t>();
    sweep.n_row_operands = operands_of(given[8].cast<py::list>(), sweep.row_operands);
    sweep.n_col_operands = operands_of(given[9].cast<py::list>(), sweep.col_operands);
    const auto terms = given[10].cast<py::list>();
    if (terms.size() > MOST_TERMS) throw py::value_error("too many terms");
    for (const auto& item : terms) sweep.terms[sweep.n_terms++] = term_of(item.cast<py::tuple>());
}

Precision precision_called(const std::string& name) {
    return name == "split" ? Precision::split : name == "fine" ? Precision::fine : Precision::plain;
}

py::tuple shape(const std::string& precision, int d) {
    const ShapeFacts facts = shape_of(precision_called(precision), d);
    const int whole = facts.streamed ? facts.slice : facts.chunk;
    const int panels = (d + whole - 1) / whole * (whole / PANEL);
    return py::make_tuple(facts.rows, facts.columns, facts.slice, facts.parts, facts.streamed,
                          panels > 0 ? panels : whole / PANEL);
}

void arrange_bound(Address z, const std::string& dtype, std::int32_t n, std::int32_t d,
                   const py::object& scale, Address order, Address keep, std::int32_t panels,
                   int parts, Address rows, Address high, Address rest, Address kept,
                   Stream stream) {
    arrange({pointer<void>(py::int_(z)), pointer<double>(scale), reinterpret_cast<Index*>(order),
             reinterpret_cast<bool*>(keep), n, d, panels, reinterpret_cast<std::uint16_t*>(rows),
             reinterpret_cast<float*>(high), reinterpret_cast<float*>(rest),
             reinterpret_cast<std::int32_t*>(kept)},
            dtype, parts, stream);
}

// outputs: (value, argument or None, bits or None) of every term.
void gather_bound(const py::tuple& sweep, const py::object& states, const py::list& outputs,
                  const std::string& precision, int d, int splits, Stream stream) {
    GatherCall call{};
    read_sweep(sweep, call);
    call.states = pointer<float>(states);
    for (int k = 0; k < call.n_terms; ++k) {
        const auto output = outputs[k].cast<py::tuple>();
        call.values[k] = pointer<float>(output[0]);
        call.arguments[k] = pointer<Index>(output[1]);
        call.kept_bits[k] = pointer<std::uint8_t>(output[2]);
    }
    gather(call, precision_called(precision), d, splits, stream);
    if (states.is_none()) return;
    ConcludeCall last{call.states, call.rows.order, call.rows.n, splits, call.n_terms, {}, {}, {}};
    for (int k = 0; k < call.n_terms; ++k) {
        last.kinds[k] = call.terms[k].kind;
        last.values[k] = call.values[k];
        last.arguments[k] = call.arguments[k];
    }
    conclude(last, stream);
}

void weigh_bound(const py::tuple& sweep, const py::object& gradient, Address sums, int n_sums,
                 bool by_bits, const std::string& precision, int d, int splits, Stream stream) {
    WeighCall call{};
    read_sweep(sweep, call);
    call.by_bits = by_bits;
    call.n_sums = n_sums;
    call.width = d;
    call.gradient = pointer<float>(gradient);
    call.sums = reinterpret_cast<float*>(sums);
    weigh(call, precision_called(precision), splits, stream);
}

void scale_bound(Address gradient, Address x, const std::string& dtype, const py::object& scales,
                 Address keep, std::int32_t n, std::int32_t d, std::int32_t splits, Address out,
                 Stream stream) {
    scale({reinterpret_cast<float*>(gradient), pointer<void>(py::int_(x)), pointer<double>(scales),
           reinterpret_cast<bool*>(keep), n, d, splits, reinterpret_cast<float*>(out)},
          dtype, stream);
}

}  // namespace

void bind(py::module_& module) {
    module.attr("MOST_TERMS") = MOST_TERMS;
    module.attr("MOST_OPERANDS") = MOST_OPERANDS;
    module.attr("PADDED_ROWS") = PADDED_ROWS;
    module.attr("PANEL") = PANEL;
    module.def("kinds", &kinds, "Kinds of terms, in the order of their numbers.");
    module.def(
        "reason_against",
        [](int device) -> std::optional<std::string> {
            const std::string reason = reason_against(device);
            if (reason.empty()) return std::nullopt;
            return reason;
        },
        "Why the kernels cannot run on this device, or None.", py::arg("device"));
    module.def("shape", &shape, "Rows and columns of a tile, slice, parts, streamed, panels.",
               py::arg("precision"), py::arg("d"));
    module.def("arrange", &arrange_bound);
    module.def("gather", &gather_bound);
    module.def("weigh", &weigh_bound);
    module.def("scale", &scale_bound);
}

}  // namespace pairops::cuda
