// The epilogue of a tile, as far as both passes share it: the kinds of terms, and a thread's pairs
// with their scale, operands and windows.
//
// A thread holds two rows of a tile, `lane / 4` and 8 below it among its warp's 16, and of each two
// neighbouring columns in eight: four pairs for every 16×8 sums of mma, and the four lanes of a
// quad share their rows.
#pragma once

#include <tuple>
#include <type_traits>

#include "cuda/tile/scheduler.h"

namespace pairops::cuda {

// The kind of a term is what is compiled; its side and windows are known at run time.
template <class T>
struct Kind {
    using Accumulator = typename T::template Accumulator<float>;
    using Function = typename T::Function;
    static constexpr bool by_partner(int k) { return T::by_partner(k); }
    template <class U>
    static constexpr bool same =
        std::is_same_v<Accumulator, typename Kind<U>::Accumulator> &&
        std::is_same_v<Function, typename Kind<U>::Function> &&
        by_partner(0) == Kind<U>::by_partner(0) && by_partner(1) == Kind<U>::by_partner(1);
};

// Kinds: one for each that occurs among the terms of `Recipes`.
template <class... Found>
struct Unique {
    using Type = std::tuple<Kind<Found>...>;
    template <class T>
    std::conditional_t<(Kind<T>::template same<Found> || ...), Unique, Unique<Found..., T>>
    operator+(T) const;
};
template <class... Ts>
auto unique(std::tuple<Ts...>) -> decltype((Unique<>() + ... + Ts()));
template <class... Ts>
std::tuple<Ts...> terms_of(const Recipe<Ts...>&);
template <class... Rs>
auto all_terms(const std::tuple<Rs...>&) -> decltype(std::tuple_cat(terms_of(Rs())...));
using Kinds = decltype(unique(all_terms(Recipes())))::Type;

template <class... Ks, class Visit>
DEVICE void visit_kind(const std::tuple<Ks...>*, int kind, Visit visit) {
    int k = 0;
    ((kind == k++ ? visit(Ks()) : void()), ...);
}
template <class Visit>
DEVICE void visit_kind(int kind, Visit visit) {
    visit_kind(static_cast<const Kinds*>(nullptr), kind, visit);
}

constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

// Of a softmax's term an exponential is 2^(a s - offset), of numbers that do not vary along a row.
template <class K>
constexpr bool is_softmax =
    std::is_same_v<typename K::Accumulator, LogSumExp<float>> &&
    std::is_same_v<typename K::Function, Affine> && !K::by_partner(0) && !K::by_partner(1);
// Where |s| <= 1 and |a| is no more than this, exponentials need no maximum that is subtracted.
constexpr float MOST_EXPONENT = 75.f;

// The pairs of a thread: sums of mma, or weights.
template <class S>
using Fragment = float[S::columns / 8][4];

// An operand as a thread reads it, by its two rows or by the columns of a tile.
template <class S, bool by_row>
class Operands {
   public:
    DEVICE Operands(const Sweep& call, int slot, int stage) {
        if (by_row) {
            const Shared first =
                call.at.row_slots + 4 * (slot * S::held_rows + 16 * warp() + lane() / 4);
            row_[0] = load_shared<float>(first);
            row_[1] = load_shared<float>(first + 4 * 8);
        } else {
            const int index = stage * call.n_col_slots() + slot;
            columns_ = call.at.col_slots + 4 * (index * S::columns + 2 * (lane() % 4));
        }
    }
    // The values of the t-th sums are those of (row, column), (row, column + 1), (row + 8, column),
    // (row + 8, column + 1).
    DEVICE void get(int t, float (&values)[4]) const {
        if (by_row) {
            values[0] = values[1] = row_[0];
            values[2] = values[3] = row_[1];
        } else {
            const Two two = load_shared<Two>(columns_ + 4 * 8 * t);
            values[0] = values[2] = two.first;
            values[1] = values[3] = two.second;
        }
    }

   private:
    float row_[2];
    Shared columns_;
};

// s = r_i r_j times the sums of products; the same bits whichever set is called rows.
template <class S>
DEVICE void scale(const Sweep& call, int stage, Fragment<S>& s) {
    const Operands<S, true> high_i(call, HIGH, stage), rest_i(call, REST, stage);
    const Operands<S, false> high_j(call, HIGH, stage), rest_j(call, REST, stage);
    const auto each = [&](const auto& of_rows, const auto& of_cols, auto scaled) {
        UNROLL
        for (int t = 0; t < S::columns / 8; ++t) {
            float row[4], col[4];
            of_rows.get(t, row);
            of_cols.get(t, col);
            UNROLL
            for (int e = 0; e < 4; ++e) s[t][e] = scaled(s[t][e], row[e], col[e]);
        }
    };
    if (!call.normalized) {
        // Powers of two, of which the product may overflow; an infinite s stays one.
        each(high_i, high_j, [](float sum, float row, float col) { return sum * row * col; });
        return;
    }
    each(high_i, high_j, [](float sum, float row, float col) { return sum * (row * col); });
    if constexpr (S::parts == 2) {
        // r is (1 + rest) times its first part: its rounding would be an error common to a whole
        // row.
        each(rest_i, rest_j, [](float once, float row, float col) {
            return multiply_then_add(once, row + col, once);
        });
    }
}

// May r_i join the scales of terms? Not where sums of 256 numbers and 64 columns leave a thread of
// Hopper's no register for it: the compiler would spill one.
template <class S>
constexpr bool may_fold = !S::hopper || S::slice < 256 || is_halves<S>;

// The same without r_i, where no bit of s decides about a pair.
template <class S>
DEVICE void scale_columns(const Sweep& call, int stage, Fragment<S>& s) {
    const Operands<S, false> high_j(call, HIGH, stage);
    UNROLL
    for (int t = 0; t < S::columns / 8; ++t) {
        float col[4];
        high_j.get(t, col);
        UNROLL
        for (int e = 0; e < 4; ++e) s[t][e] *= col[e];
    }
}

// The pairs without those that a window drops: s <= above, s >= below. A NaN is neither.
template <class S, bool transposed>
DEVICE std::uint32_t windowed(const Sweep& call, const TermCall& term, int stage,
                              const Fragment<S>& s, std::uint32_t pairs) {
    UNROLL
    for (int side = 0; side < 2; ++side) {
        const int slot = side == 0 ? term.above : term.below;
        if (slot < 0) continue;
        const Operands<S, !transposed> bounds(call, slot, stage);
        UNROLL
        for (int t = 0; t < S::columns / 8; ++t) {
            float bound[4];
            bounds.get(t, bound);
            UNROLL
            for (int e = 0; e < 4; ++e)
                if (side == 0 ? s[t][e] <= bound[e] : s[t][e] >= bound[e])
                    pairs &= ~(1u << (4 * t + e));
        }
    }
    return pairs;
}

// F::value and F::slopes of a pair, of as many arguments as F has.
template <class F>
DEVICE float value_of(float s, float a, float b) {
    if constexpr (F::arity == 0)
        return F::value(s);
    else
        return F::value(s, a, b);
}
template <class F>
DEVICE auto slopes_of(float s, float a, float b) {
    if constexpr (F::arity == 0)
        return F::slopes(s);
    else
        return F::slopes(s, a, b);
}

}  // namespace pairops::cuda
