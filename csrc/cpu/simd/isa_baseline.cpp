// The kernels for every processor of the family: registers of 16 bytes, 32 of them on ARM (NEON)
// and 16 on x86 (SSE2).
#define PAIROPS_TARGET baseline
#include "cpu/simd/isa.h"

namespace pairops::cpu {

static bool runs_here() { return true; }

#ifdef __aarch64__
extern constexpr Isa isa_baseline = isa<16, 12>("neon", runs_here);
#else
extern constexpr Isa isa_baseline = isa<16, 6>("baseline", runs_here);
#endif

}  // namespace pairops::cpu
