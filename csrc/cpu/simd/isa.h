// The kernel table of one instruction set; included by the one file that is compiled for it, after
// PAIROPS_TARGET is defined. Only the names that this header defines may leave that file.
#pragma once

#include "cpu/simd/closeness.h"
#include "cpu/simd/kernel_table.h"
#include "cpu/simd/microkernel.h"
#include "cpu/simd/packing.h"
#include "cpu/simd/simd.h"
#include "cpu/simd/term_table.h"

namespace pairops::cpu {
inline namespace PAIROPS_TARGET {

// A register has `bytes` bytes. The micro-kernel has n_rows rows and needs 2 n_rows + 3 registers.
template <class T, int bytes, int n_rows>
struct KernelsOf {
    using V = Vector<T, bytes / int(sizeof(T))>;
    using Wide = Vector<T, bytes / int(sizeof(T)), 2>;
    static constexpr int n_cols = 2 * V::count;
    static_assert(TILE % n_rows == 0 && TILE % n_cols == 0);

    static constexpr TermTable<Wide, CpuRecipes> terms{};
    static constexpr Kernels<T> table{
        n_rows,
        n_cols,
        Wide::count,
        terms.at,
        pack_rows<T, n_rows>,
        pack_cols<T, n_cols>,
        pack_slices<T, n_cols>,
        multiply<V, n_rows>,
        accumulate<V, n_rows>,
        through_scale<T>,
        squares<T>,
        closeness<Wide, n_rows>,
        times_share<Wide>,
        through_closeness<Wide, n_rows>,
        inverse_norm,
        peak<V>,
    };
};

template <int bytes, int n_rows>
constexpr Isa isa(const char* name, bool (*runs_here)()) {
    return {name, runs_here, &KernelsOf<float, bytes, n_rows>::table,
            &KernelsOf<double, bytes, n_rows>::table};
}

}  // namespace PAIROPS_TARGET
}  // namespace pairops::cpu
