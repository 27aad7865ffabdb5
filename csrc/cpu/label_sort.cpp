// The sort of labels: a radix sort, and a walk along two sorted lists that finds the intervals.
#include "cpu/label_sort.h"

#include <array>
#include <new>
#include <vector>

#include "cpu/sweep.h"

namespace pairops::cpu {

namespace {

struct Entry {
    std::uint64_t key;
    Index row;
};

// Sort from the lowest byte to the highest, without bytes that all keys share: labels are mostly
// small.
void sort_by_key(std::vector<Entry>& entries) {
    std::vector<Entry> sorted(entries.size());
    for (int shift = 0; shift < 64; shift += 8) {
        const auto byte = [shift](const Entry& entry) { return (entry.key >> shift) & 0xff; };
        std::array<std::size_t, 256> begin{};
        for (const Entry& entry : entries) ++begin[byte(entry)];
        if (!entries.empty() && begin[byte(entries[0])] == entries.size()) continue;
        std::size_t next = 0;
        for (std::size_t& count : begin) {
            const std::size_t here = count;
            count = next;
            next += here;
        }
        for (const Entry& entry : entries) sorted[begin[byte(entry)]++] = entry;
        entries.swap(sorted);
    }
}

// The valid labels, sorted, as keys that sort as they do.
std::vector<Entry> sorted(const Labels& labels, const std::int64_t* ignored) try {
    std::vector<Entry> entries;
    entries.reserve(labels.n);
    for (Index row = 0; row < labels.n; ++row) {
        const std::int64_t label = labels.values[row];
        labels.valid[row] = !(ignored && label == *ignored);
        if (labels.valid[row])
            entries.push_back({std::uint64_t(label) ^ (std::uint64_t(1) << 63), row});
    }
    sort_by_key(entries);
    Position position = 0;
    for (const Entry& entry : entries) labels.permutation[position++] = entry.row;
    for (Index row = 0; row < labels.n; ++row)
        if (!labels.valid[row]) labels.permutation[position++] = row;
    return entries;
} catch (const std::bad_alloc&) {
    throw OutOfMemory(2 * sizeof(Entry) * std::size_t(labels.n));
}

}  // namespace

void sort_labels(const Labels& x, const Labels& y, const std::int64_t* ignored, Position* pos_begin,
                 Position* pos_end) {
    const bool same = x.valid == y.valid;
    const std::vector<Entry> rows = sorted(x, ignored);
    const std::vector<Entry> others = same ? std::vector<Entry>() : sorted(y, ignored);
    const std::vector<Entry>& columns = same ? rows : others;
    std::size_t begin = 0, end = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
        while (begin < columns.size() && columns[begin].key < rows[i].key) ++begin;
        if (end < begin) end = begin;
        while (end < columns.size() && columns[end].key == rows[i].key) ++end;
        pos_begin[i] = Position(begin);
        pos_end[i] = Position(end);
    }
    for (Index i = Index(rows.size()); i < x.n; ++i) {
        pos_begin[i] = Position(columns.size());
        pos_end[i] = y.n;
    }
}

}  // namespace pairops::cpu
