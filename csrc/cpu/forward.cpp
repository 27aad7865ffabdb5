// The forward pass: it streams the tiles of s and keeps a few numbers per row and per column.
#include <algorithm>

#include "cpu/sweep.h"

namespace pairops::cpu {

namespace {

template <class T>
class Gather {
   public:
    explicit Gather(const Call<T>& call)
        : sweep_(call, false),
          call_(call),
          kernels_(sweep_.kernels),
          order_(sweep_.row_tiles, sweep_.col_tiles, call.interrupted) {
        for (const TermCall<T>& term : call.terms) {
            const TermKernels<T>& kernel = kernels_.terms[term.kernel];
            const bool by_column = sweep_.triangle || term.by_column;
            const int count = by_column ? int(sweep_.padded(true)) / kernels_.lanes : 0;
            columns_.emplace_back(count * kernel.state, call.poison);
            kernel.clear(columns_.back(), count);
            ordered_ = ordered_ || by_column;
        }
        for (std::size_t k = 0; k < call.terms.size(); ++k) mate_.push_back(find_mate(k));
    }

    void run() {
        const int threads = sweep_.threads();
        if (!sweep_.band) {
            sweep_.open_stripe(0, sweep_.col_tiles);
            for_each(threads, sweep_.col_tiles, [&](int c) { sweep_.pack(c); });
        }
        std::vector<Workspace> workspaces;
        for (int t = 0; t < threads; ++t) workspaces.emplace_back(*this);
        order_.run(threads, [&](int r, int thread) { return block(r, workspaces[thread]); });
        for (std::size_t k = 0; k < call_.terms.size(); ++k)
            if (call_.terms[k].by_column) finish(k, nullptr, columns_[k], 0, int(call_.y.kept));
    }

   private:
    struct Workspace {
        Buffer<T> rows, columns, s;
        std::vector<Buffer<unsigned char>> of_rows, of_columns;

        explicit Workspace(const Gather& gather)
            : rows(TILE * gather.call_.x.d, gather.call_.poison),
              columns(gather.sweep_.columns_per_thread(), gather.call_.poison),
              s(gather.sweep_.similarities_per_thread(), gather.call_.poison) {
            for (const TermCall<T>& term : gather.call_.terms) {
                const std::size_t state = gather.kernels_.terms[term.kernel].state;
                of_rows.emplace_back(TILE * state, gather.call_.poison);
                of_columns.emplace_back(TILE / gather.kernels_.lanes * state, gather.call_.poison);
            }
        }
    };

    // The term whose columns can be gathered along with the rows of term k, or -1.
    int find_mate(std::size_t k) const {
        const TermCall<T>& term = call_.terms[k];
        if (!kernel(k).gather_both || term.by_column || !term.takes_numbers()) return -1;
        // Of the positives alone there are few, and one maximum for a tile would cost digits.
        if (sweep_.triangle) return sweep_.of_positives || call_.measure.directed() ? -1 : int(k);
        if (term.has_above || term.has_below) return -1;  // each has bits of its own
        for (std::size_t j = 0; j < call_.terms.size(); ++j) {
            const TermCall<T>& other = call_.terms[j];
            bool equal = other.by_column && other.kernel == term.kernel && other.takes_numbers();
            for (int a = 0; a < term.arity; ++a)
                equal = equal && term.args[a].at(0) == other.args[a].at(0);
            if (equal && !is_mate(j)) return int(j);
        }
        return -1;
    }
    // Are the columns of term k gathered along with the rows of another?
    bool is_mate(std::size_t k) const {
        return call_.terms[k].by_column &&
               std::find(mate_.begin(), mate_.end(), int(k)) != mate_.end();
    }

    bool block(int r, Workspace& w) {
        const Place row = Place(r) * TILE;
        const int rows = int(std::min(Place(TILE), call_.x.kept - row));
        const int lanes = kernels_.lanes, col_states = TILE / lanes;
        bool packed = false;
        for (std::size_t k = 0; k < call_.terms.size(); ++k)  // finish takes as many as lanes
            kernel(k).clear(w.of_rows[k], (rows + lanes - 1) / lanes * lanes);

        for (int c = sweep_.first_tile(r); c < sweep_.end_tile(r); ++c) {
            Tile<T> tile = sweep_.tile(r, c);
            const bool visited = !sweep_.of_positives || tile.positives;
            if (!visited && !call_.similarities.all) {
                order_.pass(r, c);
                continue;
            }
            if (!packed && sweep_.unknown(r, c)) {
                kernels_.pack_rows(call_.x, row, rows, w.rows);
                packed = true;
            }
            Range memory[TILE];
            const T* t =
                sweep_.look(r, c, tile, w.rows, w.columns, sweep_.ranges(tile, memory), w.s);
            if (!visited) {
                order_.pass(r, c);
                continue;
            }
            const bool mirrored = sweep_.triangle && c != r;
            for (std::size_t k = 0; k < call_.terms.size(); ++k) {
                const TermCall<T>& term = call_.terms[k];
                if (!sweep_.visits(term, tile)) continue;
                sweep_.show(tile, term, t, w.s);
                bool kept = false;
                const int mate = sweep_.triangle && !mirrored ? -1 : mate_[k];
                if (mate >= 0) {
                    kernel(k).clear(w.of_columns[mate], col_states);
                    kept = kernel(k).gather_both(tile, sweep_.operands[k], sweep_.operands[mate],
                                                 w.of_rows[k], w.of_columns[mate]);
                } else if (!is_mate(k)) {
                    if (!term.by_column)
                        kept = kernel(k).gather_rows(tile, sweep_.operands[k], w.of_rows[k]);
                    if (term.by_column || mirrored) {
                        kernel(k).clear(w.of_columns[k], col_states);
                        kept |= kernel(k).gather_cols(tile, sweep_.operands[k], w.of_columns[k]);
                    }
                }
                if (term.bits && kept) {
                    sweep_.bit(term, r, c) = 1;
                    // weigh may visit both: without the extremes of the call it may be a band.
                    if (mirrored) sweep_.bit(term, c, r) = 1;
                }
            }
            if (!ordered_) continue;
            if (!order_.wait(r, c)) return false;
            for (std::size_t k = 0; k < call_.terms.size(); ++k)
                if ((call_.terms[k].by_column || mirrored) && sweep_.visits(call_.terms[k], tile))
                    kernel(k).merge(columns_of(k, tile.col), w.of_columns[k], col_states);
            order_.pass(r, c);
        }
        if (sweep_.triangle && !order_.wait(r, r)) return false;
        for (std::size_t k = 0; k < call_.terms.size(); ++k)
            if (!call_.terms[k].by_column)
                finish(k, w.of_rows[k], sweep_.triangle ? columns_of(k, row) : nullptr, row, rows);
        order_.finish(r);
        return true;
    }

    const TermKernels<T>& kernel(std::size_t k) const {
        return kernels_.terms[call_.terms[k].kernel];
    }
    unsigned char* columns_of(std::size_t k, Place col) const {
        return columns_[k] + col / kernels_.lanes * kernel(k).state;
    }
    void finish(std::size_t k, const void* rows, const void* cols, Place first, int count) const {
        const TermCall<T>& term = call_.terms[k];
        kernel(k).finish(rows, cols, count, sweep_.caller(term.by_column) + first, term.value,
                         term.argument);
    }

    Sweep<T> sweep_;
    const Call<T>& call_;
    const Kernels<T>& kernels_;
    std::vector<Buffer<unsigned char>> columns_;  // states of the columns
    bool ordered_ = false;                        // something is added by column
    std::vector<int> mate_;
    Order order_;
};

}  // namespace

template <class T>
void gather(const Call<T>& call) {
    Gather<T>(call).run();
}

template void gather(const Call<float>&);
template void gather(const Call<double>&);

}  // namespace pairops::cpu
