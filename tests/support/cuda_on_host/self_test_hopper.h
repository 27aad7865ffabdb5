// Wrong and right kernels for Hopper's part of the machine; read by self_test.cpp alone.
#pragma once

#include "cuda/device/wgmma.h"

enum Wrong {
    well,
    no_full,
    no_empty,
    early_empty,
    wrong_bytes,
    no_init_barrier,
    not_ready,
    no_wgmma_fence,
    no_async_fence,
    no_wgmma_wait,
    twice_empty,
    touched,
    not_pinned,
    rewritten
};

// Rows of 64 numbers, 64 at a time: s = x y^T, w = float16(s), to = sum over tiles of w y. The
// fifth warp copies the tiles of y in two stages, swizzled as the library keeps them in memory.
struct Tiles {
    const std::uint16_t *x, *y;  // swizzled panels of 64 rows, 8192 bytes each
    float* to;                   // 64 rows of 64
    int tiles;
};
constexpr Shared panel = 8192, full = 3 * panel, empty = full + 16, x_full = full + 32;
constexpr int tiles_bytes = int(full) + 64;

template <Wrong wrong>
DEVICE void produce(const Tiles& call) {
    barrier_expect(x_full, panel);
    for (int tile = 0; tile < call.tiles; tile++) {
        const Shared stage = Shared(tile % 2);
        if (wrong != no_empty && tile >= 2) barrier_wait(empty + 8 * stage, (tile / 2 - 1) % 2);
        barrier_expect(full + 8 * stage, wrong == wrong_bytes ? panel + 16 : panel);
        bulk_copy(panel * (1 + stage), call.y + tile * 4096, panel, full + 8 * stage);
        if (tile == 0) bulk_copy(0, call.x, panel, x_full);
    }
}

template <Wrong wrong>
DEVICE void consume(const Tiles& call) {
    float sums[8][4] = {};
    barrier_wait(x_full, 0);
    if (wrong == no_async_fence || wrong == well) {  // the same numbers again, by the threads
        for (int i = thread(); i < 512; i += 128) {
            store_shared(Shared(i) * 16, load_shared<float>(Shared(i) * 16));
        }
        if (wrong == well) fence_async();
        group_sync(1, 128);
    }
    for (int tile = 0; tile < call.tiles; tile++) {
        const Shared stage = Shared(tile % 2), y = panel * (1 + stage);
        if (wrong != no_full) barrier_wait(full + 8 * stage, tile / 2 % 2);
        if (wrong == early_empty) barrier_arrive(empty + 8 * stage);
        float s[8][4];
        if (wrong != no_wgmma_fence) wgmma_fence(s);
        for (Shared k = 0; k < 4; k++)
            multiply_tiles<64>(s, Panels(32 * k), Panels(y + 32 * k), k > 0);
        wgmma_commit();
        if (wrong == touched) s[0][0] = 1;
        if (wrong != no_wgmma_wait) wgmma_wait<0>(s);
        std::uint32_t weights[1][4][4];
        for (int k = 0; k < 4; k++) {
            for (int i = 0; i < 4; i++) {
                weights[0][k][i] =
                    pack(s[2 * k + i / 2][i % 2 * 2], s[2 * k + i / 2][i % 2 * 2 + 1]);
            }
        }
        wgmma_fence(sums, weights);
        for (int k = 0; k < 4; k++) {
            multiply_weights<64>(sums, weights[0][k], Panels(y, 8192) + k * 2048);
        }
        wgmma_commit();
        if (wrong == rewritten) weights[0][3][2] ^= 1;
        if (wrong == not_pinned)
            wgmma_wait<0>(sums);
        else
            wgmma_wait<0>(sums, weights);
        if (wrong != early_empty) barrier_arrive(empty + 8 * stage);
        if (wrong == twice_empty) barrier_arrive(empty + 8 * stage);
    }
    for (int t = 0; t < 8; t++) {
        for (int e = 0; e < 4; e++) {
            const int row = 16 * warp() + lane() / 4 + e / 2 * 8;
            call.to[row * 64 + 8 * t + lane() % 4 * 2 + e % 2] = sums[t][e];
        }
    }
}

template <Wrong wrong>
KERNEL(256, 1)
weigh(PARAMETER(Tiles) call) {
    if (thread() == 0) {
        for (Shared i = 0; i < 2; i++) {
            barrier_init(full + 8 * i, 1);
            barrier_init(empty + 8 * i, 128);
        }
        barrier_init(x_full, 1);
        if (wrong != not_ready) barriers_ready();
    }
    if (wrong != no_init_barrier) block_sync();
    if (warp() >= 4) {
        fewer_registers<40>();
        if (thread() == 128) produce<wrong>(call);
    } else {
        more_registers<232>();
        consume<wrong>(call);
    }
}

template <Wrong wrong>
std::string weigh_all() {
    constexpr int count = 5;
    const Core hopper{16, 2};
    std::vector<std::uint16_t> panels(4096 * (1 + count));
    std::vector<float> plain(panels.size()), to(4096, NAN), expected(4096);
    std::uint32_t state = 3;
    for (int i = 0; i < int(panels.size()); i++) {
        state = state * 1664525 + 1013904223;
        const std::uint32_t both = pack(float(state >> 8) * 0x1p-23F - 1, 0);
        panels[std::size_t(i ^ (i >> 6 & 7) << 3)] = std::uint16_t(both);
        plain[std::size_t(i)] = unpack(both).first;
    }
    try {
        launch("weigh", weigh<wrong>, {1, 1, 1}, 256, tiles_bytes, Stream(0),
               Tiles{panels.data(), panels.data() + 4096, to.data(), count});
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    for (int i = 0; i < 64; i++) {
        for (int tile = 1; tile <= count; tile++) {
            const float* y = &plain[std::size_t(tile) * 4096];
            float weights[64];
            for (int j = 0; j < 64; j++) {
                const float s = added(0, &plain[std::size_t(i) * 64], y + j * 64, 1, 64, hopper);
                weights[j] = unpack(pack(s, 0)).first;
            }
            for (int k = 0; k < 64; k++) {
                float& sum = expected[std::size_t(i) * 64 + std::size_t(k)];
                sum = added(sum, weights, y + k, 64, 64, hopper);
            }
        }
    }
    return to == expected ? "right" : "wrong";
}
