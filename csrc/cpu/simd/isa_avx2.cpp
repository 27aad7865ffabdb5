// The kernels for AVX2 with FMA: 16 registers of 32 bytes.
#define PAIROPS_TARGET avx2
#include "cpu/simd/isa.h"

namespace pairops::cpu {

static bool runs_here() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

extern constexpr Isa isa_avx2 = isa<32, 6>("avx2", runs_here);

}  // namespace pairops::cpu
