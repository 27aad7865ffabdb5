// The gather sweep: what every row's statistics are, of the pairs that a block's tiles hold.
#pragma once

#include "cuda/gather_terms.h"
#include "cuda/stream.h"

namespace pairops::cuda {

// The statistic of one row, at the caller's index.
template <class G>
DEVICE void conclude(const G& state, Index at, float* value, Index* argument) {
    const Statistic<float> found = state.result();
    value[at] = found.value;
    if (argument) argument[at] = found.argument;
}

template <class S>
DEVICE void start_states(const Sweep& call) {
    for (int k = 0; k < call.n_terms; ++k)
        visit_kind(call.terms[k].kind, [&](auto kind) {
            const Words words = words_of(decltype(kind)::Gather::identity());
            for (int row = thread(); row < S::rows; row += S::threads) {
                store_shared(state_at<S>(call, k, 0, row), words.of[0]);
                store_shared(state_at<S>(call, k, 1, row), words.of[1]);
            }
        });
}

// Every row of the block, a statistic or, of several splits of the columns, a state. A row that is
// not kept has met no pair.
template <class S>
DEVICE void finish_states(const GatherCall& call) {
    for (int row = thread(); row < S::rows; row += S::threads) {
        const int i = block_x() * S::rows + row;
        if (i >= call.rows.n) continue;
        const bool kept = i < load_global(call.rows.kept);
        for (int k = 0; k < call.n_terms; ++k)
            visit_kind(call.terms[k].kind, [&](auto kind) {
                using G = typename decltype(kind)::Gather;
                const Words words{{load_shared<float>(state_at<S>(call, k, 0, row)),
                                   load_shared<float>(state_at<S>(call, k, 1, row))}};
                const G state = kept ? state_of<G>(words) : G::identity();
                if (!call.states)
                    return conclude(state, load_global(call.rows.order + i), call.values[k],
                                    call.arguments[k]);
                float* to =
                    call.states + (Index(block_y()) * call.n_terms + k) * 2 * call.rows.n + i;
                const Words out = words_of(state);
                to[0] = out.of[0];
                to[call.rows.n] = out.of[1];
            });
    }
}

// Which terms' windows kept a pair of the tile: each warp says so, and once all have, the block.
template <class S>
class Bits {
   public:
    DEVICE explicit Bits(const GatherCall& call) : call_(call) {}

    DEVICE void note(int k, int tile, int stage, bool kept) {
        tile_ = tile;
        stage_ = stage;
        if (lane() == 0) store_shared(flag(k, warp()), int(kept));
    }
    DEVICE void write() {
        const int k = thread();
        if (tile_ < 0 || k >= call_.n_terms || !call_.kept_bits[k]) return;
        int any = 0;
        for (int w = 0; w < S::warps; ++w) any |= load_shared<int>(flag(k, w));
        const Index tiles = (call_.cols.n + S::columns - 1) / S::columns;
        call_.kept_bits[k][block_x() * tiles + tile_] = std::uint8_t(any);
    }

   private:
    DEVICE Shared flag(int k, int w) const {
        return call_.at.flags + 4 * ((stage_ * MOST_TERMS + k) * S::warps + w);
    }
    const GatherCall& call_;
    int tile_ = -1, stage_ = 0;
};

template <class S>
KERNEL(S::threads, 1)
gather(PARAMETER(GatherCall) call) {
    start_states<S>(call);
    Bits<S> bits(call);
    const auto known = [&](int tile, bool masked, int stage, const Products<S>& products) {
        Fragment<S> s;
        similarities<S>(call, stage, products, s);
        const int row = block_x() * S::rows + 16 * warp() + lane() / 4;
        const Masks of = masked ? masks<S>(call, row, tile) : free_masks<S>();
        for (int k = 0; k < call.n_terms; ++k) {
            const TermCall& term = call.terms[k];
            const std::uint32_t keep = windowed<S, false>(call, term, stage, s, of.of(term.side));
            const bool any = ballot(keep != 0) != 0;
            if (call.kept_bits[k]) bits.note(k, tile, stage, any);
            if (!any) continue;
            visit_kind(term.kind, [&](auto kind) {
                gather_term<S, decltype(kind)>(call, term, k, stage, s, keep);
            });
        }
    };
    stream<S>(call, 0, known, [](int, Shared) {}, [&] { bits.write(); });
    finish_states<S>(call);
}

}  // namespace pairops::cuda
