// A target has few parameters, so a target's products with all candidates are sums of a few columns; the
// candidates are transposed to make those contiguous.
#include "match_neurons.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace lotterykit {

bool match_neurons(const double* theta, int64_t targets, int64_t places, const double* candidates, int64_t count,
                   double tie, const Matches& out, Watch& watch) {
  constexpr double none = -std::numeric_limits<double>::infinity();
  std::vector<double> product(static_cast<size_t>(count)), square(static_cast<size_t>(count)),
      cosine(static_cast<size_t>(count));
  std::vector<uint8_t> taken(static_cast<size_t>(count), 0);
  for (int64_t t = 0; t < targets; ++t) {
    std::fill(product.begin(), product.end(), 0.0);
    std::fill(square.begin(), square.end(), 0.0);
    double length = 0;
    for (int64_t p = 0; p < places; ++p) {
      const double value = theta[t * places + p];
      if (value == 0) continue;
      length += value * value;
      const double* column = candidates + p * count;
      for (int64_t j = 0; j < count; ++j) {
        product[size_t(j)] += value * column[j];
        square[size_t(j)] += column[j] * column[j];
      }
    }
    out.chosen[t] = -1, out.product[t] = 0, out.norm[t] = 0, out.aligned[t] = 0;
    if (length == 0) continue;
    length = std::sqrt(length);
    double top = none;
    for (int64_t j = 0; j < count; ++j) {
      const double norm = square[size_t(j)] = std::sqrt(square[size_t(j)]);
      cosine[size_t(j)] = taken[size_t(j)] || norm == 0 ? none : product[size_t(j)] / norm / length;
      if (cosine[size_t(j)] > top) top = cosine[size_t(j)];
    }
    const bool aligned = top > 0;
    int64_t best = -1;
    for (int64_t j = 0; j < count; ++j)
      if (!taken[size_t(j)] && (!aligned || cosine[size_t(j)] >= top - tie) &&
          (best < 0 || square[size_t(j)] > square[size_t(best)]))
        best = j;
    taken[size_t(best)] = 1;
    out.chosen[t] = best, out.product[t] = product[size_t(best)], out.norm[t] = square[size_t(best)];
    out.aligned[t] = aligned;
    watch.tick();
    if (watch.stopped()) return false;
  }
  return true;
}

}  // namespace lotterykit
