// Before the sweeps: a set's embeddings in sorted order, as the float16 panels that are multiplied.
//
// Brought to [-1, 1) by a power of two per row a bfloat16 is a float16 (but for what is below 2^-24
// of its row), and a float32 is the sum of two but for 2^-24 of its row. The power joins the scale.
#pragma once

#include <type_traits>

#include "cuda/calls.h"
#include "cuda/intrinsics.h"

namespace pairops::cuda {

// Two neighbouring numbers, of type T: bits of a float16 or a bfloat16, or a float.
enum class Number { float16, bfloat16, float32 };
template <Number number>
DEVICE float read(const void* z, Index at) {
    if constexpr (number == Number::float32) return static_cast<const float*>(z)[at];
    const std::uint32_t bits = static_cast<const std::uint16_t*>(z)[at];
    return number == Number::bfloat16 ? from_bits(bits << 16) : unpack(bits).first;
}

// The power of two that no number below `largest` reaches; 0 for what is not finite, or nothing.
DEVICE int power_above(float largest) {
    const int biased = int(bits_of(largest) >> 23);
    if (biased == 255 || largest == 0.f) return 0;
    return biased - 126 > 126 ? 126 : biased - 126;
}

constexpr int ARRANGED_AT_A_TIME = 8;  // rows of a block, one for each warp

template <Number number, int parts>
KERNEL(32 * ARRANGED_AT_A_TIME, 1)
arrange(PARAMETER(ArrangeCall) call) {
    const int i = block_x() * ARRANGED_AT_A_TIME + warp();  // up to the padding's end
    const bool exists = i < call.n;
    const Index at = exists ? call.order[i] : 0;
    const bool kept = exists && call.keep[at];
    if (lane() == 0 && exists) {
        const bool next = i + 1 < call.n && call.keep[call.order[i + 1]];
        if (kept ? !next : i == 0) *call.kept = kept ? i + 1 : 0;
    }
    float largest = 0.f;
    bool finite = true;
    if (kept) {
        for (int d = lane(); d < call.d; d += 32) {
            const float size = magnitude(read<number>(call.z, at * call.d + d));
            finite = finite && size < infinity<float>();
            largest = size > largest ? size : largest;
        }
    }
    UNROLL
    for (int across = 16; across > 0; across /= 2) {
        const float other = shuffle_xor(largest, across);
        largest = other > largest ? other : largest;
    }
    if (ballot(!finite)) largest = 0.f;
    const int power = power_above(largest);
    // Of a power from -126 to 126 both are normal numbers.
    const float unit = from_bits(std::uint32_t(127 - power) << 23);
    const Index panel_words = PANEL_BYTES / 4;
    auto* words = reinterpret_cast<std::uint32_t*>(call.rows) +
                  Index(i / PANEL_ROWS) * parts * call.panels * panel_words +
                  i % PANEL_ROWS * (ROW_BYTES / 4) + ((lane() / 4) ^ (i % 8)) * (CHUNK_BYTES / 4) +
                  lane() % 4;
    for (int panel = 0; panel < call.panels; ++panel) {
        const int d = panel * PANEL + 2 * lane();
        const float first = kept && d < call.d ? unit * read<number>(call.z, at * call.d + d) : 0.f;
        const float second =
            kept && d + 1 < call.d ? unit * read<number>(call.z, at * call.d + d + 1) : 0.f;
        const std::uint32_t high = pack(first, second);
        words[panel * panel_words] = high;
        if constexpr (parts == 2) {
            const Two rounded = unpack(high);
            words[(call.panels + panel) * panel_words] =
                pack(first - rounded.first, second - rounded.second);
        }
    }
    if (lane() != 0) return;
    // r as high (1 + rest): the parts of r_i r_j are then the same as those of r_j r_i.
    const double r = kept ? (call.scale ? call.scale[at] : 1.0) *
                                double(from_bits(std::uint32_t(127 + power) << 23))
                          : 0.0;
    const float high = float(r);
    call.high[i] = high;
    call.rest[i] = high == 0.f ? 0.f : float((r - double(high)) / double(high));
}

}  // namespace pairops::cuda
