// One term and one tile: the tile is gathered into the states of its owners, or its pairs are
// weighed.
#pragma once

#include "cpu/simd/kernel_table.h"
#include "cpu/simd/simd.h"
#include "recipes.h"

namespace pairops::cpu {
inline namespace PAIROPS_TARGET {

template <class L>
inline Columns<L> load_columns(const std::int32_t* from) {
    Columns<L> columns(0);
    for (int k = 0; k < L::count; ++k) columns.set(k, from[k]);
    return columns;
}

// A vector along the rows of a tile is the same for all lanes of one row, and one along its columns
// differs from lane to lane.
template <class L, bool along_rows>
struct Along;
template <class L>
struct Along<L, true> {
    L value;
    Along(const typename Traits<L>::Scalar* values, Place row, Place) : value(values[row]) {}
    L at(int) const { return value; }
};
template <class L>
struct Along<L, false> {
    const typename Traits<L>::Scalar* cols;
    Along(const typename Traits<L>::Scalar* values, Place, Place col) : cols(values + col) {}
    L at(int j) const { return L::load(cols + j); }
};
struct Absent {
    Absent(const void*, Place, Place) {}
};

// A term over tiles whose owners are the rows, or else the columns. It has copies of what it is
// given: of memory, the compiler would have to assume that it changes with every number that is
// stored.
template <class Term, class L, bool by_row>
struct Visit {
    using T = typename Traits<L>::Scalar;
    using G = typename Term::template Gather<L>;
    using F = typename Term::Function;
    using Mask = typename L::Mask;
    using Int = typename Traits<Mask>::Scalar;

    const Tile<T> tile;
    const Operands<T> given;

    template <bool along_rows>
    Along<L, along_rows> along(const T* values, int i) const {
        return {values, tile.row + i, tile.col};
    }
    auto owner(const T* values, int i) const { return along<by_row>(values, i); }
    // Argument k in row i.
    template <int k>
    auto argument(int i) const {
        return along<by_row != Term::by_partner(k)>(given.args[k], i);
    }
    // call(arguments of the function...), each of them Along.
    template <class Call>
    auto with_arguments(int i, Call call) const {
        if constexpr (F::arity == 0)
            return call();
        else if constexpr (F::arity == 1)
            return call(argument<0>(i));
        else if constexpr (F::arity == 2)
            return call(argument<0>(i), argument<1>(i));
        else
            return call(argument<0>(i), argument<1>(i), argument<2>(i));
    }

    // The pairs of the term in row i.
    template <bool masked>
    struct Kept {
        Mask lo, hi, own, cols;
        std::conditional_t<Term::has_above, Along<L, by_row>, Absent> above;
        std::conditional_t<Term::has_below, Along<L, by_row>, Absent> below;

        Kept(const Visit& visit, int i)
            : lo(here(visit, visit.tile.lo[i])),
              hi(here(visit, visit.tile.hi[i])),
              own(here(visit, visit.tile.own[i])),
              cols(Int(visit.tile.cols)),
              above(visit.given.above, visit.tile.row + i, visit.tile.col),
              below(visit.given.below, visit.tile.row + i, visit.tile.col) {}

        // As a place in the tile, within bounds that a lane can hold; -1 stays nobody's.
        static Mask here(const Visit& visit, Place p) {
            p -= visit.tile.col;
            return Mask(Int(p < -1 ? -1 : p > TILE ? TILE : p));
        }
        // Is it a pair of the term's side?
        Mask is_pair(int j) const {
            const Mask place = iota<Mask>() + Mask(Int(j));
            const Mask pair = (place != own) & (place < cols);
            if constexpr (Term::side == Side::all) return pair;
            const Mask positive = (place >= lo) & (place < hi);
            return pair & (Term::side == Side::pos ? positive : !positive);
        }
        // And inside the window?
        Mask at(L s, int j) const {
            Mask keep = masked ? is_pair(j) : Mask(-1);
            // Dropped are s <= above and s >= below: a NaN is neither.
            if constexpr (Term::has_above) keep = keep & !(s <= above.at(j));
            if constexpr (Term::has_below) keep = keep & !(s >= below.at(j));
            return keep;
        }
    };

    const T* similarities() const { return by_row ? tile.s : tile.s_of_cols; }

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
            const Kept<masked> kept(*this, i);
            G row = by_row ? states[i] : G::identity();
            with_arguments(i, [&](auto... args) {
                for (int j = range.begin; j < range.end; j += L::count) {
                    const L s = L::load(similarities() + i * TILE + j);
                    L f = rounded(F::value(s, args.at(j)...));
                    Columns<L> at = nowhere<L>();
                    if constexpr (G::keeps_argument)
                        at = by_row ? load_columns<L>(tile.caller_y + j)
                                    : Columns<L>(tile.caller_x[i]);
                    if constexpr (!all) {
                        const Mask keep = kept.at(s, j);
                        if constexpr (Term::has_window) seen = seen | keep;
                        f = select(keep, f, G::fill());
                        if constexpr (G::keeps_argument) at = select(keep, at, nowhere<L>());
                    }
                    by_row ? row.push(f, at) : states[j / L::count].push(f, at);
                }
            });
            if (by_row) states[i] = row;
        }
        return any(seen);
    }

    template <bool masked, bool with_slopes>
    bool weigh(T* w) const {
        constexpr bool all = !masked && !Term::has_window;
        auto seen = bits_of(L(T(0)));
        for (int i = 0; i < tile.rows; ++i) {
            const Range range = columns(i);
            const Kept<masked> kept(*this, i);
            const auto statistic = owner(given.statistic, i), cotangent = owner(given.cotangent, i);
            L row_sums[MOST_ARGUMENTS] = {L(T(0)), L(T(0)), L(T(0))};
            with_arguments(i, [&](auto... args) {
                for (int j = range.begin; j < range.end; j += L::count) {
                    const L s = L::load(similarities() + i * TILE + j);
                    const L f = rounded(F::value(s, args.at(j)...));
                    const auto slopes = F::slopes(s, args.at(j)...);
                    const Statistic<L> of = {statistic.at(j), nowhere<L>()};
                    const L share = cotangent.at(j) * G::share(f, nowhere<L>(), of);
                    const auto add = [&](T* to, L x) {
                        if constexpr (!all) x = select(kept.at(s, j), x, L(T(0)));
                        if (to) (L::load(to) + x).store(to);
                        return x;
                    };
                    seen = seen | bits_of(add(w + i * TILE + j, share * slopes.by[0]));
                    if constexpr (with_slopes)
                        for (int k = 0; k < F::arity; ++k) {
                            T* cols = by_row == Term::by_partner(k) && given.by_col[k]
                                          ? given.by_col[k] + j
                                          : nullptr;
                            row_sums[k] = row_sums[k] + add(cols, share * slopes.by[1 + k]);
                        }
                }
            });
            if constexpr (with_slopes)
                for (int k = 0; k < F::arity; ++k)
                    if (given.by_row[k] && by_row != Term::by_partner(k))
                        given.by_row[k][i] += sum(row_sums[k]);
        }
        return any(seen << 1);  // without the sign of a -0
    }
};

template <class Term, class L, bool by_row>
bool gather_tile(const Tile<typename Traits<L>::Scalar>& tile,
                 const Operands<typename Traits<L>::Scalar>& given, void* states) {
    using V = Visit<Term, L, by_row>;
    const V visit{tile, given};
    auto* mine = static_cast<typename V::G*>(states);
    if constexpr (Term::side == Side::pos)
        return visit.template gather<true>(mine);
    else
        return tile.masked ? visit.template gather<true>(mine) : visit.template gather<false>(mine);
}

template <class Term, class L, bool by_row>
bool weigh_tile(const Tile<typename Traits<L>::Scalar>& tile,
                const Operands<typename Traits<L>::Scalar>& given, typename Traits<L>::Scalar* w) {
    const Visit<Term, L, by_row> visit{tile, given};
    bool slopes = false;
    for (int k = 0; k < MOST_ARGUMENTS; ++k) slopes = slopes || given.by_row[k] || given.by_col[k];
    if (tile.masked || Term::side == Side::pos)
        return slopes ? visit.template weigh<true, true>(w) : visit.template weigh<true, false>(w);
    if constexpr (Term::side != Side::pos)
        return slopes ? visit.template weigh<false, true>(w)
                      : visit.template weigh<false, false>(w);
    return false;
}

template <class G>
void clear(void* states, int count) {
    for (int k = 0; k < count; ++k) static_cast<G*>(states)[k] = G::identity();
}

template <class G>
void merge(void* into, const void* from, int count) {
    for (int k = 0; k < count; ++k) static_cast<G*>(into)[k].merge(static_cast<const G*>(from)[k]);
}

}  // namespace PAIROPS_TARGET
}  // namespace pairops::cpu
