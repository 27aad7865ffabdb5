// The table of kernels: the functions that a sweep calls, filled in once per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace pairops::cpu {

using Position = std::int64_t;  // a row or column in sorted order
using Index = std::int64_t;     // the same in the caller's order, as torch counts

// The rows and columns of a tile. A tile of floats and its weights stay in the first two caches,
// the band of positives is narrow, and rows and columns of every micro-kernel divide it.
constexpr int TILE = 96;
constexpr int MOST_ARGUMENTS = 3;  // of a pair function

// True is -1, in as many bytes as a number of the tile.
template <class T>
using Flag = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

enum class Dtype { float16, bfloat16, float32, float64 };

// The closeness of a pair is its similarity, or minus one of these distances.
enum class Distance { none, l2, sqeuclidean, snr };

// A set of embeddings as the caller has it. s_ij = r_i r_j <x_i, y_j>.
struct Embeddings {
    const void* z;  // (n, d)
    Dtype dtype;
    Index n, d;
    const double* scale;       // (n,) r, or null: 1
    const Index* permutation;  // (n,) ignored rows last
    Position n_valid;          // how many are not ignored
};

// Columns [begin, end) of a tile that a row has something in, or a panel of `panel_rows` rows
// needs.
struct Range {
    int begin, end;
};

// One tile of similarities, or of closeness, and what is known of its rows and columns.
template <class T>
struct Tile {
    // (TILE, TILE), as rows see it and as columns do: these differ where a distance has an anchor.
    const T *s, *s_of_cols;
    int rows, cols;
    Position row, col;  // the first of each
    const T* products;  // (TILE, TILE) of the further embeddings of a term; null if it has none
    bool positives;     // may a positive pair be in it?
    bool partial;       // else it is full: every pair that is not listed is a negative
    // (rows,) the interval of a row's positives, and the column that the row itself is.
    const Position *pos_begin, *pos_end, *self_index;
    // Positives by list, in place of intervals, or null: (TILE, TILE) is a pair one, and (rows,)
    // the columns among which those of a row are.
    const Flag<T>* listed;
    const Range* listed_columns;
    const std::int32_t *caller_x, *caller_y;  // (rows,), (cols,) in the caller's order

    // The columns among which the positives of row i are; {0, 0} if there are none. It is inline
    // everywhere, so that no instruction set runs what another one compiled.
    __attribute__((always_inline)) Range positives_of(int i) const {
        if (listed) return listed_columns[i];
        const Position begin = pos_begin[i] - col, end = pos_end[i] - col;
        const int first = int(begin < 0 ? 0 : begin), last = int(end < cols ? end : cols);
        return begin < last ? Range{first, last} : Range{0, 0};
    }
};

// One term's vectors, in sorted order, padded to whole tiles, and what it adds up.
template <class T>
struct Operands {
    const T* args[MOST_ARGUMENTS];                   // by owner or, as the term says, by partner
    const T *above, *below, *statistic, *cotangent;  // by owner
    // Gradients by args, or null: of the tile's rows and of its columns, (TILE,) each.
    T *by_row[MOST_ARGUMENTS], *by_col[MOST_ARGUMENTS];
};

// The functions of a term. States of accumulators are opaque here: a row has one of `state` bytes,
// and `vector_width` columns share one. Owners are the rows of a tile or its columns.
template <class T>
struct TermKernels {
    std::size_t state;
    void (*clear)(void* states, int count);
    // Add a tile to the states of its owners; true if a pair is inside the windows.
    bool (*forward_rows)(const Tile<T>&, const Operands<T>&, void* states);
    bool (*forward_cols)(const Tile<T>&, const Operands<T>&, void* states);
    // Do both, for a term whose numbers are the same in both views; null where this saves nothing.
    bool (*forward_both)(const Tile<T>&, const Operands<T>& of_rows, const Operands<T>& of_cols,
                         void* rows, void* cols);
    void (*merge)(void* into, const void* from, int count);
    // Write the results of `count` owners. Their states are those of rows, of columns, or both;
    // null stands for none.
    void (*finalize)(const void* rows, const void* cols, int count, const std::int32_t* caller,
                     T* value, Index* argument);
    // Add the pair weights to w (TILE, TILE); true if one of them is not 0. An extreme has null.
    bool (*backward_rows)(const Tile<T>&, const Operands<T>&, T* w);
    bool (*backward_cols)(const Tile<T>&, const Operands<T>&, T* w);
};

// Pair weights of a tile by closeness, and the outputs by similarity and by squared norms.
template <class T>
struct ThroughCloseness {
    Distance distance;
    const T* t;       // (TILE, TILE) closeness, of snr before the anchor's share
    T* w;             // (TILE, TILE) weights by t; of snr those of pairs whose anchor is the row
    const T* w_cols;  // and of pairs whose anchor is the column; else null
    const T *share_rows, *share_cols;  // 1 / variance of the tile's rows and columns; else null
    // The gradient through squared norms is added as a factor of each row of embeddings; or null.
    T *of_rows, *of_cols;
};

template <class T>
struct Kernels {
    int panel_rows, panel_cols;  // of the micro-kernel
    int vector_width;
    const TermKernels<T>* terms;  // as CpuRecipes has them, one after the other

    // Pack scaled rows [first, first + count) into panels of panel_rows, (d, panel_rows) each.
    void (*pack_rows)(const Embeddings&, Position first, int count, T* panels);
    // Pack panel_cols columns likewise, into one panel (d, panel_cols) of 0 from n_valid on.
    void (*pack_cols)(const Embeddings&, Position first, T* panel);
    // Pack scaled rows [first, first + count), not transposed, into slices of panel_cols along d
    // that begin `stride` numbers apart, (count, panel_cols) each; they are 0 from d on.
    void (*pack_slices)(const Embeddings&, Position first, int count, std::size_t stride,
                        T* slices);

    // Compute s (TILE, TILE) of packed rows and columns. Each panel of rows has a range, or null:
    // all.
    void (*multiply)(const T* rows, const T* cols, int n_rows, int n_cols, Index d,
                     const Range* ranges, T* s);
    // out[i] += Σ_j w_ij y_j, or Σ_i w_ij x_i into out[j] where `transposed`.
    void (*accumulate)(const T* w, bool transposed, int n_rows, int n_cols, const T* slices,
                       std::size_t stride, Index d, const Range* ranges, T* const* out);
    // g = r (g − u <u, g>), u = r x: the gradient by rows of x, at the caller's index, in place.
    // Without a scale it is g + f x, where f has a factor for each position, or is null: 0.
    void (*through_scale)(const Embeddings&, Position first, int count, const T* factors, T* g);

    // Write squared norms of scaled rows [first, first + count).
    void (*squares)(const Embeddings&, Position first, int count, T* out);
    // Turn similarities into closeness, in place; that of snr lacks the anchor's share. a and b are
    // squared norms of the tile's rows and columns.
    void (*closeness)(Distance, const T* a, const T* b, int n_rows, int n_cols, const Range* ranges,
                      T* s);
    // Set out = share · t, by the share of rows or of columns; the other one is null.
    void (*times_share)(const T* t, const T* of_rows, const T* of_cols, int n_rows, int n_cols,
                        T* out);
    void (*through_closeness)(const ThroughCloseness<T>&, int n_rows, int n_cols,
                              const Range* ranges);

    // Write 1/‖z_i‖ of rows [first, first + count) in the caller's order; 0 for a norm below 1e-12
    // and for an ignored row.
    void (*inverse_norm)(const Embeddings&, Index first, int count, const bool* valid, double* out);

    // Run `rounds` rounds of independent multiply-adds, the core's peak; return how many operations
    // these were.
    double (*peak)(std::int64_t rounds);
};

struct Isa {
    const char* name;
    bool (*runs_here)();
    const Kernels<float>* f32;
    const Kernels<double>* f64;

    template <class T>
    const Kernels<T>& kernels() const {
        if constexpr (std::is_same_v<T, float>)
            return *f32;
        else
            return *f64;
    }
};

}  // namespace pairops::cpu
