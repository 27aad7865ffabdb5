// What one term does with one tile: gather it into the states of its owners, or weigh its pairs.
#pragma once

#include "kernels.h"
#include "lanes.h"
#include "recipes.h"

namespace pairops::cpu {
inline namespace PAIROPS_TARGET {

template <class L>
inline Columns<L> load_columns(const std::int32_t* from) {
    Columns<L> columns;
    for (int k = 0; k < L::count; ++k) columns.v[k] = from[k];
    return columns;
}

// A term over tiles whose owners are the rows, or else the columns.
template <class Term, class L, bool by_row>
struct Visit {
    using T = typename Traits<L>::Scalar;
    using G = typename Term::template Gather<L>;
    using F = typename Term::Function;
    using Mask = typename L::Mask;

    const Tile<T>& tile;
    const Operands<T>& given;

    // One value per row of the tile is the same for all lanes, one per column differs.
    L owner(const T* values, int i, int j) const {
        return by_row ? L(values[tile.row + i]) : L::load(values + tile.col + j);
    }
    L partner(const T* values, int i, int j) const {
        return by_row ? L::load(values + tile.col + j) : L(values[tile.row + i]);
    }
    template <int k>
    L argument(int i, int j) const {
        return Term::by_partner(k) ? partner(given.args[k], i, j) : owner(given.args[k], i, j);
    }
    template <class Call>
    auto with_arguments(int i, int j, Call call) const {
        if constexpr (F::arity == 0)
            return call();
        else if constexpr (F::arity == 1)
            return call(argument<0>(i, j));
        else
            return call(argument<0>(i, j), argument<1>(i, j));
    }

    // The pairs of the term among columns [j, j + lanes) of row i.
    template <bool masked>
    Mask kept(L s, int i, int j) const {
        Mask keep(-1);
        if constexpr (masked) {
            using Int = typename Traits<Mask>::Scalar;
            const Mask place = iota<Mask>() + Mask(Int(j));
            const auto here = [&](Place p) { return Mask(Int(clamped(p - tile.col))); };
            keep = (place != here(tile.own[i])) & (place < Mask(Int(tile.cols)));
            if constexpr (Term::side != Side::all) {
                const Mask positive =
                    (place >= here(tile.lo[i])) & (place < here(tile.hi[i]));
                keep = keep & (Term::side == Side::pos ? positive : !positive);
            }
        }
        // Dropped are s <= above and s >= below: a NaN is neither.
        if constexpr (Term::has_above) keep = keep & !(s <= owner(given.above, i, j));
        if constexpr (Term::has_below) keep = keep & !(s >= owner(given.below, i, j));
        return keep;
    }
    // Into the range in which a tile's places can be compared: -1 stays nobody's.
    static Place clamped(Place p) { return p < -1 ? -1 : p > TILE ? TILE : p; }

    // The columns in which row i can have a pair.
    Range columns(int i) const {
        if (Term::side != Side::pos) return {0, tile.cols};
        const Place lo = tile.lo[i] - tile.col, hi = tile.hi[i] - tile.col;
        const int begin = int(lo < 0 ? 0 : lo > tile.cols ? tile.cols : lo);
        return {begin / L::count * L::count, int(hi < tile.cols ? hi : tile.cols)};
    }

    template <bool masked>
    bool gather(G* states) const {
        constexpr bool all = !masked && !Term::has_window;
        Mask seen(0);
        for (int i = 0; i < tile.rows; ++i) {
            const Range range = columns(i);
            G row = by_row ? states[i] : G::identity();
            for (int j = range.begin; j < range.end; j += L::count) {
                const L s = L::load(tile.s + i * TILE + j);
                L f = with_arguments(i, j, [&](auto... a) { return F::value(s, a...); });
                Columns<L> at = nowhere<L>();
                if constexpr (G::keeps_argument)
                    at = by_row ? load_columns<L>(tile.caller_y + j) : Columns<L>(tile.caller_x[i]);
                if constexpr (!all) {
                    const Mask keep = kept<masked>(s, i, j);
                    if constexpr (Term::has_window) seen = seen | keep;
                    f = select(keep, f, G::fill());
                    if constexpr (G::keeps_argument) at = select(keep, at, nowhere<L>());
                }
                by_row ? row.push(f, at) : states[j / L::count].push(f, at);
            }
            if (by_row) states[i] = row;
        }
        return any(seen);
    }

    template <bool masked, bool with_slopes>
    void weigh(T* w) const {
        constexpr bool all = !masked && !Term::has_window;
        for (int i = 0; i < tile.rows; ++i) {
            const Range range = columns(i);
            L by_row_sum[2] = {L(T(0)), L(T(0))};
            for (int j = range.begin; j < range.end; j += L::count) {
                const L s = L::load(tile.s + i * TILE + j);
                const L f = with_arguments(i, j, [&](auto... a) { return F::value(s, a...); });
                const auto slopes =
                    with_arguments(i, j, [&](auto... a) { return F::slopes(s, a...); });
                const Statistic<L> of = {owner(given.statistic, i, j), Columns<L>(-1)};
                const L share = owner(given.cotangent, i, j) * G::share(f, nowhere<L>(), of);
                const auto among_pairs = [&](L x) {
                    if constexpr (all) return x;
                    else return select(kept<masked>(s, i, j), x, L(T(0)));
                };
                T* to = w + i * TILE + j;
                (L::load(to) + among_pairs(share * slopes.by[0])).store(to);
                if constexpr (with_slopes) {
                    for (int k = 0; k < F::arity; ++k) {
                        const L by_arg = among_pairs(share * slopes.by[1 + k]);
                        if (by_row != Term::by_partner(k))
                            by_row_sum[k] = by_row_sum[k] + by_arg;
                        else if (given.by_col[k])
                            (L::load(given.by_col[k] + j) + by_arg).store(given.by_col[k] + j);
                    }
                }
            }
            if constexpr (with_slopes) {
                for (int k = 0; k < F::arity; ++k)
                    if (given.by_row[k] && by_row != Term::by_partner(k))
                        given.by_row[k][i] += sum(by_row_sum[k]);
            }
        }
    }
};

template <class Term, class L, bool by_row>
bool gather_tile(const Tile<typename Traits<L>::Scalar>& tile,
                 const Operands<typename Traits<L>::Scalar>& given, void* states) {
    using V = Visit<Term, L, by_row>;
    const V visit{tile, given};
    auto* mine = static_cast<typename V::G*>(states);
    if constexpr (Term::side == Side::pos) return visit.template gather<true>(mine);
    else return tile.masked ? visit.template gather<true>(mine) : visit.template gather<false>(mine);
}

template <class Term, class L, bool by_row>
void weigh_tile(const Tile<typename Traits<L>::Scalar>& tile,
                const Operands<typename Traits<L>::Scalar>& given,
                typename Traits<L>::Scalar* w) {
    const Visit<Term, L, by_row> visit{tile, given};
    const bool slopes = given.by_row[0] || given.by_row[1] || given.by_col[0] || given.by_col[1];
    if (tile.masked || Term::side == Side::pos)
        slopes ? visit.template weigh<true, true>(w) : visit.template weigh<true, false>(w);
    else if constexpr (Term::side != Side::pos)
        slopes ? visit.template weigh<false, true>(w) : visit.template weigh<false, false>(w);
}

template <class G>
void clear(void* states, int count) {
    for (int k = 0; k < count; ++k) static_cast<G*>(states)[k] = G::identity();
}

template <class G>
void merge(void* into, const void* from, int count) {
    for (int k = 0; k < count; ++k) static_cast<G*>(into)[k].merge(static_cast<const G*>(from)[k]);
}

// Owners are taken as many at a time as there are lanes. A row has one state with a part of its
// columns in each lane: a block of rows is transposed, and then its parts are merged for all at once.
template <class G, class L>
void finish(const void* rows, const void* cols, int count, const std::int32_t* caller,
            typename Traits<L>::Scalar* value, Index* argument) {
    using T = typename Traits<L>::Scalar;
    constexpr int fields = sizeof(G) / sizeof(L), n = L::count;
    for (int first = 0; first < count; first += n) {
        G total = G::identity();
        if (rows) {
            using Word = typename Integers<sizeof(T)>::Unsigned;
            alignas(L) Word parts[n][fields][n];  // part, field, row
            const auto* states = static_cast<const G*>(rows) + first;
            for (int i = 0; i < n; ++i) {
                Word words[fields][n];
                std::memcpy(words, states + i, sizeof(G));
                for (int f = 0; f < fields; ++f)
                    for (int part = 0; part < n; ++part) parts[part][f][i] = words[f][part];
            }
            for (int part = 0; part < n; ++part) {
                G one;
                std::memcpy(&one, parts[part], sizeof(G));
                total.merge(one);
            }
        }
        if (cols) total.merge(static_cast<const G*>(cols)[first / n]);
        const auto result = total.result();
        for (int k = 0; k < n && first + k < count; ++k) {
            value[caller[first + k]] = result.value.v[k];
            if (argument) argument[caller[first + k]] = result.argument.v[k];
        }
    }
}

template <class Term, class L>
constexpr TermKernels<typename Traits<L>::Scalar> term_kernels() {
    using G = typename Term::template Gather<L>;
    TermKernels<typename Traits<L>::Scalar> kernels{
        sizeof(G), clear<G>, gather_tile<Term, L, true>, gather_tile<Term, L, false>,
        merge<G>,  finish<G, L>, nullptr, nullptr};
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
