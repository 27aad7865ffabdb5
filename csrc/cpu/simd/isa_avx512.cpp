// The kernels for AVX-512: 32 registers of 64 bytes.
#define PAIROPS_TARGET avx512
#include "cpu/simd/isa.h"

namespace pairops::cpu {

static bool runs_here() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("fma");
}

extern constexpr Isa isa_avx512 = isa<64, 12>("avx512", runs_here);

}  // namespace pairops::cpu
