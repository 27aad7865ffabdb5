// Backward: streams the tiles of s again, turns each into pair weights, and multiplies those by the
// embeddings of the other side.
#include <algorithm>

#include "sweep.h"

namespace pairops::cpu {

namespace {

template <class T>
class Weigh {
   public:
    Weigh(const Call<T>& call, T* dx, T* dy)
        : sweep_(call, true),
          call_(call),
          kernels_(sweep_.kernels),
          dx_(dx),
          dy_(dy),
          width_((call.x.d + kernels_.panel_cols - 1) / kernels_.panel_cols * kernels_.panel_cols),
          order_(sweep_.order()) {
        if (!sweep_.band) pack_slices();
        ordered_ = sweep_.triangle || dy;
        for (const TermCall<T>& term : call.terms) {
            Slopes slopes;
            for (int k = 0; k < term.arity; ++k) {
                if (!term.slope[k]) continue;
                // The axes along which the argument varies: for the same set both.
                const bool by_column = term.by_column != term.by_partner[k];
                if (call.same || !by_column) slopes.rows[k] = zeros(sweep_.padded(false));
                if (call.same || by_column) slopes.columns[k] = zeros(sweep_.padded(true));
                ordered_ = ordered_ || slopes.columns[k];
            }
            slopes_.push_back(std::move(slopes));
        }
    }

    void run() {
        const int threads = sweep_.threads();
        std::vector<Workspace> workspaces;
        for (int t = 0; t < threads; ++t) workspaces.emplace_back(*this);
        std::atomic<int> mine{0};
        on_a_team(threads, [&] {
            Workspace& workspace = workspaces[mine++];
            for (int r; (r = order_.next()) >= 0;)
                if (!block(r, workspace)) return;
        });
        if (order_.stopped()) throw Interrupted();
        if (dy_) through_scale(call_.y, dy_);
        for (std::size_t k = 0; k < call_.terms.size(); ++k) write_slopes(k);
    }

   private:
    // Gradients by arguments, in sorted order. A block of rows adds to its own rows alone.
    struct Slopes {
        Buffer<T> rows[2], columns[2];
    };
    struct Workspace {
        Buffer<T> rows, columns, s, w, dx, by_col, slices;
        std::vector<T*> out = std::vector<T*>(TILE);

        explicit Workspace(const Weigh& weigh)
            : rows(TILE * weigh.call_.x.d, weigh.call_.poison),
              columns(weigh.sweep_.columns_per_thread(), weigh.call_.poison),
              s(TILE * TILE, weigh.call_.poison),
              w(TILE * TILE, weigh.call_.poison),
              dx(weigh.dx_ ? TILE * weigh.width_ : 0, weigh.call_.poison),
              by_col(2 * TILE * weigh.call_.terms.size(), weigh.call_.poison),
              slices(weigh.sweep_.band ? TILE * weigh.width_ : 0, weigh.call_.poison) {}
    };

    Buffer<T> zeros(std::size_t count) const {
        Buffer<T> result(count, false);
        std::fill_n(static_cast<T*>(result), count, T(0));
        return result;
    }

    void pack_slices() {
        const int of_x = dy_ ? sweep_.row_tiles : 0, of_y = dx_ ? sweep_.col_tiles : 0;
        if (of_x) x_slices_ = Buffer<T>(width_ * call_.x.kept, call_.poison);
        if (of_y) y_slices_ = Buffer<T>(width_ * call_.y.kept, call_.poison);
        for_each(sweep_.threads(), of_x + of_y, [&](int k) {
            const Embeddings& set = k < of_x ? call_.x : call_.y;
            const Place first = Place(k < of_x ? k : k - of_x) * TILE;
            const int count = int(std::min(Place(TILE), set.kept - first));
            kernels_.pack_slices(set, first, count, set.kept * kernels_.panel_cols,
                                 (k < of_x ? x_slices_ : y_slices_) + first * kernels_.panel_cols);
        });
    }
    struct Slices {
        const T* at;
        std::size_t stride;
    };
    // Of `count` rows from `first`: a band packs them when a tile needs them.
    Slices slices_of(const Embeddings& set, const T* all, Place first, int count,
                     Workspace& w) const {
        const std::size_t stride = set.kept * kernels_.panel_cols;
        if (!sweep_.band) return {all + first * kernels_.panel_cols, stride};
        kernels_.pack_slices(set, first, count, TILE * kernels_.panel_cols, w.slices);
        return {w.slices, std::size_t(TILE * kernels_.panel_cols)};
    }

    bool active(std::size_t k, const Tile<T>& tile, int r, int c) const {
        const TermCall<T>& term = call_.terms[k];
        return sweep_.visits(term, tile) && (!term.bits || sweep_.bit(term, r, c));
    }

    bool block(int r, Workspace& w) {
        const Place row = Place(r) * TILE;
        const int rows = int(std::min(Place(TILE), call_.x.kept - row));
        bool packed = false;
        if (dx_) std::fill_n(static_cast<T*>(w.dx), TILE * width_, T(0));

        for (int c = sweep_.first_tile(r); c < sweep_.end_tile(r); ++c) {
            Tile<T> tile = sweep_.tile(r, c);
            bool any = false;
            for (std::size_t k = 0; k < call_.terms.size(); ++k) any |= active(k, tile, r, c);
            if (!any) {
                order_.pass(r, c);
                continue;
            }
            if (!packed) kernels_.pack_rows(call_.x, row, rows, w.rows);
            packed = true;
            Range memory[TILE];
            const Range* ranges = sweep_.ranges(tile, memory);
            sweep_.multiply(tile, w.rows, w.columns, ranges, w.s);
            tile.s = w.s;
            weigh(tile, r, c, w);
            if (dx_) {
                for (int i = 0; i < rows; ++i) w.out[i] = w.dx + i * width_;
                const Slices y = slices_of(call_.y, y_slices_, tile.col, tile.cols, w);
                kernels_.accumulate(w.w, false, rows, tile.cols, y.at, y.stride, width_, ranges,
                                    w.out.data());
            }
            if (ordered_ && !add_by_column(tile, r, c, w)) return false;
            order_.pass(r, c);
        }
        if (sweep_.triangle && !order_.wait(r, r)) return false;
        if (dx_) {
            if (packed)
                for (int i = 0; i < rows; ++i) {
                    T* out = dx_ + call_.x.order[row + i] * call_.x.d;
                    for (Index k = 0; k < call_.x.d; ++k) out[k] += w.dx[i * width_ + k];
                }
            kernels_.through_scale(call_.x, row, rows, dx_);
        }
        order_.finish(r);
        return true;
    }

    // The pair weights of a tile; for the same set those of both roles, w_ij + w_ji.
    void weigh(const Tile<T>& tile, int r, int c, Workspace& w) const {
        std::fill_n(static_cast<T*>(w.w), tile.rows * TILE, T(0));
        std::fill_n(static_cast<T*>(w.by_col), 2 * TILE * call_.terms.size(), T(0));
        for (std::size_t k = 0; k < call_.terms.size(); ++k) {
            if (!active(k, tile, r, c)) continue;
            const TermCall<T>& term = call_.terms[k];
            Operands<T> plain = sweep_.operands[k], given = plain;
            for (int a = 0; a < 2; ++a) {
                if (slopes_[k].rows[a]) given.by_row[a] = slopes_[k].rows[a] + tile.row;
                if (slopes_[k].columns[a]) given.by_col[a] = w.by_col + (2 * k + a) * TILE;
            }
            // Where the mirror image of a tile is the tile itself or is visited too, its arguments
            // have had their gradients already.
            const bool mirrored = sweep_.triangle && r != c;
            const TermKernels<T>& kernel = kernels_.terms[term.kernel];
            if (!term.by_column) kernel.weigh_rows(tile, given, w.w);
            if (term.by_column || call_.same)
                kernel.weigh_cols(tile, mirrored || term.by_column ? given : plain, w.w);
        }
    }

    bool add_by_column(const Tile<T>& tile, int r, int c, Workspace& w) {
        T* target = call_.same ? dx_ : dy_;
        const bool transposed = target && (!call_.same || (sweep_.triangle && r != c));
        if (!order_.wait(r, c)) return false;
        if (transposed) {
            const Slices x =
                slices_of(call_.x, call_.same ? y_slices_ : x_slices_, tile.row, tile.rows, w);
            for (int j = 0; j < tile.cols; ++j)
                w.out[j] = target + call_.y.order[tile.col + j] * call_.y.d;
            kernels_.accumulate(w.w, true, tile.rows, tile.cols, x.at, x.stride, call_.y.d, nullptr,
                                w.out.data());
        }
        for (std::size_t k = 0; k < call_.terms.size(); ++k)
            for (int a = 0; a < 2; ++a)
                if (slopes_[k].columns[a])
                    for (int j = 0; j < tile.cols; ++j)
                        slopes_[k].columns[a][tile.col + j] += w.by_col[(2 * k + a) * TILE + j];
        return true;
    }

    void through_scale(const Embeddings& set, T* g) const {
        const int pieces = int((set.kept + TILE - 1) / TILE);
        for_each(sweep_.threads(), pieces, [&](int piece) {
            const Place first = Place(piece) * TILE;
            kernels_.through_scale(set, first, int(std::min(Place(TILE), set.kept - first)), g);
        });
    }

    void write_slopes(std::size_t k) const {
        const TermCall<T>& term = call_.terms[k];
        for (int a = 0; a < term.arity; ++a) {
            if (!term.slope[a]) continue;
            const T *rows = slopes_[k].rows[a], *columns = slopes_[k].columns[a];
            const Embeddings& set = rows ? call_.x : call_.y;
            for (Place p = 0; p < set.kept; ++p)
                term.slope[a][set.order[p]] =
                    (rows ? rows[p] : T(0)) + (columns ? columns[p] : T(0));
        }
    }

    Sweep<T> sweep_;
    const Call<T>& call_;
    const Kernels<T>& kernels_;
    T *dx_, *dy_;
    Index width_;  // d in whole slices
    Buffer<T> x_slices_, y_slices_;
    std::vector<Slopes> slopes_;
    bool ordered_ = false;  // something is added by column
    Order order_;
};

}  // namespace

template <class T>
void weigh(const Call<T>& call, T* dx, T* dy) {
    Weigh<T>(call, dx, dy).run();
}

template void weigh(const Call<float>&, float*, float*);
template void weigh(const Call<double>&, double*, double*);

}  // namespace pairops::cpu
