// The gradient of extremes: it goes to one pair for each owner, so there is no sweep.
#include <algorithm>

#include "cpu/sweep.h"

namespace pairops::cpu {

namespace {

// Where each row stands in sorted order.
std::vector<Place> places(const Embeddings& set) {
    std::vector<Place> found(set.n);
    for (Place k = 0; k < set.n; ++k) found[set.order[k]] = k;
    return found;
}

template <class T>
void add_scaled(const T* from, T weight, Index d, T* to) {
    for (Index k = 0; k < d; ++k) to[k] += weight * from[k];
}

}  // namespace

template <class T>
void weigh_extremes(const Call<T>& call, T* dx, T* dy) {
    const Kernels<T>& kernels = call.kernels;
    const Index d = call.x.d, width = (d + kernels.panel_cols - 1) / kernels.panel_cols;
    Buffer<T> owner(width * kernels.panel_cols, call.poison),
        partner(width * kernels.panel_cols, call.poison);
    const std::vector<Place> of_x = places(call.x);
    const std::vector<Place> of_y = call.same ? of_x : places(call.y);
    T* const by_y = call.same ? dx : dy;
    for (const TermCall<T>& term : call.terms) {
        if (!term.argument) continue;
        const bool turned = term.by_column;
        const Embeddings &mine = turned ? call.y : call.x, &theirs = turned ? call.x : call.y;
        T *const by_mine = turned ? by_y : dx, *const by_theirs = turned ? dx : by_y;
        const std::vector<Place>& place = turned ? of_x : of_y;
        for (Place k = 0; k < mine.kept; ++k) {
            const Index i = mine.order[k], j = term.argument[i];
            if (j < 0) continue;
            const T weight = term.cotangent.at(i);
            // One row is a panel of one row: its slices lie one after the other.
            kernels.pack_slices(mine, k, 1, kernels.panel_cols, owner);
            kernels.pack_slices(theirs, place[j], 1, kernels.panel_cols, partner);
            if (by_mine) add_scaled<T>(partner, weight, d, by_mine + i * d);
            if (by_theirs) add_scaled<T>(owner, weight, d, by_theirs + j * d);
        }
    }
    const auto through_scale = [&](const Embeddings& set, T* gradient) {
        if (!gradient) return;
        for (Place first = 0; first < set.kept; first += TILE)
            kernels.through_scale(set, first, int(std::min(Place(TILE), set.kept - first)),
                                  gradient);
    };
    through_scale(call.x, dx);
    if (!call.same) through_scale(call.y, dy);
}

template void weigh_extremes(const Call<float>&, float*, float*);
template void weigh_extremes(const Call<double>&, double*, double*);

}  // namespace pairops::cpu
