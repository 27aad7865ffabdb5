// The backward pass: it streams the tiles of s again, turns each into pair weights, and multiplies
// those by the embeddings of the other side.
#include <algorithm>

#include "cpu/sweep.h"

namespace pairops::cpu {

namespace {

// The tiles of columns in a stripe are as many as 12 MiB hold once packed, and at most 64, so that
// even with few dimensions a stripe's vectors stay in the last cache.
template <class T>
int stripe(Index d) {
    return int(std::clamp((Index(12) << 20) / (Index(sizeof(T)) * TILE * std::max(d, Index(1))),
                          Index(1), Index(64)));
}

template <class T>
class Backward {
   public:
    Backward(const Call<T>& call, T* dx, T* dy)
        : sweep_(call, true),
          call_(call),
          kernels_(sweep_.kernels),
          dx_(dx),
          dy_(dy),
          width_((call.x.d + kernels_.panel_cols - 1) / kernels_.panel_cols * kernels_.panel_cols),
          adds_to_columns_(sweep_.triangle || dy) {
        for (const TermCall<T>& term : call.terms) {
            Slopes slopes;
            for (int k = 0; k < term.arity; ++k) {
                if (!term.slope[k]) continue;
                // The axes along which the argument varies: for the same set both.
                const bool by_column = term.by_column != term.by_partner[k];
                if (call.same || !by_column) slopes.rows[k] = zeros(sweep_.padded(false));
                if (call.same || by_column) slopes.columns[k] = zeros(sweep_.padded(true));
                adds_to_columns_ = adds_to_columns_ || slopes.columns[k];
            }
            slopes_.push_back(std::move(slopes));
        }
        // Squared norms of unit rows are constants.
        if (sweep_.squares_x && !call.x.scale) {
            if (dx) factors_x_ = zeros(sweep_.padded(false));
            if (call.same ? sweep_.triangle && dx : dy != nullptr)
                factors_y_ = zeros(sweep_.padded(true));
        }
    }

    void run() {
        const int threads = sweep_.threads();
        std::vector<Workspace> workspaces;
        for (int t = 0; t < threads; ++t) workspaces.emplace_back(*this);
        // Columns come in stripes, whose packed tiles stay in cache, so working memory does not
        // grow with N. A band has few tiles, and packs for each of them.
        const int width = sweep_.band ? std::max(1, sweep_.col_tiles) : stripe<T>(call_.x.d);
        int begin = 0;
        do {  // also without columns, as the scale lets a NaN of a row through
            const int end = std::min(begin + width, sweep_.col_tiles);
            if (!sweep_.band) pack_stripe(begin, end);
            Wavefront wavefront(sweep_.triangle ? end : sweep_.row_tiles, end, call_.interrupted);
            wavefront.run(threads, [&](int r, int thread) {
                return block(r, begin, end, wavefront, workspaces[thread]);
            });
            begin = end;
        } while (begin < sweep_.col_tiles);
        if (dy_ && is_whole(call_.y)) through_scale_of_columns();
        for (std::size_t k = 0; k < call_.terms.size(); ++k) write_slopes(k);
    }

   private:
    // Gradients by arguments, in sorted order. A block of rows adds to its own rows alone.
    struct Slopes {
        Buffer<T> rows[MOST_ARGUMENTS], columns[MOST_ARGUMENTS];
    };
    struct Workspace {
        // `by_col` has the gradients by arguments of the tile's columns, and last the factors of
        // their squared norms.
        Buffer<T> rows, columns, s, further, products, w, w_cols, dx, by_col, x_slices, y_slices;
        ListedTile<T> listed;
        std::vector<T*> out = std::vector<T*>(TILE);

        explicit Workspace(const Backward& pass)
            : rows(TILE * pass.call_.x.d, pass.call_.poison),
              columns(pass.sweep_.columns_per_thread(), pass.call_.poison),
              s(pass.sweep_.similarities_per_thread(), pass.call_.poison),
              further(pass.sweep_.further_per_thread(), pass.call_.poison),
              products(pass.sweep_.products_per_thread(), pass.call_.poison),
              w(TILE * TILE, pass.call_.poison),
              w_cols(pass.call_.measure.directed() ? TILE * TILE : 0, pass.call_.poison),
              dx(pass.dx_ ? TILE * pass.width_ : 0, pass.call_.poison),
              by_col(pass.by_col_size(), pass.call_.poison),
              x_slices(pass.adds_transposed() ? TILE * pass.width_ : 0, pass.call_.poison),
              y_slices(pass.sweep_.band ? TILE * pass.width_ : 0, pass.call_.poison),
              listed(pass.sweep_.no_list_yet()) {}
    };

    Buffer<T> zeros(std::size_t count) const {
        Buffer<T> result(count, false);
        std::fill_n(static_cast<T*>(result), count, T(0));
        return result;
    }

    void pack_stripe(int begin, int end) {
        sweep_.open_stripe(begin, end - begin);
        if (dx_ && !y_slices_) y_slices_ = Buffer<T>((end - begin) * TILE * width_, call_.poison);
        for_each(sweep_.threads(), end - begin, [&](int k) {
            sweep_.pack(begin + k);
            if (!dx_) return;
            const Position first = Position(begin + k) * TILE;
            const int count = int(std::min(Position(TILE), call_.y.n_valid - first));
            kernels_.pack_slices(call_.y, first, count, TILE * kernels_.panel_cols,
                                 y_slices_ + k * TILE * width_);
        });
    }

    // A tile of the same set serves its columns as owners too, whose bit is the mirror image's.
    bool active(std::size_t k, const Tile<T>& tile, int r, int c) const {
        const TermCall<T>& term = call_.terms[k];
        if (!sweep_.visits(term, tile)) return false;
        return !term.bits || sweep_.bit(term, r, c) || (call_.same && sweep_.bit(term, c, r));
    }

    // Take block r of rows through the columns of a stripe; false means that the sweep is to stop.
    bool block(int r, int begin, int end, Wavefront& wavefront, Workspace& w) {
        const Position row = Position(r) * TILE;
        const int rows = int(std::min(Position(TILE), call_.x.n_valid - row));
        const std::size_t stride = TILE * kernels_.panel_cols;
        const T* transposed = nullptr;
        bool packed = false, begun = false;
        sweep_.pack_further(r, w.further);
        for (int c = std::max(begin, sweep_.first_tile(r)); c < std::min(end, sweep_.end_tile(r));
             ++c) {
            Tile<T> tile = sweep_.tile(r, c, w.listed);
            bool any = false;
            for (std::size_t k = 0; k < call_.terms.size(); ++k) any |= active(k, tile, r, c);
            if (!any) {
                wavefront.pass(r, c);
                continue;
            }
            if (!packed && sweep_.unknown(r, c)) {
                kernels_.pack_rows(call_.x, row, rows, w.rows);
                packed = true;
            }
            Range memory[TILE];
            const Range* ranges = sweep_.ranges(tile, memory);
            const T* t = sweep_.look(r, c, tile, w.rows, w.columns, ranges, w.s);
            sweep_.multiply_further(tile, w.further, w.products);
            const bool has_weights = pair_weights(tile, t, r, c, w);
            if (has_weights && sweep_.squares_x) through_closeness(tile, t, r, c, ranges, w);
            if (has_weights && !begun) {
                if (adds_transposed()) transposed = slices_of_rows(r, begin, w);
                if (dx_) std::fill_n(static_cast<T*>(w.dx), rows * width_, T(0));
                begun = true;
            }
            if (has_weights && dx_) {
                const T* slices =
                    sweep_.band ? w.y_slices : y_slices_ + (c - begin) * TILE * width_;
                if (sweep_.band)
                    kernels_.pack_slices(call_.y, tile.col, tile.cols, stride, w.y_slices);
                for (int i = 0; i < rows; ++i) w.out[i] = w.dx + i * width_;
                kernels_.accumulate(w.w, false, rows, tile.cols, slices, stride, width_, ranges,
                                    w.out.data());
            }
            if (adds_to_columns_) {
                if (!wavefront.wait(r, c)) return false;
                add_by_column(tile, r, c, w, has_weights ? transposed : nullptr);
            }
            wavefront.pass(r, c);
        }
        // Blocks above add to these rows, as columns, before this one does; those below never do.
        if (sweep_.triangle && r >= begin && !wavefront.wait(r, r)) return false;
        if (dx_ && begun)
            for (int i = 0; i < rows; ++i) {
                T* out = dx_ + call_.x.permutation[row + i] * call_.x.d;
                for (Index k = 0; k < call_.x.d; ++k) out[k] += w.dx[i * width_ + k];
            }
        // Nothing is added to these rows any more.
        if (dx_ && end == sweep_.col_tiles) {
            if (call_.same && factors_y_)
                for (Position i = row; i < row + rows; ++i) factors_x_[i] += factors_y_[i];
            if (is_whole(call_.x)) kernels_.through_scale(call_.x, row, rows, factors_x_, dx_);
        }
        wavefront.finish(r);
        return true;
    }

    // Is the gradient by unit rows the sum of all sweeps? That by rows as they are may grow
    // further.
    bool is_whole(const Embeddings& set) const { return call_.last || !set.scale; }

    // The packed rows of block r. A stripe of the same set may have them already.
    const T* slices_of_rows(int r, int begin, Workspace& w) const {
        if (call_.same && r >= begin) return y_slices_ + (r - begin) * TILE * width_;
        const Position row = Position(r) * TILE;
        kernels_.pack_slices(call_.x, row, int(std::min(Position(TILE), call_.x.n_valid - row)),
                             TILE * kernels_.panel_cols, w.x_slices);
        return w.x_slices;
    }

    // Is Wᵀ x added to the gradients of columns?
    bool adds_transposed() const { return call_.same ? dx_ && sweep_.triangle : dy_ != nullptr; }

    // The pair weights of a tile; for the same set w_ij + w_ji, from both views of a pair. False
    // means that all are 0, as those of a hinge often are, and need not be multiplied.
    bool pair_weights(Tile<T>& tile, const T* t, int r, int c, Workspace& w) const {
        std::fill_n(static_cast<T*>(w.w), tile.rows * TILE, T(0));
        if (call_.measure.directed())
            std::fill_n(static_cast<T*>(w.w_cols), tile.rows * TILE, T(0));
        std::fill_n(static_cast<T*>(w.by_col), by_col_size(), T(0));
        bool found = false;
        for (std::size_t k = 0; k < call_.terms.size(); ++k) {
            if (!active(k, tile, r, c)) continue;
            const TermCall<T>& term = call_.terms[k];
            Operands<T> plain = sweep_.operands[k], given = plain;
            for (int a = 0; a < MOST_ARGUMENTS; ++a) {
                if (slopes_[k].rows[a]) given.by_row[a] = slopes_[k].rows[a] + tile.row;
                if (slopes_[k].columns[a])
                    given.by_col[a] = w.by_col + (MOST_ARGUMENTS * k + a) * TILE;
            }
            // Arguments have their gradients already if the mirror image is visited or this tile.
            const bool mirrored = sweep_.triangle && r != c;
            const TermKernels<T>& kernel = kernels_.terms[term.kernel];
            sweep_.show(tile, k, t, w.s, w.products);
            if (!term.by_column)
                found |= kernel.backward_rows(tile, given, weights(w, term, false));
            if (term.by_column || call_.same)
                found |= kernel.backward_cols(tile, mirrored || term.by_column ? given : plain,
                                              weights(w, term, true));
        }
        return found;
    }

    // The sum of a term's pair weights. There is one apart for anchors that are columns.
    T* weights(Workspace& w, const TermCall<T>& term, bool owners_are_columns) const {
        const bool apart =
            call_.measure.directed() && !sweep_.anchors_are_rows(term, owners_are_columns);
        return apart ? w.w_cols : w.w;
    }

    // Closeness `t` lacks the anchor's share.
    void through_closeness(const Tile<T>& tile, const T* t, int r, int c, const Range* ranges,
                           Workspace& w) const {
        // A tile that is its own mirror image adds to rows alone, as for arguments.
        const bool of_cols = factors_y_ && !(call_.same && r == c);
        const bool directed = call_.measure.directed();
        kernels_.through_closeness({call_.measure.distance, t, w.w, w.w_cols,
                                    directed ? sweep_.share_x + tile.row : nullptr,
                                    directed ? sweep_.share_y + tile.col : nullptr,
                                    factors_x_ ? factors_x_ + tile.row : nullptr,
                                    of_cols ? w.by_col + by_col_size() - TILE : nullptr},
                                   tile.rows, tile.cols, ranges);
    }

    std::size_t by_col_size() const { return (MOST_ARGUMENTS * call_.terms.size() + 1) * TILE; }

    // `x_slices` is null where nothing is added to the gradients of columns.
    void add_by_column(const Tile<T>& tile, int r, int c, Workspace& w, const T* x_slices) {
        if (x_slices && !(call_.same && r == c)) {
            T* target = call_.same ? dx_ : dy_;
            for (int j = 0; j < tile.cols; ++j)
                w.out[j] = target + call_.y.permutation[tile.col + j] * call_.y.d;
            Range memory[TILE];
            kernels_.accumulate(w.w, true, tile.rows, tile.cols, x_slices,
                                TILE * kernels_.panel_cols, call_.y.d,
                                sweep_.ranges_of_columns(tile, memory), w.out.data());
        }
        if (factors_y_)
            for (int j = 0; j < tile.cols; ++j)
                factors_y_[tile.col + j] += w.by_col[by_col_size() - TILE + j];
        for (std::size_t k = 0; k < call_.terms.size(); ++k)
            for (int a = 0; a < MOST_ARGUMENTS; ++a)
                if (slopes_[k].columns[a])
                    for (int j = 0; j < tile.cols; ++j)
                        slopes_[k].columns[a][tile.col + j] +=
                            w.by_col[(MOST_ARGUMENTS * k + a) * TILE + j];
    }

    void through_scale_of_columns() const {
        for_each(sweep_.threads(), sweep_.col_tiles, [&](int c) {
            const Position first = Position(c) * TILE;
            const int count = int(std::min(Position(TILE), call_.y.n_valid - first));
            kernels_.through_scale(call_.y, first, count, factors_y_, dy_);
        });
    }

    void write_slopes(std::size_t k) const {
        const TermCall<T>& term = call_.terms[k];
        for (int a = 0; a < term.arity; ++a) {
            if (!term.slope[a]) continue;
            const T *rows = slopes_[k].rows[a], *columns = slopes_[k].columns[a];
            const Embeddings& set = rows ? call_.x : call_.y;
            for (Position p = 0; p < set.n_valid; ++p)
                term.slope[a][set.permutation[p]] =
                    (rows ? rows[p] : T(0)) + (columns ? columns[p] : T(0));
        }
    }

    Sweep<T> sweep_;
    const Call<T>& call_;
    const Kernels<T>& kernels_;
    T *dx_, *dy_;
    Index width_;         // d in whole slices
    Buffer<T> y_slices_;  // of a stripe
    std::vector<Slopes> slopes_;
    // The gradient through the squared norm of a row or column is this factor times itself.
    Buffer<T> factors_x_, factors_y_;
    bool adds_to_columns_;  // something is added by column
};

}  // namespace

template <class T>
void backward(const Call<T>& call, T* dx, T* dy) {
    Backward<T>(call, dx, dy).run();
}

template void backward(const Call<float>&, float*, float*);
template void backward(const Call<double>&, double*, double*);

}  // namespace pairops::cpu
