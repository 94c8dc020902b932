// The greedy match of planting: each target neuron takes the free candidate of largest cosine.
#pragma once
#include <cstdint>

#include "runtime.h"

namespace lotterykit {

struct Matches {
  int64_t* chosen;   // [targets], -1 for a target without parameters
  double* product;   // [targets], theta . m of the chosen candidate at the target's places
  double* norm;      // [targets], |m| there
  uint8_t* aligned;  // [targets], whether the cosine is positive
};

// theta [targets][places]; candidates [places][count]; needs targets <= count. Equal cosines (within `tie`) go to
// the largest norm, equal norms to the first; where no free candidate has a positive cosine the largest norm
// counts alone. False where stopped.
bool match_neurons(const double* theta, int64_t targets, int64_t places, const double* candidates, int64_t count,
                   double tie, const Matches& out, Watch& watch);

}  // namespace lotterykit
