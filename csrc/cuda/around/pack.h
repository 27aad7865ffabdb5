// Packing, before the sweeps: a set's embeddings in sorted order, as the float16 panels that are
// multiplied.
//
// Brought to [-1, 1) by a power of two per row a bfloat16 is a float16 (but for what is below 2^-24
// of its row), and a float32 is the sum of two but for 2^-24 of its row. The power joins the scale.
#pragma once

#include <type_traits>

#include "cuda/device/intrinsics.h"
#include "cuda/params/calls.h"

namespace pairops::cuda {

// The numbers that embeddings are made of.
enum class Number { float16, bfloat16, float32 };
template <Number number>
DEVICE float read(const void* z, Index at) {
    if constexpr (number == Number::float32) return static_cast<const float*>(z)[at];
    const std::uint32_t bits = static_cast<const std::uint16_t*>(z)[at];
    return number == Number::bfloat16 ? from_bits(bits << 16) : unpack(bits).first;
}

// Write a number rounded to nearest; a NaN stays one.
template <Number number>
DEVICE void write(void* z, Index at, float value) {
    const std::uint32_t bits = bits_of(value);
    if constexpr (number == Number::float32)
        static_cast<float*>(z)[at] = value;
    else if constexpr (number == Number::float16)
        static_cast<std::uint16_t*>(z)[at] = std::uint16_t(pack(value, 0.f));
    else
        static_cast<std::uint16_t*>(z)[at] = std::uint16_t(
            value == value ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : bits >> 16 | 0x40);
}

// The power of two that no number below `largest` reaches; 0 for what is not finite, or nothing.
DEVICE int power_above(float largest) {
    const int biased = int(bits_of(largest) >> 23);
    if (biased == 255 || largest == 0.f) return 0;
    return biased - 126 > 126 ? 126 : biased - 126;
}

// The extent of a row, measured by a warp: the largest magnitude, 0 where one is not finite, and,
// if it is wanted, the sum of squares.
struct Extent {
    float largest;
    double square;
};
template <Number number, bool wants_square>
DEVICE Extent extent_of(const void* z, Index row, int d) {
    float largest = 0.f;
    double square = 0.0;
    bool finite = true;
    for (int k = lane(); k < d; k += 32) {
        const float x = read<number>(z, row * d + k);
        const float size = magnitude(x);
        finite = finite && size < infinity<float>();
        largest = size > largest ? size : largest;
        if (wants_square) square += double(x) * double(x);
    }
    UNROLL
    for (int offset = 16; offset > 0; offset /= 2) {
        const float other = shuffle_xor(largest, offset);
        largest = other > largest ? other : largest;
        if (wants_square) square += shuffle_xor(square, offset);
    }
    return {ballot(!finite) ? 0.f : largest, square};
}

// Write row `at` of the caller as packed row i, by a warp; zeros unless it is valid. `r` is its
// scale. A call names z, d, panels, rows, high and rest.
template <Number number, int parts, class Call>
DEVICE void write_row(const Call& call, Index at, int i, bool valid, float largest, double r) {
    const int power = power_above(largest);
    // The power is from -126 to 126, so that it and its inverse are normal numbers.
    const float unit = from_bits(std::uint32_t(127 - power) << 23);
    const Index panel_stride = PANEL_BYTES / 4;
    auto* to = reinterpret_cast<std::uint32_t*>(call.rows) +
               Index(i / PANEL_ROWS) * parts * call.panels * panel_stride +
               i % PANEL_ROWS * (ROW_BYTES / 4) + ((lane() / 4) ^ (i % 8)) * (CHUNK_BYTES / 4) +
               lane() % 4;
    for (int panel = 0; panel < call.panels; ++panel) {
        const int d = panel * PANEL + 2 * lane();
        const float first =
            valid && d < call.d ? unit * read<number>(call.z, at * call.d + d) : 0.f;
        const float second =
            valid && d + 1 < call.d ? unit * read<number>(call.z, at * call.d + d + 1) : 0.f;
        const std::uint32_t high = pack(first, second);
        to[panel * panel_stride] = high;
        if constexpr (parts == 2) {
            const Two rounded = unpack(high);
            to[(call.panels + panel) * panel_stride] =
                pack(first - rounded.first, second - rounded.second);
        }
    }
    if (lane() != 0) return;
    // The scale r is high (1 + rest): the parts of r_i r_j are then the same as those of r_j r_i.
    r = valid ? r * double(from_bits(std::uint32_t(127 + power) << 23)) : 0.0;
    const float high = float(r);
    call.high[i] = high;
    call.rest[i] = high == 0.f ? 0.f : float((r - double(high)) / double(high));
}

constexpr int PACKED_AT_A_TIME = 8;  // rows of a block, one for each warp

template <Number number, int parts>
KERNEL(32 * PACKED_AT_A_TIME, 1)
pack_set(PARAMETER(PackCall) call) {
    const int i = block_x() * PACKED_AT_A_TIME + warp();  // up to the padding's end
    const bool exists = i < call.n;
    const Index at = exists ? call.permutation[i] : 0;
    const bool valid = exists && call.valid[at];
    if (lane() == 0 && exists) {
        const bool next = i + 1 < call.n && call.valid[call.permutation[i + 1]];
        if (valid ? !next : i == 0) *call.n_valid = valid ? i + 1 : 0;
    }
    const Extent extent = extent_of<number, false>(call.z, at, valid ? call.d : 0);
    write_row<number, parts>(call, at, i, valid, extent.largest,
                             valid && call.scale ? call.scale[at] : 1.0);
}

}  // namespace pairops::cuda
