// Statistics and gradients of terms by plain loops over pairs, in double: nothing of the kernels.
#pragma once

#include "sweeps_problem.h"

namespace pairops::cuda {

// An operand: a number, a value that all rows share, or one for each.
struct Given {
    bool present = false;
    Exact<float> values;
    int stride = 0;
    float number = 0;
    bool learned = true;  // is a gradient wanted by values?

    double at(int i) const { return values.size() ? values[std::size_t(stride * i)] : number; }
    Operand told() const { return {values.data_or_null(), stride, number}; }
};

// The operands of one side of a sweep.
struct Slots {
    Operand* to;
    std::int32_t* n;
    std::int8_t add(const Operand& operand) {
        to[*n] = operand;
        return std::int8_t(FIRST_OPERAND + (*n)++);
    }
    std::int8_t add(const Given& given) {
        return given.present ? add(given.told()) : std::int8_t(-1);
    }
};

// A term as a caller has it: its kind by name, "lse:affine(op)".
struct Term {
    std::string name, accumulator, function;
    int kind, owners;  // the set that these are of
    Side side;
    bool by_partner[2];
    Given args[2], above, below, cotangent;
    // What kernels find.
    Exact<float> values;
    Exact<Index> arguments;
    Exact<std::uint8_t> bits;

    bool extreme() const {
        return accumulator[0] == 'l' ? accumulator != "lse" : accumulator[0] == 'h';
    }
    bool windowed() const { return above.present || below.present; }
    int arity() const { return function == "identity" ? 0 : 2; }
};

struct Pair {
    int i, j;  // of x, of y
    int owner, partner;
    double s;
};

// visit(pair): all pairs of a term's side and windows, owner by owner.
template <class Visit>
void each_pair(const Problem& problem, const Term& term, int owner, Visit visit) {
    const int partners = problem.set(1 - term.owners).n;
    for (int partner = 0; partner < partners; partner++) {
        const int i = term.owners == 0 ? owner : partner, j = term.owners == 0 ? partner : owner;
        if (!problem.on_side(i, j, term.side)) continue;
        const double s = problem.similarity(i, j);
        if (term.above.present && !(s > term.above.at(owner))) continue;
        if (term.below.present && !(s < term.below.at(owner))) continue;
        visit(Pair{i, j, owner, partner, s});
    }
}

struct Contribution {
    double f, by_s, by[2];
};
inline Contribution contribution(const Term& term, const Pair& pair) {
    if (term.function == "identity") return {pair.s, 1, {0, 0}};
    const double a = term.args[0].at(term.by_partner[0] ? pair.partner : pair.owner);
    const double b = term.args[1].at(term.by_partner[1] ? pair.partner : pair.owner);
    if (term.function == "affine") return {a * (pair.s - b), a, {pair.s - b, -a}};
    if (term.function == "hinge") {
        const double z = a * (pair.s - b);
        if (z <= 0) return {0, 0, {0, 0}};
        return {z, a, {pair.s - b, -a}};
    }
    if (term.function == "softplus") {
        const double z = a * pair.s + b, slope = 1 / (1 + std::exp(-z));
        return {std::log1p(std::exp(-std::fabs(z))) + (z > 0 ? z : 0),
                slope * a,
                {slope * pair.s, slope}};
    }
    throw Wrong("the oracle has no function " + term.function);
}

struct Expected {
    double value, size;  // size: of the numbers that were summed
    int argument;
};
inline Expected statistic(const Problem& problem, const Term& term, int owner) {
    const bool lowest = term.accumulator.rfind("lowest", 0) == 0;
    if (!term.extreme() && term.accumulator != "lse" && term.accumulator != "sum")
        throw Wrong("the oracle has no accumulator " + term.accumulator);
    double sum = 0, size = 0, best = lowest ? INFINITY : -INFINITY, top = -INFINITY;
    int argument = -1;
    each_pair(problem, term, owner, [&](const Pair& pair) {
        const double f = contribution(term, pair).f;
        sum += f;
        size += std::fabs(f);
        top = std::fmax(top, f);
        if (argument < 0 || (lowest ? f < best : f > best)) best = f, argument = pair.partner;
    });
    if (term.accumulator == "sum") return {sum, size, -1};
    if (term.extreme()) return {best, std::fabs(best), argument};
    double exponentials = 0;
    each_pair(problem, term, owner, [&](const Pair& pair) {
        exponentials += std::exp(contribution(term, pair).f - top);
    });
    return {top + std::log(exponentials), std::fabs(top), -1};
}

struct Gradients {
    // (n, d) by each set; of each row the sum of the magnitudes that make up its gradient.
    std::vector<double> by[2], size[2];
    // By term and argument, of owners or partners.
    std::vector<std::vector<double>> by_arg[2], arg_size[2];
    double largest = 0;  // number of any unit row
};

// Of Σ cotangent · statistic, sums and log-sum-exps: an extreme's is not by a sweep.
inline Gradients gradients(const Problem& problem, const std::vector<Term>& terms) {
    Gradients found;
    const int d = problem.x.d;
    for (int axis = 0; axis < 2; axis++) {
        found.by[axis].assign(std::size_t(problem.set(axis).n) * std::size_t(d), 0);
        found.size[axis].assign(std::size_t(problem.set(axis).n), 0);
    }
    for (const Term& term : terms) {
        const int n = problem.set(term.owners).n, m = problem.set(1 - term.owners).n;
        std::vector<double> by_arg[2], size[2];
        for (int k = 0; k < 2; k++) {
            by_arg[k].assign(std::size_t(term.by_partner[k] ? m : n), 0);
            size[k] = by_arg[k];
        }
        for (int owner = 0; owner < (term.extreme() ? 0 : n); owner++) {
            if (!problem.set(term.owners).valid[owner]) continue;
            const double value = statistic(problem, term, owner).value;
            each_pair(problem, term, owner, [&](const Pair& pair) {
                const Contribution one = contribution(term, pair);
                const double share = term.cotangent.at(owner) *
                                     (term.accumulator == "lse" ? std::exp(one.f - value) : 1);
                const double weight = share * one.by_s;
                const OneSet &x = problem.x, &y = problem.y();
                double* to_x = &found.by[0][std::size_t(pair.i) * std::size_t(d)];
                double* to_y = &found.by[problem.same ? 0 : 1][std::size_t(pair.j) * d];
                for (int k = 0; k < d; k++) {
                    to_x[k] += weight * y.r[pair.j] * y.row(pair.j)[k];
                    to_y[k] += weight * x.r[pair.i] * x.row(pair.i)[k];
                }
                found.size[0][std::size_t(pair.i)] += std::fabs(weight);
                found.size[problem.same ? 0 : 1][std::size_t(pair.j)] += std::fabs(weight);
                for (int k = 0; k < 2; k++) {
                    const auto at = std::size_t(term.by_partner[k] ? pair.partner : pair.owner);
                    by_arg[k][at] += share * one.by[k];
                    size[k][at] += std::fabs(share) * (std::fabs(one.by[k]) + std::fabs(pair.s));
                }
            });
        }
        for (int k = 0; k < 2; k++) {
            found.by_arg[k].push_back(by_arg[k]);
            found.arg_size[k].push_back(size[k]);
        }
    }
    for (int axis = 0; axis < 2; axis++) {
        const OneSet& set = problem.set(axis);
        for (int i = 0; i < set.n; i++) {
            if (!set.valid[i]) continue;
            double* g = &found.by[axis][std::size_t(i) * std::size_t(d)];
            const double r = set.r[std::size_t(i)];
            double along = 0;
            for (int k = 0; k < d; k++) {
                along += r * set.row(i)[k] * g[k];
                found.largest = std::fmax(found.largest, std::fabs(r * set.row(i)[k]));
            }
            if (!problem.shaped.normalized || (axis == 1 && problem.same)) continue;
            for (int k = 0; k < d; k++) g[k] = r * (g[k] - r * set.row(i)[k] * along);
        }
    }
    return found;
}

}  // namespace pairops::cuda
