// Products of float16 matrices, summed in float32 in the order of the inner index.
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

// A product of two float16 is a float32, so that contraction makes no difference. Eight columns at
// a time, which a compiler makes two vectors of.
void multiply(float* sums, int stride, const float (&a)[16][16], const float* b, int columns) {
    for (int row = 0; row < 16; row++) {
        for (int first = 0; first < columns; first += 8) {
            float part[8];
            std::memcpy(part, sums + row * stride + first, sizeof(part));
            for (int k = 0; k < 16; k++) {
                const float* numbers = b + k * columns + first;
                for (int j = 0; j < 8; j++) part[j] += a[row][k] * numbers[j];
            }
            std::memcpy(sums + row * stride + first, part, sizeof(part));
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
        multiply(all[0], 8, rows, columns[0], 8);
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
