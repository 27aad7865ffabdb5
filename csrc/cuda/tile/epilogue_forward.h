// The epilogue of a tile in the forward pass: its pairs are added to the states of their rows.
#pragma once

#include <cmath>
#include <cstring>

#include "cuda/tile/epilogue.h"

namespace pairops::cuda {

// Add one row's contributions to a state. Exponentials are taken of what is not above 0, and where
// a maximum is infinite of the contributions themselves.
//   quad: under the maximum of four lanes, and then summed over them.
template <bool quad, int n>
DEVICE void add(LogSumExp<float>& state, const float (&f)[n]) {
    float top = state.max;
    UNROLL
    for (float one : f) top = std::fmax(top, one);  // never a NaN
    if (quad) {
        top = std::fmax(top, shuffle_xor(top, 1));
        top = std::fmax(top, shuffle_xor(top, 2));
    }
    const float shift = magnitude(top) == infinity<float>() ? 0.f : top;
    float even = state.sum * exp2((state.max - shift) * LOG2_E), odd = 0.f;
    UNROLL
    for (int k = 0; k < n; k += 2) {
        even += exp2((f[k] - shift) * LOG2_E);
        odd += exp2((f[k + 1] - shift) * LOG2_E);
    }
    state = {top, even + odd};
    if (quad) {
        state.sum += shuffle_xor(state.sum, 1);
        state.sum += shuffle_xor(state.sum, 2);
    }
}

// One row's contributions as one state.
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
    return call.at.states + 4 * ((2 * k + half) * S::held_rows + row);
}

// Merge the states of a quad's lanes.
template <class Acc>
DEVICE void merge_quad(Acc& state) {
    UNROLL
    for (int offset = 1; offset <= 2; offset *= 2) {
        const Floats mine = floats_of(state);
        state.merge(state_of<Acc>(
            Floats{{shuffle_xor(mine.of[0], offset), shuffle_xor(mine.of[1], offset)}}));
    }
}

// Merge the state of a quad into that of its row, the thread's h-th, of term k.
template <class S, class Acc>
DEVICE void store_state(const Sweep& call, int k, int h, const Acc& state) {
    if (lane() % 4 != 0) return;
    const int row = 16 * warp() + lane() / 4 + 8 * h;
    const Shared address[2] = {state_at<S>(call, k, 0, row), state_at<S>(call, k, 1, row)};
    Acc known =
        state_of<Acc>(Floats{{load_shared<float>(address[0]), load_shared<float>(address[1])}});
    known.merge(state);
    const Floats floats = floats_of(known);
    store_shared(address[0], floats.of[0]);
    store_shared(address[1], floats.of[1]);
}

// The term whose states stay in registers, one for each lane and row, until the sweep ends.
struct Running {
    LogSumExp<float> states[2] = {LogSumExp<float>::init(), LogSumExp<float>::init()};
    bool started = false;
    // Where similarities and scale bound them, contributions are summed as 2^(a s - offset) as they
    // are. What the offset was rounded by is the states' maximum.
    bool bounded = false;
    float a, offset[2];
};

// Call this at the first tile: operands of rows are there.
template <class S>
DEVICE void start(const ForwardCall& call, Running& running) {
    running.started = true;
    if (!call.bounded) return;
    const TermCall& term = call.terms[call.running];
    float scales[4], bases[4];
    Operands<S, true>(call, term.args[0], 0).get(0, scales);
    Operands<S, true>(call, term.args[1], 0).get(0, bases);
    running.a = scales[0] * LOG2_E;
    const float most = magnitude(running.a);
    bool within = true;
    UNROLL
    for (int h = 0; h < 2; ++h) {
        running.offset[h] = running.a * bases[2 * h];
        // 2^31 of the largest do not overflow, and the least is a normal number. A NaN is not
        // within.
        within = within && most - running.offset[h] <= 95.f && most + running.offset[h] <= 125.f;
    }
    running.bounded = !ballot(!within);
    UNROLL
    for (int h = 0; h < 2 && running.bounded; ++h)
        running.states[h].max =
            -multiply_then_add(running.a, bases[2 * h], -running.offset[h]) * LN_2;
}

// Add a tile's pairs to the running term's states, of which 0 is the maximum. every: all are valid.
template <class S, bool every>
DEVICE void add_bounded(Running& running, const Fragment<S>& s, std::uint32_t pairs) {
    float sums[4] = {};
    UNROLL
    for (int t = 0; t < S::columns / 8; ++t) {
        UNROLL
        for (int e = 0; e < 4; ++e) {
            const float one = exp2(multiply_then_add(s[t][e], running.a, -running.offset[e / 2]));
            sums[e] += every || (pairs >> (4 * t + e) & 1) ? one : 0.f;
        }
    }
    running.states[0].sum += sums[0] + sums[1];
    running.states[1].sum += sums[2] + sums[3];
}

// Add a tile's pairs to the states of term k. every: all are valid.
template <class S, class K, bool every>
DEVICE void forward_term(const ForwardCall& call, const TermCall& term, int k, int stage,
                         const Fragment<S>& s, std::uint32_t pairs, Running& running) {
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
        struct alignas(8) Pair {
            int first, second;
        } columns{};
        if (Acc::has_argument)
            columns =
                load_shared<Pair>(call.at.at + 4 * (stage * S::columns + 8 * t + 2 * (lane() % 4)));
        UNROLL
        for (int e = 0; e < 4; ++e) {
            const bool valid = every || (pairs >> (4 * t + e) & 1);
            f[e / 2][2 * t + e % 2] = valid ? value_of<F>(s[t][e], a[e], b[e]) : Acc::neutral();
            const int column = e % 2 == 0 ? columns.first : columns.second;
            at[e / 2][2 * t + e % 2] = valid ? column : nowhere<float>();
        }
    }
    UNROLL
    for (int h = 0; h < 2; ++h) {
        if constexpr (std::is_same_v<Acc, LogSumExp<float>>) {
            if (k == call.running) {
                add<false>(running.states[h], f[h]);
            } else {
                Acc state = Acc::init();
                add<true>(state, f[h]);
                store_state<S>(call, k, h, state);
            }
        } else {
            Acc state = from_tile(f[h], at[h], static_cast<const Acc*>(nullptr));
            merge_quad(state);
            store_state<S>(call, k, h, state);
        }
    }
}

// Call this once, after the last tile and before states are read.
template <class S>
DEVICE void store_running(const ForwardCall& call, Running& running) {
    if (call.running < 0) return;
    UNROLL
    for (int h = 0; h < 2; ++h) {
        merge_quad(running.states[h]);
        store_state<S>(call, call.running, h, running.states[h]);
    }
}

}  // namespace pairops::cuda
