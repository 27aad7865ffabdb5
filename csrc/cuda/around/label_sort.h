// The sort of a few labels, before the sweeps: one kernel finds the sorted places of a set's rows,
// their positives and scales, and leaves the set as `arrange` does.
//
// A warp per row looks at every label: as many as are smaller, and as many equal ones as come
// earlier, stand before the row. A sort takes a dozen launches, each of them longer than that.
#pragma once

#include "cuda/around/pack.h"

namespace pairops::cuda {

// What sorts as labels do, but for those that are ignored, which come last. Swapping two values is
// a bijection: keys are equal exactly if labels are.
DEVICE Index key_of(const RelateCall& call, Index label) {
    constexpr Index last = std::numeric_limits<Index>::max();
    if (!call.ignores) return label;
    return label == call.ignored ? last : label == last ? call.ignored : label;
}

// How many of n labels have a smaller key, the same, and that before row i; all lanes know.
struct Counts {
    int smaller, equal, earlier;
};
DEVICE Counts count(const RelateCall& call, const Index* labels, int n, Index key, int i) {
    Counts found{0, 0, 0};
    UNROLL_BY(4)
    for (int j = lane(); j < n; j += 32) {
        const Index other = key_of(call, load_global(labels + j));
        found.smaller += other < key;
        found.equal += other == key;
        found.earlier += other == key && j < i;
    }
    UNROLL
    for (int across = 16; across > 0; across /= 2) {
        found.smaller += shuffle_xor(found.smaller, across);
        found.equal += shuffle_xor(found.equal, across);
        found.earlier += shuffle_xor(found.earlier, across);
    }
    return found;
}

template <Number number, int parts>
KERNEL(32 * ARRANGED_AT_A_TIME, 1)
relate(PARAMETER(RelateCall) call) {
    const int i = block_x() * ARRANGED_AT_A_TIME + warp();  // up to the padding's end
    if (i >= call.n) {
        if (call.rows) write_row<number, parts>(call, 0, i, false, 0.f, 0.0);
        return;
    }
    int place = i, lo = i, hi = i + 1;
    bool kept = true;
    if (call.labels) {
        const Index label = load_global(call.labels + i), key = key_of(call, label);
        const Counts mine = count(call, call.labels, call.n, key, i);
        const Counts theirs = call.others ? count(call, call.others, call.n_others, key, 0) : mine;
        kept = !(call.ignores && label == call.ignored);
        place = mine.smaller + mine.earlier;
        lo = theirs.smaller;
        hi = lo + theirs.equal;
        // No kept row's key is above that of the first ignored one.
        if (lane() == 0 && call.kept && !kept && mine.earlier == 0) *call.kept = mine.smaller;
    }
    const bool counts = call.normalized || call.rows;
    const Extent extent = extent_of<number, true>(call.z, i, kept && counts ? call.d : 0);
    const double norm = sqrt(extent.square);
    const double r = !call.normalized ? 1.0 : norm < 1e-12 || !kept ? 0.0 : 1.0 / norm;
    if (call.rows) write_row<number, parts>(call, i, place, kept, extent.largest, r);
    if (lane() != 0) return;
    if (call.kept && kept && place == call.n - 1) *call.kept = call.n;
    if (call.keep) call.keep[i] = kept;
    if (call.scale) call.scale[i] = r;
    if (call.order) call.order[place] = i;
    if (!call.lo) return;
    call.lo[place] = lo;
    call.hi[place] = hi;
    call.own[place] = call.excludes_self ? place : -1;
    const bool own = call.excludes_self && lo <= place && place < hi;
    call.positives[i] = kept ? hi - lo - own : 0;
}

}  // namespace pairops::cuda
