// Bindings of the CPU engine. They take tuples of addresses, which engines/cpu.py has checked.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
#include <unordered_map>

#include "bindings/fields.h"
#include "bindings/plan.h"
#include "cpu/label_sort.h"
#include "cpu/mean.h"
#include "cpu/sweep.h"
#include "recipes.h"

namespace py = pybind11;

namespace pairops::cpu {

extern const Isa isa_avx512, isa_avx2, isa_baseline;
// The best first.
static const Isa* const all_isas[] = {
#if defined(__x86_64__) || defined(_M_X64)
    &isa_avx512,
#ifndef PAIROPS_WITHOUT_AVX2
    &isa_avx2,
#endif
#endif
    &isa_baseline,
};

namespace {

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const Isa* isa : all_isas)
        if (isa->runs_here()) names.push_back(isa->name);
    return names;
}

const Isa& isa_called(const std::string& name) {
    for (const Isa* isa : all_isas)
        if (isa->name == name && isa->runs_here()) return *isa;
    throw py::value_error("isa is '" + name + "'; it must be one of those that isas() lists");
}

template <class T>
std::string name_of(const T*) {
    using F = typename T::Function;
    using Acc = typename T::template Accumulator<float>;
    std::string name = std::string(Acc::name) + ":" +
                       (T::side == Side::pos   ? "pos"
                        : T::side == Side::neg ? "neg"
                                               : "all") +
                       ":" + F::name;
    if (T::by_partner(0) || T::by_partner(1) || T::has_product) {
        name += "(";
        for (int k = 0; k < F::arity; ++k)
            name += T::is_product(k) ? "b" : T::by_partner(k) ? "p" : "o";
        name += ")";
    }
    name += std::string(T::has_above ? ">" : "") + (T::has_below ? "<" : "");
    return name + (Acc::has_argument ? "@" : "");
}

using Names = std::unordered_map<std::string, Served>;

template <class... Ts>
void add(Names& names, int& next, const Recipe<Ts...>*) {
    const auto one = [&](auto* term) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(term)>>;
        names.insert({name_of(term),
                      {next++,
                       T::Function::arity,
                       T::side == Side::pos,
                       {T::by_partner(0), T::by_partner(1), T::by_partner(2)},
                       T::has_product}});
    };
    (one(static_cast<const Ts*>(nullptr)), ...);
}

template <class... Rs>
Names named(const std::tuple<Rs...>*) {
    Names names;
    int next = 0;
    (add(names, next, static_cast<const Rs*>(nullptr)), ...);
    return names;
}

const Names& served() {
    static const Names names = named(static_cast<const CpuRecipes*>(nullptr));
    return names;
}

const Served& served_called(const std::string& name) { return served().at(name); }

std::vector<std::string> terms() {
    std::vector<std::string> names;
    for (const auto& [name, _] : served()) names.push_back(name);
    return names;
}

Dtype dtype_called(const std::string& name) {
    static const std::unordered_map<std::string, Dtype> dtypes = {{"float16", Dtype::float16},
                                                                  {"bfloat16", Dtype::bfloat16},
                                                                  {"float32", Dtype::float32},
                                                                  {"float64", Dtype::float64}};
    return dtypes.at(name);
}

// The scale may be None.
Embeddings embeddings(const py::handle& given) {
    const auto [address, dtype, n, d, scale, permutation, valid] = fields<7>(given, "a set");
    Embeddings set{pointer<void>(address),
                   dtype_called(dtype.cast<std::string>()),
                   n.cast<Index>(),
                   d.cast<Index>(),
                   pointer<double>(scale),
                   pointer<Index>(permutation),
                   0};
    const auto* is_valid = pointer<const bool>(valid);
    for (Index k = 0; k < set.n; ++k) set.n_valid += is_valid[k];
    return set;
}

// A check for Ctrl-C between blocks of rows. Ten times a second is soon enough, and costs nothing.
std::function<bool()> asks_python() {
    using Clock = std::chrono::steady_clock;
    return [last = Clock::now()]() mutable {
        const auto now = Clock::now();
        if (now - last < std::chrono::milliseconds(100)) return false;
        last = now;
        py::gil_scoped_acquire gil;
        return PyErr_CheckSignals() != 0;
    };
}

// A measure is (distance, are the anchors the columns?), or None for similarity.
Measure measure_of(const py::object& given) {
    static const std::unordered_map<std::string, Distance> distances = {
        {"l2", Distance::l2}, {"sqeuclidean", Distance::sqeuclidean}, {"snr", Distance::snr}};
    if (given.is_none()) return {};
    const auto [name, anchors_are_columns] = fields<2>(given, "a measure");
    return {distances.at(name.cast<std::string>()), anchors_are_columns.cast<bool>()};
}

// Call run(call) without the interpreter's lock. `similarities` are the addresses of tiles and of
// their states, or None; `all` is explained at Similarities.
template <class T, class Run>
void sweep(const std::string& isa, const py::tuple& x, const py::object& y, const Measure& measure,
           const py::tuple& relation, const py::object& similarities, bool all, int threads,
           bool poison, std::vector<TermCall<T>> terms, Run run, bool last = true) {
    const auto [pos_begin, pos_end, self_index, entries] = fields<4>(relation, "relation");
    Call<T> call{isa_called(isa).kernels<T>(),
                 embeddings(x),
                 {},
                 y.is_none(),
                 measure,
                 pointer<Position>(pos_begin),
                 pointer<Position>(pos_end),
                 pointer<Position>(self_index),
                 pointer<Position>(entries),
                 std::move(terms),
                 {},
                 last,
                 threads,
                 poison,
                 asks_python()};
    if (!similarities.is_none()) {
        const auto [tiles, known] = fields<2>(similarities, "similarities");
        call.similarities = {pointer<T>(tiles), pointer<std::uint8_t>(known), all};
    }
    call.y = call.same ? call.x : embeddings(y);
    try {
        py::gil_scoped_release unlocked;
        run(call);
    } catch (const Interrupted&) {
        throw py::error_already_set();
    }
}

template <class Visit>
void visit_type(const py::tuple& x, Visit visit) {
    fields<7>(x, "a set")[1].cast<std::string>() == "float64" ? visit(double()) : visit(float());
}

Index rows_of(const py::handle& set) { return fields<7>(set, "a set")[2].cast<Index>(); }

// Numbers and vectors come in the order of the terms. Statistics of all terms stand one after the
// other. Each term has an argument's address or None. Bits of all terms have `bits_stride` bytes
// each, or are None.
void forward_bound(const Plan& plan, const std::string& isa, const py::tuple& x,
                   const py::object& y, const py::object& measure, const py::tuple& relation,
                   const py::object& similarities, const py::list& numbers, const py::list& vectors,
                   Address statistics, const py::list& arguments, const py::object& bits,
                   std::size_t bits_stride, int threads, bool poison) {
    visit_type(x, [&](auto zero) {
        using T = decltype(zero);
        const Index rows = rows_of(x), columns = y.is_none() ? rows : rows_of(y);
        BoundPlan<T> bound(plan, y.is_none(), numbers, vectors,
                           plan.statistic_addresses(statistics, rows, columns, sizeof(T)),
                           pointer<std::uint8_t>(bits), bits_stride);
        for (std::size_t k = 0; k < plan.terms.size(); ++k) {
            TermCall<T>& term = bound.terms[k];
            term.value = reinterpret_cast<T*>(bound.statistics[k]);
            term.argument = pointer<Index>(arguments[k]);
            // An ignored row keeps this value, for no sweep writes it.
            const Index owners = term.by_column ? columns : rows;
            std::fill_n(term.value, owners, T(plan.terms[k].neutral));
            if (term.argument) std::fill_n(term.argument, owners, Index(-1));
        }
        const bool all = std::any_of(plan.terms.begin(), plan.terms.end(),
                                     [](const PlannedTerm& term) { return !term.known.positives; });
        for (const std::vector<int>& some : plan.sweeps) {
            std::vector<TermCall<T>> now;
            for (const int k : some) now.push_back(bound.terms[k]);
            sweep<T>(isa, x, y, measure_of(measure), relation, similarities, all, threads, poison,
                     std::move(now), [](const Call<T>& call) { forward(call); });
        }
    });
}

// Arguments are those of extremes with a gradient, or None; where there is one, no other term is
// served. A cotangent is (address, stride); that of an extreme without an argument is not read.
// Slopes are an address for each vector, where the gradient by it is added, or None.
void backward_bound(const Plan& plan, const std::string& isa, const py::tuple& x,
                    const py::object& y, const py::object& measure, const py::tuple& relation,
                    const py::object& similarities, const py::list& numbers,
                    const py::list& vectors, Address statistics, const py::list& arguments,
                    const py::list& cotangents, const py::list& slopes, const py::object& bits,
                    std::size_t bits_stride, int threads, bool poison, const py::object& dx,
                    const py::object& dy) {
    visit_type(x, [&](auto zero) {
        using T = decltype(zero);
        T *const by_x = pointer<T>(dx), *const by_y = pointer<T>(dy);
        const Index rows = rows_of(x), columns = y.is_none() ? rows : rows_of(y);
        BoundPlan<T> bound(plan, y.is_none(), numbers, vectors,
                           plan.statistic_addresses(statistics, rows, columns, sizeof(T)),
                           pointer<std::uint8_t>(bits), bits_stride);
        for (std::size_t k = 0; k < bound.arguments.size(); ++k) {
            const auto [term, argument] = bound.arguments[k];
            bound.terms[term].slope[argument] = pointer<T>(slopes[k]);
        }
        std::vector<TermCall<T>> extremes;
        for (std::size_t k = 0; k < plan.terms.size(); ++k) {
            TermCall<T>& term = bound.terms[k];
            term.argument = pointer<Index>(arguments[k]);
            term.statistic.values = reinterpret_cast<const T*>(bound.statistics[k]);
            term.cotangent = BoundPlan<T>::vector(cotangents[k]);
            if (term.argument) extremes.push_back(term);
        }
        const auto run = [&](std::vector<TermCall<T>> terms, bool last, auto pass) {
            sweep<T>(
                isa, x, y, measure_of(measure), relation, similarities, false, threads, poison,
                std::move(terms), [&](const Call<T>& call) { pass(call, by_x, by_y); }, last);
        };
        if (!extremes.empty()) {
            run(std::move(extremes), true, backward_extremes<T>);
            return;
        }
        PassedOn<T> passed_on(plan, bound, rows, columns);
        for (const std::vector<int>& some : plan.passes) {
            std::vector<TermCall<T>> now;
            for (const int k : some) now.push_back(bound.terms[k]);
            run(std::move(now), &some == &plan.passes.back(), backward<T>);
            passed_on.add(some);
        }
        if (plan.passes.empty()) run({}, true, backward<T>);
    });
}

// A piece is (shape, plus, minus or -1, offset, weight). Statistics and slopes of `count` terms
// stand one after the other, n numbers each. The mean is one number, to be written.
void mean_bound(bool wide, const py::list& given, Index n, int count, Address statistics,
                const py::object& positives, Address slopes, Address mean_at) {
    static const std::unordered_map<std::string, Shape> shapes = {
        {"log1p_exp", Shape::log1p_exp}, {"hinge", Shape::hinge}, {"linear", Shape::linear},
        {"less_mean", Shape::less_mean}, {"mean", Shape::mean},   {"per_pair", Shape::per_pair}};
    std::vector<Piece> pieces;
    for (const auto& item : given) {
        const auto [shape, plus, minus, offset, weight] = fields<5>(item, "a piece");
        pieces.push_back({shapes.at(shape.cast<std::string>()), plus.cast<int>(), minus.cast<int>(),
                          offset.cast<double>(), weight.cast<double>()});
    }
    const auto* counts = pointer<const Index>(positives);
    const auto run = [&](auto zero) {
        using T = decltype(zero);
        std::vector<const T*> from;
        std::vector<T*> to;
        for (Index k = 0; k < count; ++k) {
            from.push_back(reinterpret_cast<const T*>(statistics) + k * n);
            to.push_back(reinterpret_cast<T*>(slopes) + k * n);
        }
        std::fill_n(reinterpret_cast<T*>(slopes), n * count, T(0));
        *reinterpret_cast<T*>(mean_at) = T(mean(pieces, n, from, counts, to));
    };
    wide ? run(double()) : run(float());
}

void inverse_norm(const std::string& isa, const Embeddings& set, const bool* valid, double* out,
                  int threads) {
    const auto& kernels = isa_called(isa).kernels<float>();
    constexpr int rows = 256;
    // A thread is worth waking for ten microseconds of work, as in a sweep.
    const int team = int(std::min(double(threads), 1 + double(set.n) * double(set.d) / (1 << 17)));
    for_each(team, int((set.n + rows - 1) / rows), [&](int piece) {
        const Index first = Index(piece) * rows;
        kernels.inverse_norm(set, first, int(std::min(Index(rows), set.n - first)), valid, out);
    });
}

// Sort one or two sets by label; labels of None mean that rows are paired by index. Outputs are
// those of ops/pairs/intervals.py. The result says whether every row is valid, and whether every
// row of x has a positive.
std::pair<bool, bool> sort_by_label(const std::string& isa, const py::list& sets,
                                    const py::list& labels,
                                    const std::optional<std::int64_t>& ignored, bool exclude_self,
                                    const std::vector<Address>& outputs, int threads) {
    std::vector<Embeddings> given;
    for (const auto& item : sets) {
        const auto [address, dtype, rows, d] = fields<4>(item, "a set");
        given.push_back({pointer<void>(address), dtype_called(dtype.cast<std::string>()),
                         rows.cast<Index>(), d.cast<Index>(), nullptr, nullptr, 0});
    }
    const auto *label_x = pointer<const std::int64_t>(labels[0]),
               *label_y = pointer<const std::int64_t>(labels[1]);
    const bool labelled = !labels[0].is_none(), apart = !labels[1].is_none();
    py::gil_scoped_release unlocked;

    auto next = outputs.begin();
    const Index n = given[0].n;
    auto* positions = reinterpret_cast<Index*>(*next++);
    auto* valid_x = reinterpret_cast<bool*>(*next++);
    Index *permutation = positions, *pos_begin = positions + n, *pos_end = pos_begin + n,
          *self_index = pos_end + n, *positives = self_index + n;
    const bool* valid_y = valid_x;
    for (Index i = 0; i < n; ++i) self_index[i] = exclude_self ? i : -1;
    if (labelled) {
        const Labels x{label_x, n, permutation, valid_x};
        Labels y = x;
        if (apart) {
            auto* permutation_y = reinterpret_cast<Index*>(*next++);
            y = {label_y, given[1].n, permutation_y, reinterpret_cast<bool*>(*next++)};
            valid_y = y.valid;
        }
        sort_labels(x, y, ignored ? &*ignored : nullptr, pos_begin, pos_end);
    } else {
        for (Index i = 0; i < n; ++i) {
            permutation[i] = pos_begin[i] = i;
            pos_end[i] = i + 1;
            valid_x[i] = true;
        }
    }
    for (Index i = 0; i < n; ++i) {
        const Index row = permutation[i];
        const bool counts_self = pos_begin[i] <= self_index[i] && self_index[i] < pos_end[i];
        positives[row] = valid_x[row] ? pos_end[i] - pos_begin[i] - counts_self : 0;
    }
    for (std::size_t k = 0; next != outputs.end(); ++k)
        inverse_norm(isa, given[k], k == 0 ? valid_x : valid_y, reinterpret_cast<double*>(*next++),
                     threads);
    const auto all = [](const bool* valid, Index count) {
        return std::all_of(valid, valid + count, [](bool one) { return one; });
    };
    const bool positive = std::all_of(positives, positives + n, [](Index k) { return k > 0; });
    return {all(valid_x, n) && (!apart || all(valid_y, given[1].n)), positive};
}

double probe_product(const std::string& isa, Index d, bool backward, int rounds) {
    const auto& kernels = isa_called(isa).kernels<float>();
    const Index width = (d + kernels.panel_cols - 1) / kernels.panel_cols * kernels.panel_cols;
    const std::size_t count = std::size_t(TILE) * width;
    Buffer<float> rows(count, false), cols(count, false), s(TILE * TILE, false);
    std::fill_n(static_cast<float*>(rows), count, 0.5f);
    std::fill_n(static_cast<float*>(cols), count, 0.5f);
    std::fill_n(static_cast<float*>(s), TILE * TILE, 0.5f);
    std::vector<float*> out(TILE);
    for (int i = 0; i < TILE; ++i) out[i] = rows + i * width;
    py::gil_scoped_release unlocked;
    for (int round = 0; round < rounds; ++round)
        if (backward)
            kernels.accumulate(s, false, TILE, TILE, cols, TILE * kernels.panel_cols, d, nullptr,
                               out.data());
        else
            kernels.multiply(rows, cols, TILE, TILE, d, nullptr, s);
    return 2.0 * TILE * TILE * double(d) * rounds;
}

}  // namespace

void bind(py::module_& module) {
    module.attr("TILE") = TILE;
    module.def("isas", &isas, "Instruction sets that this machine has, the best one first.");
    module.def("terms", &terms, "Names of the terms that are compiled.");
    // The metaclass is plain `type`, as the stub says.
    py::class_<Plan>(module, "Plan", py::metaclass(reinterpret_cast<PyObject*>(&PyType_Type)))
        .def(py::init([](const py::list& terms, std::vector<std::vector<int>> sweeps,
                         std::vector<std::vector<int>> passes) {
                 return Plan(terms, std::move(sweeps), std::move(passes), &served_called);
             }),
             py::arg("terms"), py::arg("sweeps"), py::arg("passes"));
    module.def("forward", &forward_bound, py::arg("plan"), py::arg("isa"), py::arg("x"),
               py::arg("y"), py::arg("measure"), py::arg("relation"), py::arg("similarities"),
               py::arg("numbers"), py::arg("vectors"), py::arg("statistics"), py::arg("arguments"),
               py::arg("bits"), py::arg("bits_stride"), py::arg("threads"), py::arg("poison"));
    module.def("backward", &backward_bound, py::arg("plan"), py::arg("isa"), py::arg("x"),
               py::arg("y"), py::arg("measure"), py::arg("relation"), py::arg("similarities"),
               py::arg("numbers"), py::arg("vectors"), py::arg("statistics"), py::arg("arguments"),
               py::arg("cotangents"), py::arg("slopes"), py::arg("bits"), py::arg("bits_stride"),
               py::arg("threads"), py::arg("poison"), py::arg("dx"), py::arg("dy"));
    module.def("mean", &mean_bound, py::arg("wide"), py::arg("pieces"), py::arg("n"),
               py::arg("count"), py::arg("statistics"), py::arg("positives"), py::arg("slopes"),
               py::arg("mean"));
    module.def("sort_by_label", &sort_by_label, py::arg("isa"), py::arg("sets"), py::arg("labels"),
               py::arg("ignored"), py::arg("exclude_self"), py::arg("outputs"), py::arg("threads"));
    module.def(
        "probe_peak",
        [](const std::string& isa, std::int64_t rounds) {
            return isa_called(isa).kernels<float>().peak(rounds);
        },
        "Run rounds of independent multiply-adds; returns how many float operations that were.",
        py::arg("isa"), py::arg("rounds"));
    module.def("probe_product", &probe_product,
               "Run the products of whole tiles on one thread: s, or with `backward` the sum of "
               "weighted rows; returns how many float operations that were.",
               py::arg("isa"), py::arg("d"), py::arg("backward"), py::arg("rounds"));
}

}  // namespace pairops::cpu
