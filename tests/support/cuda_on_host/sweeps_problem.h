// What the sweeps are tested on: two sets of embeddings, who is positive for whom, and s in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/api.h"

namespace pairops::cuda {

struct Wrong : std::runtime_error {
    using std::runtime_error::runtime_error;
};

#ifdef __SANITIZE_ADDRESS__
constexpr int guard_bytes = 0;  // it sees what lies beyond the last element
#else
constexpr int guard_bytes = 64;
#endif

// As many T as kernels may touch and not one more, all of them NaN or negative at first.
template <class T>
class Exact {
   public:
    Exact() : Exact(0) {}
    explicit Exact(std::size_t n) : n_(n), memory_(new unsigned char[bytes() + 2 * guard_bytes]) {
        std::memset(memory_.get(), 0xa5, bytes() + 2 * guard_bytes);
        std::memset(static_cast<void*>(data()), 0xff, bytes());
    }
    Exact(std::size_t n, T value) : Exact(n) { std::fill(data(), data() + n, value); }

    T* data() const { return reinterpret_cast<T*>(memory_.get() + guard_bytes); }
    T* data_or_null() const { return n_ ? data() : nullptr; }
    T& operator[](std::size_t i) const { return data()[i]; }
    std::size_t size() const { return n_; }
    void check_guards(const char* what) const {
        for (int i = 0; i < guard_bytes; i++) {
            if (memory_[i] == 0xa5 && memory_[guard_bytes + bytes() + i] == 0xa5) continue;
            throw Wrong(std::string("something was written beside ") + what);
        }
    }

   private:
    std::size_t bytes() const { return n_ * sizeof(T); }
    std::size_t n_;
    std::unique_ptr<unsigned char[]> memory_;
};

class Random {
   public:
    explicit Random(std::uint64_t seed) : state_(seed * 2654435761 + 1) {}
    std::uint32_t below(std::uint32_t n) { return std::uint32_t(next() >> 33) % n; }
    double uniform() { return double(next() >> 11) * 0x1p-53; }
    double normal() {
        double sum = -6;
        for (int i = 0; i < 12; i++) sum += uniform();
        return sum;
    }

   private:
    std::uint64_t next() {
        state_ = state_ * 6364136223846793005 + 1442695040888963407;
        return state_ ^ state_ >> 29;
    }
    std::uint64_t state_;
};

// The middle of the widest gap about this quantile: no rounding moves a number across it.
inline double gap(std::vector<double> numbers, double quantile) {
    const auto is_nan = [](double number) { return number != number; };  // of an ignored row
    numbers.erase(std::remove_if(numbers.begin(), numbers.end(), is_nan), numbers.end());
    if (numbers.empty()) return 0;
    std::sort(numbers.begin(), numbers.end());
    const std::size_t n = numbers.size(), reach = 2 + n / 50;
    const std::size_t at = std::min(n - 1, std::size_t(quantile * double(n)));
    double found = numbers[at] + 1, width = 0;
    for (std::size_t i = at > reach ? at - reach : 0; i + 1 < n && i < at + reach; i++) {
        if (numbers[i + 1] - numbers[i] <= width) continue;
        width = numbers[i + 1] - numbers[i];
        found = numbers[i] + width / 2;
    }
    return found;
}

// A case. D and precision choose the kernels; m = 0: a set with itself.
struct Shaped {
    Precision precision;
    const char* dtype;
    int d, n, m, ignored, classes, splits;
    bool normalized, hopper;
    bool one_signed = false;  // no number is negative: the sums that lose most where they truncate
    bool long_rows = false;   // exponentials of similarities overflow
};

struct OneSet {
    int n, d, n_valid;
    std::vector<int> label;  // -1: ignored
    std::vector<double> x, r;
    Exact<unsigned char> z;  // x, of the dtype
    Exact<double> scale;
    Exact<Index> permutation;
    Exact<bool> valid;
    Exact<std::uint16_t> rows;  // as arrange leaves them
    Exact<float> high, rest;
    Exact<std::int32_t> n_valid_found;

    const double* row(int i) const { return x.data() + std::size_t(i) * std::size_t(d); }
    Set told() const {
        return {rows.data(), high.data(), rest.data(), permutation.data(), n_valid_found.data(), n};
    }
};

// Ignored rows are NaN: nothing may come of them.
inline OneSet make_set(const Shaped& shaped, int n, Random& random,
                       const std::vector<double>& centres) {
    const int d = shaped.d;
    OneSet set{n, d, 0, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}};
    const std::string dtype = shaped.dtype;
    const std::size_t width = dtype == "float32" ? 4 : 2, all = std::size_t(n) * std::size_t(d);
    set.z = Exact<unsigned char>(all * width);
    set.permutation = Exact<Index>(std::size_t(n));
    set.valid = Exact<bool>(std::size_t(n), true);
    for (int i = 0; i < n; i++) set.label.push_back(int(random.below(unsigned(shaped.classes))));
    for (int i = 0; i < shaped.ignored && n > 0; i++) set.label[random.below(unsigned(n))] = -1;
    for (int i = 0; i < n; i++) {
        const int label = set.label[i];
        set.valid[i] = label >= 0;
        set.n_valid += label >= 0;
        // Scales of all sizes, where they make no difference to s.
        const double size =
            shaped.normalized ? std::exp((width == 2 && dtype[0] == 'f' ? 2 : 6) * random.normal())
                              : std::exp2(double(random.below(3)) - (shaped.long_rows ? -1 : 1));
        const bool twin = i > 0 && i % 19 == 0 && label >= 0 && set.label[i - 1] >= 0;
        double squares = 0;
        for (int k = 0; k < d; k++) {
            const std::size_t at = std::size_t(i) * std::size_t(d) + std::size_t(k);
            const double centre = centres[std::size_t(std::max(label, 0)) * std::size_t(d) + k];
            float x = float(size * (0.7 * centre + 0.7 * random.normal()) / std::sqrt(d));
            if (shaped.one_signed) x = std::fabs(x);
            if (dtype == "bfloat16") {
                std::uint32_t bits;
                std::memcpy(&bits, &x, 4);
                bits &= 0xffff0000;
                std::memcpy(&x, &bits, 4);
            } else if (dtype == "float16") {
                x = float(_Float16(std::fmin(std::fmax(x, -6e4F), 6e4F)));
            }
            if (twin) x = float(set.x[at - std::size_t(d)]);  // a tie for every extreme
            if (label < 0) x = NAN;
            set.x.push_back(x);
            squares += double(x) * x;
            const _Float16 half = _Float16(x);
            std::uint32_t bits;
            std::memcpy(&bits, &x, 4);
            const auto upper = std::uint16_t(bits >> 16);
            const void* from = dtype == "float32"    ? static_cast<const void*>(&x)
                               : dtype == "bfloat16" ? static_cast<const void*>(&upper)
                                                     : static_cast<const void*>(&half);
            std::memcpy(&set.z[at * width], from, width);
        }
        set.r.push_back(shaped.normalized ? 1 / std::sqrt(squares) : 1);
        set.permutation[i] = i;
    }
    const auto key = [&](Index i) { return set.label[i] < 0 ? 1 << 30 : set.label[i]; };
    std::stable_sort(set.permutation.data(), set.permutation.data() + n,
                     [&](Index a, Index b) { return key(a) < key(b); });
    if (shaped.normalized) {
        set.scale = Exact<double>(std::size_t(n));
        for (int i = 0; i < n; i++) set.scale[i] = set.valid[i] ? set.r[i] : 0;
    }
    return set;
}

struct Problem {
    const Shaped shaped;
    const bool same;
    Random random;
    OneSet x, y_;             // y_: empty if it is x
    std::vector<int> itself;  // of each row of x the row of y that it is, or -1
    Exact<Index> pos_begin, pos_end, self_index;
    std::vector<double> s;

    const OneSet& y() const { return same ? x : y_; }
    const OneSet& set(int axis) const { return axis == 0 ? x : y(); }

    explicit Problem(const Shaped& of, int seed) : shaped(of), same(of.m == 0), random(seed) {
        std::vector<double> centres;
        for (int i = 0; i < of.classes * of.d; i++) centres.push_back(random.normal());
        x = make_set(of, of.n, random, centres);
        if (!same) y_ = make_set(of, of.m, random, centres);
        const OneSet& other = y();
        sort_by_label(other);
        s.resize(std::size_t(x.n) * std::size_t(other.n));
        for (int i = 0; i < x.n; i++) {
            for (int j = 0; j < other.n; j++) {
                double sum = 0;
                for (int k = 0; k < of.d; k++) sum += x.row(i)[k] * other.row(j)[k];
                s[std::size_t(i) * std::size_t(other.n) + std::size_t(j)] =
                    x.r[std::size_t(i)] * other.r[std::size_t(j)] * sum;
            }
        }
    }

    double similarity(int i, int j) const { return s[std::size_t(i) * std::size_t(y().n) + j]; }
    bool present(int i, int j) const {
        return x.label[i] >= 0 && y().label[j] >= 0 && itself[i] != j;
    }
    bool on_side(int i, int j, Side side) const {
        if (!present(i, j)) return false;
        return side == Side::all || (x.label[i] == y().label[j]) == (side == Side::pos);
    }

   private:
    // Places, as Python's `relate` would say.
    void sort_by_label(const OneSet& other) {
        const auto n = std::size_t(x.n);
        pos_begin = Exact<Index>(n), pos_end = Exact<Index>(n), self_index = Exact<Index>(n);
        std::vector<int> place(std::size_t(other.n));
        for (int at = 0; at < other.n; at++) place[std::size_t(other.permutation[at])] = at;
        for (int i = 0; i < x.n; i++)
            itself.push_back(same ? i : i % 3 == 0 && i < other.n ? i : -1);
        for (int at = 0; at < x.n; at++) {
            const int i = int(x.permutation[at]);
            const auto key = [](int label) { return label < 0 ? 1 << 30 : label; };
            Index below = 0, equal = 0;
            for (int j = 0; j < other.n; j++) {
                below += key(other.label[j]) < key(x.label[i]);
                equal += other.label[j] == x.label[i];
            }
            pos_begin[at] = below, pos_end[at] = below + equal;
            self_index[at] = itself[i] < 0 ? -1 : place[std::size_t(itself[i])];
        }
    }
};

}  // namespace pairops::cuda
