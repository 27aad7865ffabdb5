// The C++ interface of the CUDA engine: a function for each kernel, which finds the shape of tiles
// that serves a call.
#pragma once

#include <string>
#include <vector>

#include "cuda/params/calls.h"

namespace pairops::cuda {

using Stream = std::uintptr_t;  // the driver's handle

// The numbers of float16 that are multiplied: one each; weights two; both two.
enum class Precision { plain, fine, split };

// The facts of a shape that a launcher needs.
struct ShapeFacts {
    int rows, columns;  // of a tile
    int slice;          // numbers of the gradient in one block's sum
    int parts;          // float16 numbers for each number
};
// With `hopper` Hopper's own sweep serves where it can. It runs on 9.0 alone, as compiled for 9.0a.
ShapeFacts shape_of(Precision precision, int d, bool hopper = false);

// The reason why kernels cannot run on the current device (an old driver, none compiled for it), or
// nothing.
std::string reason_against();

// Names of the kinds of terms, in the order of their numbers: "lse:affine(op)".
std::vector<std::string> kinds();

// Each function enqueues one kernel, or none where there is nothing to do. Splits are of the
// columns.
void pack_set(const PackCall& call, const std::string& dtype, int parts, Stream stream);
void sort_by_label(const SortByLabelCall& call, const std::string& dtype, int parts, Stream stream);
void forward(ForwardCall call, Precision precision, int d, int splits, Stream stream,
             bool hopper = false);
void backward(BackwardCall call, Precision precision, int splits, Stream stream,
              bool hopper = false);
void finalize(const FinalizeCall& call, Stream stream);
void scale(const ScaleCall& call, const std::string& dtype, Stream stream);
void soft_mean(const SoftMeanCall& call, Stream stream);
void soft_mean(const SoftMeanSlopesCall& call, Stream stream);

}  // namespace pairops::cuda
