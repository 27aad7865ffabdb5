// The plan of a call: its terms without their numbers and vectors. Python makes it once for all
// calls that are alike, so a call hands in addresses and numbers alone.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/fields.h"
#include "bindings/sources.h"
#include "cpu/sweep.h"

namespace pairops::cpu {

// The facts of a term that follow from its name.
struct Served {
    int kernel, arity;
    bool positives, by_partner[MOST_ARGUMENTS], has_product;
};

struct PlannedTerm {
    Served known;
    bool by_column;  // of two sets
    std::vector<int> args;
    std::vector<int> onward;  // the arguments whose gradient goes on to their earlier terms
    int above, below;
    bool has_bits;
    double neutral;  // the statistic of an owner without pairs
};

struct Plan {
    std::vector<PlannedTerm> terms;
    std::vector<std::vector<int>> sweeps;  // the terms of each sweep
    // Those of each sweep of the backward pass, extremes left out: a term that passes its gradient
    // on is in a sweep before the term that gets it.
    std::vector<std::vector<int>> passes;

    // A term is (name, by column, arguments, onward, above, below, has bits, neutral).
    Plan(const pybind11::list& given, std::vector<std::vector<int>> sweeps,
         std::vector<std::vector<int>> passes, const Served& (*served)(const std::string&))
        : sweeps(std::move(sweeps)), passes(std::move(passes)) {
        for (const auto& item : given) {
            const auto [name, by_column, args, onward, above, below, bits, neutral] =
                fields<8>(item, "a term of a plan");
            terms.push_back({served(name.cast<std::string>()), by_column.cast<bool>(),
                             args.cast<std::vector<int>>(), onward.cast<std::vector<int>>(),
                             above.cast<int>(), below.cast<int>(), bits.cast<bool>(),
                             neutral.cast<double>()});
        }
    }

    // The address of each term's statistic. They stand one after the other, without a gap.
    std::vector<Address> statistic_addresses(Address first, Index rows, Index columns,
                                             std::size_t size) const {
        std::vector<Address> found;
        for (const PlannedTerm& term : terms) {
            found.push_back(first);
            first += Address(term.by_column ? columns : rows) * size;
        }
        return found;
    }
};

// The terms of one call: a plan with its numbers, vectors and statistics.
template <class T>
class BoundPlan {
   public:
    // A vector is (address, stride), and so are further embeddings. Bits are of all terms that have
    // some, `bits_stride` bytes each.
    BoundPlan(const Plan& plan, bool same, const pybind11::list& numbers,
              const pybind11::list& vectors, std::vector<Address> addresses, std::uint8_t* bits,
              std::size_t bits_stride)
        : statistics(std::move(addresses)), numbers_(numbers), vectors_(vectors) {
        for (const PlannedTerm& planned : plan.terms) {
            TermCall<T> term;
            term.kernel = planned.known.kernel;
            term.positives = planned.known.positives;
            term.by_column = planned.by_column && !same;
            term.of_columns = planned.by_column;
            term.arity = planned.known.arity;
            term.has_product = planned.known.has_product;
            if (term.has_product) term.further = further();
            for (int k = term.has_product; k < term.arity; ++k) {
                term.args[k] = operand(planned.args[k], int(terms.size()), k);
                term.by_partner[k] = planned.known.by_partner[k];
            }
            term.has_above = planned.above != ABSENT;
            term.has_below = planned.below != ABSENT;
            if (term.has_above) term.above = operand(planned.above);
            if (term.has_below) term.below = operand(planned.below);
            if (planned.has_bits && bits) {
                term.bits = bits;
                bits += bits_stride;
            }
            terms.push_back(term);
        }
    }

    static Numbers<T> vector(const pybind11::handle& given) {
        const auto [address, stride] = fields<2>(given, "a vector");
        Numbers<T> result;
        result.values = pointer<T>(address);
        result.stride = stride.template cast<Index>();
        return result;
    }

    const std::vector<Address> statistics;
    std::vector<TermCall<T>> terms;
    // The term and the argument that a vector is, for each vector that is an argument.
    std::vector<std::pair<int, int>> arguments;

   private:
    Further<T> further() {
        const Numbers<T> owners = vector(vectors_[next_vector_++]);
        return {owners.values, vector(vectors_[next_vector_++]).values, owners.stride};
    }
    Numbers<T> operand(int from, int term = -1, int argument = -1) {
        Numbers<T> result;
        if (from == NUMBER) {
            result.number = T(numbers_[next_number_++].template cast<double>());
        } else if (from == VECTOR) {
            if (term >= 0) arguments.push_back({term, argument});
            result = vector(vectors_[next_vector_++]);
        } else {
            result.values = reinterpret_cast<const T*>(statistics.at(from));
        }
        return result;
    }

    const pybind11::list &numbers_, &vectors_;
    std::size_t next_number_ = 0, next_vector_ = 0;
};

// The gradients that terms pass on to earlier ones, whose cotangents they add to.
template <class T>
class PassedOn {
   public:
    // From now on, `bound` holds addresses of this object.
    PassedOn(const Plan& plan, BoundPlan<T>& bound, Index rows, Index columns)
        : plan_(plan), slopes_(plan.terms.size()), cotangents_(plan.terms.size()) {
        for (std::size_t k = 0; k < plan.terms.size(); ++k)
            for (const int argument : plan.terms[k].onward) {
                const int earlier = plan.terms[k].args[argument];
                const Index owners = plan.terms[k].by_column ? columns : rows;
                std::vector<T>& cotangent = cotangents_[earlier];
                Numbers<T>& given = bound.terms[earlier].cotangent;
                for (Index i = Index(cotangent.size()); i < owners; ++i)
                    cotangent.push_back(given.at(i));
                given = {cotangent.data()};
                slopes_[k].emplace_back(owners, T(0));
                bound.terms[k].slope[argument] = slopes_[k].back().data();
            }
    }
    PassedOn(const PassedOn&) = delete;

    // Call this after the sweep of these terms.
    void add(const std::vector<int>& terms) {
        for (const int k : terms)
            for (std::size_t p = 0; p < slopes_[k].size(); ++p) {
                std::vector<T>& to = cotangents_[plan_.terms[k].args[plan_.terms[k].onward[p]]];
                for (std::size_t i = 0; i < to.size(); ++i) to[i] += slopes_[k][p][i];
            }
    }

   private:
    const Plan& plan_;
    std::vector<std::vector<std::vector<T>>> slopes_;  // of each term, of each that passes it on
    std::vector<std::vector<T>> cotangents_;           // of each term that gets one
};

}  // namespace pairops::cpu
