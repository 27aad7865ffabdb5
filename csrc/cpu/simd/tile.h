// One term and one tile: the tile is added to the states of its owners, or its pairs get weights.
#pragma once

#include "cpu/simd/kernel_table.h"
#include "cpu/simd/simd.h"
#include "recipes.h"

namespace pairops::cpu {
inline namespace PAIROPS_TARGET {

template <class V>
inline Columns<V> load_columns(const std::int32_t* from) {
    Columns<V> columns(0);
    for (int k = 0; k < V::count; ++k) columns.set(k, from[k]);
    return columns;
}

// An operand along the rows of a tile is one number for a row's pairs, and one along its columns
// has one for each of them.
template <class V, bool along_rows>
struct Along;
template <class V>
struct Along<V, true> {
    V value;
    Along(const typename Traits<V>::Scalar* values, Position row, Position) : value(values[row]) {}
    V at(int) const { return value; }
};
template <class V>
struct Along<V, false> {
    const typename Traits<V>::Scalar* cols;
    Along(const typename Traits<V>::Scalar* values, Position, Position col) : cols(values + col) {}
    V at(int j) const { return V::load(cols + j); }
};
struct Absent {
    Absent(const void*, Position, Position) {}
};

// A term over tiles whose owners are the rows, or else the columns. It copies the tile and the
// operands, for the compiler must assume that memory changes with every number that is stored.
template <class Term, class V, bool by_row>
struct Visit {
    using T = typename Traits<V>::Scalar;
    using Acc = typename Term::template Accumulator<V>;
    using F = typename Term::Function;
    using Mask = typename V::Mask;
    using Int = typename Traits<Mask>::Scalar;

    const Tile<T> tile;
    const Operands<T> given;

    template <bool along_rows>
    Along<V, along_rows> along(const T* values, int i) const {
        return {values, tile.row + i, tile.col};
    }
    auto owner(const T* values, int i) const { return along<by_row>(values, i); }
    // Argument k in row i.
    template <int k>
    auto argument(int i) const {
        if constexpr (Term::is_product(k))
            return Along<V, false>(tile.products + i * TILE, 0, 0);
        else
            return along<by_row != Term::by_partner(k)>(given.args[k], i);
    }
    // Call `call` with the arguments of the function, each of them an Along.
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
    template <bool partial>
    struct RowPairs {
        Mask pos_begin, pos_end, self, cols;
        const Int* listed;
        std::conditional_t<Term::has_above, Along<V, by_row>, Absent> above;
        std::conditional_t<Term::has_below, Along<V, by_row>, Absent> below;

        RowPairs(const Visit& visit, int i)
            : pos_begin(here(visit, visit.tile.pos_begin[i])),
              pos_end(here(visit, visit.tile.pos_end[i])),
              self(here(visit, visit.tile.self_index[i])),
              cols(Int(visit.tile.cols)),
              listed(visit.tile.listed ? visit.tile.listed + i * TILE : nullptr),
              above(visit.given.above, visit.tile.row + i, visit.tile.col),
              below(visit.given.below, visit.tile.row + i, visit.tile.col) {}

        // A position as a column of this tile, within bounds that a mask can hold; -1 is nobody's.
        static Mask here(const Visit& visit, Position p) {
            p -= visit.tile.col;
            return Mask(Int(p < -1 ? -1 : p > TILE ? TILE : p));
        }
        // Is it a pair of the term's side?
        Mask is_pair(int j) const {
            const Mask column = iota<Mask>() + Mask(Int(j));
            const Mask pair = (column != self) & (column < cols);
            if constexpr (Term::side == Side::all) return pair;
            const Mask positive =
                listed ? Mask::load(listed + j) : (column >= pos_begin) & (column < pos_end);
            return pair & (Term::side == Side::pos ? positive : !positive);
        }
        // Is it one, and inside the window?
        Mask at(V s, int j) const {
            Mask valid = partial ? is_pair(j) : Mask(-1);
            // A window drops s <= above and s >= below; a NaN is neither.
            if constexpr (Term::has_above) valid = valid & !(s <= above.at(j));
            if constexpr (Term::has_below) valid = valid & !(s >= below.at(j));
            return valid;
        }
    };

    const T* similarities() const { return by_row ? tile.s : tile.s_of_cols; }

    // The columns in which row i can have a pair.
    Range columns(int i) const {
        if (Term::side != Side::pos) return {0, tile.cols};
        const Range positives = tile.positives_of(i);
        return {positives.begin / V::count * V::count, positives.end};
    }

    template <bool partial>
    bool forward(Acc* states) const {
        constexpr bool all = !partial && !Term::has_window;
        Mask seen(0);
        for (int i = 0; i < tile.rows; ++i) {
            const Range range = columns(i);
            const RowPairs<partial> pairs(*this, i);
            Acc row = by_row ? states[i] : Acc::init();
            with_arguments(i, [&](auto... args) {
                for (int j = range.begin; j < range.end; j += V::count) {
                    const V s = V::load(similarities() + i * TILE + j);
                    V f = rounded(F::value(s, args.at(j)...));
                    Columns<V> at = nowhere<V>();
                    if constexpr (Acc::has_argument)
                        at = by_row ? load_columns<V>(tile.caller_y + j)
                                    : Columns<V>(tile.caller_x[i]);
                    if constexpr (!all) {
                        const Mask valid = pairs.at(s, j);
                        if constexpr (Term::has_window) seen = seen | valid;
                        f = select(valid, f, Acc::neutral());
                        if constexpr (Acc::has_argument) at = select(valid, at, nowhere<V>());
                    }
                    by_row ? row.update(f, at) : states[j / V::count].update(f, at);
                }
            });
            if (by_row) states[i] = row;
        }
        return any(seen);
    }

    template <bool partial, bool with_slopes>
    bool backward(T* w) const {
        constexpr bool all = !partial && !Term::has_window;
        // Sums by column of a few rows, so that no sum has many summands.
        constexpr int few = 16;
        [[maybe_unused]] T by_col[with_slopes ? MOST_ARGUMENTS : 1][TILE] = {};
        auto seen = bits_of(V(T(0)));
        for (int i = 0; i < tile.rows; ++i) {
            const Range range = columns(i);
            const RowPairs<partial> pairs(*this, i);
            const auto statistic = owner(given.statistic, i), cotangent = owner(given.cotangent, i);
            V row_sums[MOST_ARGUMENTS] = {V(T(0)), V(T(0)), V(T(0))};
            with_arguments(i, [&](auto... args) {
                for (int j = range.begin; j < range.end; j += V::count) {
                    const V s = V::load(similarities() + i * TILE + j);
                    const V f = rounded(F::value(s, args.at(j)...));
                    const auto slopes = F::slopes(s, args.at(j)...);
                    const Statistic<V> of = {statistic.at(j), nowhere<V>()};
                    const V share = cotangent.at(j) * Acc::share(f, nowhere<V>(), of);
                    const auto add = [&](T* to, V x) {
                        if constexpr (!all) x = select(pairs.at(s, j), x, V(T(0)));
                        if (to) (V::load(to) + x).store(to);
                        return x;
                    };
                    seen = seen | bits_of(add(w + i * TILE + j, share * slopes.by[0]));
                    if constexpr (with_slopes)
                        for (int k = 0; k < F::arity; ++k) {
                            T* cols = by_row == Term::by_partner(k) && given.by_col[k]
                                          ? by_col[k] + j
                                          : nullptr;
                            row_sums[k] = row_sums[k] + add(cols, share * slopes.by[1 + k]);
                        }
                }
            });
            if constexpr (with_slopes)
                for (int k = 0; k < F::arity; ++k)
                    if (given.by_row[k] && by_row != Term::by_partner(k))
                        given.by_row[k][i] += sum(row_sums[k]);
            if constexpr (with_slopes)
                if ((i + 1) % few == 0 || i + 1 == tile.rows)
                    for (int k = 0; k < F::arity; ++k)
                        for (int j = 0; given.by_col[k] && j < TILE; ++j) {
                            given.by_col[k][j] += by_col[k][j];
                            by_col[k][j] = 0;
                        }
        }
        return any(seen << 1);  // without the sign of a -0
    }
};

// Rows [first, first + count) of a tile.
template <class T>
Tile<T> part(Tile<T> tile, int first, int count) {
    tile.s += first * TILE;
    tile.s_of_cols += first * TILE;
    if (tile.products) tile.products += first * TILE;
    tile.rows = count;
    tile.row += first;
    tile.pos_begin += first;
    tile.pos_end += first;
    tile.self_index += first;
    tile.listed += first * TILE;
    tile.listed_columns += first;
    tile.caller_x += first;
    return tile;
}

// Call visit(tile, first row, partial) with each run of rows that have listed positives, and with
// each run of rows that have none, which is full; or once with a whole tile, if nothing is listed
// in it or if it is partial anyway.
template <class T, class F>
bool by_runs(const Tile<T>& tile, F visit) {
    if (tile.partial || !tile.listed || !tile.positives) return visit(tile, 0, tile.partial);
    const auto has_some = [&](int i) { return tile.listed_columns[i].end > 0; };
    bool found = false;
    for (int first = 0, end; first < tile.rows; first = end) {
        for (end = first + 1; end < tile.rows && has_some(end) == has_some(first);) ++end;
        found |= visit(part(tile, first, end - first), first, has_some(first));
    }
    return found;
}

template <class Term, class V, bool by_row>
bool forward_tile(const Tile<typename Traits<V>::Scalar>& tile,
                  const Operands<typename Traits<V>::Scalar>& given, void* states) {
    using Visitor = Visit<Term, V, by_row>;
    auto* mine = static_cast<typename Visitor::Acc*>(states);
    if constexpr (Term::side == Side::pos) {
        return Visitor{tile, given}.template forward<true>(mine);
    } else {
        return by_runs(tile, [&](const auto& rows, int first, bool partial) {
            const Visitor visit{rows, given};
            auto* owners = by_row ? mine + first : mine;
            return partial ? visit.template forward<true>(owners)
                           : visit.template forward<false>(owners);
        });
    }
}

template <class Term, class V, bool by_row>
bool backward_tile(const Tile<typename Traits<V>::Scalar>& tile,
                   const Operands<typename Traits<V>::Scalar>& given,
                   typename Traits<V>::Scalar* w) {
    using Visitor = Visit<Term, V, by_row>;
    bool slopes = false;
    for (int k = 0; k < MOST_ARGUMENTS; ++k) slopes = slopes || given.by_row[k] || given.by_col[k];
    if constexpr (Term::side == Side::pos) {
        const Visitor visit{tile, given};
        return slopes ? visit.template backward<true, true>(w)
                      : visit.template backward<true, false>(w);
    } else {
        return by_runs(tile, [&](const auto& rows, int first, bool partial) {
            auto of_rows = given;
            for (auto*& sums : of_rows.by_row)
                if (sums) sums += first;
            const Visitor visit{rows, of_rows};
            auto* weights = w + first * TILE;
            if (partial)
                return slopes ? visit.template backward<true, true>(weights)
                              : visit.template backward<true, false>(weights);
            return slopes ? visit.template backward<false, true>(weights)
                          : visit.template backward<false, false>(weights);
        });
    }
}

template <class Acc>
void clear(void* states, int count) {
    for (int k = 0; k < count; ++k) static_cast<Acc*>(states)[k] = Acc::init();
}

template <class Acc>
void merge(void* into, const void* from, int count) {
    for (int k = 0; k < count; ++k)
        static_cast<Acc*>(into)[k].merge(static_cast<const Acc*>(from)[k]);
}

}  // namespace PAIROPS_TARGET
}  // namespace pairops::cpu
