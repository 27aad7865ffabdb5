// The table of terms: functions for every term of every recipe, compiled for one instruction set.
#pragma once

#include "cpu/simd/packing.h"
#include "cpu/simd/tile.h"
#include "cpu/simd/tile_symmetric.h"

namespace pairops::cpu {
inline namespace PAIROPS_TARGET {

// Write the results of owners, a vector of them at a time. A row has one state with a part of its
// columns in each element: a block of rows is transposed, and then its parts are merged for all at
// once.
template <class Acc, class V>
void finalize(const void* rows, const void* cols, int count, const std::int32_t* caller,
              typename Traits<V>::Scalar* value, Index* argument) {
    using T = typename Traits<V>::Scalar;
    constexpr int fields = sizeof(Acc) / sizeof(V), n = V::count;
    for (int first = 0; first < count; first += n) {
        Acc states[n + 1];
        int known = 0;
        if (rows) {
            using Bits = typename Integers<sizeof(T)>::Unsigned;
            alignas(V) Bits transposed[fields][n][n];  // field, part, row
            transpose_squares<Bits, n>(
                reinterpret_cast<const Bits(*)[fields * n]>(static_cast<const Acc*>(rows) + first),
                fields * n, transposed[0][0]);
            for (; known < n; ++known)
                for (int f = 0; f < fields; ++f)
                    std::memcpy(reinterpret_cast<unsigned char*>(states + known) + f * sizeof(V),
                                transposed[f][known], sizeof(V));
        }
        if (cols) states[known++] = static_cast<const Acc*>(cols)[first / n];
        const auto result = UnderTop<Acc>::merged(states, known).finalize();
        for (int k = 0; k < n && first + k < count; ++k) {
            value[caller[first + k]] = result.value[k];
            if (argument) argument[caller[first + k]] = result.argument[k];
        }
    }
}

template <class Term, class V>
constexpr TermKernels<typename Traits<V>::Scalar> term_kernels() {
    using Acc = typename Term::template Accumulator<V>;
    TermKernels<typename Traits<V>::Scalar> kernels{sizeof(Acc),
                                                    clear<Acc>,
                                                    forward_tile<Term, V, true>,
                                                    forward_tile<Term, V, false>,
                                                    nullptr,
                                                    merge<Acc>,
                                                    finalize<Acc, V>,
                                                    nullptr,
                                                    nullptr};
    if constexpr (std::is_same_v<Acc, LogSumExp<V>>) kernels.forward_both = forward_both<Term, V>;
    if constexpr (!Acc::extreme) {
        kernels.backward_rows = backward_tile<Term, V, true>;
        kernels.backward_cols = backward_tile<Term, V, false>;
    }
    return kernels;
}

// Every term of every recipe, in the order in which they stand.
template <class V, class Rs>
struct TermTable;
template <class V, class... Rs>
struct TermTable<V, std::tuple<Rs...>> {
    using Entry = TermKernels<typename Traits<V>::Scalar>;

    template <class... Ts>
    static constexpr int size(const Recipe<Ts...>*) {
        return sizeof...(Ts);
    }
    static constexpr int count = (size(static_cast<const Rs*>(nullptr)) + ...);
    Entry at[count];

    template <class... Ts>
    constexpr void add(int& next, const Recipe<Ts...>*) {
        ((at[next++] = term_kernels<Ts, V>()), ...);
    }
    constexpr TermTable() : at() {
        int next = 0;
        (add(next, static_cast<const Rs*>(nullptr)), ...);
    }
};

}  // namespace PAIROPS_TARGET
}  // namespace pairops::cpu
