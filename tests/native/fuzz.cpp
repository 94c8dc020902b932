// Random valid calls of the native ops that share their work among threads, without Python or torch: for builds
// with sanitizers. fuzz CASES SEED; prints the number of calls.
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "../../csrc/cpu/conv2d.h"
#include "../../csrc/cpu/spmm.h"
#include "../../csrc/cpu/topk_mask.h"

using namespace lotterykit;

namespace {

struct Draw {
  std::mt19937_64 engine;
  bool large;  // enough work for several threads

  int64_t one_of(std::initializer_list<int64_t> values) { return values.begin()[engine() % values.size()]; }
  bool with(double share) { return std::uniform_real_distribution<>()(engine) < share; }
  int threads() { return int(one_of({1, 2, 3})); }
  Isa isa() { return Isa(engine() % (uint64_t(best_isa()) + 1)); }

  // Normal numbers, some with ties, infinities or NaN.
  template <typename T>
  std::vector<T> numbers(int64_t n, bool nan = true) {
    std::vector<T> x(static_cast<size_t>(n));
    const int64_t kind = one_of({0, 0, 1, 2, 3});
    std::normal_distribution<double> normal;
    for (T& v : x) {
      v = T(normal(engine));
      if (kind == 1) v = v < 0 ? T(-0.0) : T(1);
      if (kind == 2 && with(0.1)) v = with(0.5) ? std::numeric_limits<T>::infinity() : -std::numeric_limits<T>::infinity();
      if (kind == 3 && nan && with(0.1)) v = std::numeric_limits<T>::quiet_NaN();
    }
    return x;
  }
};

// A random matrix in CSR, in blocks of columns where it is wide, and its transpose, as lotterykit.ops.csr lays out.
struct Kept {
  int64_t rows, cols, blocks, stride;
  std::vector<int32_t> columns, segments, offsets, turned, turned_offsets, order;

  Kept(Draw& draw, int64_t rows_, int64_t cols_, double share) : rows(rows_), cols(cols_), offsets{0} {
    constexpr int64_t width = 96;
    const bool blocked = cols >= 2 * width && share >= 0.02 && rows > 0;
    blocks = blocked ? (cols + width - 1) / width : 1, stride = blocked ? rows : 1;
    std::vector<std::vector<std::pair<int32_t, int32_t>>> by_column(static_cast<size_t>(cols));
    segments.resize(size_t(blocked ? (blocks + 1) * rows : 0));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        if (blocked && c % width == 0) segments[size_t(c / width * rows + r)] = int32_t(columns.size());
        if (!draw.with(share)) continue;
        by_column[size_t(c)].push_back({int32_t(r), int32_t(columns.size())});
        columns.push_back(int32_t(c));
      }
      offsets.push_back(int32_t(columns.size()));
      if (blocked) segments[size_t(blocks * rows + r)] = offsets.back();
    }
    turned_offsets.push_back(0);
    for (const auto& places : by_column) {
      for (const auto& [row, at] : places) turned.push_back(row), order.push_back(at);
      turned_offsets.push_back(int32_t(turned.size()));
    }
    columns.shrink_to_fit(), offsets.shrink_to_fit(), turned.shrink_to_fit(), order.shrink_to_fit();
    turned_offsets.shrink_to_fit();
  }
  Structure structure() const {
    return {columns.data(), stride == 1 && blocks == 1 ? offsets.data() : segments.data(), blocks, stride, rows, cols};
  }
  Structure rows_alone() const { return {columns.data(), offsets.data(), 1, 1, rows, cols}; }
  Structure transposed() const { return {turned.data(), turned_offsets.data(), 1, 1, cols, rows}; }
  int64_t nnz() const { return int64_t(columns.size()); }
};

template <typename T>
void sparse_products(Draw& draw) {
  const int64_t rows = draw.large ? 300 : draw.one_of({0, 1, 2, 7, 8, 65, 130});
  const int64_t cols = draw.large ? 400 : draw.one_of({0, 1, 3, 9, 64, 97, 200});
  const int64_t batch = draw.large ? 300 : draw.one_of({0, 1, 7, 16, 17, 33, 64, 65, 129});
  const double shares[] = {0, 0.01, 0.1, 0.5, 1};
  const Kept w(draw, rows, cols, draw.large ? 0.2 : shares[draw.engine() % 5]);
  const auto x = draw.numbers<T>(batch * cols), g = draw.numbers<T>(batch * rows), values = draw.numbers<T>(w.nnz());
  const auto bias = draw.numbers<T>(rows);
  Watch watch(nullptr, nullptr);
  const Run run{draw.threads(), draw.isa(), watch};
  const bool relu = draw.with(0.3);
  std::vector<T> y(g.size()), dx(x.size()), dvalues(values.size()), dbias(bias.size());
  spmm(x.data(), batch, w.structure(), values.data(), nullptr, draw.with(0.5) ? bias.data() : nullptr, relu, y.data(),
       run);
  spmm(g.data(), batch, w.transposed(), values.data(), w.order.data(), static_cast<const T*>(nullptr), false,
       dx.data(), run);
  sddmm(g.data(), x.data(), batch, w.structure(), dvalues.data(), run);
  spmm_backward(g.data(), relu ? y.data() : nullptr, x.data(), batch, w.structure(), w.transposed(), values.data(),
                w.order.data(),
                Gradients<T>{draw.with(0.7) ? dx.data() : nullptr, draw.with(0.7) ? dvalues.data() : nullptr,
                             draw.with(0.7) ? dbias.data() : nullptr},
                run);
}

template <typename T>
void convolutions(Draw& draw) {
  Convolution c{};
  c.groups = draw.one_of({1, 1, 2, 3});
  c.in_channels = c.groups * (draw.large ? 20 : draw.one_of({1, 2, 5})), c.out_channels = c.groups * draw.one_of({1, 3, 8});
  c.batch = draw.one_of({0, 1, 2, 8, 9, 17}), c.height = draw.one_of({1, 2, 4, 7, 12});
  c.width = draw.one_of({1, 3, 8, 9, 17});
  if (draw.large) c.batch = 33, c.height = 12, c.width = 17, c.out_channels = c.groups * 70;
  c.kernel_height = draw.one_of({1, 2, 3}), c.kernel_width = draw.one_of({1, 3, 4});
  c.stride_height = draw.one_of({1, 1, 2, 3}), c.stride_width = draw.one_of({1, 1, 2});
  c.padding_height = draw.one_of({0, 1, 5}), c.padding_width = draw.one_of({0, 1, 2});
  c.dilation_height = draw.one_of({1, 1, 2}), c.dilation_width = draw.one_of({1, 1, 3});
  const int64_t free_height = c.height + 2 * c.padding_height - c.dilation_height * (c.kernel_height - 1) - 1;
  const int64_t free_width = c.width + 2 * c.padding_width - c.dilation_width * (c.kernel_width - 1) - 1;
  if (free_height < 0 || free_width < 0) return;
  c.out_height = free_height / c.stride_height + 1, c.out_width = free_width / c.stride_width + 1;
  c.channels_last = draw.with(0.4);
  const double shares[] = {0, 0.05, 0.4, 1};
  const Kept w(draw, c.out_channels, c.in_channels / c.groups * c.kernel_height * c.kernel_width,
               draw.large ? 0.3 : shares[draw.engine() % 4]);
  const auto x = draw.numbers<T>(c.batch * c.in_channels * c.height * c.width);
  const auto g = draw.numbers<T>(c.batch * c.out_channels * c.out_height * c.out_width);
  const auto values = draw.numbers<T>(w.nnz()), bias = draw.numbers<T>(c.out_channels);
  Watch watch(nullptr, nullptr);
  const Run run{draw.threads(), draw.isa(), watch};
  const bool relu = draw.with(0.3);
  std::vector<T> y(g.size()), dx(x.size()), dvalues(values.size()), dbias(bias.size());
  conv2d(x.data(), c, w.rows_alone(), values.data(), draw.with(0.5) ? bias.data() : nullptr, relu, y.data(), run);
  conv2d_backward(g.data(), relu ? y.data() : nullptr, x.data(), c, w.rows_alone(), values.data(),
                  Gradients<T>{draw.with(0.7) ? dx.data() : nullptr, draw.with(0.7) ? dvalues.data() : nullptr,
                               draw.with(0.7) ? dbias.data() : nullptr},
                  run);
}

template <typename T>
void topk(Draw& draw) {
  std::vector<std::vector<T>> scores;
  std::vector<std::vector<uint8_t>> within, masks;
  std::vector<Entries> tensors;
  int64_t total = 0, competing = 0;
  const bool some = draw.with(0.5);
  const int64_t count = draw.one_of({1, 2, 5});
  for (int64_t t = 0; t < count; ++t) {
    const int64_t n = draw.large && t == 0 ? 1500000 : draw.one_of({0, 1, 7, 8, 63, 65, 9000, 32769});
    scores.push_back(draw.numbers<T>(n, draw.with(0.1)));
    masks.emplace_back(size_t(n), uint8_t(7));
    within.emplace_back(size_t(some ? n : 0));
    for (uint8_t& w : within.back()) w = draw.with(0.5), competing += w;
    total += n;
  }
  for (size_t t = 0; t < scores.size(); ++t)
    tensors.push_back({scores[t].data(), some ? within[t].data() : nullptr, masks[t].data(), int64_t(scores[t].size())});
  if (!some) competing = total;
  const int64_t k = draw.one_of({0, std::min<int64_t>(1, competing), competing / 2, competing / 100, competing});
  const double least = draw.one_of({-1, 0, 1}), most = least + draw.one_of({0, 1});
  const Guess guess{least, most, draw.with(0.5) ? UINT32_MAX : uint32_t(draw.engine()), uint32_t(draw.engine())};
  const Outcome outcome = topk_mask(tensors.data(), count, sizeof(T) == 4 ? Dtype::f32 : Dtype::f64, k, draw.engine(),
                                    draw.with(0.5) ? &guess : nullptr, draw.threads(), draw.isa(), nullptr, nullptr);
  int64_t kept = 0;
  for (const auto& mask : masks)
    for (const uint8_t m : mask) kept += m;
  if (outcome.status == Status::ok && kept != k) {
    std::fprintf(stderr, "topk_mask kept %lld of %lld\n", (long long)kept, (long long)k);
    std::exit(1);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t cases = argc > 1 ? std::atoll(argv[1]) : 100;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
  for (int64_t i = 0; i < cases; ++i) {
    Draw draw{std::mt19937_64(seed * 1000003 + uint64_t(i)), i % 40 == 39};
    sparse_products<float>(draw), sparse_products<double>(draw);
    convolutions<float>(draw), convolutions<double>(draw);
    topk<float>(draw), topk<double>(draw);
  }
  std::printf("%lld cases of 6 ops, instruction sets up to %d\n", (long long)cases, int(best_isa()));
}
