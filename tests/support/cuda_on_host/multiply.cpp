// Products of float16 matrices, added to float32 sums as tensor cores add them.
#include <cmath>
#include <cstring>

#include "machine.h"

namespace pairops::cuda::host {

// By bits, as baseline x86-64 has no instruction for it: exact, numbers below the normal included.
float half_to_float(std::uint16_t half) {
    const bool special = (half & 0x7c00) == 0x7c00;
    const float scaled = bits<float>(std::uint32_t(half & 0x7fff) << 13);
    const std::uint32_t finite = bits<std::uint32_t>(scaled * 0x1p112F);
    const std::uint32_t other = 0x7f800000 | std::uint32_t(half & 0x3ff) << 13;
    return bits<float>((special ? other : finite) | std::uint32_t(half & 0x8000) << 16);
}

namespace {

// Columns that are worked on together, in loops that a compiler makes vectors of.
constexpr int TOGETHER = 8;

template <class To, class From, std::size_t n>
void bits_of(const From (&from)[n], To (&to)[n]) {
    static_assert(sizeof(To) == sizeof(From));
    std::memcpy(to, from, sizeof(to));
}

// The powers of two below the magnitudes of float16 numbers: that of the normal numbers for one
// below them, 0 for 0. False: not all numbers are finite.
bool powers_of(const float* numbers, int n, float* powers) {
    float most = 0;
    for (int i = 0; i < n; i += TOGETHER) {
        std::uint32_t field[TOGETHER];
        float power[TOGETHER];
        std::memcpy(field, numbers + i, sizeof(field));
        for (std::uint32_t& one : field) one &= 0x7f800000U;
        bits_of(field, power);
        for (int j = 0; j < TOGETHER; j++) {
            most = power[j] > most ? power[j] : most;
            power[j] = power[j] > 0x1p-14F ? power[j] : 0x1p-14F;
            powers[i + j] = numbers[i + j] != 0 ? power[j] : 0;
        }
    }
    return most < INFINITY;
}

// One step: sums += a bᵀ, of numbers, their powers of two, and rows of b `stride` apart.
template <int step>
void add_products(float (&sums)[TOGETHER], const float* a, const float* a_powers, const float* b,
                  const float* b_powers, int stride, float units) {
    float largest[TOGETHER] = {}, unit[TOGETHER], scale[TOGETHER];
    for (int k = 0; k < step; k++) {
        for (int j = 0; j < TOGETHER; j++) {
            const float power = a_powers[k] * b_powers[k * stride + j];
            largest[j] = power > largest[j] ? power : largest[j];
        }
    }
    std::uint32_t field[TOGETHER];
    bits_of(sums, field);
    for (std::uint32_t& one : field) one &= 0x7f800000U;
    bits_of(field, unit);
    for (int j = 0; j < TOGETHER; j++) {
        unit[j] = unit[j] > largest[j] ? unit[j] : largest[j];
        unit[j] = unit[j] > 0x1p-60F ? unit[j] : 0x1p-60F;  // below it there is no product
    }
    for (int j = 0; j < TOGETHER; j++) scale[j] = units / unit[j];
    std::int32_t first[TOGETHER], second[TOGETHER] = {};  // neither overflows
    for (int j = 0; j < TOGETHER; j++) first[j] = std::int32_t(sums[j] * scale[j]);
    for (int k = 0; k < step; k++) {
        std::int32_t* to = k < 8 ? first : second;
        for (int j = 0; j < TOGETHER; j++)
            to[j] += std::int32_t(a[k] * b[k * stride + j] * scale[j]);
    }
    double total[TOGETHER];
    std::uint64_t raw[TOGETHER];
    for (int j = 0; j < TOGETHER; j++) total[j] = double(first[j]) + double(second[j]);
    bits_of(total, raw);
    for (std::uint64_t& one : raw) one &= ~0x1fffffffULL;  // a double has 29 bits more
    bits_of(raw, total);
    for (int j = 0; j < TOGETHER; j++) {
        const float sum = float(total[j]) / scale[j];
        sums[j] = largest[j] > 0 ? sum : sums[j];  // without a product it stays
    }
}

}  // namespace

// What Khattak and Mikaitis (arXiv 2512.07004) found of A100 and H100, bit by bit, as Fasi et al.
// (PeerJ CS 330) before them of A100: a sum and the `step` products that are added to it at once
// are truncated toward zero to multiples of 2^(E - 23 - extra), E the largest of their exponents,
// added exactly, and the result is truncated to 24 bits. A product's exponent is the sum of its
// factors'. Nothing is rounded to nearest, so what is lost adds up.
void multiply(float* sums, int stride, const float (&a)[16][16], const float* b, int columns,
              TensorCore core) {
    float a_powers[16 * 16], b_powers[16 * 256];
    const bool rows = powers_of(a[0], 16 * 16, a_powers);
    const bool finite = powers_of(b, 16 * columns, b_powers) && rows;
    for (int row = 0; row < 16; row++) {
        for (int first = 0; first < columns; first += TOGETHER) {
            float now[TOGETHER];
            float* const to = sums + row * stride + first;
            std::memcpy(now, to, sizeof(now));
            bool plain = finite;
            for (const float sum : now) plain = plain && std::fabs(sum) < INFINITY;
            for (int k = 0; k < 16; k += core.step) {
                const float *x = a[row] + k, *y = b + k * columns + first;
                const float *of_x = a_powers + 16 * row + k, *of_y = b_powers + k * columns + first;
                if (!plain)  // of an infinity or a NaN there is nothing to truncate
                    for (int i = 0; i < core.step; i++)
                        for (int j = 0; j < TOGETHER; j++) now[j] += x[i] * y[i * columns + j];
                else if (core.step == 8)
                    add_products<8>(now, x, of_x, y, of_y, columns, core.units);
                else
                    add_products<16>(now, x, of_x, y, of_y, columns, core.units);
            }
            std::memcpy(to, now, sizeof(now));
        }
    }
}

// A warp's rows from its lanes: m16n8k16 as PTX lays it out.
void gather_rows(float (&a)[16][16], const Fiber* lanes) {
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < 4; i++) {
            const std::uint32_t both = lanes[lane].in[i];
            float* to = a[lane / 4 + i % 2 * 8] + lane % 4 * 2 + i / 2 * 8;
            to[0] = half_to_float(std::uint16_t(both));
            to[1] = half_to_float(std::uint16_t(both >> 16));
        }
    }
}

void multiply_add(float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                  Where where) {
    Fiber& fiber = me();
    Fiber* const lanes = machine.fibers + machine.current / 32 * 32;
    std::memcpy(fiber.in, a, sizeof(a));
    fiber.in[4] = b0;
    fiber.in[5] = b1;
    std::memcpy(fiber.sums, sums, sizeof(sums));
    if (meet("multiply_add", where)) {
        float rows[16][16], columns[16][8], all[16][8];
        gather_rows(rows, lanes);
        for (int lane = 0; lane < 32; lane++) {
            for (int i = 0; i < 4; i++) {
                const std::uint32_t both = lanes[lane].in[4 + i / 2];
                columns[lane % 4 * 2 + i % 2 + i / 2 * 8][lane / 4] =
                    half_to_float(std::uint16_t(i % 2 ? both >> 16 : both));
                all[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = lanes[lane].sums[i];
            }
        }
        multiply(all[0], 8, rows, columns[0], 8, AMPERE);
        for (int lane = 0; lane < 32; lane++) {
            for (int i = 0; i < 4; i++) {
                lanes[lane].sums[i] = all[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
            }
        }
        depart();
    }
    std::memcpy(sums, fiber.sums, sizeof(sums));
}

}  // namespace pairops::cuda::host
