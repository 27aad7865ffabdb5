// The part of a sweep that both passes share: working memory, sorted vectors, and the facts of a
// tile.
#include "cpu/sweep.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

namespace pairops::cpu {

OutOfMemory::OutOfMemory(std::size_t bytes) {
    char text[100];
    std::snprintf(text, sizeof text, "the cpu engine needs %zu bytes (%.1f MiB) that it cannot get",
                  bytes, double(bytes) / (1 << 20));
    message = text;
}

template <class T>
void* Buffer<T>::allocate(std::size_t bytes, bool poison) {
    // The size is exact, as the address sanitizer looks past the last byte.
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, std::max<std::size_t>(bytes, 1)) != 0) throw OutOfMemory(bytes);
    if (poison) std::memset(memory, 0xff, bytes);
    return memory;
}

void for_each(int threads, int count, const std::function<void(int)>& work) {
    std::atomic<int> next{0};
    on_a_team(std::min(threads, count), [&] {
        for (int k; (k = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(k);
    });
}

// A range that ends at 0 is empty.
static void extend(Range& range, Range by) {
    range =
        range.end == 0 ? by : Range{std::min(range.begin, by.begin), std::max(range.end, by.end)};
}

static int tiles_of(Position n) { return int((n + TILE - 1) / TILE); }

static Buffer<std::int32_t> narrowed(const Embeddings& set, std::size_t padded, bool poison) {
    Buffer<std::int32_t> caller(padded, poison);
    for (Position k = 0; k < set.n_valid; ++k) caller[k] = std::int32_t(set.permutation[k]);
    std::fill(caller + set.n_valid, caller + padded, 0);
    return caller;
}

template <class T>
Sweep<T>::Sweep(const Call<T>& call, bool for_backward)
    : call(call),
      kernels(call.kernels),
      row_tiles(tiles_of(call.x.n_valid)),
      col_tiles(tiles_of(call.y.n_valid)),
      of_positives(true) {
    for (const TermCall<T>& term : call.terms) of_positives = of_positives && term.positives;
    in_ranges = of_positives && !call.similarities.tiles;
    band = in_ranges && !call.entries;
    if (call.entries) sort_list();
    triangle = call.same && !band;

    caller_x_memory_ = narrowed(call.x, padded(false), call.poison);
    if (!call.same) caller_y_memory_ = narrowed(call.y, padded(true), call.poison);
    caller_x_ = caller_x_memory_;
    caller_y_ = call.same ? caller_x_memory_ : caller_y_memory_;

    for (int r = 0; r < row_tiles; ++r) {
        Range self{std::numeric_limits<int>::max(), 0};
        for (Position i = Position(r) * TILE; i < std::min(Position(r + 1) * TILE, call.x.n_valid);
             ++i) {
            if (call.self_index[i] < 0) continue;
            self.begin = std::min(self.begin, int(call.self_index[i]));
            self.end = std::max(self.end, int(call.self_index[i]) + 1);
        }
        self_ranges_.push_back(self);
    }

    if (call.measure.distance != Distance::none) {
        squares_x = squared(call.x, padded(false));
        squares_y = call.same ? squares_x : squared(call.y, padded(true));
    }
    if (call.measure.directed()) {
        share_x = shares(squares_x, padded(false));
        share_y = call.same ? share_x : shares(squares_y, padded(true));
    }

    for (const TermCall<T>& term : call.terms) {
        Operands<T> given{};
        for (int k = term.has_product; k < term.arity; ++k)
            given.args[k] = sorted(term.args[k], term.by_column != term.by_partner[k]);
        product_of_term_.push_back(term.has_product ? product_of(term) : -1);
        if (term.has_above) given.above = sorted(term.above, term.by_column);
        if (term.has_below) given.below = sorted(term.below, term.by_column);
        if (for_backward) {
            given.statistic = sorted(term.statistic, term.by_column);
            given.cotangent = sorted(term.cotangent, term.by_column);
        }
        operands.push_back(given);
    }
}

template <class T>
void Sweep<T>::open_stripe(int first, int tiles) {
    // The first stripe is as wide as any.
    if (!columns_) columns_ = Buffer<T>(std::size_t(tiles) * TILE * call.y.d, call.poison);
    for (Product& product : products_)
        if (!product.packed)
            product.packed = Buffer<T>(std::size_t(tiles) * TILE * product.columns.d, call.poison);
    stripe_ = Position(first) * TILE;
}

// The states of a tile of saved similarities; 0 means that nobody has begun it.
constexpr std::uint8_t KNOWN = 1, BEGUN = 2;

template <class T>
bool Sweep<T>::unknown(int r, int c) const {
    const std::uint8_t* known = call.similarities.known;
    return !known || __atomic_load_n(known + tile_index(r, c), __ATOMIC_ACQUIRE) != KNOWN;
}

template <class T>
void Sweep<T>::pack(int c) const {
    const Position first = Position(c) * TILE;
    const int count = int(std::min(Position(TILE), call.y.n_valid - first));
    for (const Product& product : products_)
        pack_columns(product.columns, first, count,
                     product.packed + (first - stripe_) * product.columns.d);
    bool needed = false;
    for (int r = 0; !needed && r < (triangle ? c + 1 : row_tiles); ++r) needed = unknown(r, c);
    if (needed) pack_columns(call.y, first, count, columns_ + (first - stripe_) * call.y.d);
}

template <class T>
void Sweep<T>::pack_columns(const Embeddings& set, Position first, int count, T* panels) const {
    for (int j = 0; j < count; j += kernels.panel_cols)
        kernels.pack_cols(set, first + j, panels + j * set.d);
}

// Terms over the same further embeddings share a product.
template <class T>
int Sweep<T>::product_of(const TermCall<T>& term) {
    constexpr Dtype dtype = sizeof(T) == 4 ? Dtype::float32 : Dtype::float64;
    const Further<T>& given = term.further;
    const T* rows = term.by_column ? given.partners : given.owners;
    const T* columns = term.by_column ? given.owners : given.partners;
    for (std::size_t k = 0; k < products_.size(); ++k)
        if (products_[k].rows.z == rows && products_[k].columns.z == columns &&
            products_[k].rows.d == given.d)
            return int(k);
    const auto further = [&](const T* z, const Embeddings& like) {
        return Embeddings{z, dtype, like.n, given.d, nullptr, like.permutation, like.n_valid};
    };
    products_.push_back({further(rows, call.x), further(columns, call.y), {}});
    return int(products_.size()) - 1;
}

template <class T>
void Sweep<T>::pack_further(int r, T* rows) const {
    const Position first = Position(r) * TILE;
    const int count = int(std::min(Position(TILE), call.x.n_valid - first));
    for (const Product& product : products_) {
        kernels.pack_rows(product.rows, first, count, rows);
        rows += TILE * product.rows.d;
    }
}

template <class T>
void Sweep<T>::multiply_further(const Tile<T>& tile, const T* rows, T* products) const {
    for (const Product& product : products_) {
        const Index d = product.rows.d;
        kernels.multiply(rows, product.packed + (tile.col - stripe_) * d, tile.rows, tile.cols, d,
                         nullptr, products);
        rows += TILE * d;
        products += TILE * TILE;
    }
}

template <class T>
const T* Sweep<T>::sorted(const Numbers<T>& numbers, bool of_columns) {
    const Embeddings& set = of_columns ? call.y : call.x;
    Buffer<T> values(padded(of_columns), call.poison);
    for (Position k = 0; k < set.n_valid; ++k) values[k] = numbers.at(set.permutation[k]);
    std::fill(values + set.n_valid, values + padded(of_columns), T(0));
    vectors_.push_back(std::move(values));
    return vectors_.back();
}

template <class T>
const T* Sweep<T>::squared(const Embeddings& set, std::size_t padded) {
    Buffer<T> values(padded, call.poison);
    kernels.squares(set, 0, int(set.n_valid), values);
    std::fill(values + set.n_valid, values + padded, T(0));
    vectors_.push_back(std::move(values));
    return vectors_.back();
}

template <class T>
const T* Sweep<T>::shares(const T* squares, std::size_t padded) {
    Buffer<T> values(padded, call.poison);
    for (std::size_t k = 0; k < padded; ++k) values[k] = share_of(squares[k], call.x.d);
    vectors_.push_back(std::move(values));
    return vectors_.back();
}

template <class T>
int Sweep<T>::threads() const {
    // Waking a thread costs more than it brings below about ten microseconds of work each.
    const double work = double(call.x.n_valid) * double(call.y.n_valid) * double(call.x.d + 32);
    return std::max(1,
                    int(std::min(double(std::min(call.threads, row_tiles)), 1 + work / (1 << 20))));
}

// Rows are sorted by label and so are their positives: the first row's begin first.
template <class T>
int Sweep<T>::first_tile(int r) const {
    if (triangle) return r;
    return band ? int(call.pos_begin[Position(r) * TILE] / TILE) : 0;
}

template <class T>
int Sweep<T>::end_tile(int r) const {
    if (!band) return col_tiles;
    const Position last = std::min(Position(r + 1) * TILE, call.x.n_valid) - 1;
    return std::min(tiles_of(call.pos_end[last]), col_tiles);
}

template <class T>
Tile<T> Sweep<T>::tile(int r, int c) const {
    Tile<T> tile{};
    tile.row = Position(r) * TILE;
    tile.col = Position(c) * TILE;
    tile.rows = int(std::min(Position(TILE), call.x.n_valid - tile.row));
    tile.cols = int(std::min(Position(TILE), call.y.n_valid - tile.col));
    tile.pos_begin = call.pos_begin + tile.row;
    tile.pos_end = call.pos_end + tile.row;
    tile.self_index = call.self_index + tile.row;
    tile.caller_x = caller_x_ + tile.row;
    tile.caller_y = caller_y_ + tile.col;
    const Position end = tile.col + tile.cols;
    if (call.entries)
        tile.positives = list_ends_[tile_index(r, c)] < list_ends_[tile_index(r, c) + 1];
    else
        tile.positives =
            std::max(tile.pos_begin[0], tile.col) < std::min(tile.pos_end[tile.rows - 1], end);
    tile.partial = (tile.positives && !call.entries) || tile.cols % kernels.vector_width != 0 ||
                   std::max(Position(self_ranges_[r].begin), tile.col) <
                       std::min(Position(self_ranges_[r].end), end);
    return tile;
}

template <class T>
Tile<T> Sweep<T>::tile(int r, int c, ListedTile<T>& listed) const {
    Tile<T> result = tile(r, c);
    if (!call.entries) return result;
    for (std::size_t k = listed.begin; k < listed.end; ++k) {
        listed.flags[listed_[k]] = 0;
        listed.columns[listed_[k] / TILE] = {0, 0};
    }
    listed.begin = list_ends_[tile_index(r, c)];
    listed.end = list_ends_[tile_index(r, c) + 1];
    for (std::size_t k = listed.begin; k < listed.end; ++k) {
        listed.flags[listed_[k]] = -1;
        Range& columns = listed.columns[listed_[k] / TILE];
        const int j = listed_[k] % TILE;
        extend(columns, {j, j + 1});
    }
    result.listed = listed.flags;
    result.listed_columns = listed.columns;
    return result;
}

template <class T>
ListedTile<T> Sweep<T>::no_list_yet() const {
    ListedTile<T> result;
    if (!call.entries) return result;
    result.flags = Buffer<Flag<T>>(TILE * TILE, false);
    std::fill_n(static_cast<Flag<T>*>(result.flags), TILE * TILE, Flag<T>(0));
    return result;
}

// By counting: two passes through the entries.
template <class T>
void Sweep<T>::sort_list() {
    const auto each = [&](auto visit) {
        for (Position p = 0; p < call.x.n_valid; ++p)
            for (Position k = call.pos_begin[p]; k < call.pos_end[p]; ++k)
                visit(p, call.entries[k], tile_index(int(p / TILE), int(call.entries[k] / TILE)));
    };
    list_ends_.assign(tile_index(row_tiles, 0) + 1, 0);
    each([&](Position, Position, std::size_t tile) { ++list_ends_[tile + 1]; });
    for (std::size_t k = 1; k < list_ends_.size(); ++k) list_ends_[k] += list_ends_[k - 1];
    listed_.resize(list_ends_.back());
    std::vector<std::size_t> next = list_ends_;
    each([&](Position p, Position q, std::size_t tile) {
        listed_[next[tile]++] = std::uint16_t(p % TILE * TILE + q % TILE);
    });
}

template <class T>
const Range* Sweep<T>::ranges(const Tile<T>& tile, Range* memory) const {
    if (!in_ranges) return nullptr;
    std::fill_n(memory, TILE, Range{0, 0});
    for (int i = 0; i < tile.rows; ++i)
        if (const Range columns = tile.positives_of(i); columns.end > 0)
            extend(memory[i / kernels.panel_rows], columns);
    return memory;
}

template <class T>
const Range* Sweep<T>::ranges_of_columns(const Tile<T>& tile, Range* memory) const {
    if (!in_ranges) return nullptr;
    const int panel = kernels.panel_rows;
    std::fill_n(memory, TILE, Range{0, 0});
    for (int i = 0; i < tile.rows; ++i) {
        const Range columns = tile.positives_of(i);
        for (int j = columns.begin; j < columns.end; j += panel - j % panel)
            extend(memory[j / panel], {i, i + 1});
    }
    return memory;
}

template <class T>
const T* Sweep<T>::similarities(int r, int c, const Tile<T>& tile, const T* rows, T* columns,
                                const Range* ranges, T* s) const {
    T* const tiles = call.similarities.tiles;
    T* const saved = tiles ? tiles + tile_index(r, c) * TILE * TILE : nullptr;
    if (!unknown(r, c)) return saved;
    // Another call may sweep the same pairs: of those that miss a tile one writes it.
    std::uint8_t* const state = saved ? call.similarities.known + tile_index(r, c) : nullptr;
    std::uint8_t missing = 0;
    const bool mine = state && __atomic_compare_exchange_n(state, &missing, BEGUN, false,
                                                           __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    if (mine) s = saved;
    if (band) pack_columns(call.y, tile.col, tile.cols, columns);
    const T* from = band ? columns : columns_ + (tile.col - stripe_) * call.y.d;
    kernels.multiply(rows, from, tile.rows, tile.cols, call.x.d, ranges, s);
    if (squares_x)
        kernels.closeness(call.measure.distance, squares_x + tile.row, squares_y + tile.col,
                          tile.rows, tile.cols, ranges, s);
    if (mine) __atomic_store_n(state, KNOWN, __ATOMIC_RELEASE);
    return s;
}

// The offset in a workspace of closeness with the share of anchors that are columns, or rows.
constexpr std::size_t shared(bool anchors_are_rows) {
    return std::size_t(anchors_are_rows ? 2 : 1) * TILE * TILE;
}

template <class T>
const T* Sweep<T>::look(int r, int c, const Tile<T>& tile, const T* rows, T* columns,
                        const Range* ranges, T* s) const {
    const T* const t = similarities(r, c, tile, rows, columns, ranges, s);
    if (!call.measure.directed()) return t;
    for (const bool of_rows : {false, true})
        if (call.same || of_rows != call.measure.anchors_are_columns)
            kernels.times_share(t, of_rows ? share_x + tile.row : nullptr,
                                of_rows ? nullptr : share_y + tile.col, tile.rows, tile.cols,
                                s + shared(of_rows));
    return t;
}

template <class T>
void Sweep<T>::show(Tile<T>& tile, std::size_t k, const T* t, const T* s, const T* products) const {
    const TermCall<T>& term = call.terms[k];
    const bool directed = call.measure.directed();
    tile.s = directed ? s + shared(anchors_are_rows(term, false)) : t;
    tile.s_of_cols = directed ? s + shared(anchors_are_rows(term, true)) : t;
    const int product = product_of_term_[k];
    tile.products = product < 0 ? nullptr : products + std::size_t(product) * TILE * TILE;
}

template <class T>
std::uint8_t& Sweep<T>::bit(const TermCall<T>& term, int r, int c) const {
    return term.bits[std::size_t(r) * tiles_of(call.y.n) + c];
}

template class Sweep<float>;
template class Sweep<double>;
template class Buffer<float>;
template class Buffer<double>;
template class Buffer<unsigned char>;
template class Buffer<std::int32_t>;
template class Buffer<std::int64_t>;

}  // namespace pairops::cpu
