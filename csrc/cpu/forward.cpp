// The forward pass: it streams the tiles of s and has a few numbers per row and per column.
#include <algorithm>

#include "cpu/sweep.h"

namespace pairops::cpu {

namespace {

template <class T>
class Forward {
   public:
    explicit Forward(const Call<T>& call)
        : sweep_(call, false),
          call_(call),
          kernels_(sweep_.kernels),
          wavefront_(sweep_.row_tiles, sweep_.col_tiles, call.interrupted) {
        for (const TermCall<T>& term : call.terms) {
            const TermKernels<T>& kernel = kernels_.terms[term.kernel];
            const bool by_column = sweep_.triangle || term.by_column;
            const int count = by_column ? int(sweep_.padded(true)) / kernels_.vector_width : 0;
            columns_.emplace_back(count * kernel.state, call.poison);
            kernel.clear(columns_.back(), count);
            adds_to_columns_ = adds_to_columns_ || by_column;
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
        wavefront_.run(threads, [&](int r, int thread) { return block(r, workspaces[thread]); });
        for (std::size_t k = 0; k < call_.terms.size(); ++k)
            if (call_.terms[k].by_column)
                finalize(k, nullptr, columns_[k], 0, int(call_.y.n_valid));
    }

   private:
    struct Workspace {
        Buffer<T> rows, columns, s, further, products;
        ListedTile<T> listed;
        std::vector<Buffer<unsigned char>> of_rows, of_columns;

        explicit Workspace(const Forward& pass)
            : rows(TILE * pass.call_.x.d, pass.call_.poison),
              columns(pass.sweep_.columns_per_thread(), pass.call_.poison),
              s(pass.sweep_.similarities_per_thread(), pass.call_.poison),
              further(pass.sweep_.further_per_thread(), pass.call_.poison),
              products(pass.sweep_.products_per_thread(), pass.call_.poison),
              listed(pass.sweep_.no_list_yet()) {
            for (const TermCall<T>& term : pass.call_.terms) {
                const std::size_t state = pass.kernels_.terms[term.kernel].state;
                of_rows.emplace_back(TILE * state, pass.call_.poison);
                of_columns.emplace_back(TILE / pass.kernels_.vector_width * state,
                                        pass.call_.poison);
            }
        }
    };

    // The term whose columns can be served along with the rows of term k, or -1.
    int find_mate(std::size_t k) const {
        const TermCall<T>& term = call_.terms[k];
        if (!kernel(k).forward_both || term.by_column || !term.takes_numbers()) return -1;
        // Positives alone are few, and one maximum for a tile would cost digits.
        if (sweep_.triangle) return sweep_.of_positives || call_.measure.directed() ? -1 : int(k);
        if (term.has_above || term.has_below) return -1;  // the two have different bits
        for (std::size_t j = 0; j < call_.terms.size(); ++j) {
            const TermCall<T>& other = call_.terms[j];
            bool equal = other.by_column && other.kernel == term.kernel && other.takes_numbers();
            for (int a = 0; a < term.arity; ++a)
                equal = equal && term.args[a].at(0) == other.args[a].at(0);
            if (equal && !is_mate(j)) return int(j);
        }
        return -1;
    }
    // Are the columns of term k served along with the rows of another?
    bool is_mate(std::size_t k) const {
        return call_.terms[k].by_column &&
               std::find(mate_.begin(), mate_.end(), int(k)) != mate_.end();
    }

    bool block(int r, Workspace& w) {
        const Position row = Position(r) * TILE;
        const int rows = int(std::min(Position(TILE), call_.x.n_valid - row));
        const int width = kernels_.vector_width, col_states = TILE / width;
        bool packed = false;
        sweep_.pack_further(r, w.further);
        for (std::size_t k = 0; k < call_.terms.size(); ++k)  // finalize reads whole vectors
            kernel(k).clear(w.of_rows[k], (rows + width - 1) / width * width);

        for (int c = sweep_.first_tile(r); c < sweep_.end_tile(r); ++c) {
            Tile<T> tile = sweep_.tile(r, c, w.listed);
            const bool visited = !sweep_.of_positives || tile.positives;
            if (!visited && !call_.similarities.all) {
                wavefront_.pass(r, c);
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
                wavefront_.pass(r, c);
                continue;
            }
            sweep_.multiply_further(tile, w.further, w.products);
            const bool mirrored = sweep_.triangle && c != r;
            for (std::size_t k = 0; k < call_.terms.size(); ++k) {
                const TermCall<T>& term = call_.terms[k];
                if (!sweep_.visits(term, tile)) continue;
                sweep_.show(tile, k, t, w.s, w.products);
                bool found = false;
                const int mate = sweep_.triangle && !mirrored ? -1 : mate_[k];
                if (mate >= 0) {
                    kernel(k).clear(w.of_columns[mate], col_states);
                    found = kernel(k).forward_both(tile, sweep_.operands[k], sweep_.operands[mate],
                                                   w.of_rows[k], w.of_columns[mate]);
                } else if (!is_mate(k)) {
                    if (!term.by_column)
                        found = kernel(k).forward_rows(tile, sweep_.operands[k], w.of_rows[k]);
                    if (term.by_column || mirrored) {
                        kernel(k).clear(w.of_columns[k], col_states);
                        found |= kernel(k).forward_cols(tile, sweep_.operands[k], w.of_columns[k]);
                    }
                }
                if (term.bits && found) {
                    sweep_.bit(term, r, c) = 1;
                    // The backward pass may visit both: without the call's extremes it may be a
                    // band.
                    if (mirrored) sweep_.bit(term, c, r) = 1;
                }
            }
            if (!adds_to_columns_) continue;
            if (!wavefront_.wait(r, c)) return false;
            for (std::size_t k = 0; k < call_.terms.size(); ++k)
                if ((call_.terms[k].by_column || mirrored) && sweep_.visits(call_.terms[k], tile))
                    kernel(k).merge(columns_of(k, tile.col), w.of_columns[k], col_states);
            wavefront_.pass(r, c);
        }
        if (sweep_.triangle && !wavefront_.wait(r, r)) return false;
        for (std::size_t k = 0; k < call_.terms.size(); ++k)
            if (!call_.terms[k].by_column)
                finalize(k, w.of_rows[k], sweep_.triangle ? columns_of(k, row) : nullptr, row,
                         rows);
        wavefront_.finish(r);
        return true;
    }

    const TermKernels<T>& kernel(std::size_t k) const {
        return kernels_.terms[call_.terms[k].kernel];
    }
    unsigned char* columns_of(std::size_t k, Position col) const {
        return columns_[k] + col / kernels_.vector_width * kernel(k).state;
    }
    void finalize(std::size_t k, const void* rows, const void* cols, Position first,
                  int count) const {
        const TermCall<T>& term = call_.terms[k];
        kernel(k).finalize(rows, cols, count, sweep_.caller(term.by_column) + first, term.value,
                           term.argument);
    }

    Sweep<T> sweep_;
    const Call<T>& call_;
    const Kernels<T>& kernels_;
    std::vector<Buffer<unsigned char>> columns_;  // states of the columns
    bool adds_to_columns_ = false;                // something is added by column
    std::vector<int> mate_;
    Wavefront wavefront_;
};

}  // namespace

template <class T>
void forward(const Call<T>& call) {
    Forward<T>(call).run();
}

template void forward(const Call<float>&);
template void forward(const Call<double>&);

}  // namespace pairops::cpu
