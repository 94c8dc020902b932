// Longer than one scalar loop because each instruction set has its own: target attributes on functions, so
// that one object file serves every processor and the variant is chosen at run time.
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

#ifdef LOTTERYKIT_X86

LOTTERYKIT_AVX512 inline __m512i tie_rank_avx512(__m512i x, TieSeed seed) {
  x = _mm512_xor_si512(x, _mm512_set1_epi32(int(seed.first)));
  x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
  x = _mm512_mullo_epi32(x, _mm512_set1_epi32(0x7feb352d));
  x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 15));
  x = _mm512_xor_si512(x, _mm512_set1_epi32(int(seed.second)));
  x = _mm512_mullo_epi32(x, _mm512_set1_epi32(int(0x846ca68bu)));
  return _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
}

// Compressing in a register and storing the whole vector: compress stores to memory are microcoded on Zen 4.
LOTTERYKIT_AVX512 Scanned scan_avx512(const Block<float>& b, const Bracket<float>& r, TieSeed seed,
                                      uint32_t* out) {
  const __m512 low = _mm512_set1_ps(r.low), high = _mm512_set1_ps(r.high);
  const __m512i low_rank = _mm512_set1_epi32(int(r.low_rank)), high_rank = _mm512_set1_epi32(int(r.high_rank));
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  Scanned found{0, 0, false};
  __mmask16 nan = 0;
  for (int32_t i = 0; i < b.length; i += 64) {
    const int32_t rest = b.length - i;
    const uint64_t valid = rest >= 64 ? ~uint64_t(0) : (uint64_t(1) << rest) - 1;
    uint64_t in = valid;
    if (b.within != nullptr) {
      const __m512i w = _mm512_maskz_loadu_epi8(valid, b.within + i);
      in = _mm512_test_epi8_mask(w, w);
    }
    uint64_t kept = 0;
    if (in != 0) {  // skips what is already pruned
      __mmask16 keep[4], open[4], at_high[4], at_low[4];
      unsigned tied = 0;
#pragma GCC unroll 4
      for (int part = 0; part < 4; ++part) {
        const __mmask16 here = __mmask16(in >> (16 * part));
        const __m512 x = _mm512_maskz_loadu_ps(here, b.scores + i + 16 * part);
        keep[part] = _mm512_mask_cmp_ps_mask(here, x, high, _CMP_GT_OQ);
        open[part] = _mm512_mask_cmp_ps_mask(here, x, low, _CMP_GE_OQ) & __mmask16(~keep[part]);
        nan |= _mm512_mask_cmp_ps_mask(here, x, x, _CMP_UNORD_Q);
        at_high[part] = _mm512_mask_cmp_ps_mask(open[part], x, high, _CMP_EQ_OQ);
        at_low[part] = _mm512_mask_cmp_ps_mask(open[part], x, low, _CMP_EQ_OQ);
        tied |= at_high[part] | at_low[part];
      }
      __m512i position = _mm512_add_epi32(_mm512_set1_epi32(int(b.position + uint32_t(i))), lanes);
      if (tied) {
#pragma GCC unroll 4
        for (int part = 0; part < 4; ++part) {
          const __m512i rank = tie_rank_avx512(_mm512_add_epi32(position, _mm512_set1_epi32(16 * part)), seed);
          const __mmask16 before = _mm512_mask_cmplt_epu32_mask(at_high[part], rank, high_rank);
          const __mmask16 after = _mm512_mask_cmpgt_epu32_mask(at_low[part], rank, low_rank);
          keep[part] |= before;
          open[part] &= __mmask16(~(before | after));
        }
      }
#pragma GCC unroll 4
      for (int part = 0; part < 4; ++part) {  // without a branch: which vectors hold candidates is random
        _mm512_storeu_si512(out + found.candidates, _mm512_maskz_compress_epi32(open[part], position));
        found.candidates += int32_t(_mm_popcnt_u32(open[part]));
        position = _mm512_add_epi32(position, _mm512_set1_epi32(16));
        kept |= uint64_t(keep[part]) << (16 * part);
      }
    }
    found.kept += _mm_popcnt_u64(kept);
    _mm512_mask_storeu_epi8(b.mask + i, valid, _mm512_maskz_set1_epi8(kept, 1));
  }
  found.nan = nan != 0;
  return found;
}

LOTTERYKIT_AVX2 inline __m256i tie_rank_avx2(__m256i x, TieSeed seed) {
  x = _mm256_xor_si256(x, _mm256_set1_epi32(int(seed.first)));
  x = _mm256_xor_si256(x, _mm256_srli_epi32(x, 16));
  x = _mm256_mullo_epi32(x, _mm256_set1_epi32(0x7feb352d));
  x = _mm256_xor_si256(x, _mm256_srli_epi32(x, 15));
  x = _mm256_xor_si256(x, _mm256_set1_epi32(int(seed.second)));
  x = _mm256_mullo_epi32(x, _mm256_set1_epi32(int(0x846ca68bu)));
  return _mm256_xor_si256(x, _mm256_srli_epi32(x, 16));
}

LOTTERYKIT_AVX2 inline __m256 both(__m256 a, __m256 b) { return _mm256_and_ps(a, b); }

LOTTERYKIT_AVX2 Scanned scan_avx2(const Block<float>& b, const Bracket<float>& r, TieSeed seed,
                                  uint32_t* out) {
  const __m256 low = _mm256_set1_ps(r.low), high = _mm256_set1_ps(r.high);
  const __m256i flip = _mm256_set1_epi32(int(0x80000000u));  // unsigned order by signed comparison
  const __m256i low_rank = _mm256_xor_si256(_mm256_set1_epi32(int(r.low_rank)), flip);
  const __m256i high_rank = _mm256_xor_si256(_mm256_set1_epi32(int(r.high_rank)), flip);
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  Scanned found{0, 0, false};
  __m256 nan = _mm256_setzero_ps();
  const int32_t whole = b.length & ~7;
  for (int32_t i = 0; i < whole; i += 8) {
    __m256 in = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    if (b.within != nullptr) {
      const __m256i w = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(b.within + i)));
      in = _mm256_castsi256_ps(_mm256_cmpgt_epi32(w, _mm256_setzero_si256()));
    }
    const __m256 x = _mm256_loadu_ps(b.scores + i);
    __m256 keep = both(in, _mm256_cmp_ps(x, high, _CMP_GT_OQ));
    __m256 open = _mm256_andnot_ps(keep, both(in, _mm256_cmp_ps(x, low, _CMP_GE_OQ)));
    nan = _mm256_or_ps(nan, both(in, _mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
    const __m256i position = _mm256_add_epi32(_mm256_set1_epi32(int(b.position + uint32_t(i))), lanes);
    const __m256 at_high = both(open, _mm256_cmp_ps(x, high, _CMP_EQ_OQ));
    const __m256 at_low = both(open, _mm256_cmp_ps(x, low, _CMP_EQ_OQ));
    if (_mm256_movemask_ps(_mm256_or_ps(at_high, at_low))) {
      const __m256i rank = _mm256_xor_si256(tie_rank_avx2(position, seed), flip);
      const __m256 before = both(at_high, _mm256_castsi256_ps(_mm256_cmpgt_epi32(high_rank, rank)));
      const __m256 after = both(at_low, _mm256_castsi256_ps(_mm256_cmpgt_epi32(rank, low_rank)));
      keep = _mm256_or_ps(keep, before);
      open = _mm256_andnot_ps(_mm256_or_ps(before, after), open);
    }
    // Without a branch: which vectors hold candidates is random.
    const unsigned bits = unsigned(_mm256_movemask_ps(open));
    const __m128i row = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(compress_table.lane[bits]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + found.candidates),
                        _mm256_permutevar8x32_epi32(position, _mm256_cvtepu8_epi32(row)));
    found.candidates += int32_t(_mm_popcnt_u32(bits));
    // 8 lanes of 0 or -1 become 8 bytes of 0 or 1.
    const __m256i ones = _mm256_srli_epi32(_mm256_castps_si256(keep), 31);
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(ones), _mm256_extracti128_si256(ones, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(b.mask + i), _mm_packs_epi16(halves, halves));
    found.kept += _mm_popcnt_u32(unsigned(_mm256_movemask_ps(keep)));
  }
  found.nan = _mm256_movemask_ps(nan) != 0;
  return scan_plain(b, r, seed, out, whole, found);
}

Scanned scan_x86(const Block<float>& b, const Bracket<float>& r, TieSeed seed, uint32_t* out, Isa isa) {
  if (isa == Isa::avx512) return scan_avx512(b, r, seed, out);
  if (isa == Isa::avx2) return scan_avx2(b, r, seed, out);
  return scan_plain(b, r, seed, out, 0, {0, 0, false});
}

#endif  // LOTTERYKIT_X86

}  // namespace

template <>
Scanned scan(const Block<float>& b, const Bracket<float>& r, TieSeed seed, uint32_t* out, Isa isa) {
#ifdef LOTTERYKIT_X86
  return scan_x86(b, r, seed, out, isa);
#else
  (void)isa;
  return scan_plain(b, r, seed, out, 0, {0, 0, false});
#endif
}

// Double scores come from the float64 checks, which need no speed: plain code at every level.
template <>
Scanned scan(const Block<double>& b, const Bracket<double>& r, TieSeed seed, uint32_t* out, Isa) {
  return scan_plain(b, r, seed, out, 0, {0, 0, false});
}

}  // namespace lotterykit
