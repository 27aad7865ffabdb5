// Bindings of the CUDA engine: tuples of addresses come in, and engines/cuda/ has checked
// everything. A call enqueues kernels on a stream and returns.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "cuda/api.h"

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

py::tuple shape(const std::string& precision, int d, bool hopper) {
    const ShapeFacts facts = shape_of(precision_called(precision), d, hopper);
    const int slices = d > 0 ? (d + facts.slice - 1) / facts.slice : 1;
    return py::make_tuple(facts.rows, facts.columns, facts.slice, facts.parts,
                          slices * (facts.slice / PANEL));
}

void arrange_bound(Address z, const std::string& dtype, std::int32_t n, std::int32_t d,
                   const py::object& scale, Address order, Address keep, std::int32_t panels,
                   int parts, Address rows, Address high, Address rest, Address kept,
                   Stream stream) {
    arrange({reinterpret_cast<void*>(z), pointer<double>(scale), reinterpret_cast<Index*>(order),
             reinterpret_cast<bool*>(keep), n, d, panels, reinterpret_cast<std::uint16_t*>(rows),
             reinterpret_cast<float*>(high), reinterpret_cast<float*>(rest),
             reinterpret_cast<std::int32_t*>(kept)},
            dtype, parts, stream);
}

// places: addresses of order, lo, hi, own, positives, each or None.
// written: addresses of rows, high, rest and kept, as `arrange` writes them, or None: not wanted.
void relate_bound(Address z, const std::string& dtype, std::int32_t n, std::int32_t d,
                  const py::object& labels, const py::object& others, std::int32_t n_others,
                  std::optional<Index> ignored, bool exclude_self, bool normalize,
                  const py::tuple& places, const py::object& keep, const py::object& scale,
                  std::int32_t panels, int parts, const std::optional<py::tuple>& written,
                  Stream stream) {
    RelateCall call{};
    call.z = reinterpret_cast<void*>(z);
    call.labels = pointer<Index>(labels);
    call.others = pointer<Index>(others);
    call.n = n, call.n_others = n_others, call.d = d, call.panels = panels;
    call.ignored = ignored.value_or(0);
    call.ignores = ignored.has_value();
    call.excludes_self = exclude_self;
    call.normalized = normalize;
    Index** to[] = {&call.order, &call.lo, &call.hi, &call.own, &call.positives};
    for (int k = 0; k < 5; ++k) *to[k] = pointer<Index>(places[k]);
    call.keep = pointer<bool>(keep);
    call.scale = pointer<double>(scale);
    if (written) {
        call.rows = pointer<std::uint16_t>((*written)[0]);
        call.high = pointer<float>((*written)[1]);
        call.rest = pointer<float>((*written)[2]);
        call.kept = pointer<std::int32_t>((*written)[3]);
    }
    relate(call, dtype, parts, stream);
}

// outputs: (value, argument or None, bits or None) of every term.
void gather_bound(const py::tuple& sweep, const py::object& states, const py::list& outputs,
                  const std::string& precision, int d, bool hopper, int splits, Stream stream) {
    GatherCall call{};
    read_sweep(sweep, call);
    call.states = pointer<float>(states);
    for (int k = 0; k < call.n_terms; ++k) {
        const auto output = outputs[k].cast<py::tuple>();
        call.values[k] = pointer<float>(output[0]);
        call.arguments[k] = pointer<Index>(output[1]);
        call.kept_bits[k] = pointer<std::uint8_t>(output[2]);
    }
    gather(call, precision_called(precision), d, splits, stream, hopper);
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
                 bool by_bits, const std::string& precision, int d, bool hopper, int splits,
                 Stream stream) {
    WeighCall call{};
    read_sweep(sweep, call);
    call.by_bits = by_bits;
    call.n_sums = n_sums;
    call.width = d;
    call.gradient = pointer<float>(gradient);
    call.sums = reinterpret_cast<float*>(sums);
    weigh(call, precision_called(precision), splits, stream, hopper);
}

void scale_bound(Address gradient, Address x, const std::string& dtype, const py::object& scales,
                 Address keep, std::int32_t n, std::int32_t d, std::int32_t splits, Address out,
                 bool rounded, Stream stream) {
    scale({reinterpret_cast<float*>(gradient), reinterpret_cast<void*>(x), pointer<double>(scales),
           reinterpret_cast<bool*>(keep), n, d, splits, reinterpret_cast<void*>(out), rounded},
          dtype, stream);
}

// statistics: (address, divisor) of each.
template <class Call>
void read_soft_mean(const py::list& statistics, const py::object& keep, std::int32_t n,
                    Call& call) {
    if (statistics.size() > MOST_STATISTICS) throw py::value_error("too many statistics");
    for (const auto& item : statistics) {
        const auto one = item.cast<py::tuple>();
        call.statistics[call.n_statistics] = pointer<float>(one[0]);
        call.divisors[call.n_statistics++] = one[1].cast<float>();
    }
    call.keep = pointer<bool>(keep);
    call.n = n;
}

void soft_mean_bound(const py::list& statistics, const py::object& keep, std::int32_t n,
                     Address loss, Address count, Stream stream) {
    SoftMeanCall call{};
    read_soft_mean(statistics, keep, n, call);
    call.loss = reinterpret_cast<float*>(loss);
    call.count = reinterpret_cast<float*>(count);
    soft_mean(call, stream);
}

void soft_mean_slopes_bound(Address gradient, Address count, const py::list& statistics,
                            const py::object& keep, std::int32_t n, const py::list& cotangents,
                            Stream stream) {
    SoftMeanSlopesCall call{};
    read_soft_mean(statistics, keep, n, call);
    call.gradient = reinterpret_cast<float*>(gradient);
    call.count = reinterpret_cast<float*>(count);
    for (int k = 0; k < call.n_statistics; ++k)
        call.cotangents[k] = pointer<float>(cotangents[std::size_t(k)]);
    soft_mean(call, stream);
}

}  // namespace

void bind(py::module_& module) {
    module.attr("MOST_STATISTICS") = MOST_STATISTICS;
    module.attr("MOST_TERMS") = MOST_TERMS;
    module.attr("MOST_OPERANDS") = MOST_OPERANDS;
    module.attr("PADDED_ROWS") = PADDED_ROWS;
    module.attr("PANEL") = PANEL;
    module.def("kinds", &kinds, "Kinds of terms, in the order of their numbers.");
    module.def(
        "reason_against",
        []() -> std::optional<std::string> {
            const std::string reason = reason_against();
            if (reason.empty()) return std::nullopt;
            return reason;
        },
        "Why the kernels cannot run on the current device, or None.");
    module.def("shape", &shape, "Rows and columns of a tile, slice, parts, panels.",
               py::arg("precision"), py::arg("d"), py::arg("hopper"));
    module.def("arrange", &arrange_bound);
    module.def("relate", &relate_bound,
               "One set's part of pairops::relate and `arrange` in one kernel, for some thousand "
               "rows.\n\n"
               "labels (n,) int64, or None: row i belongs to row i of the other set. others "
               "(n_others,): the other set's labels, or None: the same set. places: order, lo, hi, "
               "own, positives (n,) int64; only order, or nothing, for a set that is compared "
               "with. written: rows, high, rest, kept, or None. An address or None wherever "
               "nothing is wanted. n above 0: else nothing is written.",
               py::arg("z"), py::arg("dtype"), py::arg("n"), py::arg("d"), py::arg("labels"),
               py::arg("others"), py::arg("n_others"), py::arg("ignored"), py::arg("exclude_self"),
               py::arg("normalize"), py::arg("places"), py::arg("keep"), py::arg("scale"),
               py::arg("panels"), py::arg("parts"), py::arg("written"), py::arg("stream"));
    module.def("gather", &gather_bound);
    module.def("weigh", &weigh_bound);
    module.def("scale", &scale_bound);
    module.def("soft_mean", &soft_mean_bound,
               "The mean over kept rows of the sum of log(1 + exp R) / divisor, and how many rows "
               "that is, at least 1: two float32.",
               py::arg("statistics"), py::arg("keep"), py::arg("n"), py::arg("loss"),
               py::arg("count"), py::arg("stream"));
    module.def("soft_mean_slopes", &soft_mean_slopes_bound,
               "The gradient (n,) by every statistic, given that by the mean and the count.",
               py::arg("gradient"), py::arg("count"), py::arg("statistics"), py::arg("keep"),
               py::arg("n"), py::arg("cotangents"), py::arg("stream"));
}

}  // namespace pairops::cuda
