// The plan of a call of the CUDA engine: its terms without numbers and addresses, and which of them
// are swept together. Python makes it once for all calls that are alike; a call hands in addresses.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings/fields.h"
#include "bindings/sources.h"
#include "cuda/api.h"

namespace pairops::cuda {

struct PlannedTerm {
    int kind;
    Side side;
    int owners;                    // the set: 0, x, or 1, y
    std::vector<int> args;         // the source of each, and of windows
    std::vector<bool> by_partner;  // of each argument
    int above, below;
};

// The terms of one sweep over the rows of a set. `sums` are the gradients by arguments that stand
// along these, each (term, argument).
struct PlannedSweep {
    int axis;
    std::vector<int> terms;
    std::vector<std::pair<int, int>> sums;
};

inline Side side_called(const std::string& name) {
    return name == "pos" ? Side::pos : name == "neg" ? Side::neg : Side::all;
}

inline std::vector<PlannedSweep> sweeps_of(const pybind11::list& given) {
    std::vector<PlannedSweep> found;
    for (const auto& item : given) {
        const auto [axis, terms, sums] = fields<3>(item, "a sweep of a plan");
        found.push_back({axis.cast<int>(), terms.cast<std::vector<int>>(),
                         sums.cast<std::vector<std::pair<int, int>>>()});
    }
    return found;
}

struct Plan {
    bool same;  // is there one set?
    std::vector<PlannedTerm> terms;
    std::vector<PlannedSweep> sweeps;  // of the forward pass, in turn
    std::vector<PlannedSweep> passes;  // of the backward pass

    // A term is (kind, side, owners, arguments, by partner, above, below).
    Plan(bool same, const pybind11::list& given, const pybind11::list& sweeps,
         const pybind11::list& passes)
        : same(same), sweeps(sweeps_of(sweeps)), passes(sweeps_of(passes)) {
        for (const auto& item : given) {
            const auto [kind, side, owners, args, by_partner, above, below] =
                fields<7>(item, "a term of a plan");
            terms.push_back({kind.cast<int>(), side_called(side.cast<std::string>()),
                             owners.cast<int>(), args.cast<std::vector<int>>(),
                             by_partner.cast<std::vector<bool>>(), above.cast<int>(),
                             below.cast<int>()});
        }
    }
};

// The operands along one axis of a sweep; equal ones share a slot of shared memory.
class Slots {
   public:
    Slots(Operand* operands, std::int32_t& count) : operands_(operands), count_(count) {}
    std::int8_t add(const Operand& operand) {
        int at = 0;
        while (at < count_ && !(operands_[at] == operand)) ++at;
        if (at == MOST_OPERANDS) throw pybind11::value_error("too many operands");
        if (at == count_) operands_[count_++] = operand;
        return std::int8_t(FIRST_OPERAND + at);
    }

   private:
    Operand* operands_;
    std::int32_t& count_;
};

// The operands of one term, by address or number.
struct BoundTerm {
    Operand args[2], above, below, statistic, cotangent;
};

// A vector is (address, stride).
inline Operand vector_of(const pybind11::handle& given) {
    const auto [address, stride] = fields<2>(given, "a vector");
    return {pointer<float>(address), stride.cast<std::int32_t>(), 0.f};
}

// A plan with the numbers, vectors and statistics of one call.
class BoundPlan {
   public:
    // Numbers and vectors come in the order of the terms, and so do statistics.
    BoundPlan(const Plan& plan, const pybind11::list& numbers, const pybind11::list& vectors,
              const std::vector<Operand>& statistics)
        : terms(plan.terms.size()), plan_(plan) {
        std::size_t number = 0, vector = 0;
        const auto operand = [&](int from) -> Operand {
            if (from == NUMBER) return {nullptr, 0, float(numbers[number++].cast<double>())};
            if (from == VECTOR) return vector_of(vectors[vector++]);
            return statistics.at(std::size_t(from));
        };
        for (std::size_t k = 0; k < terms.size(); ++k) {
            const PlannedTerm& from = plan.terms[k];
            if (from.args.size() > 2) throw pybind11::value_error("too many arguments");
            for (std::size_t j = 0; j < from.args.size(); ++j)
                terms[k].args[j] = operand(from.args[j]);
            if (from.above != ABSENT) terms[k].above = operand(from.above);
            if (from.below != ABSENT) terms[k].below = operand(from.below);
            terms[k].statistic = statistics.at(k);
        }
    }

    // Put term k of a planned sweep into the parameters of a kernel. Transposed, the rows of the
    // sweep are its partners.
    void add_term(const PlannedSweep& planned, int k, bool transposed, Sweep& sweep) const {
        if (sweep.n_terms == MOST_TERMS) throw pybind11::value_error("too many terms");
        const PlannedTerm& from = plan_.terms.at(std::size_t(k));
        const BoundTerm& of = terms[std::size_t(k)];
        Slots rows(sweep.row_operands, sweep.n_row_operands);
        Slots cols(sweep.col_operands, sweep.n_col_operands);
        Slots &owner = transposed ? cols : rows, &partner = transposed ? rows : cols;
        TermCall& to = sweep.terms[sweep.n_terms++];
        to.kind = from.kind;
        to.side = from.side;
        to.transposed = transposed;
        to.args[0] = to.args[1] = to.by_arg[0] = to.by_arg[1] = -1;
        to.statistic = to.cotangent = -1;
        for (std::size_t j = 0; j < from.args.size(); ++j) {
            to.args[j] = (from.by_partner[j] ? partner : owner).add(of.args[j]);
            const auto sum =
                std::find(planned.sums.begin(), planned.sums.end(), std::pair(k, int(j)));
            if (from.by_partner[j] == transposed && sum != planned.sums.end())
                to.by_arg[j] = std::int8_t(sum - planned.sums.begin());
        }
        to.above = from.above == ABSENT ? std::int8_t(-1) : owner.add(of.above);
        to.below = from.below == ABSENT ? std::int8_t(-1) : owner.add(of.below);
    }

    // The same of the backward pass. In one set a row is the owner of some pairs and the partner of
    // others; in two, rows are the owners of a term or its partners.
    void add_backward(const PlannedSweep& planned, const std::vector<std::uint8_t*>& bits,
                      Sweep& sweep) const {
        const auto add = [&](int k, bool transposed) {
            add_term(planned, k, transposed, sweep);
            TermCall& to = sweep.terms[sweep.n_terms - 1];
            Operand* operands = transposed ? sweep.col_operands : sweep.row_operands;
            Slots owner(operands, transposed ? sweep.n_col_operands : sweep.n_row_operands);
            to.statistic = owner.add(terms[std::size_t(k)].statistic);
            to.cotangent = owner.add(terms[std::size_t(k)].cotangent);
            to.bits = bits.at(std::size_t(k));
        };
        for (const int k : planned.terms)
            add(k, !plan_.same && plan_.terms[std::size_t(k)].owners != planned.axis);
        if (!plan_.same) return;
        for (const int k : planned.terms) add(k, true);
    }

    std::vector<BoundTerm> terms;

   private:
    const Plan& plan_;
};

}  // namespace pairops::cuda
