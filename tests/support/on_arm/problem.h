// Rows with labels and what the engine cpu is given of them, and how results are compared.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>

#include "cpu/label_sort.h"
#include "cpu/sweep.h"
#include "recipes.h"

namespace pairops::cpu {

extern const Isa isa_baseline;

using Exact = std::vector<double>;
constexpr std::int64_t IGNORED = -1;

// The rest of the largest number that a result may be off by.
template <class T>
constexpr double TOLERANCE = sizeof(T) == 4 ? 2e-6 : 1e-14;

struct Comparison {
    double worst = 0;  // in units of the tolerance
    int compared = 0;

    template <class T>
    void add(const std::vector<T>& found, const Exact& truth, const char* what) {
        double largest = 0, off = 0;
        for (const double value : truth)
            if (std::isfinite(value)) largest = std::max(largest, std::fabs(value));
        for (std::size_t k = 0; k < truth.size(); ++k) {
            const bool same = double(found[k]) == truth[k];  // infinities too
            off = std::max(off, same ? 0 : std::fabs(double(found[k]) - truth[k]));
            if (!same && !std::isfinite(double(found[k]) - truth[k])) off = INFINITY;
        }
        const double relative = off / (TOLERANCE<T> * std::max(largest, 1e-30));
        if (off > 0 && relative > 1)
            std::printf("WRONG %s: %.2g times the tolerance\n", what, relative);
        worst = std::max(worst, off > 0 ? relative : 0);
        ++compared;
    }
};

inline std::mt19937_64 generator(0);

inline double uniform(double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(generator);
}

template <class T>
std::vector<T> random_vector(std::size_t count, double low, double high) {
    std::vector<T> result(count);
    for (T& one : result) one = T(uniform(low, high));
    return result;
}

// Rows with labels, some of them ignored, and what the engine is given of them.
template <class T>
struct Set {
    Index n, d;
    std::vector<T> rows;
    std::vector<double> scale;
    std::vector<std::int64_t> labels;
    std::vector<Index> permutation;
    std::unique_ptr<bool[]> valid;

    Set(Index n, Index d)
        : n(n),
          d(d),
          rows(random_vector<T>(n * d, -1, 1)),
          scale(n),
          labels(n),
          permutation(n),
          valid(new bool[n]) {
        for (Index i = 0; i < n; ++i) {
            double square = 0;
            for (Index k = 0; k < d; ++k) square += double(at(i, k)) * double(at(i, k));
            scale[i] = 1 / std::sqrt(square);
            labels[i] = i % 17 == 3 ? IGNORED : std::int64_t(uniform(0, 20));
        }
    }
    T at(Index i, Index k) const { return rows[i * d + k]; }
    double unit(Index i, Index k) const { return scale[i] * double(at(i, k)); }
    Labels sortable() { return {labels.data(), n, permutation.data(), valid.get()}; }
    Embeddings embeddings() const {
        const Dtype dtype = sizeof(T) == 4 ? Dtype::float32 : Dtype::float64;
        return {rows.data(),
                dtype,
                n,
                d,
                scale.data(),
                permutation.data(),
                std::count(valid.get(), valid.get() + n, true)};
    }
};

template <class T>
struct Problem {
    bool same;
    Set<T> x, other;
    std::vector<Position> pos_begin, pos_end, self_index;

    Problem(bool same, Index n, Index m, Index d)
        : same(same), x(n, d), other(m, d), pos_begin(n), pos_end(n), self_index(n) {
        const Labels of_x = x.sortable();
        const std::int64_t ignored = IGNORED;
        sort_labels(of_x, same ? of_x : other.sortable(), &ignored, pos_begin.data(),
                    pos_end.data());
        for (Index i = 0; i < n; ++i) self_index[i] = same ? i : -1;
    }
    const Set<T>& y() const { return same ? x : other; }
    Call<T> call(const TermCall<T>& term, int threads) const {
        return {*(sizeof(T) == 4 ? (const Kernels<T>*)isa_baseline.f32
                                 : (const Kernels<T>*)isa_baseline.f64),
                x.embeddings(),
                y().embeddings(),
                same,
                {},
                pos_begin.data(),
                pos_end.data(),
                self_index.data(),
                nullptr,
                {term},
                {},
                true,
                threads,
                true,
                {}};
    }
};

}  // namespace pairops::cpu
