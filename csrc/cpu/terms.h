// The table of what one instruction set does with terms: every term of every recipe.
#pragma once

#include "both.h"
#include "tile.h"

namespace pairops::cpu {
inline namespace PAIROPS_TARGET {

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
