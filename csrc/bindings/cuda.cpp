// Bindings of the CUDA engine. They take tuples of addresses, which engines/cuda/ has checked. A
// call enqueues all kernels of a pass on a stream and returns.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>

#include "bindings/cuda_plan.h"
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

template <class T>
std::vector<T*> pointers(const py::list& addresses) {
    std::vector<T*> found;
    for (const auto& address : addresses) found.push_back(pointer<T>(address));
    return found;
}

// What all sweeps of a pass share: d, whether Hopper's own sweeps serve, panels, whether scales are
// inverse norms, x, y or None, the relation, and of two sets the bands of each.
struct Pairs {
    int d;
    bool hopper, normalized, same;
    std::int32_t panels;
    Set sets[2];
    const Index *pos_begin, *pos_end, *self_index, *bands[2];

    explicit Pairs(const py::tuple& given) {
        const auto [width, on_hopper, of_row, are_norms, x, y, relation, band_x, band_y] =
            fields<9>(given, "pairs");
        const auto [begin, end, self] = fields<3>(relation, "a relation");
        d = width.cast<int>();
        hopper = on_hopper.cast<bool>();
        panels = of_row.cast<std::int32_t>();
        normalized = are_norms.cast<bool>();
        same = y.is_none();
        sets[0] = set_of(x);
        sets[1] = same ? sets[0] : set_of(y);
        pos_begin = pointer<Index>(begin);
        pos_end = pointer<Index>(end);
        self_index = pointer<Index>(self);
        bands[0] = pointer<Index>(band_x);
        bands[1] = pointer<Index>(band_y);
    }

    // The parameters of a sweep over the rows of a set, without its terms.
    void begin(int axis, Sweep& sweep) const {
        sweep.rows = sets[axis];
        sweep.cols = sets[1 - axis];
        sweep.pos_begin = pos_begin;
        sweep.pos_end = pos_end;
        sweep.self_index = self_index;
        sweep.band = bands[axis];
        sweep.transposed = axis == 1;
        sweep.normalized = normalized;
        sweep.panels = panels;
    }
};

bool positives_alone(const Sweep& sweep) {
    return std::all_of(sweep.terms, sweep.terms + sweep.n_terms,
                       [](const TermCall& term) { return term.side == Side::pos; });
}

template <class Call>
void read_soft_mean(const py::handle& statistics, const py::handle& valid, std::int32_t n,
                    Call& call) {
    for (const auto& item : statistics.cast<py::list>()) {
        if (call.n_statistics == MOST_STATISTICS) throw py::value_error("too many statistics");
        const auto [address, divisor] = fields<2>(item, "a statistic");
        call.statistics[call.n_statistics] = pointer<float>(address);
        call.divisors[call.n_statistics++] = divisor.cast<float>();
    }
    call.valid = pointer<bool>(valid);
    call.n = n;
}

// A mean is (statistics, valid or None, loss, slopes): statistics with their divisors, and an
// address for the gradient by each, or none at all.
void soft_mean_of(const py::tuple& given, std::int32_t n, Stream stream) {
    const auto [statistics, valid, loss, slopes] = fields<4>(given, "a mean");
    SoftMeanCall call{};
    read_soft_mean(statistics, valid, n, call);
    call.loss = pointer<float>(loss);
    const auto to = pointers<float>(slopes.cast<py::list>());
    if (!to.empty() && int(to.size()) != call.n_statistics)
        throw py::value_error("there must be slopes by every statistic, or by none");
    std::copy(to.begin(), to.end(), call.slopes);
    soft_mean(call, stream);
}

// Every term has values; its argument and bits may be None. `splits` has a number for each sweep,
// and `states` has room for the states of any that is split and, behind them, for a byte of each
// tile of each of its terms that has bits.
void forward_bound(const Plan& plan, const std::string& precision, const py::tuple& pairs,
                   const py::list& numbers, const py::list& vectors, const py::list& values,
                   const py::list& arguments, const py::list& bits, const py::object& states,
                   const std::vector<int>& splits, const std::optional<py::tuple>& mean,
                   Stream stream) {
    const Pairs given(pairs);
    const auto to = pointers<float>(values);
    const auto attained = pointers<Index>(arguments);
    const auto masks = pointers<std::uint8_t>(bits);
    std::vector<Operand> statistics;
    for (const float* value : to) statistics.push_back({value, 1, 0.f});
    const BoundPlan bound(plan, numbers, vectors, statistics);
    const ShapeFacts facts = shape_of(precision_called(precision), given.d, given.hopper);
    for (std::size_t s = 0; s < plan.sweeps.size(); ++s) {
        const PlannedSweep& planned = plan.sweeps[s];
        ForwardCall call{};
        given.begin(planned.axis, call);
        for (const int k : planned.terms) bound.add_term(planned, k, false, call);
        call.band_only = positives_alone(call);
        call.states = splits.at(s) > 1 ? pointer<float>(states) : nullptr;
        FinalizeCall last{};
        last.states = call.states;
        last.permutation = call.rows.permutation;
        last.n = call.rows.n, last.splits = splits[s], last.n_terms = call.n_terms;
        last.blocks = (call.rows.n + facts.rows - 1) / facts.rows;
        last.tiles = (call.cols.n + facts.columns - 1) / facts.columns;
        auto* bytes = reinterpret_cast<std::uint8_t*>(call.states) +
                      sizeof(float) * 2 * std::size_t(splits[s]) * std::size_t(call.n_terms) *
                          std::size_t(call.rows.n);
        for (int k = 0; k < call.n_terms; ++k) {
            const auto term = std::size_t(planned.terms[std::size_t(k)]);
            last.kinds[k] = call.terms[k].kind;
            last.values[k] = call.values[k] = to.at(term);
            last.arguments[k] = call.arguments[k] = attained.at(term);
            last.tile_bits[k] = call.tile_bits[k] = masks.at(term);
            if (!call.states || !masks[term]) continue;
            last.tile_bytes[k] = call.tile_bits[k] = bytes;
            bytes += last.blocks * last.tiles;
        }
        forward(call, precision_called(precision), given.d, splits[s], stream, given.hopper);
        if (call.states) finalize(last, stream);
    }
    if (mean) soft_mean_of(*mean, given.sets[0].n, stream);
}

// A statistic or cotangent is (address, stride). Scaled are both sets: (z, dtype, scale or None,
// valid). A pass is None, where it has no result, or (gradient, sums, splits, out, rounded), whose
// gradient is None where it is not wanted. What comes out is multiplied by the number at `factor`,
// if there is one.
void backward_bound(const Plan& plan, const std::string& precision, const py::tuple& pairs,
                    const py::list& numbers, const py::list& vectors, const py::list& statistics,
                    const py::list& cotangents, const py::list& bits, const py::tuple& scaled,
                    const py::list& passes, const py::object& factor, Stream stream) {
    const Pairs given(pairs);
    std::vector<Operand> values;
    for (const auto& item : statistics) values.push_back(vector_of(item));
    const auto masks = pointers<std::uint8_t>(bits);
    BoundPlan bound(plan, numbers, vectors, values);
    for (std::size_t k = 0; k < bound.terms.size(); ++k)
        bound.terms[k].cotangent = vector_of(cotangents[k]);
    for (std::size_t s = 0; s < plan.passes.size(); ++s) {
        if (passes[s].is_none()) continue;
        const auto [gradient, sums, splits, out, rounded] = fields<5>(passes[s], "a pass");
        const PlannedSweep& planned = plan.passes[s];
        BackwardCall call{};
        given.begin(planned.axis, call);
        bound.add_backward(planned, masks, call);
        call.band_only = positives_alone(call);
        call.by_bits = std::all_of(call.terms, call.terms + call.n_terms,
                                   [](const TermCall& term) { return term.bits != nullptr; });
        call.n_sums = int(planned.sums.size());
        call.width = given.d;
        call.gradient = pointer<float>(gradient);
        call.sums = pointer<float>(sums);
        const int parts = splits.cast<int>();
        backward(call, precision_called(precision), parts, stream, given.hopper);
        if (!call.gradient) continue;
        const auto [z, dtype, r, valid] = fields<4>(scaled[std::size_t(planned.axis)], "a set");
        scale({call.gradient, pointer<void>(z), pointer<double>(r), pointer<bool>(valid),
               pointer<float>(factor), call.rows.n, given.d, parts, pointer<void>(out),
               rounded.cast<bool>()},
              dtype.cast<std::string>(), stream);
    }
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
    py::class_<Plan>(module, "Plan")
        .def(py::init<bool, const py::list&, const py::list&, const py::list&>(), py::arg("same"),
             py::arg("terms"), py::arg("sweeps"), py::arg("passes"));
    module.def("forward", &forward_bound, "Every kernel of a forward pass, in turn.");
    module.def("backward", &backward_bound, "Every kernel of a backward pass, in turn.");
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
