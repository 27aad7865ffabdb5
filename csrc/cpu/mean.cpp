// The mean of losses and its slopes, one anchor after the other in double.
#include "cpu/mean.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace pairops::cpu {

namespace {

struct Sloped {
    double value, slope;
};

Sloped log1p_exp(double u) {
    const double small = std::exp(-std::abs(u));
    const double value = (u > 0 ? u : 0) + std::log1p(small);
    return {std::isnan(u) ? u : value, (u > 0 ? 1 : small) / (1 + small)};
}

// Counts of nothing are 0, over which a sum is 0 too.
template <class T, class Count>
double average(const Piece& piece, Index n, const T* sums, const Count* counts, T* slopes) {
    double sum = 0, count = 0;
    for (Index i = 0; i < n; ++i) {
        sum += double(sums[i]);
        count += double(counts[i]);
    }
    const double share = piece.weight / (count > 1 ? count : 1);
    for (Index i = 0; i < n; ++i) slopes[i] += T(share);
    return share * sum;
}

// A NaN is not below 0, as in torch.
Sloped hinge(double u) { return u <= 0 ? Sloped{0, 0} : Sloped{u, 1}; }

}  // namespace

template <class T>
double mean(const std::vector<Piece>& pieces, Index n, const std::vector<const T*>& statistics,
            const Index* positives, const std::vector<T*>& slopes) {
    constexpr double nothing = -std::numeric_limits<double>::infinity();
    double total = 0;
    for (Index i = 0; i < n; ++i) {
        double loss = 0;
        for (const Piece& piece : pieces) {
            if (piece.shape == Shape::per_pair) continue;
            const double plus = double(statistics[piece.plus][i]);
            const double minus = piece.minus < 0 ? 0 : double(statistics[piece.minus][i]);
            Sloped by_plus{0, 0};
            double by_minus = 0;
            if (piece.shape == Shape::linear) {
                by_plus = {plus, 1};
            } else if (piece.shape == Shape::mean) {
                const double count = double(std::max(positives[i], Index(1)));
                by_plus = {plus / count, 1 / count};
            } else if (piece.shape == Shape::less_mean) {
                const double count = double(positives[i]);
                if (count > 1) {
                    by_plus = {plus - minus / count, 1};
                    by_minus = -1 / count;
                }
            } else if (plus != nothing) {
                const double u = plus - minus + piece.offset;
                by_plus = piece.shape == Shape::hinge ? hinge(u) : log1p_exp(u);
                by_minus = -by_plus.slope;
            }
            loss += piece.weight * by_plus.value;
            const double share = piece.weight / double(n);
            slopes[piece.plus][i] += T(share * by_plus.slope);
            if (piece.minus >= 0) slopes[piece.minus][i] += T(share * by_minus);
        }
        total += loss;
    }
    double result = total / double(n);
    for (const Piece& piece : pieces)
        if (piece.shape == Shape::per_pair)
            result += piece.minus < 0
                          ? average(piece, n, statistics[piece.plus], positives, slopes[piece.plus])
                          : average(piece, n, statistics[piece.plus], statistics[piece.minus],
                                    slopes[piece.plus]);
    return result;
}

template double mean(const std::vector<Piece>&, Index, const std::vector<const float*>&,
                     const Index*, const std::vector<float*>&);
template double mean(const std::vector<Piece>&, Index, const std::vector<const double*>&,
                     const Index*, const std::vector<double*>&);

}  // namespace pairops::cpu
