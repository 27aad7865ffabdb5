// Shows that the machine runs a right kernel quietly, and names what is wrong with each wrong one.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "cuda/device/intrinsics.h"
#include "cuda/device/launch.h"

using namespace pairops::cuda;

enum Mutant {
    none,
    no_barrier,
    no_last_barrier,
    late_wait,
    no_wait,
    no_warp_sync,
    divergent,
    out_of_range,
    misaligned,
    ends_early,
    other_mask,
    bare_rows,
    both_blocks
};

// to[i][j] = sum over k of x[i][k] x[j][k] for 64 rows of a block against all rows, 64 at a time,
// in two stages; float16, `steps` of 16 numbers a row.
struct Call {
    const std::uint16_t* x;
    float* to;
    int rows;
};
constexpr int steps = 4, row_bytes = 32 * steps, tile_bytes = 64 * row_bytes;
constexpr int staged = 3 * tile_bytes, all_bytes = staged + 4 * 16 * 8 * 4;

template <Mutant mutant>
DEVICE Shared place_of(Shared tile, int row, int chunk) {
    return tile + Shared(row * row_bytes + (mutant == bare_rows ? chunk : chunk ^ row % 8) * 16);
}

template <Mutant mutant>
DEVICE void fetch(const Call& call, Shared tile, int first) {
    for (int i = thread(); i < 64 * 2 * steps; i += 128) {
        const int row = i / (2 * steps), chunk = i % (2 * steps);
        copy16(place_of<mutant>(tile, row, chunk), call.x + (first + row) * 16 * steps + chunk * 8);
    }
    copies_commit();
}

template <Mutant mutant>
KERNEL(128, 1)
products(PARAMETER(Call) call) {
    fetch<mutant>(call, 0, block_x() * 64);
    fetch<mutant>(call, tile_bytes, 0);
    const int tiles = call.rows / 64;
    for (int tile = 0; tile < tiles; tile++) {
        const Shared now = tile_bytes * (1 + tile % 2), next = tile_bytes * (2 - tile % 2);
        if (tile + 1 < tiles) {
            fetch<mutant>(call, next, (tile + 1) * 64);
        } else {
            copies_commit();
        }
        if (mutant != no_wait) copies_wait<mutant == late_wait ? 2 : 1>();
        if (mutant != no_barrier) block_sync();
        float sums[8][4] = {};
        for (int step = 0; step < steps; step++) {
            std::uint32_t a[4], b[4];
            load_matrices(a,
                          place_of<mutant>(0, warp() * 16 + lane() % 16, 2 * step + lane() / 16));
            for (int pair = 0; pair < 4; pair++) {
                load_matrices(b, place_of<mutant>(now, pair * 16 + lane() % 8 + lane() / 16 * 8,
                                                  2 * step + lane() / 8 % 2));
                multiply_add(sums[2 * pair], a, b[0], b[1]);
                multiply_add(sums[2 * pair + 1], a, b[2], b[3]);
            }
        }
        for (int t = 0; t < 8; t++) {
            const Shared mine = staged + Shared(warp() * 512);
            for (int e = 0; e < 4; e++) {
                const int at = (lane() / 4 + e / 2 * 8) * 8 + lane() % 4 * 2 + e % 2;
                store_shared(mine + Shared(4 * at), sums[t][e]);
            }
            if (mutant != no_warp_sync) warp_sync();
            for (int at = lane(); at < 128; at += 32) {
                const float sum = load_shared<float>(mine + Shared(4 * at));
                const int row = block_x() * 64 + warp() * 16 + at / 8;
                call.to[row * call.rows + tile * 64 + t * 8 + at % 8] = sum;
            }
            warp_sync();
        }
        if (mutant == both_blocks && block_x() && thread() == 0) call.to[call.rows - 1] += 0;
        if (mutant == divergent && lane() < 16) shuffle_xor(1, 1);
        if (mutant == other_mask) shuffle_xor(1, lane() % 2);
        if (mutant == out_of_range) load_shared<float>(Shared(all_bytes));
        if (mutant == misaligned) load_shared<Two>(Shared(4 + 8 * lane()));
        if (mutant == ends_early && warp() == 3) return;
        if (mutant != no_last_barrier) block_sync();
    }
}

// What tensor cores do by definition, number by number: `count` products at once are added to a sum
// that has `extra` bits more than 24.
struct Core {
    int count, extra;
};
float added(float sum, const float* a, const float* b, int stride, Core core) {
    const auto exponent = [](float half) { return std::max(std::ilogb(half), -14); };
    int top = sum != 0 ? std::ilogb(sum) : -1000;
    for (int k = 0; k < core.count; k++) {
        const float y = b[k * stride];
        if (a[k] * y != 0) top = std::max(top, exponent(a[k]) + exponent(y));
    }
    const double unit = std::ldexp(1.0, top - 23 - core.extra);
    double units = std::trunc(sum / unit);
    for (int k = 0; k < core.count; k++) units += std::trunc(double(a[k]) * b[k * stride] / unit);
    if (units == 0) return 0;
    const double last = std::ldexp(1.0, std::ilogb(units) - 23);
    return float(std::trunc(units / last) * last * unit);
}
// sum + a · b over n numbers, those of b `stride` apart.
float added(float sum, const float* a, const float* b, int stride, int n, Core core) {
    for (int k = 0; k < n; k += core.count) sum = added(sum, a + k, b + k * stride, stride, core);
    return sum;
}

// Limits of shared memory, of kernels that are not called.
std::string above_limit() {
    static int kernel;
    try {
        host::execute({"above", &kernel, 1, 1, 1, 32, 49153, [](const void*) {}, nullptr});
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    return "right";
}
std::string falling_limit() {
    static int kernel;
    try {
        host::set_shared_limit(&kernel, 65536);
        host::set_shared_limit(&kernel, 65535);
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    return "right";
}

template <Mutant mutant>
std::string run(int rows) {
    std::vector<std::uint16_t> x(std::size_t(rows) * 16 * steps);
    std::vector<float> numbers(x.size()), to(std::size_t(rows) * rows, NAN);
    std::uint32_t state = 1;
    for (std::size_t i = 0; i < x.size(); i++) {
        state = state * 1664525 + 1013904223;
        const float size = std::ldexp(1.F, -int(i % 23));  // also below the normal float16
        const std::uint32_t both = pack((float(state >> 8) * 0x1p-23F - 1) * size, 0);
        x[i] = std::uint16_t(both);
        numbers[i] = unpack(both).first;
    }
    try {
        launch("products", products<mutant>, {rows / 64, 1, 1}, 128, all_bytes, Stream(0),
               Call{x.data(), to.data(), rows});
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < rows; j++) {
            const float *x = &numbers[i * 16 * steps], *y = &numbers[j * 16 * steps];
            const float sum = added(0, x, y, 1, 16 * steps, Core{8, 1});
            if (sum != to[i * rows + j]) return "wrong";  // bit for bit
        }
    }
    return "right";
}

#include "self_test_hopper.h"

int failures;

// Under every schedule, the outcome must contain `expected`. $ONLY, as under a sanitizer the first
// wrong kernel ends the process.
void expect(const char* what, std::string (*outcome)(), const char* expected) {
    const char* only = std::getenv("ONLY");
    if (only && std::strcmp(only, what) != 0) return;
    std::string text;
    bool good = true;
    for (int schedule = 0; schedule < 6; schedule++) {
        host::set_schedule(host::Schedule(schedule), 7);
        text = outcome();
        if (text.find(expected) == std::string::npos) {
            good = false;
            break;
        }
    }
    failures += !good;
    std::printf("%s %s: %s\n", good ? "ok  " : "FAIL", what, text.c_str());
}

int main() {
    expect("right", [] { return run<none>(256); }, "right");
    if (host::launches() && host::bank_conflicts()) failures++, std::puts("FAIL bank conflicts");
    if (host::launched().size() != std::size_t(host::launches())) failures++;
    expect("well", [] { return weigh_all<well>(); }, "right");
    if (std::getenv("RIGHT_ALONE")) return failures;
    expect("no_full", [] { return weigh_all<no_full>(); }, "shared memory at");
    expect("no_empty", [] { return weigh_all<no_empty>(); }, "");
    expect("early_empty", [] { return weigh_all<early_empty>(); }, "shared memory at");
    expect("wrong_bytes", [] { return weigh_all<wrong_bytes>(); }, "deadlock");
    expect("no_init_barrier", [] { return weigh_all<no_init_barrier>(); }, "barrier_init");
    expect("not_ready", [] { return weigh_all<not_ready>(); }, "before barriers_ready");
    expect("no_wgmma_fence", [] { return weigh_all<no_wgmma_fence>(); }, "no wgmma_fence");
    expect("no_async_fence", [] { return weigh_all<no_async_fence>(); }, "no fence_async");
    expect("no_wgmma_wait", [] { return weigh_all<no_wgmma_wait>(); }, "wrong");
    expect("twice_empty", [] { return weigh_all<twice_empty>(); }, "");
    expect("touched", [] { return weigh_all<touched>(); }, "changed its sums");
    expect("not_pinned", [] { return weigh_all<not_pinned>(); }, "not given the registers of a");
    expect("rewritten", [] { return weigh_all<rewritten>(); }, "of a changed while wgmma");
    expect("lowered", [] { return falling_limit(); }, "falls from 65536 to 65535 bytes");
    expect("above", [] { return above_limit(); }, "where the kernel may have 49152");
    expect("no_barrier", [] { return run<no_barrier>(256); }, "shared memory at");
    expect("no_last_barrier", [] { return run<no_last_barrier>(256); }, "shared memory at");
    expect("late_wait", [] { return run<late_wait>(256); }, "while a copy to it is in flight");
    expect("no_wait", [] { return run<no_wait>(256); }, "in flight");
    expect("no_warp_sync", [] { return run<no_warp_sync>(256); }, "race: ");
    expect("divergent", [] { return run<divergent>(256); }, "divergent: ");
    expect("other_mask", [] { return run<other_mask>(256); }, "masks that differ");
    expect("out_of_range", [] { return run<out_of_range>(256); }, "out of range");
    expect("misaligned", [] { return run<misaligned>(256); }, "multiple of 8");
    expect("ends_early", [] { return run<ends_early>(256); }, "end");
    expect("both_blocks", [] { return run<both_blocks>(256); }, "right");  // but under TSan
    host::forget_launches();
    expect("bare_rows", [] { return run<bare_rows>(256); }, "right");
    std::printf("bank conflicts without a swizzle: %ld\n", long(host::bank_conflicts()));
    if (!std::getenv("ONLY") && !host::bank_conflicts()) failures++;
    return failures != 0;
}
