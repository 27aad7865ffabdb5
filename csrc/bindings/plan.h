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
#include "cpu/sweep.h"

namespace pairops::cpu {

// The facts of a term that follow from its name.
struct Served {
    int kernel, arity;
    bool positives, by_partner[MOST_ARGUMENTS];
};

// The source of an argument or a window: the next number, the next vector, nothing, or the
// statistic of an earlier term, given by that term's index in the call.
constexpr int NUMBER = -1, VECTOR = -2, ABSENT = -3;

struct PlannedTerm {
    Served known;
    bool by_column;  // of two sets
    std::vector<int> args;
    int above, below;
    bool has_bits, extreme;
    double neutral;  // the statistic of an owner without pairs
};

struct Plan {
    std::vector<PlannedTerm> terms;
    std::vector<std::vector<int>> sweeps;  // the terms of each sweep

    // A term is (name, by column, arguments, above, below, has bits, extreme, neutral).
    Plan(const pybind11::list& given, std::vector<std::vector<int>> sweeps,
         const Served& (*served)(const std::string&))
        : sweeps(std::move(sweeps)) {
        for (const auto& item : given) {
            const auto [name, by_column, args, above, below, bits, extreme, neutral] =
                fields<8>(item, "a term of a plan");
            terms.push_back({served(name.cast<std::string>()), by_column.cast<bool>(),
                             args.cast<std::vector<int>>(), above.cast<int>(), below.cast<int>(),
                             bits.cast<bool>(), extreme.cast<bool>(), neutral.cast<double>()});
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
    // A vector is (address, stride). Bits are of all terms that have some, `bits_stride` bytes
    // each.
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
            for (int k = 0; k < term.arity; ++k) {
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

}  // namespace pairops::cpu
