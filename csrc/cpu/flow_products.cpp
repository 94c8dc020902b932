// The products of SynFlow, one kernel an instruction set, and the two passes of its selection over all scores.
#include <algorithm>
#include <cstring>
#include <vector>

#include "compress.h"
#include "synflow.h"
#include "x86.h"

namespace lotterykit {
namespace {

typedef double One;
typedef double Two __attribute__((vector_size(16)));
typedef double Four __attribute__((vector_size(32)));
typedef double Eight __attribute__((vector_size(64)));

// A vector wherever doubles stand: attributes of a type are lost where it is a template's argument.
template <typename V>
struct __attribute__((packed, may_alias)) Loose {
  V v;
};

namespace plain {
using Wide = Two;
#define TARGET
#define LANES 2
#include "flow_rows.h"
#undef TARGET
#undef LANES
}  // namespace plain

#ifdef LOTTERYKIT_X86
namespace avx2 {
using Wide = Four;
#define TARGET LOTTERYKIT_AVX2
#define LANES 4
#include "flow_rows.h"
#undef TARGET
#undef LANES

// Entries [k, last) of a row with a score of at least `least` to the front at `to`, 8 at a time; returns the
// place after them. What is written past it is overwritten later, or cut off.
LOTTERYKIT_AVX2 int64_t close_up_row(FlowLayer<float>& l, float least, int64_t& k, int64_t last, int64_t to) {
  const __m256 bound = _mm256_set1_ps(least);
  for (; k + 8 <= last; k += 8) {
    const __m256 scores = _mm256_loadu_ps(&l.scores[size_t(k)]);
    const auto kept = unsigned(_mm256_movemask_ps(_mm256_cmp_ps(scores, bound, _CMP_GE_OQ)));
    const __m128i row = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(compress_table.lane[kept]));
    const __m256i lanes = _mm256_cvtepu8_epi32(row);
    const __m256i places = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(&l.places[size_t(k)]));
    const __m256 magnitudes = _mm256_loadu_ps(&l.magnitudes[size_t(k)]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(&l.places[size_t(to)]),
                        _mm256_permutevar8x32_epi32(places, lanes));
    _mm256_storeu_ps(&l.magnitudes[size_t(to)], _mm256_permutevar8x32_ps(magnitudes, lanes));
    to += _mm_popcnt_u32(kept);
  }
  return to;
}

// The scores in [low, above) to the front of `out`, and how many are lower: 8 at a time, without a branch, since
// which are in the bracket is random. Returns the scores it has seen; the rest are fewer than 8.
LOTTERYKIT_AVX2 int64_t between(const float* scores, int64_t n, float low, float above, float* out, int64_t& found,
                                int64_t& below) {
  const __m256 least = _mm256_set1_ps(low), end = _mm256_set1_ps(above);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 s = _mm256_loadu_ps(scores + i);
    const __m256 less = _mm256_cmp_ps(s, least, _CMP_LT_OQ);
    const auto in = unsigned(_mm256_movemask_ps(_mm256_andnot_ps(less, _mm256_cmp_ps(s, end, _CMP_LT_OQ))));
    const __m128i row = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(compress_table.lane[in]));
    _mm256_storeu_ps(out + found, _mm256_permutevar8x32_ps(s, _mm256_cvtepu8_epi32(row)));
    found += _mm_popcnt_u32(in);
    below += _mm_popcnt_u32(unsigned(_mm256_movemask_ps(less)));
  }
  return i;
}
}  // namespace avx2

namespace avx512 {
using Wide = Eight;
#define TARGET LOTTERYKIT_AVX512
#define LANES 8
#include "flow_rows.h"
#undef TARGET
#undef LANES
}  // namespace avx512
#endif

}  // namespace

template <typename T>
void flow_forward(const FlowLayer<T>& l, double* y, Isa isa) {
#ifdef LOTTERYKIT_X86
  if (l.lanes == 1 && isa != Isa::plain) return avx2::forward_single(l, y);
  if (isa == Isa::avx512) return avx512::forward_rows(l, y);
  if (isa == Isa::avx2) return avx2::forward_rows(l, y);
#endif
  (void)isa;
  return l.lanes == 1 ? plain::forward_single(l, y) : plain::forward_rows(l, y);
}

template <typename T, bool wants_dx>
void backward_lanes(FlowLayer<T>& l, double* dx, double* dots, Isa isa) {
#ifdef LOTTERYKIT_X86
  if (isa == Isa::avx512) return avx512::backward_rows<T, wants_dx>(l, dx, dots);
  if (isa == Isa::avx2) return avx2::backward_rows<T, wants_dx>(l, dx, dots);
#endif
  (void)isa;
  plain::backward_rows<T, wants_dx>(l, dx, dots);
}

template <typename T>
void flow_backward(FlowLayer<T>& l, double* dx, std::vector<double>& dots, Isa isa) {
  if (l.lanes == 1) {
#ifdef LOTTERYKIT_X86
    if (isa != Isa::plain)
      return dx ? avx2::backward_single<T, true>(l, dx) : avx2::backward_single<T, false>(l, dx);
#endif
    return dx ? plain::backward_single<T, true>(l, dx) : plain::backward_single<T, false>(l, dx);
  }
  if (l.lanes == 0) std::fill(l.scores.begin(), l.scores.end(), 0.0f);
  dots.resize(std::max(dots.size(), l.places.size()));
  if (dx != nullptr) backward_lanes<T, true>(l, dx, dots.data(), isa);
  else backward_lanes<T, false>(l, dx, dots.data(), isa);
}

template <typename T>
void flow_close_up(FlowLayer<T>& l, float least, Isa isa) {
  int64_t to = 0, k = 0;
  for (int64_t r = 0; r < l.rows; ++r) {
    const int64_t last = l.starts[size_t(r) + 1];
    l.starts[size_t(r)] = to;
#ifdef LOTTERYKIT_X86
    if constexpr (sizeof(T) == sizeof(float))
      if (isa != Isa::plain) to = avx2::close_up_row(l, least, k, last, to);
#endif
    (void)isa;
    for (; k < last; ++k) {  // without a branch: which weights go is random
      const size_t from = size_t(k), at = size_t(to);
      l.places[at] = l.places[from], l.magnitudes[at] = l.magnitudes[from];
      to += l.scores[from] >= least;
    }
  }
  l.starts[size_t(l.rows)] = to;
  l.places.resize(size_t(to));
  l.magnitudes.resize(size_t(to));
  l.scores.resize(size_t(to));
}

int64_t flow_between(const float* scores, int64_t n, float low, float above, float* out, int64_t* below, Isa isa) {
  int64_t found = 0, under = 0, i = 0;
#ifdef LOTTERYKIT_X86
  if (isa != Isa::plain) i = avx2::between(scores, n, low, above, out, found, under);
#endif
  (void)isa;
  for (; i < n; ++i) {
    under += scores[i] < low;
    if (scores[i] >= low && scores[i] < above) out[found++] = scores[i];
  }
  *below += under;
  return found;
}

template void flow_forward(const FlowLayer<float>&, double*, Isa);
template void flow_forward(const FlowLayer<double>&, double*, Isa);
template void flow_backward(FlowLayer<float>&, double*, std::vector<double>&, Isa);
template void flow_backward(FlowLayer<double>&, double*, std::vector<double>&, Isa);
template void flow_close_up(FlowLayer<float>&, float, Isa);
template void flow_close_up(FlowLayer<double>&, float, Isa);

}  // namespace lotterykit
