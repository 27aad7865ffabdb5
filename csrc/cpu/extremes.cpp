// The gradient of extremes: it goes to one pair for each owner, so there is no sweep.
#include <algorithm>

#include "cpu/sweep.h"

namespace pairops::cpu {

namespace {

// The sorted position of each row.
std::vector<Position> inverse_permutation(const Embeddings& set) {
    std::vector<Position> found(set.n);
    for (Position k = 0; k < set.n; ++k) found[set.permutation[k]] = k;
    return found;
}

// The factor is 0 but for distances, where weights are large and rows near, so that their
// difference is made first.
template <class T>
void add_pair(const T* other, T weight, const T* self, T factor, Index d, T* to) {
    if (factor == T(0))
        for (Index k = 0; k < d; ++k) to[k] += weight * other[k];
    else
        for (Index k = 0; k < d; ++k)
            to[k] += weight * (other[k] - self[k]) + (factor + weight) * self[k];
}

// The gradient by the closeness t of a pair, as its weight by similarity and the factors of the
// squared norms of the anchor and of its partner.
template <class T>
struct Through {
    T weight, of_anchor, of_partner;
};

template <class T>
Through<T> through(Distance distance, T t, T gradient, T share) {
    if (distance == Distance::none) return {gradient, 0, 0};
    if (t == T(0)) return {0, 0, 0};
    const T slope = t != t ? t : distance == Distance::l2 ? T(-1) / t : T(2) * share;
    const T weight = gradient * slope;
    // t is -share times the squared distance.
    const T by_share = distance == Distance::snr ? T(2) * share * gradient * t : T(0);
    return {weight, -weight - by_share, -weight};
}

}  // namespace

template <class T>
void backward_extremes(const Call<T>& call, T* dx, T* dy) {
    const Kernels<T>& kernels = call.kernels;
    const Index d = call.x.d, width = (d + kernels.panel_cols - 1) / kernels.panel_cols;
    Buffer<T> owner(width * kernels.panel_cols, call.poison),
        partner(width * kernels.panel_cols, call.poison);
    const std::vector<Position> of_x = inverse_permutation(call.x);
    const std::vector<Position> of_y = call.same ? of_x : inverse_permutation(call.y);
    T* const by_y = call.same ? dx : dy;
    for (const TermCall<T>& term : call.terms) {
        if (!term.argument) continue;
        const bool turned = term.by_column;
        const Embeddings &mine = turned ? call.y : call.x, &theirs = turned ? call.x : call.y;
        T *const by_mine = turned ? by_y : dx, *const by_theirs = turned ? dx : by_y;
        const std::vector<Position>& positions = turned ? of_x : of_y;
        for (Position k = 0; k < mine.n_valid; ++k) {
            const Index i = mine.permutation[k], j = term.argument[i];
            if (j < 0) continue;
            const bool owner_is_anchor = call.measure.owner_is_anchor(term.of_columns);
            T share(1);
            if (call.measure.directed()) {
                kernels.squares(owner_is_anchor ? mine : theirs, owner_is_anchor ? k : positions[j],
                                1, &share);
                share = share_of(share, d);
            }
            const Through<T> by =
                through(call.measure.distance, term.statistic.at(i), term.cotangent.at(i), share);
            // One row is a panel of one row: its slices lie one after the other.
            kernels.pack_slices(mine, k, 1, kernels.panel_cols, owner);
            kernels.pack_slices(theirs, positions[j], 1, kernels.panel_cols, partner);
            const T of_owner = owner_is_anchor ? by.of_anchor : by.of_partner;
            const T of_partner = owner_is_anchor ? by.of_partner : by.of_anchor;
            if (by_mine) add_pair<T>(partner, by.weight, owner, of_owner, d, by_mine + i * d);
            if (by_theirs) add_pair<T>(owner, by.weight, partner, of_partner, d, by_theirs + j * d);
        }
    }
    const auto through_scale = [&](const Embeddings& set, T* gradient) {
        if (!gradient) return;
        for (Position first = 0; first < set.n_valid; first += TILE)
            kernels.through_scale(set, first, int(std::min(Position(TILE), set.n_valid - first)),
                                  nullptr, gradient);
    };
    through_scale(call.x, dx);
    if (!call.same) through_scale(call.y, dy);
}

template void backward_extremes(const Call<float>&, float*, float*);
template void backward_extremes(const Call<double>&, double*, double*);

}  // namespace pairops::cpu
