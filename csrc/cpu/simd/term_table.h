// The table of terms: functions for every term of every recipe, compiled for one instruction set.
#pragma once

#include "cpu/simd/packing.h"
#include "cpu/simd/tile.h"
#include "cpu/simd/tile_symmetric.h"

namespace pairops::cpu {
inline namespace PAIROPS_TARGET {

// Owners are taken as many at a time as there are lanes. A row has one state with a part of its
// columns in each lane: a block of rows is transposed, and then its parts are merged for all at
// once.
template <class G, class L>
void finish(const void* rows, const void* cols, int count, const std::int32_t* caller,
            typename Traits<L>::Scalar* value, Index* argument) {
    using T = typename Traits<L>::Scalar;
    constexpr int fields = sizeof(G) / sizeof(L), n = L::count;
    for (int first = 0; first < count; first += n) {
        G states[n + 1];
        int known = 0;
        if (rows) {
            using Word = typename Integers<sizeof(T)>::Unsigned;
            alignas(L) Word words[fields][n][n];  // field, part, row
            transpose_squares<Word, n>(
                reinterpret_cast<const Word(*)[fields * n]>(static_cast<const G*>(rows) + first),
                fields * n, words[0][0]);
            for (; known < n; ++known)
                for (int f = 0; f < fields; ++f)
                    std::memcpy(reinterpret_cast<unsigned char*>(states + known) + f * sizeof(L),
                                words[f][known], sizeof(L));
        }
        if (cols) states[known++] = static_cast<const G*>(cols)[first / n];
        const auto result = UnderTop<G>::merged(states, known).result();
        for (int k = 0; k < n && first + k < count; ++k) {
            value[caller[first + k]] = result.value[k];
            if (argument) argument[caller[first + k]] = result.argument[k];
        }
    }
}

template <class Term, class L>
constexpr TermKernels<typename Traits<L>::Scalar> term_kernels() {
    using G = typename Term::template Gather<L>;
    TermKernels<typename Traits<L>::Scalar> kernels{sizeof(G),
                                                    clear<G>,
                                                    gather_tile<Term, L, true>,
                                                    gather_tile<Term, L, false>,
                                                    nullptr,
                                                    merge<G>,
                                                    finish<G, L>,
                                                    nullptr,
                                                    nullptr};
    if constexpr (std::is_same_v<G, LogSumExp<L>>) kernels.gather_both = gather_both<Term, L>;
    if constexpr (!G::extreme) {
        kernels.weigh_rows = weigh_tile<Term, L, true>;
        kernels.weigh_cols = weigh_tile<Term, L, false>;
    }
    return kernels;
}

// Every term of every recipe, in the order in which they stand.
template <class L, class Rs>
struct TermTable;
template <class L, class... Rs>
struct TermTable<L, std::tuple<Rs...>> {
    using Entry = TermKernels<typename Traits<L>::Scalar>;

    template <class... Ts>
    static constexpr int size(const Recipe<Ts...>*) {
        return sizeof...(Ts);
    }
    static constexpr int count = (size(static_cast<const Rs*>(nullptr)) + ...);
    Entry at[count];

    template <class... Ts>
    constexpr void add(int& next, const Recipe<Ts...>*) {
        ((at[next++] = term_kernels<Ts, L>()), ...);
    }
    constexpr TermTable() : at() {
        int next = 0;
        (add(next, static_cast<const Rs*>(nullptr)), ...);
    }
};

}  // namespace PAIROPS_TARGET
}  // namespace pairops::cpu
