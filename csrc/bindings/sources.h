// Where an argument or a window of a planned term comes from, as engines/plan.py has it.
#pragma once

namespace pairops {

// The next number, the next vector (of a product the next two), nothing, or the statistic of an
// earlier term, given by that term's index in the call.
constexpr int NUMBER = -1, VECTOR = -2, ABSENT = -3;

}  // namespace pairops
