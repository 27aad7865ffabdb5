// The sort of a few labels, before the sweeps: one kernel finds the sorted positions of a set's
// rows, their positives and scales, and packs the set as pack_set does.
//
// A warp per row looks at every label: the smaller ones, and the equal ones that come earlier,
// stand before the row. A sort takes a dozen launches, each of them longer than that.
#pragma once

#include "cuda/around/pack.h"

namespace pairops::cuda {

// A key sorts as its label does, but that of an ignored one comes last. Swapping two values is a
// bijection: keys are equal exactly if labels are.
DEVICE Index key_of(const SortByLabelCall& call, Index label) {
    constexpr Index last = std::numeric_limits<Index>::max();
    if (!call.ignores) return label;
    return label == call.ignored ? last : label == last ? call.ignored : label;
}

// The numbers of labels with a smaller key, with the same, and with the same before row i. All
// lanes of the warp get them.
struct Counts {
    int smaller, equal, earlier;
};
DEVICE Counts count(const SortByLabelCall& call, const Index* labels, int n, Index key, int i) {
    Counts found{0, 0, 0};
    UNROLL_BY(4)
    for (int j = lane(); j < n; j += 32) {
        const Index other = key_of(call, load_global(labels + j));
        found.smaller += other < key;
        found.equal += other == key;
        found.earlier += other == key && j < i;
    }
    UNROLL
    for (int offset = 16; offset > 0; offset /= 2) {
        found.smaller += shuffle_xor(found.smaller, offset);
        found.equal += shuffle_xor(found.equal, offset);
        found.earlier += shuffle_xor(found.earlier, offset);
    }
    return found;
}

template <Number number, int parts>
KERNEL(32 * PACKED_AT_A_TIME, 1)
sort_by_label(PARAMETER(SortByLabelCall) call) {
    const int i = block_x() * PACKED_AT_A_TIME + warp();  // up to the padding's end
    if (i >= call.n) {
        if (call.rows) write_row<number, parts>(call, 0, i, false, 0.f, 0.0);
        return;
    }
    int position = i, pos_begin = i, pos_end = i + 1;
    bool valid = true;
    if (call.labels) {
        const Index label = load_global(call.labels + i), key = key_of(call, label);
        const Counts mine = count(call, call.labels, call.n, key, i);
        const Counts theirs = call.others ? count(call, call.others, call.n_others, key, 0) : mine;
        valid = !(call.ignores && label == call.ignored);
        position = mine.smaller + mine.earlier;
        pos_begin = theirs.smaller;
        pos_end = pos_begin + theirs.equal;
        // The key of a valid row is never above that of the first ignored one.
        if (lane() == 0 && call.n_valid && !valid && mine.earlier == 0)
            *call.n_valid = mine.smaller;
    }
    const bool counts = call.normalized || call.rows;
    const Extent extent = extent_of<number, true>(call.z, i, valid && counts ? call.d : 0);
    const double norm = sqrt(extent.square);
    const double r = !call.normalized ? 1.0 : norm < 1e-12 || !valid ? 0.0 : 1.0 / norm;
    if (call.rows) write_row<number, parts>(call, i, position, valid, extent.largest, r);
    if (lane() != 0) return;
    if (call.n_valid && valid && position == call.n - 1) *call.n_valid = call.n;
    if (call.valid) call.valid[i] = valid;
    if (call.scale) call.scale[i] = r;
    if (call.permutation) call.permutation[position] = i;
    if (!call.pos_begin) return;
    call.pos_begin[position] = pos_begin;
    call.pos_end[position] = pos_end;
    call.self_index[position] = call.excludes_self ? position : -1;
    const bool counts_self = call.excludes_self && pos_begin <= position && position < pos_end;
    call.positives[i] = valid ? pos_end - pos_begin - counts_self : 0;
}

}  // namespace pairops::cuda
