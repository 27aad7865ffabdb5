// Which terms of a launch go a shorter way, as far as the launch knows: decided on the host.
#pragma once

#include "cuda/tile/epilogue.h"

namespace pairops::cuda {

template <template <class> class Has, class... Ks>
bool any_kind(const std::tuple<Ks...>*, int kind) {
    int k = 0;
    return ((kind == k++ && Has<Ks>::value) || ...);
}
template <class K>
struct HasLogSumExp : std::is_same<typename K::Accumulator, LogSumExp<float>> {};
template <class K>
struct HasSoftmax : std::bool_constant<is_softmax<K>> {};
template <template <class> class Has>
bool is_kind(int kind) {
    return any_kind<Has>(static_cast<const Kinds*>(nullptr), kind);
}

// Are this term's exponentials, of similarities in [-1, 1], within MOST_EXPONENT but for a base?
template <class S>
bool is_bounded(const Sweep& call, const TermCall& term, const Operand* operands) {
    if (S::parts != 1 || !call.normalized || !is_kind<HasSoftmax>(term.kind)) return false;
    const Operand& scale = operands[term.args[0] - FIRST_OPERAND];
    return !scale.values && magnitude(scale.number) * LOG2_E <= MOST_EXPONENT;
}

// One log-sum-exp stays in registers: rather one of more pairs than the positives.
template <class S>
void choose_short_ways(ForwardCall& call) {
    call.running = -1;
    for (int k = 0; k < call.n_terms; ++k) {
        const TermCall& term = call.terms[k];
        if (!is_kind<HasLogSumExp>(term.kind)) continue;
        if (call.running < 0 ||
            (call.terms[call.running].side == Side::pos && term.side != Side::pos))
            call.running = k;
    }
    call.bounded =
        call.running >= 0 && is_bounded<S>(call, call.terms[call.running], call.row_operands);
}

// Are these the two views of one term?
inline bool are_twins(const Sweep& call, const TermCall& owner, const TermCall& partner) {
    const std::int8_t *mine = owner.args, *others = partner.args;
    const auto same = [&](int row_slot, int col_slot) {
        if (row_slot < 0 || col_slot < 0) return row_slot == col_slot;
        return call.row_operands[row_slot - FIRST_OPERAND] ==
               call.col_operands[col_slot - FIRST_OPERAND];
    };
    return !owner.transposed && partner.transposed && owner.kind == partner.kind &&
           owner.side == partner.side && same(mine[0], others[0]) && same(mine[1], others[1]) &&
           same(owner.above, partner.above) && same(owner.below, partner.below) &&
           same(owner.statistic, partner.statistic) && same(owner.cotangent, partner.cotangent);
}

// Is the base a number so near that R + a base, which is between -|a| and |a| + log2 n, keeps its
// digits? A difference of large numbers has none, and 2 to the power of it may be infinite.
inline bool has_near_base(const Sweep& call, const TermCall& term) {
    const Operand &scale = call.row_operands[term.args[0] - FIRST_OPERAND],
                  &base = call.row_operands[term.args[1] - FIRST_OPERAND];
    return !base.values && magnitude(scale.number * base.number) <= 1024.f;
}

// In one set, a bounded term whose arguments want no gradient has one exponential for both views.
template <class S>
void choose_short_ways(BackwardCall& call) {
    const auto wants_sums = [](const TermCall& term) {
        return term.by_arg[0] >= 0 || term.by_arg[1] >= 0;
    };
    for (TermCall& term : call.terms) term.twin = -1;
    call.folds = false;
    if (call.rows.rows != call.cols.rows || !call.gradient) return;
    for (int k = 0; k < call.n_terms; ++k) {
        TermCall& term = call.terms[k];
        if (wants_sums(term) || term.transposed || !is_bounded<S>(call, term, call.row_operands) ||
            !has_near_base(call, term))
            continue;
        for (int other = k + 1; other < call.n_terms && term.twin < 0; ++other) {
            TermCall& twin = call.terms[other];
            if (twin.twin >= 0 || wants_sums(twin) || !are_twins(call, term, twin)) continue;
            term.twin = std::int8_t(other);
            twin.twin = std::int8_t(k);
        }
    }
    // A full tile has no positives. What a window drops must not depend on the view.
    call.folds = may_fold<S>;
    for (int k = 0; k < call.n_terms; ++k) {
        const TermCall& term = call.terms[k];
        call.folds = call.folds && term.above < 0 && term.below < 0 &&
                     (term.twin >= 0 || term.side == Side::pos);
    }
}

}  // namespace pairops::cuda
