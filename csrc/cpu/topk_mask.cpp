// Exact selection in one pass: a sample brackets the threshold, the pass writes the masks of all that the
// bracket decides and collects the rest, and the selection among those few patches the masks. Where the
// sample missed, or too many are left, histograms over all scores find a bracket that cannot miss.
#include "topk_mask.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "topk_scan.h"

namespace lotterykit {
namespace {

constexpr int64_t candidate_limit = 4 << 20;    // bounds the extra memory at 50 MB (f32), whatever the input
constexpr int64_t sample_all_below = 8192;      // so few that sampling them does not pay
constexpr int64_t entries_per_thread = 1 << 19;  // about 100 us of work: fewer do not pay for waking a thread
constexpr int digit_bits = 11;

template <typename Key>
int shift_for(Key range) {  // smallest shift that brings `range` below 2^digit_bits
  int shift = 0;
  while ((range >> shift) >> digit_bits) ++shift;
  return shift;
}

// The first-th and the last-th largest (from 1, first <= last) of n keys, which it overwrites.
template <typename Key>
std::pair<Key, Key> nth_largest(Key* keys, int64_t n, int64_t first, int64_t last) {
  std::vector<int64_t> histogram(1 << digit_bits);
  while (n > 256) {
    const auto [least, most] = std::minmax_element(keys, keys + n);
    const Key base = *least;
    const int shift = shift_for<Key>(*most - base);
    std::fill(histogram.begin(), histogram.end(), 0);
    for (int64_t i = 0; i < n; ++i) ++histogram[size_t((keys[i] - base) >> shift)];
    size_t top = histogram.size() - 1;
    int64_t before = 0, through = 0;  // entries of bins above `top`, and of those down to `bottom`
    while (before + histogram[top] < first) before += histogram[top--];
    size_t bottom = top;
    for (through = before + histogram[top]; through < last;) through += histogram[--bottom];
    if (through - before == n) break;
    int64_t m = 0;
    for (int64_t i = 0; i < n; ++i) {
      const Key key = keys[i];
      keys[m] = key;
      m += size_t((key - base) >> shift) - bottom <= top - bottom;
    }
    n = m, first -= before, last -= before;
  }
  std::nth_element(keys, keys + (first - 1), keys + n, std::greater<Key>());
  const Key high = keys[first - 1];
  if (last > first) std::nth_element(keys + first, keys + (last - 1), keys + n, std::greater<Key>());
  return {high, keys[last - 1]};
}

template <typename T>
class Selection {
  using Key = typename Order<T>::Key;

 public:
  Selection(const Entries* tensors, int64_t count, uint64_t seed, int threads, Isa isa, Watch& watch)
      : seed_(tie_seed(seed)), isa_(isa), watch_(watch) {
    for (int64_t t = 0; t < count; ++t) {
      const Entries& e = tensors[t];
      some_within_ |= e.within != nullptr;
      for (int64_t from = 0; from < e.length; from += block_length) {
        const int32_t length = int32_t(std::min<int64_t>(block_length, e.length - from));
        blocks_.push_back({static_cast<const T*>(e.scores) + from, e.within ? e.within + from : nullptr,
                           e.mask + from, uint32_t(total_ + from), length});
        tensor_of_.push_back(t);
        start_of_.push_back(from);
      }
      total_ += e.length;
    }
    threads_ = int(std::clamp<int64_t>(total_ / entries_per_thread, 1, std::max(threads, 1)));
  }

  Outcome run(int64_t k, const Guess* guess) {
    const int64_t competing = some_within_ ? count_competing() : total_;
    if (watch_.stopped()) return {Status::interrupted, 0, 0, competing, 0, 0};
    if (k > competing) return {Status::too_few, 0, 0, competing, 0, 0};
    if (!select_by_guess(k, competing, guess) && goes_on()) {
      Key low = lowest(), high = highest();
      if (k == 0) low = high;
      else if (k == competing) high = low;
      else if (competing > sample_all_below) bracket_by_sample(k, competing, low, high);
      if (!select(k, low, high, candidate_limit) && goes_on()) {
        low = lowest(), high = highest();
        if (bracket_by_histograms(k, competing, low, high)) select(k, low, high, candidate_limit);
      }
    }
    Outcome outcome{Status::ok, 0, 0, competing, 0, 0};
    if (watch_.stopped()) outcome.status = Status::interrupted;
    else if (nan_) find_nan(outcome);
    outcome.threshold = double(score_of<T>(least_));
    outcome.rank = int64_t(~uint32_t(least_)) - !keeps_least_;
    return outcome;
  }

 private:
  struct Share {  // what one thread collected
    std::vector<Key> keys;
    std::vector<uint32_t> positions;
    std::vector<std::pair<int64_t, int32_t>> runs;  // (block, candidates from it)
    std::vector<uint32_t> scanned;                  // room for one block
    int64_t kept = 0;
  };

  bool goes_on() const { return !watch_.stopped() && !nan_; }

  // A bracket that holds far more than a sample's would costs more than it saves.
  bool select_by_guess(int64_t k, int64_t competing, const Guess* guess) {
    if (guess == nullptr || k == 0 || k == competing || competing <= sample_all_below) return false;
    const Key low = key_of(T(guess->low), guess->low_rank), high = key_of(T(guess->high), guess->high_rank);
    return low <= high && select(k, low, high, std::min(candidate_limit, competing / 16));
  }

  static Key lowest() { return key_of<T>(-std::numeric_limits<T>::infinity(), UINT32_MAX); }
  static Key highest() { return key_of<T>(std::numeric_limits<T>::infinity(), 0); }

  int64_t count_competing() {
    std::atomic<int64_t> competing{0};
    for_each(int64_t(blocks_.size()), threads_, watch_, [&](int, int64_t i) {
      const Block<T>& b = blocks_[size_t(i)];
      int32_t in = b.within == nullptr ? b.length : 0;
      if (b.within != nullptr)
        for (int32_t j = 0; j < b.length; ++j) in += b.within[j] != 0;
      competing += in;
    });
    return competing;
  }

  // Sets low and high so that about 1 in 10,000 draws misses: 4 standard deviations of the sampled rank.
  void bracket_by_sample(int64_t k, int64_t competing, Key& low, Key& high) {
    const double wanted = 0.5 * std::pow(double(total_), 2.0 / 3.0);  // balances the sample against the candidates
    const int64_t n = std::min<int64_t>(total_, int64_t(std::clamp(wanted, 2048.0, 262144.0)));
    std::vector<Key> keys(size_t(n), Key(0));
    constexpr int64_t piece = 512;
    const int64_t pieces = (n + piece - 1) / piece;
    for_each(pieces, pieces < 64 ? 1 : threads_, watch_, [&](int, int64_t p) {
      std::pair<const Block<T>*, uint32_t> places[piece];
      const int64_t first = p * piece, last = std::min(n, first + piece);
      const double stride = double(total_) / double(n);
      size_t at = block_at(uint32_t(double(first) * stride));
      for (int64_t j = first; j < last; ++j) {  // jittered, so that no period of the tensors is hit
        const double jitter = double(tie_rank(uint32_t(j), seed_)) * 0x1p-32;
        const auto position = uint32_t(std::min((double(j) + jitter) * stride, double(total_ - 1)));
        while (position - blocks_[at].position >= uint32_t(blocks_[at].length)) ++at;
        places[j - first] = {&blocks_[at], position - blocks_[at].position};
        __builtin_prefetch(blocks_[at].scores + (position - blocks_[at].position));
      }
      for (int64_t j = first; j < last; ++j) {
        const auto& [b, i] = places[j - first];
        if ((b->within == nullptr || b->within[i]) && b->scores[i] == b->scores[i])
          keys[size_t(j)] = key_of(b->scores[i], tie_rank(b->position + i, seed_));
      }
    });
    const int64_t m = std::remove(keys.begin(), keys.end(), Key(0)) - keys.begin();
    const double share = double(k) / double(competing), rank = share * double(m);
    const double margin = 4 * std::sqrt(double(m) * share * (1 - share)) + 2;
    const int64_t first = int64_t(rank - margin), last = int64_t(std::ceil(rank + margin));
    expected_ = int64_t(2.2 * margin / double(std::max<int64_t>(m, 1)) * double(competing));
    expected_ = std::min(expected_, candidate_limit);
    if (m == 0) return;
    const auto [from, to] = nth_largest(keys.data(), m, std::clamp<int64_t>(first, 1, m), std::clamp<int64_t>(last, 1, m));
    if (first >= 1) high = from;
    if (last <= m) low = to;
    // Telling the bracket's ends from what ties with them costs more than a few candidates.
    const auto tied_with = [&](Key end) {
      return std::count_if(keys.begin(), keys.begin() + m, [&](Key key) { return key >> 32 == end >> 32; });
    };
    const auto few = int64_t(margin / 8);
    if (tied_with(low) <= few && tied_with(high) <= few) low = low >> 32 << 32, high |= UINT32_MAX;
  }

  size_t block_at(uint32_t position) const {
    auto after = std::upper_bound(blocks_.begin(), blocks_.end(), position,
                                  [](uint32_t p, const Block<T>& b) { return p < b.position; });
    return size_t(after - blocks_.begin()) - 1;
  }

  // Narrows [low, high] by histograms of all keys in it until its candidates fit. False where stopped or where
  // a NaN was met: NaNs alone lie outside the first bracket, so the counts then fall short of `inside`.
  bool bracket_by_histograms(int64_t k, int64_t competing, Key& low, Key& high) {
    int64_t inside = competing;
    while (inside > candidate_limit / 2 && low != high) {
      const int shift = shift_for<Key>(high - low);
      std::vector<std::vector<int64_t>> counts(size_t(threads_), std::vector<int64_t>(1 << digit_bits));
      for_each(int64_t(blocks_.size()), threads_, watch_, [&](int thread, int64_t i) {
        const Block<T>& b = blocks_[size_t(i)];
        std::vector<int64_t>& count = counts[size_t(thread)];
        for (int32_t j = 0; j < b.length; ++j) {
          if (b.within != nullptr && !b.within[j]) continue;
          const Key key = key_of(b.scores[j], tie_rank(b.position + uint32_t(j), seed_));
          if (key >= low && key <= high) ++count[size_t((key - low) >> shift)];
        }
      });
      if (watch_.stopped()) return false;
      for (size_t t = 1; t < counts.size(); ++t)
        for (size_t j = 0; j < counts[t].size(); ++j) counts[0][j] += counts[t][j];
      int64_t counted = 0;
      for (const int64_t bin_count : counts[0]) counted += bin_count;
      if (counted < inside) {
        nan_ = true;
        return false;
      }
      size_t bin = counts[0].size() - 1;
      while (counts[0][bin] < k) k -= counts[0][bin--];
      inside = counts[0][bin];
      low += Key(bin) << shift;
      high = std::min<Key>(high, low + ((Key(1) << shift) - 1));
    }
    return true;
  }

  // Writes the masks by the bracket [low, high]. False where it missed, held more than `most` candidates, or the pass
  // was stopped or met a NaN; the masks are then to be written again.
  bool select(int64_t k, Key low, Key high, int64_t most) {
    const Bracket<T> bracket{score_of<T>(low), score_of<T>(high), ~uint32_t(low), ~uint32_t(high)};
    std::vector<Share> shares(static_cast<size_t>(threads_));
    for (Share& share : shares) {
      share.scanned.resize(block_length + scan_slack);
      share.keys.reserve(size_t(expected_ / threads_));
      share.positions.reserve(size_t(expected_ / threads_));
    }
    std::atomic<int64_t> total{0};
    for_each(int64_t(blocks_.size()), threads_, watch_, [&](int thread, int64_t i) {
      Share& share = shares[size_t(thread)];
      if (nan_ || total.load(std::memory_order_relaxed) > most) return;
      const Block<T>& b = blocks_[size_t(i)];
      const uint32_t* positions = share.scanned.data();
      const Scanned found = scan(b, bracket, seed_, share.scanned.data(), isa_);
      share.kept += found.kept;
      if (found.nan) nan_ = true;
      if (found.candidates == 0) return;
      total += found.candidates;
      const size_t at = share.keys.size();
      share.keys.resize(at + size_t(found.candidates));
      gather_keys(b, positions, found.candidates, seed_, share.keys.data() + at, isa_);
      share.positions.insert(share.positions.end(), positions, positions + found.candidates);
      share.runs.emplace_back(i, found.candidates);
    });
    if (watch_.stopped() || nan_ || total > most) return false;
    int64_t need = k;
    for (const Share& share : shares) need -= share.kept;
    if (need < 0 || need > total) return false;
    keeps_least_ = need > 0;
    least_ = need > 0 ? threshold(shares, need, low, high) : high;
    if (need > 0) patch(shares, least_, total < (1 << 17) ? 1 : threads_);
    return !watch_.stopped();
  }

  // The need-th largest candidate. The bracket is narrow, so its keys spread evenly over the bins of one
  // histogram, and only those of one bin are copied.
  static Key threshold(const std::vector<Share>& shares, int64_t need, Key low, Key high) {
    const int shift = shift_for<Key>(high - low);
    std::vector<int64_t> histogram(1 << digit_bits);
    for (const Share& share : shares)
      for (const Key key : share.keys) ++histogram[size_t((key - low) >> shift)];
    size_t bin = histogram.size() - 1;
    while (histogram[bin] < need) need -= histogram[bin--];
    std::vector<Key> keys;
    keys.reserve(size_t(histogram[bin]));
    for (const Share& share : shares)
      for (const Key key : share.keys)
        if (size_t((key - low) >> shift) == bin) keys.push_back(key);
    return nth_largest(keys.data(), int64_t(keys.size()), need, need).first;
  }

  void patch(const std::vector<Share>& shares, Key least, int threads) {
    for_each(int64_t(shares.size()), threads, watch_, [&](int, int64_t s) {
      const Share& share = shares[size_t(s)];
      size_t at = 0;
      for (const auto& [block, candidates] : share.runs) {
        const Block<T>& b = blocks_[size_t(block)];
        for (const size_t end = at + size_t(candidates); at < end; ++at)
          b.mask[share.positions[at] - b.position] = share.keys[at] >= least;  // at random: no branch
      }
    });
  }

  // The first NaN by flat position, so that the message is the same whatever thread met one first.
  void find_nan(Outcome& outcome) {
    for (size_t i = 0; i < blocks_.size(); ++i, watch_.tick()) {
      const Block<T>& b = blocks_[i];
      if (watch_.stopped()) outcome.status = Status::interrupted;
      for (int32_t j = 0; j < b.length && outcome.status == Status::ok; ++j)
        if ((b.within == nullptr || b.within[j]) && b.scores[j] != b.scores[j])
          outcome = {Status::nan, tensor_of_[i], start_of_[i] + j, outcome.competing, 0, 0};
      if (outcome.status != Status::ok) return;
    }
  }

  std::vector<Block<T>> blocks_;
  std::vector<int64_t> tensor_of_, start_of_;
  int64_t total_ = 0;
  bool some_within_ = false;
  int64_t expected_ = 0;  // candidates, by the sample
  Key least_ = 0;  // the last key kept, or the first after those kept
  bool keeps_least_ = false;
  TieSeed seed_;
  int threads_ = 1;
  Isa isa_;
  Watch& watch_;
  std::atomic<bool> nan_{false};
};

}  // namespace

Outcome topk_mask(const Entries* tensors, int64_t count, Dtype dtype, int64_t k, uint64_t seed, const Guess* guess,
                  int threads, Isa isa, Poll poll, void* context) {
  Watch watch(poll, context);
  if (isa == Isa::best) isa = best_isa();
  if (dtype == Dtype::f32) return Selection<float>(tensors, count, seed, threads, isa, watch).run(k, guess);
  return Selection<double>(tensors, count, seed, threads, isa, watch).run(k, guess);
}

}  // namespace lotterykit
