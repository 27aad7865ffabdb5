// Recipes that are compiled ahead of time, one line for each: a tuple of terms as
// ops/terms/recipe.py names them.
#pragma once

#include "math/accumulators.h"
#include "math/functions.h"

namespace pairops {
inline namespace PAIROPS_TARGET {

enum class Side { pos, neg, all };

// A term has an accumulator, a side and a function; further its windows, and the arguments that are
// one value per partner, or one per pair: a product of further embeddings. The others are one value
// per owner or a plain number, which costs the same.
enum With : unsigned {
    nothing = 0,
    above = 1,
    below = 2,
    partner_0 = 4,
    partner_1 = 8,
    product_0 = 16
};

template <template <class> class Acc, Side of_side, class F, unsigned with = nothing>
struct Term {
    template <class T>
    using Accumulator = Acc<T>;
    using Function = F;
    static constexpr Side side = of_side;
    static constexpr bool has_above = with & above, has_below = with & below;
    static constexpr bool has_window = has_above || has_below;

    // Does argument k vary with the partner of a pair?
    static constexpr bool by_partner(int k) {
        return k < 2 && (with & (k == 0 ? partner_0 : partner_1));
    }
    static constexpr bool has_product = with & product_0;
    // Is argument k a product of further embeddings?
    static constexpr bool is_product(int k) { return k == 0 && has_product; }
};

template <class... Terms>
struct Recipe {};

// Recipes for every processor. An engine that compiles terms apart, as the CPU's does, serves every
// combination of them.
using Recipes = std::tuple<
    // multi-similarity, mined: farthest positive, nearest and mined negatives, mined positives
    Recipe<Term<LowestValue, Side::pos, Affine>>,
    Recipe<Term<HighestValue, Side::neg, Affine>, Term<LogSumExp, Side::neg, Affine, above>>,
    Recipe<Term<LogSumExp, Side::pos, Affine, below>>,
    // thresholds that the caller makes
    Recipe<Term<LowestValue, Side::pos, Identity>, Term<HighestValue, Side::neg, Identity>>,
    // multi-similarity, all pairs; lifted structure; proxy anchor; with the sum below, a softmax
    Recipe<Term<LogSumExp, Side::pos, Affine>, Term<LogSumExp, Side::neg, Affine>>,
    // a softmax over all pairs; with a weight or offset per column
    Recipe<Term<LogSumExp, Side::all, Affine>, Term<Sum, Side::pos, Affine>>,
    Recipe<Term<LogSumExp, Side::all, Affine, partner_1>, Term<Sum, Side::pos, Affine, partner_1>>,
    Recipe<Term<LogSumExp, Side::neg, Affine, partner_1>>,
    // contrastive, margin; with thresholds per column
    Recipe<Term<Sum, Side::pos, Hinge>, Term<Sum, Side::neg, Hinge>>,
    Recipe<Term<Sum, Side::pos, Hinge, partner_1>, Term<Sum, Side::neg, Hinge, partner_1>>,
    // SigLIP, binomial deviance
    Recipe<Term<Sum, Side::pos, Softplus>, Term<Sum, Side::neg, Softplus>>,
    // triplet: batch hard, and negatives between two bounds
    Recipe<Term<Lowest, Side::pos, Identity>, Term<Highest, Side::neg, Identity>>,
    Recipe<Term<Sum, Side::neg, Hinge, above | below>, Term<Highest, Side::neg, Identity, below>>>;

// Recipes for the CPU alone; on a GPU these are Triton's.
using OfTheCpu = std::tuple<
    // pairs counted; ranks: positives from the nearest on, and negatives nearer than one of them
    Recipe<Term<HighestValue, Side::pos, Identity>, Term<HighestValue, Side::pos, Identity, below>>,
    Recipe<Term<Sum, Side::pos, One>, Term<Sum, Side::pos, One, above>,
           Term<Sum, Side::pos, One, below>>,
    Recipe<Term<Sum, Side::neg, One>, Term<Sum, Side::neg, One, above>,
           Term<Sum, Side::neg, One, below>>,
    // circle loss
    Recipe<Term<LogSumExp, Side::pos, CirclePull>, Term<LogSumExp, Side::neg, CirclePush>>,
    // NT-Xent: every positive against the negatives
    Recipe<Term<Sum, Side::pos, SoftplusFrom>>,
    // a softmax over positives, held constant
    Recipe<Term<Sum, Side::pos, Attended>>,
    // pairs counted softly: ranks, average precision
    Recipe<Term<Sum, Side::pos, Sigmoid>, Term<Sum, Side::neg, Sigmoid>,
           Term<Sum, Side::all, Sigmoid>>,
    // contrastive as cross-batch memory has it, label smoothing
    Recipe<Term<Sum, Side::neg, Affine>, Term<Sum, Side::neg, Affine, above>>,
    // a softmax over the negatives below a bound: semihard ones, or none that may be false
    Recipe<Term<LogSumExp, Side::neg, Affine, below>,
           Term<LogSumExp, Side::neg, Affine, below | partner_1>>,
    // a softmax over the negatives that a guide does not rate above a bar
    Recipe<Term<LogSumExp, Side::neg, Gated, product_0>>,
    // triplet: the farthest negative, the nearest positive; the nearest of all, and its index
    Recipe<Term<Lowest, Side::neg, Identity>, Term<Highest, Side::pos, Identity>>,
    Recipe<Term<Lowest, Side::all, Identity>, Term<Highest, Side::all, Identity>>>;
using CpuRecipes = decltype(std::tuple_cat(Recipes(), OfTheCpu()));

}  // namespace PAIROPS_TARGET
}  // namespace pairops
