// A call of the forward or the backward pass: its inputs, and the working memory it needs.
#pragma once

#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "cpu/simd/kernel_table.h"
#include "cpu/threads.h"

namespace pairops::cpu {

// (n,) numbers of a term in the caller's order, or one number for all.
template <class T>
struct Numbers {
    const T* values = nullptr;
    Index stride = 1;
    T number = T(0);

    T at(Index k) const { return values ? values[k * stride] : number; }
    bool is_number() const { return !values || stride == 0; }
};

// Further embeddings of owners and of partners, (·, d) each in the caller's order.
template <class T>
struct Further {
    const T *owners = nullptr, *partners = nullptr;
    Index d = 0;
};

template <class T>
struct TermCall {
    int kernel;       // index in Kernels::terms
    bool positives;   // its side is POS
    bool by_column;   // its owners are the columns
    bool of_columns;  // the same, also where a column is a row: of one set
    int arity = 0;
    Numbers<T> args[MOST_ARGUMENTS];
    bool by_partner[MOST_ARGUMENTS] = {};
    bool has_product = false;  // is argument 0 the product of further embeddings, a constant?
    Further<T> further;
    bool has_above = false, has_below = false;
    Numbers<T> above, below;
    std::uint8_t* bits = nullptr;  // (tiles of rows, tiles of columns), or null: none

    // Are all arguments the same for all owners and partners?
    bool takes_numbers() const {
        bool result = !has_product;
        for (int k = 0; k < arity; ++k) result = result && args[k].is_number();
        return result;
    }

    // The forward pass writes these, in the caller's order.
    T* value = nullptr;
    Index* argument = nullptr;
    // The backward pass reads these, and adds the gradients by args, which are null if not wanted.
    Numbers<T> statistic, cotangent;
    T* slope[MOST_ARGUMENTS] = {};
};

// The similarities of a small problem, from its first sweep to its last: tiles one after the other,
// (row tiles, column tiles, TILE, TILE), and for each whether it has been computed. Null: not
// saved. Tiles of a distance hold closeness, and those of snr lack the anchor's share.
template <class T>
struct Similarities {
    T* tiles = nullptr;
    std::uint8_t* known = nullptr;
    // Will a later sweep need tiles that this one does not? Then this one, which packs the
    // embeddings, computes all.
    bool all = false;
};

// The measure of a pair. Only snr has an anchor, whose variance it divides by.
struct Measure {
    Distance distance = Distance::none;
    bool anchors_are_columns = false;

    bool directed() const { return distance == Distance::snr; }
    bool owner_is_anchor(bool of_columns) const { return of_columns == anchors_are_columns; }
};

// The parameters of a pass. For the same set `y` is `x`, the relation is symmetric, and no term is
// by_column.
template <class T>
struct Call {
    const Kernels<T>& kernels;
    Embeddings x, y;
    bool same;
    Measure measure;
    const Position *pos_begin, *pos_end, *self_index;  // (x.n,)
    // With a list, pos_begin and pos_end count its entries, positions of columns; else null. A list
    // is not symmetric, and neither are products of further embeddings: one set then counts as two.
    const Position* entries;
    std::vector<TermCall<T>> terms;
    Similarities<T> similarities;
    bool last;  // no further sweep adds to the same gradients
    int threads;
    bool poison;  // fill working memory with NaN
    std::function<bool()> interrupted;
};

// 1 / variance of rows of d entries with this squared norm; 0 for one without variance.
template <class T>
T share_of(T square, Index d) {
    return square < T(1e-24 * double(d - 1)) ? T(0) : 1 / square;
}

template <class T>
void forward(const Call<T>& call);
// dx (x.n, d), dy (y.n, d): zeros to add to, or null where not wanted. For the same set dx is all.
template <class T>
void backward(const Call<T>& call, T* dx, T* dy);

// Add the gradients of extremes of closeness itself. The `argument` of a term is the partner that
// attained it or -1; a term with null has no gradient.
template <class T>
void backward_extremes(const Call<T>& call, T* dx, T* dy);

struct OutOfMemory : std::bad_alloc {
    std::string message;
    explicit OutOfMemory(std::size_t bytes);
    const char* what() const noexcept override { return message.c_str(); }
};

// Aligned memory without values, or full of NaN.
template <class T>
class Buffer {
   public:
    Buffer() = default;
    Buffer(std::size_t count, bool poison) : memory_(allocate(count * sizeof(T), poison)) {}
    operator T*() const { return static_cast<T*>(memory_.get()); }

   private:
    struct Deleter {
        void operator()(void* memory) const { std::free(memory); }
    };
    static void* allocate(std::size_t bytes, bool poison);
    std::unique_ptr<void, Deleter> memory_;
};

// The positives of one tile by list, as flags, and the columns among which those of each row are.
template <class T>
struct ListedTile {
    Buffer<Flag<T>> flags;  // (TILE, TILE)
    Range columns[TILE] = {};
    std::size_t begin = 0, end = 0;  // those that are set
};

// One call's tiles, and every term's vectors sorted as its rows and columns are.
template <class T>
class Sweep {
   public:
    explicit Sweep(const Call<T>& call, bool for_backward);

    const Call<T>& call;
    const Kernels<T>& kernels;
    int row_tiles, col_tiles;
    // If all terms are of the positives, only the band of tiles in which there are some is visited,
    // each tile for its rows alone. Otherwise, and where similarities are saved, the same set
    // visits the upper triangle, and a tile serves its rows and its columns.
    bool of_positives, band, triangle;
    bool in_ranges;                     // of a tile, only what holds positives is multiplied
    std::vector<Operands<T>> operands;  // one per term

    // Open a stripe of `tiles` tiles from tile `first` on, each of which is packed before it is
    // multiplied. A band has none, as nothing of it is packed beforehand.
    void open_stripe(int first, int tiles);
    // Pack column tile c, unless no tile needs it.
    void pack(int c) const;

    int first_tile(int r) const;
    int end_tile(int r) const;
    // Tile (r, c) without its similarities.
    Tile<T> tile(int r, int c) const;
    // The same with its positives by list, if there is one, in place of those of an earlier tile.
    Tile<T> tile(int r, int c, ListedTile<T>& listed) const;
    ListedTile<T> no_list_yet() const;
    bool visits(const TermCall<T>& term, const Tile<T>& tile) const {
        return !term.positives || tile.positives;
    }
    // The columns that a panel of rows needs, if a tile is multiplied in ranges; else null.
    const Range* ranges(const Tile<T>& tile, Range* memory) const;
    // The rows that a panel of columns needs there; else null.
    const Range* ranges_of_columns(const Tile<T>& tile, Range* memory) const;
    // Are the similarities of tile (r, c) still to be computed?
    bool unknown(int r, int c) const;
    // The tile's similarities or closeness without the anchor's share: the saved ones, or made of
    // packed `rows`. `columns` and `s` are workspaces of columns_per_thread() and
    // similarities_per_thread().
    const T* look(int r, int c, const Tile<T>& tile, const T* rows, T* columns, const Range* ranges,
                  T* s) const;
    // Pack the further embeddings of the tile rows of block r.
    void pack_further(int r, T* rows) const;
    // Compute all products of a tile from rows that are packed so.
    void multiply_further(const Tile<T>& tile, const T* rows, T* products) const;
    std::size_t further_per_thread() const {
        std::size_t d = 0;
        for (const Product& product : products_) d += std::size_t(product.rows.d);
        return TILE * d;
    }
    std::size_t products_per_thread() const { return products_.size() * TILE * TILE; }
    // Show the tile as term k sees it; `s` is as for look, `products` as from multiply_further.
    void show(Tile<T>& tile, std::size_t k, const T* t, const T* s, const T* products) const;
    std::size_t similarities_per_thread() const {
        return std::size_t(call.measure.directed() ? 3 : 1) * TILE * TILE;
    }
    std::size_t columns_per_thread() const { return band ? TILE * std::size_t(call.y.d) : 0; }
    // Are the tile's rows the anchors of a term as its rows see it, and as its columns do? Of two
    // sets one has all anchors.
    bool anchors_are_rows(const TermCall<T>& term, bool owners_are_columns) const {
        if (!call.same) return !call.measure.anchors_are_columns;
        return call.measure.owner_is_anchor(term.of_columns) != owners_are_columns;
    }
    // Squared norms (padded,) of rows and of columns, and their 1 / variance for snr.
    const T *squares_x = nullptr, *squares_y = nullptr, *share_x = nullptr, *share_y = nullptr;
    // Bit (r, c) of a term.
    std::uint8_t& bit(const TermCall<T>& term, int r, int c) const;
    // The size of the team that is worth waking.
    int threads() const;
    const std::int32_t* caller(bool of_columns) const { return of_columns ? caller_y_ : caller_x_; }
    std::size_t padded(bool of_columns) const {
        return std::size_t(of_columns ? col_tiles : row_tiles) * TILE;
    }

   private:
    // Further embeddings of the rows and of the columns of tiles, and these packed.
    struct Product {
        Embeddings rows, columns;
        Buffer<T> packed;
    };

    int product_of(const TermCall<T>& term);
    void sort_list();
    std::size_t tile_index(int r, int c) const { return std::size_t(r) * col_tiles + c; }
    const T* similarities(int r, int c, const Tile<T>& tile, const T* rows, T* columns,
                          const Range* ranges, T* s) const;
    const T* squared(const Embeddings& set, std::size_t padded);
    const T* shares(const T* squares, std::size_t padded);
    void pack_columns(const Embeddings& set, Position first, int count, T* panels) const;
    const T* sorted(const Numbers<T>& numbers, bool of_columns);

    Buffer<T> columns_;    // panels of the stripe
    Position stripe_ = 0;  // its first column
    Buffer<std::int32_t> caller_x_memory_, caller_y_memory_;
    const std::int32_t *caller_x_, *caller_y_;
    std::vector<Buffer<T>> vectors_;
    std::vector<Product> products_;
    std::vector<int> product_of_term_;  // -1: it has none
    // Positives by list, tile by tile: row · TILE + column, and where those of a tile end.
    std::vector<std::uint16_t> listed_;
    std::vector<std::size_t> list_ends_;
    std::vector<Range> self_ranges_;  // per tile of rows: the columns that its rows are
};

// Call work(k) for k < count on a team, in any order.
void for_each(int threads, int count, const std::function<void(int)>& work);

}  // namespace pairops::cpu
