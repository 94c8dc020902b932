#include "threshold.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "products.h"
#include "x86.h"

namespace lotterykit {
namespace {

constexpr int64_t entries_per_unit = 1 << 15;   // a unit's scores stay in the second cache
constexpr int64_t entries_per_thread = 1 << 17;  // fewer do not pay for waking a thread

int threads_of(int64_t entries, const Run& run) {
  return int(std::clamp<int64_t>(entries / entries_per_thread, 1, std::max(run.threads, 1)));
}

// Runs body(from, to) over rows, a unit of some rows at a time.
template <typename Body>
bool over_rows(int64_t rows, int64_t cols, const Run& run, Body body) {
  const int64_t step = std::max<int64_t>(1, entries_per_unit / std::max<int64_t>(cols, 1));
  for_each((rows + step - 1) / step, threads_of(rows * cols, run), run.watch,
           [&](int, int64_t unit) { body(unit * step, std::min(rows, (unit + 1) * step)); });
  return !run.watch.stopped();
}

// A byte of bits from up to eight scores, the first of which stands at `position`.
template <typename T>
uint8_t byte_plain(const T* scores, int count, uint32_t position, const Cut<T>& cut) {
  unsigned byte = 0;
  for (int i = 0; i < count; ++i) {
    const T score = cut.absolute ? std::abs(scores[i]) : scores[i];
    const bool kept = score > cut.threshold ||
                      (score == cut.threshold && int64_t(tie_rank(position + uint32_t(i), cut.seed)) <= cut.rank);
    byte |= unsigned(kept) << i;
  }
  return uint8_t(byte);
}

template <typename T>
void row_plain(const T* scores, int64_t from, int64_t cols, uint32_t position, const Cut<T>& cut, uint8_t* bits) {
  for (int64_t c = from; c < cols; c += 8)
    bits[c / 8] = byte_plain(scores + c, int(std::min<int64_t>(8, cols - c)), position + uint32_t(c), cut);
}

#ifdef LOTTERYKIT_X86

LOTTERYKIT_AVX2 void row_avx2(const float* scores, int64_t cols, uint32_t position, const Cut<float>& cut,
                              uint8_t* bits) {
  const __m256 threshold = _mm256_set1_ps(cut.threshold);
  const __m256 sign = cut.absolute ? _mm256_set1_ps(-0.0f) : _mm256_setzero_ps();
  const int64_t whole = cols & ~int64_t(7);
  for (int64_t c = 0; c < whole; c += 8) {
    const __m256 score = _mm256_andnot_ps(sign, _mm256_loadu_ps(scores + c));
    const int tied = _mm256_movemask_ps(_mm256_cmp_ps(score, threshold, _CMP_EQ_OQ));
    bits[c / 8] = tied ? byte_plain(scores + c, 8, position + uint32_t(c), cut)
                       : uint8_t(_mm256_movemask_ps(_mm256_cmp_ps(score, threshold, _CMP_GT_OQ)));
  }
  row_plain(scores, whole, cols, position, cut, bits);
}

LOTTERYKIT_AVX2 void expand_avx2(const uint8_t* bits, const float* weight, int64_t cols, float* out) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const int64_t whole = cols & ~int64_t(7);
  for (int64_t c = 0; c < whole; c += 8) {
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(bits[c / 8]), lane);
    const __m256 kept = _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane));
    _mm256_storeu_ps(out + c, _mm256_and_ps(kept, _mm256_loadu_ps(weight + c)));
  }
  for (int64_t c = whole; c < cols; ++c) out[c] = bits[c / 8] >> (c % 8) & 1 ? weight[c] : 0.0f;
}

#endif  // LOTTERYKIT_X86

void bits_of_row(const float* scores, int64_t cols, uint32_t position, const Cut<float>& cut, uint8_t* bits,
                 Isa isa) {
#ifdef LOTTERYKIT_X86
  if (isa != Isa::plain) return row_avx2(scores, cols, position, cut, bits);
#endif
  (void)isa;
  row_plain(scores, 0, cols, position, cut, bits);
}

void bits_of_row(const double* scores, int64_t cols, uint32_t position, const Cut<double>& cut, uint8_t* bits, Isa) {
  row_plain(scores, 0, cols, position, cut, bits);
}

template <typename T>
void expand_plain(const uint8_t* bits, const T* weight, int64_t cols, T* out) {
  for (int64_t c = 0; c < cols; ++c) out[c] = bits[c / 8] >> (c % 8) & 1 ? weight[c] : T(0);
}

void expand_row(const uint8_t* bits, const float* weight, int64_t cols, float* out, Isa isa) {
#ifdef LOTTERYKIT_X86
  if (isa != Isa::plain) return expand_avx2(bits, weight, cols, out);
#endif
  (void)isa;
  expand_plain(bits, weight, cols, out);
}

void expand_row(const uint8_t* bits, const double* weight, int64_t cols, double* out, Isa) {
  expand_plain(bits, weight, cols, out);
}

// Up to eight bytes of a row as one word, the first byte lowest.
uint64_t word_at(const uint8_t* bits, int64_t count) {
  uint64_t word = 0;
  for (int64_t i = 0; i < std::min<int64_t>(count, 8); ++i) word |= uint64_t(bits[i]) << (8 * i);
  return word;
}

}  // namespace

template <typename T>
bool kept_bits(const T* scores, int64_t rows, int64_t cols, const Cut<T>& cut, uint8_t* bits, int64_t* counts,
               const Run& run) {
  const int64_t bytes = bytes_of(cols);
  return over_rows(rows, cols, run, [&](int64_t from, int64_t to) {
    for (int64_t r = from; r < to; ++r) {
      uint8_t* row = bits + r * bytes;
      bits_of_row(scores + r * cols, cols, cut.position + uint32_t(r * cols), cut, row, run.isa);
      int64_t kept = 0;
      for (int64_t b = 0; b < bytes; b += 8) kept += __builtin_popcountll(word_at(row + b, bytes - b));
      counts[r] = kept;
    }
  });
}

template <typename T>
bool expand_bits(const uint8_t* bits, const T* weight, int64_t rows, int64_t cols, T* out, const Run& run) {
  const int64_t bytes = bytes_of(cols);
  return over_rows(rows, cols, run, [&](int64_t from, int64_t to) {
    for (int64_t r = from; r < to; ++r)
      expand_row(bits + r * bytes, weight + r * cols, cols, out + r * cols, run.isa);
  });
}

template <typename T>
bool compress_bits(const uint8_t* bits, const T* weight, int64_t rows, int64_t cols, const int32_t* offsets,
                   int32_t* columns, T* values, const Run& run) {
  const int64_t bytes = bytes_of(cols);
  return over_rows(rows, cols, run, [&](int64_t from, int64_t to) {
    for (int64_t r = from; r < to; ++r) {
      const uint8_t* row = bits + r * bytes;
      int64_t k = offsets[r];
      for (int64_t b = 0; b < bytes; b += 8)
        for (uint64_t word = word_at(row + b, bytes - b); word != 0; word &= word - 1, ++k) {
          const int64_t c = 8 * b + __builtin_ctzll(word);
          columns[k] = int32_t(c);
          values[k] = weight[r * cols + c];
        }
    }
  });
}

void transpose_structure(const int32_t* offsets, const int32_t* columns, int64_t rows, int64_t cols,
                         int32_t* column_offsets, int32_t* of_row, int32_t* order) {
  std::fill(column_offsets, column_offsets + cols + 1, 0);
  const int32_t nnz = offsets[rows];
  for (int32_t k = 0; k < nnz; ++k) ++column_offsets[columns[k] + 1];
  for (int64_t c = 0; c < cols; ++c) column_offsets[c + 1] += column_offsets[c];
  // column_offsets[c] is where column c goes on, and ends as where column c + 1 begins.
  for (int64_t r = 0; r < rows; ++r)
    for (int32_t k = offsets[r]; k < offsets[r + 1]; ++k) {
      const int32_t place = column_offsets[columns[k]]++;
      of_row[place] = int32_t(r);
      order[place] = k;
    }
  for (int64_t c = cols; c > 0; --c) column_offsets[c] = column_offsets[c - 1];
  column_offsets[0] = 0;
}

template <typename T>
bool straight_through(T* g, const T* weight, const T* scores, int64_t count, const Run& run) {
  const int64_t units = (count + entries_per_unit - 1) / entries_per_unit;
  for_each(units, threads_of(count, run), run.watch, [&](int, int64_t unit) {
    const int64_t last = std::min(count, (unit + 1) * entries_per_unit);
    if (scores == nullptr)
      for (int64_t i = unit * entries_per_unit; i < last; ++i) g[i] *= weight[i];
    else
      for (int64_t i = unit * entries_per_unit; i < last; ++i)
        g[i] = g[i] * weight[i] * T(int(scores[i] > 0) - int(scores[i] < 0));
  });
  return !run.watch.stopped();
}

#define LOTTERYKIT_THRESHOLD(T)                                                                                \
  template bool kept_bits(const T*, int64_t, int64_t, const Cut<T>&, uint8_t*, int64_t*, const Run&);           \
  template bool expand_bits(const uint8_t*, const T*, int64_t, int64_t, T*, const Run&);                        \
  template bool compress_bits(const uint8_t*, const T*, int64_t, int64_t, const int32_t*, int32_t*, T*,         \
                              const Run&);                                                                      \
  template bool straight_through(T*, const T*, const T*, int64_t, const Run&);
LOTTERYKIT_THRESHOLD(float)
LOTTERYKIT_THRESHOLD(double)
#undef LOTTERYKIT_THRESHOLD

}  // namespace lotterykit
