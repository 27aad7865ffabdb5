// Bindings of the CUDA engine. They take tuples of addresses, which engines/cuda/ has checked. A
// call enqueues kernels on a stream and returns.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "bindings/fields.h"
#include "cuda/api.h"

namespace py = pybind11;

namespace pairops::cuda {
namespace {

Set set_of(const py::handle& given) {
    const auto [rows, high, rest, permutation, n_valid, n] = fields<6>(given, "a set");
    return {pointer<std::uint16_t>(rows), pointer<float>(high),           pointer<float>(rest),
            pointer<Index>(permutation),  pointer<std::int32_t>(n_valid), n.cast<std::int32_t>()};
}

// The address of an operand is None where it is a number.
int operands_of(const py::list& given, Operand* operands) {
    if (given.size() > MOST_OPERANDS) throw py::value_error("too many operands");
    int n = 0;
    for (const auto& item : given) {
        const auto [address, stride, number] = fields<3>(item, "an operand");
        operands[n++] = {pointer<float>(address), stride.cast<std::int32_t>(),
                         number.cast<float>()};
    }
    return n;
}

std::int8_t slot(const py::handle& given) { return std::int8_t(given.cast<int>()); }

// The slot of an operand is −1 where the term has none. `by_arg` says which sums the gradients by
// two arguments are. Bits may be None.
TermCall term_of(const py::handle& given) {
    const auto [kind, side, transposed, slots, by_arg, bits] = fields<6>(given, "a term");
    const auto [first, second, above, below, statistic, cotangent] = fields<6>(slots, "slots");
    const auto [by_first, by_second] = fields<2>(by_arg, "sums by arguments");
    const auto named = side.cast<std::string>();
    TermCall term{};
    term.kind = kind.cast<std::int32_t>();
    term.side = named == "pos" ? Side::pos : named == "neg" ? Side::neg : Side::all;
    term.transposed = transposed.cast<bool>();
    term.args[0] = slot(first), term.args[1] = slot(second);
    term.above = slot(above), term.below = slot(below);
    term.statistic = slot(statistic), term.cotangent = slot(cotangent);
    term.by_arg[0] = slot(by_first), term.by_arg[1] = slot(by_second);
    term.bits = pointer<std::uint8_t>(bits);
    return term;
}

// The band may be None.
void read_sweep(const py::handle& given, Sweep& sweep) {
    const auto [rows, cols, relation, band, transposed, normalized, band_only, panels, row_operands,
                col_operands, terms] = fields<11>(given, "a sweep");
    const auto [pos_begin, pos_end, self_index] = fields<3>(relation, "relation");
    sweep.rows = set_of(rows);
    sweep.cols = set_of(cols);
    sweep.pos_begin = pointer<Index>(pos_begin);
    sweep.pos_end = pointer<Index>(pos_end);
    sweep.self_index = pointer<Index>(self_index);
    sweep.band = pointer<Index>(band);
    sweep.transposed = transposed.cast<bool>();
    sweep.normalized = normalized.cast<bool>();
    sweep.band_only = band_only.cast<bool>();
    sweep.panels = panels.cast<std::int32_t>();
    sweep.n_row_operands = operands_of(row_operands.cast<py::list>(), sweep.row_operands);
    sweep.n_col_operands = operands_of(col_operands.cast<py::list>(), sweep.col_operands);
    const auto every = terms.cast<py::list>();
    if (every.size() > MOST_TERMS) throw py::value_error("too many terms");
    for (const auto& item : every) sweep.terms[sweep.n_terms++] = term_of(item);
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

void pack_bound(Address z, const std::string& dtype, std::int32_t n, std::int32_t d,
                const py::object& scale, Address permutation, Address valid, std::int32_t panels,
                int parts, Address rows, Address high, Address rest, Address n_valid,
                Stream stream) {
    pack_set({reinterpret_cast<void*>(z), pointer<double>(scale),
              reinterpret_cast<Index*>(permutation), reinterpret_cast<bool*>(valid), n, d, panels,
              reinterpret_cast<std::uint16_t*>(rows), reinterpret_cast<float*>(high),
              reinterpret_cast<float*>(rest), reinterpret_cast<std::int32_t*>(n_valid)},
             dtype, parts, stream);
}

// Positions are the addresses of permutation, pos_begin, pos_end, self_index and positives, each or
// None. `written`, or None, are those of rows, high, rest and n_valid, as pack_set writes them.
void sort_by_label_bound(Address z, const std::string& dtype, std::int32_t n, std::int32_t d,
                         const py::object& labels, const py::object& others, std::int32_t n_others,
                         std::optional<Index> ignored, bool exclude_self, bool normalize,
                         const py::tuple& positions, const py::object& valid,
                         const py::object& scale, std::int32_t panels, int parts,
                         const std::optional<py::tuple>& written, Stream stream) {
    SortByLabelCall call{};
    call.z = reinterpret_cast<void*>(z);
    call.labels = pointer<Index>(labels);
    call.others = pointer<Index>(others);
    call.n = n, call.n_others = n_others, call.d = d, call.panels = panels;
    call.ignored = ignored.value_or(0);
    call.ignores = ignored.has_value();
    call.excludes_self = exclude_self;
    call.normalized = normalize;
    const auto [permutation, pos_begin, pos_end, self_index, positives] =
        fields<5>(positions, "positions");
    call.permutation = pointer<Index>(permutation);
    call.pos_begin = pointer<Index>(pos_begin);
    call.pos_end = pointer<Index>(pos_end);
    call.self_index = pointer<Index>(self_index);
    call.positives = pointer<Index>(positives);
    call.valid = pointer<bool>(valid);
    call.scale = pointer<double>(scale);
    if (written) {
        const auto [rows, high, rest, n_valid] = fields<4>(*written, "written");
        call.rows = pointer<std::uint16_t>(rows);
        call.high = pointer<float>(high);
        call.rest = pointer<float>(rest);
        call.n_valid = pointer<std::int32_t>(n_valid);
    }
    sort_by_label(call, dtype, parts, stream);
}

// Every term has an output, whose argument and bits may be None.
void forward_bound(const py::tuple& sweep, const py::object& states, const py::list& outputs,
                   const std::string& precision, int d, bool hopper, int splits, Stream stream) {
    ForwardCall call{};
    read_sweep(sweep, call);
    call.states = pointer<float>(states);
    for (int k = 0; k < call.n_terms; ++k) {
        const auto [value, argument, bits] = fields<3>(outputs[k], "an output");
        call.values[k] = pointer<float>(value);
        call.arguments[k] = pointer<Index>(argument);
        call.tile_bits[k] = pointer<std::uint8_t>(bits);
    }
    forward(call, precision_called(precision), d, splits, stream, hopper);
    if (states.is_none()) return;
    FinalizeCall last{call.states, call.rows.permutation, call.rows.n, splits, call.n_terms, {}, {},
                      {}};
    for (int k = 0; k < call.n_terms; ++k) {
        last.kinds[k] = call.terms[k].kind;
        last.values[k] = call.values[k];
        last.arguments[k] = call.arguments[k];
    }
    finalize(last, stream);
}

void backward_bound(const py::tuple& sweep, const py::object& gradient, Address sums, int n_sums,
                    bool by_bits, const std::string& precision, int d, bool hopper, int splits,
                    Stream stream) {
    BackwardCall call{};
    read_sweep(sweep, call);
    call.by_bits = by_bits;
    call.n_sums = n_sums;
    call.width = d;
    call.gradient = pointer<float>(gradient);
    call.sums = reinterpret_cast<float*>(sums);
    backward(call, precision_called(precision), splits, stream, hopper);
}

void scale_bound(Address gradient, Address x, const std::string& dtype, const py::object& scales,
                 Address valid, std::int32_t n, std::int32_t d, std::int32_t splits, Address out,
                 bool rounded, Stream stream) {
    scale({reinterpret_cast<float*>(gradient), reinterpret_cast<void*>(x), pointer<double>(scales),
           reinterpret_cast<bool*>(valid), n, d, splits, reinterpret_cast<void*>(out), rounded},
          dtype, stream);
}

template <class Call>
void read_soft_mean(const py::list& statistics, const py::object& valid, std::int32_t n,
                    Call& call) {
    if (statistics.size() > MOST_STATISTICS) throw py::value_error("too many statistics");
    for (const auto& item : statistics) {
        const auto [address, divisor] = fields<2>(item, "a statistic");
        call.statistics[call.n_statistics] = pointer<float>(address);
        call.divisors[call.n_statistics++] = divisor.cast<float>();
    }
    call.valid = pointer<bool>(valid);
    call.n = n;
}

void soft_mean_bound(const py::list& statistics, const py::object& valid, std::int32_t n,
                     Address loss, Address count, Stream stream) {
    SoftMeanCall call{};
    read_soft_mean(statistics, valid, n, call);
    call.loss = reinterpret_cast<float*>(loss);
    call.count = reinterpret_cast<float*>(count);
    soft_mean(call, stream);
}

void soft_mean_slopes_bound(Address gradient, Address count, const py::list& statistics,
                            const py::object& valid, std::int32_t n, const py::list& cotangents,
                            Stream stream) {
    SoftMeanSlopesCall call{};
    read_soft_mean(statistics, valid, n, call);
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
    module.def("pack", &pack_bound);
    module.def("sort_by_label", &sort_by_label_bound,
               "One set's part of `pairops::relate`, and `pack`, in one kernel, for some thousand "
               "rows.\n\n"
               "labels (n,) int64, or None: row i belongs to row i of the other set. others "
               "(n_others,): the other set's labels, or None: the same set. places: order, lo, hi, "
               "own, positives (n,) int64; only order, or nothing, for a set that is compared "
               "with. written: rows, high, rest, kept, or None. An address or None wherever "
               "nothing is wanted. n above 0: else nothing is written.",
               py::arg("z"), py::arg("dtype"), py::arg("n"), py::arg("d"), py::arg("labels"),
               py::arg("others"), py::arg("n_others"), py::arg("ignored"), py::arg("exclude_self"),
               py::arg("normalize"), py::arg("positions"), py::arg("valid"), py::arg("scale"),
               py::arg("panels"), py::arg("parts"), py::arg("written"), py::arg("stream"));
    module.def("forward", &forward_bound);
    module.def("backward", &backward_bound);
    module.def("scale", &scale_bound);
    module.def("soft_mean", &soft_mean_bound,
               "The mean over valid rows of the sum of log(1 + exp R) / divisor, and how many rows "
               "that is, at least 1: two float32.",
               py::arg("statistics"), py::arg("valid"), py::arg("n"), py::arg("loss"),
               py::arg("count"), py::arg("stream"));
    module.def("soft_mean_slopes", &soft_mean_slopes_bound,
               "The gradient (n,) by every statistic, given that by the mean and the count.",
               py::arg("gradient"), py::arg("count"), py::arg("statistics"), py::arg("valid"),
               py::arg("n"), py::arg("cotangents"), py::arg("stream"));
}

}  // namespace pairops::cuda
