// The epilogue of a tile in the forward pass: its pairs are added to the states of their rows.
#pragma once

#include <cstring>

#include "cuda/tile/epilogue.h"

namespace pairops::cuda {

// One row's contributions as one state. Exponentials are taken of what is not above 0, and where a
// maximum is infinite of the contributions themselves.
template <int n>
DEVICE Sum<float> from_tile(const float (&f)[n], const int (&)[n], const Sum<float>*) {
    float even = f[0], odd = f[1];
    UNROLL
    for (int k = 2; k < n; k += 2) {
        even += f[k];
        odd += f[k + 1];
    }
    return {even + odd, 0.f};
}
template <int n>
DEVICE LogSumExp<float> from_tile(const float (&f)[n], const int (&)[n], const LogSumExp<float>*) {
    float top = f[0] == f[0] ? f[0] : -infinity<float>();
    UNROLL
    for (int k = 1; k < n; ++k) top = f[k] > top ? f[k] : top;
    const float shift = magnitude(top) == infinity<float>() ? 0.f : top;
    float even = 0.f, odd = 0.f;
    UNROLL
    for (int k = 0; k < n; k += 2) {
        even += exp2((f[k] - shift) * LOG2_E);
        odd += exp2((f[k + 1] - shift) * LOG2_E);
    }
    return {top, even + odd};
}
template <int n, class Acc>
DEVICE Acc from_tile(const float (&f)[n], const int (&at)[n], const Acc*) {
    Acc state = Acc::init();
    UNROLL
    for (int k = 0; k < n; ++k) state.update(f[k], at[k]);
    return state;
}

// A state is two floats, in registers and in memory.
struct Floats {
    float of[2];
};
template <class Acc>
HD inline Floats floats_of(const Acc& state) {
    static_assert(sizeof(Acc) == sizeof(Floats), "every state is two floats");
    Floats floats;
    std::memcpy(&floats, &state, sizeof floats);
    return floats;
}
template <class Acc>
HD inline Acc state_of(const Floats& floats) {
    Acc state;
    std::memcpy(&state, &floats, sizeof state);
    return state;
}

// The address of a half of term k's state.
template <class S>
DEVICE Shared state_at(const Sweep& call, int k, int half, int row) {
    return call.at.states + 4 * ((2 * k + half) * S::rows + row);
}

template <class S, class K>
DEVICE void forward_term(const Sweep& call, const TermCall& term, int k, int stage,
                         const Fragment<S>& s, std::uint32_t pairs) {
    using Acc = typename K::Accumulator;
    using F = typename K::Function;
    constexpr int n = S::columns / 4;
    float f[2][n];
    int at[2][n];
    const Operands<S, !K::by_partner(0)> first(call, larger(term.args[0], 0), stage);
    const Operands<S, !K::by_partner(1)> second(call, larger(term.args[1], 0), stage);
    UNROLL
    for (int t = 0; t < S::columns / 8; ++t) {
        float a[4], b[4];
        first.get(t, a);
        second.get(t, b);
        struct Pair {
            int first, second;
        } columns{};
        if (Acc::has_argument)
            columns =
                load_shared<Pair>(call.at.at + 4 * (stage * S::columns + 8 * t + 2 * (lane() % 4)));
        UNROLL
        for (int e = 0; e < 4; ++e) {
            const bool valid = pairs >> (4 * t + e) & 1;
            f[e / 2][2 * t + e % 2] = valid ? value_of<F>(s[t][e], a[e], b[e]) : Acc::neutral();
            const int column = e % 2 == 0 ? columns.first : columns.second;
            at[e / 2][2 * t + e % 2] = valid ? column : nowhere<float>();
        }
    }
    UNROLL
    for (int h = 0; h < 2; ++h) {
        Acc state = from_tile(f[h], at[h], static_cast<const Acc*>(nullptr));
        UNROLL
        for (int offset = 1; offset <= 2; offset *= 2) {  // the lanes of a quad
            const Floats mine = floats_of(state);
            state.merge(state_of<Acc>(
                Floats{{shuffle_xor(mine.of[0], offset), shuffle_xor(mine.of[1], offset)}}));
        }
        if (lane() % 4 != 0) continue;
        const int row = 16 * warp() + lane() / 4 + 8 * h;
        const Shared address[2] = {state_at<S>(call, k, 0, row), state_at<S>(call, k, 1, row)};
        Acc known =
            state_of<Acc>(Floats{{load_shared<float>(address[0]), load_shared<float>(address[1])}});
        known.merge(state);
        const Floats floats = floats_of(known);
        store_shared(address[0], floats.of[0]);
        store_shared(address[1], floats.of[1]);
    }
}

}  // namespace pairops::cuda
