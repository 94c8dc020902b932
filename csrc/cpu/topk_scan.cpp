// The vector loop notes which words of a block hold candidates, and lists those once the block is done: most
// words hold none. AVX-512 takes it too: on Zen 4 its own form, with masks in registers, was 1.3 times slower.
#include "topk_scan.h"

#include "compress.h"
#include "x86.h"

namespace lotterykit {
namespace {

template <typename T>
Scanned scan_plain(const Block<T>& b, const Bracket<T>& r, TieSeed seed, uint32_t* out, int32_t from,
                   Scanned found) {
  for (int32_t i = from; i < b.length; ++i) {
    const T x = b.scores[i];
    const bool in = b.within == nullptr || b.within[i] != 0;
    bool keep = in & (x > r.high);
    found.nan |= in & (x != x);
    if (in & !keep & (x >= r.low)) {
      const uint32_t rank = tie_rank(b.position + uint32_t(i), seed);
      keep = x == r.high && rank < r.high_rank;
      if (!keep && (x > r.low || rank <= r.low_rank)) {
        out[found.candidates++] = b.position + uint32_t(i);
      }
    }
    b.mask[i] = keep;
    found.kept += keep;
  }
  return found;
}

// For each instruction set to inline, and to vectorise with its gathers.
template <typename T>
inline __attribute__((always_inline)) void keys_of(const Block<T>& b, const uint32_t* positions, int32_t count,
                                                   TieSeed seed, typename Order<T>::Key* keys) {
  const T* scores = b.scores;
  const uint32_t first = b.position;
  for (int32_t j = 0; j < count; ++j)
    keys[j] = key_of(scores[int32_t(positions[j] - first)], tie_rank(positions[j], seed));
}

#ifdef LOTTERYKIT_X86

LOTTERYKIT_AVX2 inline __m256i tie_rank_avx2(__m256i x, TieSeed seed) {
  x = _mm256_xor_si256(x, _mm256_set1_epi32(int(seed.first)));
  x = _mm256_xor_si256(x, _mm256_srli_epi32(x, 16));
  x = _mm256_mullo_epi32(x, _mm256_set1_epi32(0x7feb352d));
  x = _mm256_xor_si256(x, _mm256_srli_epi32(x, 15));
  x = _mm256_xor_si256(x, _mm256_set1_epi32(int(seed.second)));
  x = _mm256_mullo_epi32(x, _mm256_set1_epi32(int(0x846ca68bu)));
  return _mm256_xor_si256(x, _mm256_srli_epi32(x, 16));
}

// Four vectors of 0 or -1 as 32 bytes of 0 or -1, in order.
LOTTERYKIT_AVX2 inline __m256i bytes_of(const __m256* parts) {
  const __m256i front = _mm256_packs_epi32(_mm256_castps_si256(parts[0]), _mm256_castps_si256(parts[1]));
  const __m256i back = _mm256_packs_epi32(_mm256_castps_si256(parts[2]), _mm256_castps_si256(parts[3]));
  return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(front, back), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

template <bool whole>
LOTTERYKIT_AVX2 Scanned scan_avx2(const Block<float>& b, const Bracket<float>& r, TieSeed seed,
                                  uint32_t* out) {
  const __m256 low = _mm256_set1_ps(r.low), high = _mm256_set1_ps(r.high);
  const __m256i flip = _mm256_set1_epi32(int(0x80000000u));  // unsigned order by signed comparison
  const __m256i low_rank = _mm256_xor_si256(_mm256_set1_epi32(int(r.low_rank)), flip);
  const __m256i high_rank = _mm256_xor_si256(_mm256_set1_epi32(int(r.high_rank)), flip);
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  uint32_t open_words[block_length / 32];
  int32_t open_from[block_length / 32];
  int32_t words = 0;
  Scanned found{0, 0, false};
  __m256i nan = _mm256_setzero_si256();
  const int32_t full = b.length & ~31;
  for (int32_t i = 0; i < full; i += 32) {
    __m256i in = _mm256_set1_epi8(-1);
    if (b.within != nullptr) {
      const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b.within + i));
      in = _mm256_xor_si256(in, _mm256_cmpeq_epi8(w, _mm256_setzero_si256()));
    }
    __m256 above[4], reached[4], odd[4], before[4], after[4];
    __m256 tied = _mm256_setzero_ps();
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) {
      const __m256 x = _mm256_loadu_ps(b.scores + i + 8 * part);
      above[part] = _mm256_cmp_ps(x, high, _CMP_GT_OQ);
      reached[part] = _mm256_cmp_ps(x, low, _CMP_GE_OQ);
      odd[part] = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
      if (!whole) {
        before[part] = _mm256_cmp_ps(x, high, _CMP_EQ_OQ);
        after[part] = _mm256_cmp_ps(x, low, _CMP_EQ_OQ);
        tied = _mm256_or_ps(tied, _mm256_or_ps(before[part], after[part]));
      }
    }
    if (!whole && _mm256_movemask_ps(tied) != 0) {
      const __m256i position = _mm256_add_epi32(_mm256_set1_epi32(int(b.position + uint32_t(i))), lanes);
#pragma GCC unroll 4
      for (int part = 0; part < 4; ++part) {
        const __m256i at = _mm256_add_epi32(position, _mm256_set1_epi32(8 * part));
        const __m256i rank = _mm256_xor_si256(tie_rank_avx2(at, seed), flip);
        const __m256 first = _mm256_castsi256_ps(_mm256_cmpgt_epi32(high_rank, rank));
        const __m256 last = _mm256_castsi256_ps(_mm256_cmpgt_epi32(rank, low_rank));
        above[part] = _mm256_or_ps(above[part], _mm256_and_ps(before[part], first));
        reached[part] = _mm256_andnot_ps(_mm256_and_ps(after[part], last), reached[part]);
      }
    }
    const __m256i kept = _mm256_and_si256(in, bytes_of(above));
    const __m256i open = _mm256_andnot_si256(kept, _mm256_and_si256(in, bytes_of(reached)));
    nan = _mm256_or_si256(nan, _mm256_and_si256(in, bytes_of(odd)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(b.mask + i), _mm256_and_si256(kept, _mm256_set1_epi8(1)));
    found.kept += _mm_popcnt_u32(unsigned(_mm256_movemask_epi8(kept)));
    open_words[words] = unsigned(_mm256_movemask_epi8(open)), open_from[words] = i;
    words += open_words[words] != 0;  // without a branch: which words hold candidates is random
  }
  for (int32_t w = 0; w < words; ++w) {
    __m256i position = _mm256_add_epi32(_mm256_set1_epi32(int(b.position + uint32_t(open_from[w]))), lanes);
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) {
      const unsigned bits = open_words[w] >> (8 * part) & 0xFF;
      const __m128i row = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(compress_table.lane[bits]));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + found.candidates),
                          _mm256_permutevar8x32_epi32(position, _mm256_cvtepu8_epi32(row)));
      found.candidates += int32_t(_mm_popcnt_u32(bits));
      position = _mm256_add_epi32(position, _mm256_set1_epi32(8));
    }
  }
  found.nan = _mm256_movemask_epi8(nan) != 0;
  return scan_plain(b, r, seed, out, full, found);
}

LOTTERYKIT_AVX2 void keys_avx2(const Block<float>& b, const uint32_t* positions, int32_t count, TieSeed seed,
                               uint64_t* keys) {
  keys_of(b, positions, count, seed, keys);
}

#endif  // LOTTERYKIT_X86

}  // namespace

template <>
Scanned scan(const Block<float>& b, const Bracket<float>& r, TieSeed seed, uint32_t* out, Isa isa) {
#ifdef LOTTERYKIT_X86
  if (isa != Isa::plain) return r.whole() ? scan_avx2<true>(b, r, seed, out) : scan_avx2<false>(b, r, seed, out);
#endif
  (void)isa;
  return scan_plain(b, r, seed, out, 0, {0, 0, false});
}

template <>
void gather_keys(const Block<float>& b, const uint32_t* positions, int32_t count, TieSeed seed, uint64_t* keys,
                 Isa isa) {
#ifdef LOTTERYKIT_X86
  if (isa != Isa::plain) return keys_avx2(b, positions, count, seed, keys);
#endif
  (void)isa;
  keys_of(b, positions, count, seed, keys);
}

// Double scores come from the float64 checks, which need no speed: plain code at every level.
template <>
Scanned scan(const Block<double>& b, const Bracket<double>& r, TieSeed seed, uint32_t* out, Isa) {
  return scan_plain(b, r, seed, out, 0, {0, 0, false});
}

template <>
void gather_keys(const Block<double>& b, const uint32_t* positions, int32_t count, TieSeed seed,
                 unsigned __int128* keys, Isa) {
  keys_of(b, positions, count, seed, keys);
}

}  // namespace lotterykit
