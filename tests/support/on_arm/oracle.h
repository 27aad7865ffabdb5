// Statistics and gradients of a term by loops over pairs in double: of the engine, pair functions
// alone.
#pragma once

#include "problem.h"

namespace pairops::cpu {

// What a term makes of a problem, in double. Owners are rows of x, or of y where it is by_column.
template <class Term, class T>
class Truth {
   public:
    using F = typename Term::Function;
    using Acc = typename Term::template Accumulator<double>;

    Exact value, dx, dy, slope[MOST_ARGUMENTS];

    Truth(const Problem<T>& problem, const TermCall<T>& term)
        : problem_(problem),
          term_(term),
          owners_(term.by_column ? problem.y() : problem.x),
          partners_(term.by_column ? problem.x : problem.y()) {
        for (Index i = 0; i < owners_.n; ++i) value.push_back(statistic(i));
    }

    // The contribution of a pair, and with `slopes` its derivatives.
    auto slopes(Index i, Index j) const {
        return with(i, j, [](auto... a) { return F::slopes(a...); });
    }
    double contribution(Index i, Index j) const {
        return with(i, j, [](auto... a) { return double(F::value(a...)); });
    }

    void differentiate(const std::vector<T>& cotangent) {
        Exact by_owner(owners_.n * owners_.d), by_partner(partners_.n * partners_.d);
        for (int k = 0; k < F::arity; ++k)
            slope[k].assign(Term::by_partner(k) ? partners_.n : owners_.n, 0);
        for (Index i = 0; i < owners_.n; ++i) {
            bool attained = false;  // by an extreme's one pair
            for (Index j = 0; j < partners_.n; ++j) {
                if (!is_pair(i, j)) continue;
                const double f = contribution(i, j);
                double share = 1;
                if (Acc::extreme) {
                    share = f == value[i] && !attained;
                    attained = attained || f == value[i];
                }
                if (std::is_same_v<Acc, LogSumExp<double>>)
                    share = std::isfinite(value[i]) ? std::exp(f - value[i]) : 0;
                const auto by = slopes(i, j);
                share *= double(cotangent[i]);
                for (Index k = 0; k < owners_.d; ++k) {
                    by_owner[i * owners_.d + k] += share * by.by[0] * partners_.unit(j, k);
                    by_partner[j * owners_.d + k] += share * by.by[0] * owners_.unit(i, k);
                }
                for (int k = 0; k < F::arity; ++k)
                    slope[k][Term::by_partner(k) ? j : i] += share * by.by[1 + k];
            }
        }
        if (problem_.same)
            for (std::size_t k = 0; k < by_owner.size(); ++k) by_owner[k] += by_partner[k];
        through_scale(owners_, by_owner);
        through_scale(partners_, by_partner);
        dx = term_.by_column ? by_partner : by_owner;
        dy = term_.by_column ? by_owner : by_partner;
    }

    bool is_pair(Index i, Index j) const {
        if (!owners_.valid[i] || !partners_.valid[j] || (problem_.same && i == j)) return false;
        const bool positive = owners_.labels[i] == partners_.labels[j];
        if (Term::side != Side::all && positive != (Term::side == Side::pos)) return false;
        const double s = similarity(i, j);
        return !(Term::has_above && s <= double(term_.above.at(i))) &&
               !(Term::has_below && s >= double(term_.below.at(i)));
    }

   private:
    double similarity(Index i, Index j) const {
        double s = 0;
        for (Index k = 0; k < owners_.d; ++k) s += owners_.unit(i, k) * partners_.unit(j, k);
        return s;
    }
    double argument(int k, Index i, Index j) const {
        if (!Term::is_product(k)) return double(term_.args[k].at(Term::by_partner(k) ? j : i));
        const Further<T>& further = term_.further;
        double t = 0;
        for (Index e = 0; e < further.d; ++e)
            t += double(further.owners[i * further.d + e]) *
                 double(further.partners[j * further.d + e]);
        return t;
    }
    template <class Of>
    auto with(Index i, Index j, Of of) const {
        const double s = similarity(i, j);
        if constexpr (F::arity == 0)
            return of(s);
        else if constexpr (F::arity == 2)
            return of(s, argument(0, i, j), argument(1, i, j));
        else
            return of(s, argument(0, i, j), argument(1, i, j), argument(2, i, j));
    }
    double statistic(Index i) const {
        Exact of;
        for (Index j = 0; j < partners_.n; ++j)
            if (is_pair(i, j)) of.push_back(contribution(i, j));
        if (of.empty()) return Acc::neutral();
        if (Acc::extreme)
            return Acc::neutral() > 0 ? *std::min_element(of.begin(), of.end())
                                      : *std::max_element(of.begin(), of.end());
        double sum = 0;
        const bool lse = std::is_same_v<Acc, LogSumExp<double>>;
        const double top = lse ? *std::max_element(of.begin(), of.end()) : 0;
        if (lse && !std::isfinite(top)) return top;
        for (const double f : of) sum += lse ? std::exp(f - top) : f;
        return lse ? top + std::log(sum) : sum;
    }
    // The gradient by unit rows becomes one by rows.
    static void through_scale(const Set<T>& set, Exact& gradient) {
        for (Index i = 0; i < set.n; ++i) {
            double along = 0;
            for (Index k = 0; k < set.d; ++k) along += set.unit(i, k) * gradient[i * set.d + k];
            for (Index k = 0; k < set.d; ++k) {
                double& g = gradient[i * set.d + k];
                g = set.scale[i] * (g - along * set.unit(i, k));
            }
        }
    }

    const Problem<T>& problem_;
    const TermCall<T>& term_;
    const Set<T>&owners_, &partners_;
};

}  // namespace pairops::cpu
