// The functions of api.h. The kernels of around/ are compiled in this file, and those of the sweeps
// in the files of instances/.
#include <stdexcept>

#include "cuda/api.h"
#include "cuda/around/finalize.h"
#include "cuda/around/label_sort.h"
#include "cuda/around/softplus_mean.h"
#include "cuda/device/launch.h"
#include "cuda/params/shape_table.h"

namespace pairops::cuda {

template <class S>
void launch_forward(ForwardCall call, int d, int splits, Stream stream);
template <class S, int weight_parts>
void launch_backward(BackwardCall call, int splits, Stream stream);

namespace {

template <class K>
std::string name_of() {
    using F = typename K::Function;
    std::string name = std::string(K::Accumulator::name) +
                       (K::Accumulator::has_argument ? "@" : "") + ":" + F::name;
    if (!K::by_partner(0) && !K::by_partner(1)) return name;
    name += "(";
    for (int k = 0; k < F::arity; ++k) name += K::by_partner(k) ? "p" : "o";
    return name + ")";
}
template <class... Ks>
std::vector<std::string> names_of(const std::tuple<Ks...>*) {
    return {name_of<Ks>()...};
}

template <class Visit>
void visit_number(const std::string& dtype, Visit visit) {
    if (dtype == "float16")
        visit(std::integral_constant<Number, Number::float16>());
    else if (dtype == "bfloat16")
        visit(std::integral_constant<Number, Number::bfloat16>());
    else if (dtype == "float32")
        visit(std::integral_constant<Number, Number::float32>());
    else
        throw std::invalid_argument("dtype is '" + dtype +
                                    "'; it must be float16, bfloat16 or float32");
}

// A warp for each row of the set, and of its padding.
template <class Call>
void launch_rows(const char* name, void (*kernel)(Call), const Call& call, Stream stream) {
    const std::int64_t padded = (call.n + PADDED_ROWS - 1) / PADDED_ROWS * PADDED_ROWS;
    launch(std::string(name) + " (N = " + std::to_string(call.n) +
               ", D = " + std::to_string(call.d) + ")",
           kernel, {padded / PACKED_AT_A_TIME, 1, 1}, 32 * PACKED_AT_A_TIME, 0, stream, call);
}

}  // namespace

std::vector<std::string> kinds() { return names_of(static_cast<const Kinds*>(nullptr)); }

ShapeFacts shape_of(Precision precision, int d, bool hopper) {
    return visit_shape(precision, d, hopper, [](auto shape) {
        using S = decltype(shape);
        return ShapeFacts{S::rows, S::columns, S::slice, S::parts};
    });
}

std::string reason_against() { return refusal(reinterpret_cast<const void*>(finalize_states)); }

void pack_set(const PackCall& call, const std::string& dtype, int parts, Stream stream) {
    visit_number(dtype, [&](auto number) {
        constexpr Number of = decltype(number)::value;
        launch_rows("pack", parts == 1 ? pack_set<of, 1> : pack_set<of, 2>, call, stream);
    });
}

void sort_by_label(const SortByLabelCall& call, const std::string& dtype, int parts,
                   Stream stream) {
    visit_number(dtype, [&](auto number) {
        constexpr Number of = decltype(number)::value;
        launch_rows("sort_by_label", parts == 1 ? sort_by_label<of, 1> : sort_by_label<of, 2>, call,
                    stream);
    });
}

void forward(ForwardCall call, Precision precision, int d, int splits, Stream stream, bool hopper) {
    visit_shape(precision, d, hopper,
                [&](auto shape) { launch_forward<decltype(shape)>(call, d, splits, stream); });
}

void backward(BackwardCall call, Precision precision, int splits, Stream stream, bool hopper) {
    visit_shape(precision, call.width, hopper, [&](auto shape) {
        using S = decltype(shape);
        if constexpr (S::parts == 2)
            launch_backward<S, 2>(call, splits, stream);
        else if (precision == Precision::fine)
            launch_backward<S, 2>(call, splits, stream);
        else
            launch_backward<S, 1>(call, splits, stream);
    });
}

void finalize(const FinalizeCall& call, Stream stream) {
    launch("finalize (N = " + std::to_string(call.n) + ")", finalize_states,
           {(call.n + FINALIZED_AT_A_TIME - 1) / FINALIZED_AT_A_TIME, 1, 1}, FINALIZED_AT_A_TIME, 0,
           stream, call);
}

void scale(const ScaleCall& call, const std::string& dtype, Stream stream) {
    visit_number(dtype, [&](auto number) {
        launch("through_scale (N = " + std::to_string(call.n) + ", D = " + std::to_string(call.d) +
                   ")",
               through_scale<decltype(number)::value>,
               {(call.n + SCALED_AT_A_TIME - 1) / SCALED_AT_A_TIME, 1, 1}, 32 * SCALED_AT_A_TIME, 0,
               stream, call);
    });
}

void soft_mean(const SoftMeanCall& call, Stream stream) {
    launch("soft_mean (N = " + std::to_string(call.n) + ")", soft_mean, {1, 1, 1},
           AVERAGED_AT_A_TIME, SOFT_MEAN_BYTES, stream, call);
}

void soft_mean(const SoftMeanSlopesCall& call, Stream stream) {
    launch("soft_mean_slopes (N = " + std::to_string(call.n) + ")", soft_mean_slopes,
           {(call.n + SLOPES_AT_A_TIME - 1) / SLOPES_AT_A_TIME, 1, 1}, SLOPES_AT_A_TIME, 0, stream,
           call);
}

}  // namespace pairops::cuda
