// The table of tile shapes, one for each precision and D. Launchers choose one here.
//
// None is measured on a GPU yet. Each is the largest that fits into 99 KiB of shared memory, which
// every GPU from 8.0 on has, and compiles without a spill. A warp owns 16 rows, for with 32 the
// sums spill from D = 128 on. Above D = 256 the sums of a row would fill the registers: blocks
// share the gradient in slices and each multiplies s again, with chunks of X and Y streamed as they
// are needed.
#pragma once

#include <utility>

#include "cuda/api.h"
#include "cuda/params/tile_shape.h"

namespace pairops::cuda {

using Plain64 = Shape<64, 8, 64, 1>;
using Plain128 = Shape<128, 8, 64, 1>;
using Plain256 = Shape<256, 4, 32, 1>;
using PlainAny = Shape<256, 4, 32, 1, 128>;
using Split64 = Shape<64, 4, 32, 2>;
using Split128 = Shape<128, 4, 32, 2>;
using SplitAny = Shape<128, 4, 32, 2, 64>;

// These are not measured either, and only for those who ask. One block of a multiprocessor has all
// its shared memory and registers, so X may stay at every D.
using Hopper64 = HopperShape<64, 64, 3>;
using Hopper128 = HopperShape<128, 64, 3>;
using Hopper256 = HopperShape<256, 64, 3>;
using Hopper512 = HopperShape<256, 32, 2, 512>;

// Of backward at D = 512, where 128 rows' sums would be a multiprocessor's registers: 64 rows, and
// weights that two groups exchange through shared memory. It reads Y as often as two slices of 128
// rows would, and multiplies s and weighs pairs once. With weights of two parts what is left holds
// three tiles.
using Halves512 = HalvesShape<512, 32, 4, 1, 32>;
using Halves512Fine = HalvesShape<512, 32, 3, 2, 32>;

template <class S, int weight_parts>
struct OfBackward {
    using Type = S;
};
template <>
struct OfBackward<Hopper512, 1> {
    using Type = Halves512;
};
template <>
struct OfBackward<Hopper512, 2> {
    using Type = Halves512Fine;
};

// Call visit with the shape that serves embeddings of d numbers; Hopper's, where there is one, if
// asked for.
template <class Visit>
auto visit_shape(Precision precision, int d, bool hopper, Visit visit) {
    if (precision == Precision::split) {
        if (d <= 64) return visit(Split64());
        if (d <= 128) return visit(Split128());
        return visit(SplitAny());
    }
    if (hopper) {
        if (d <= 64) return visit(Hopper64());
        if (d <= 128) return visit(Hopper128());
        if (d <= 256) return visit(Hopper256());
        if (d <= 512) return visit(Hopper512());
    }
    if (d <= 64) return visit(Plain64());
    if (d <= 128) return visit(Plain128());
    if (d <= 256) return visit(Plain256());
    return visit(PlainAny());
}

}  // namespace pairops::cuda
