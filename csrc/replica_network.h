// What the replica trainers of both devices share: settings, parameters, and which neurons of a network live.
#pragma once
#include <cstdint>
#include <vector>

namespace lotterykit {

enum class Loss { cross_entropy, mse };
enum class Rule { adam, sgd };

// The settings of a training that do not change from step to step; as torch.optim defines them.
struct Training {
  Loss loss;
  Rule rule;
  double beta1, beta2, eps, momentum, weight_decay;
};

// The parameters of a network, tensor by tensor at `weights[l]` [out][in] and `biases[l]` [out]; `first` and
// `second` are the optimizer's moments (SGD: momentum and nothing); `pruned` may be null. All of one layout.
template <typename T>
struct Parameters {
  T *values, *first, *second;
  const uint8_t* pruned;
  std::vector<int64_t> weights, biases;
};

// Score training: the weights are frozen, scores choose among them. Addresses lie in the layout of Parameters,
// whose `values` are then the frozen weights and whose moments are those of the scores.
template <typename T>
struct Scores {
  T* values;
  const uint8_t* active;  // scored, and not frozen by Gem-Miner
  uint8_t* kept;          // written back: the masks in force
  bool gem;               // keeps scores >= 1/2, projects to [0, 1]; else the highest |score|
  double penalty;         // its L2 factor, doubled: the slope of penalty * ||p||^2
  std::vector<std::vector<int64_t>> groups;  // tensors (2 l: weights of layer l, 2 l + 1: its biases) counted together
  std::vector<uint64_t> seeds;               // of the ties of each group
};

constexpr int64_t every_active = -1, from_half = -2;  // Gem-Miner's counts: at the end, and on the way

// The neurons of each layer (0: the inputs) that reach an output through kept weights. Live: an input reaches
// them, or they are outputs; constant: none does, so that their value is one number for the whole batch.
struct LiveNeurons {
  std::vector<std::vector<uint8_t>> fed, heard;      // reached by an input; reaching an output
  std::vector<std::vector<int32_t>> live, constant;  // the neurons of each layer
  std::vector<std::vector<int32_t>> place;           // of a neuron among the live or the constant ones, or -1

  bool is_live(int64_t l, int64_t j) const {
    return heard[l][j] && (fed[l][j] || l + 1 == int64_t(live.size()));
  }
};

// is_kept(l, o, i): whether the weight of layer l from neuron i to neuron o is there.
template <typename IsKept>
LiveNeurons live_neurons(const std::vector<int64_t>& widths, IsKept is_kept) {
  const int64_t d = int64_t(widths.size()) - 1;
  LiveNeurons net;
  net.fed.resize(d + 1), net.heard.resize(d + 1), net.live.resize(d + 1), net.constant.resize(d + 1);
  net.place.resize(d + 1);
  for (int64_t l = 0; l <= d; ++l) {
    net.fed[l].assign(widths[l], l == 0);
    net.heard[l].assign(widths[l], l == d);
  }
  for (int64_t l = 0; l < d; ++l)
    for (int64_t o = 0; o < widths[l + 1]; ++o)
      for (int64_t i = 0; i < widths[l] && !net.fed[l + 1][o]; ++i)
        net.fed[l + 1][o] = net.fed[l][i] && is_kept(l, o, i);
  for (int64_t l = d - 1; l >= 0; --l)
    for (int64_t o = 0; o < widths[l + 1]; ++o)
      for (int64_t i = 0; net.heard[l + 1][o] && i < widths[l]; ++i)
        if (is_kept(l, o, i)) net.heard[l][i] = 1;
  for (int64_t l = 0; l <= d; ++l) {
    net.place[l].assign(widths[l], -1);
    for (int64_t j = 0; j < widths[l]; ++j) {
      if (!net.heard[l][j]) continue;
      auto& kind = net.is_live(l, j) ? net.live[l] : net.constant[l];
      net.place[l][j] = int32_t(kind.size());
      kind.push_back(int32_t(j));
    }
  }
  return net;
}

}  // namespace lotterykit
