// The kernel of the replica trainer, of weights (replica.cu) and of scores (replica_scores.cu). One file for all its
// phases: they share the layout of a block's memory.
//
// Activations are [neurons][lanes], a lane an example: a warp computes a neuron for 32 examples, so a kept weight is
// one multiply-add of a warp whose operands lie in different banks. Gradients of weights are dot products over the
// lanes, a thread each, begun at different lanes for the same reason. All sums are in a fixed order.
#pragma once
#include "launch.h"
#include "replica.h"
#include "replica_choice.h"

namespace lotterykit {
namespace {

constexpr int most_warps = most_threads<float, false> / warp_lanes;

template <typename T>
struct alignas(16) Four {
  T v[4];
};
template <typename T>
__device__ __forceinline__ Four<T> four(const T* at) {
  return *reinterpret_cast<const Four<T>*>(at);
}
template <typename T>
__device__ __forceinline__ void put_four(T* at, const Four<T>& values) {
  *reinterpret_cast<Four<T>*>(at) = values;
}

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float root(float x) { return sqrtf(x); }
__device__ __forceinline__ double root(double x) { return sqrt(x); }

// The same in every lane.
template <typename T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int with = warp_lanes / 2; with > 0; with /= 2) x += __shfl_xor_sync(every_lane, x, with);
  return x;
}

// The examples that the lanes take up, in this order; null: one after another.
template <typename T>
struct Examples {
  const T* x;
  const void* y;
  const int32_t* order;
  int64_t from;
  int examples;
};

// A step of torch.optim's Adam or SGD, with L2 weight decay.
template <typename T>
struct Optimizer {
  T pace, root_correction, eps, decay, fresh, old_square, new_square, momentum;
  bool adam;

  __device__ Optimizer(const Training& rule, const Pace& now)
      : pace(T(now.rate)),
        root_correction(T(now.root_correction)),
        eps(T(rule.eps)),
        decay(T(rule.weight_decay)),
        fresh(T(1 - rule.beta1)),
        old_square(T(rule.beta2)),
        new_square(T(1 - rule.beta2)),
        momentum(T(rule.momentum)),
        adam(rule.rule == Rule::adam) {}

  __device__ __forceinline__ void move(T slope, T& value, T& mean, T& square) const {
    slope += decay * value;
    if (adam) {
      mean += fresh * (slope - mean);
      square = old_square * square + new_square * slope * slope;
      value -= pace * mean / (root(square) * root_correction + eps);
    } else {
      if (momentum != 0) mean = slope += momentum * mean;
      value -= pace * slope;
    }
  }
};

// What score training has besides: frozen weights, scores and what is active, all [entries]. One address, as
// registers are short; null where weights are trained.
template <typename T>
struct ScoreView {
  T* state;
  Choice* choice;
};

// A block's view of its replica. With SCORED, all layers are dense and no neuron is constant. `deltas` and `sums` (of deltas over a warp's lanes) have no room for the inputs.
template <typename T, bool SCORED>
struct Network {
  const DeviceShape& s;
  const uint32_t* image;
  const Training& training;
  const ScoreRule& rules;
  T *x, *deltas, *targets, *sums, *constants, *constant_deltas;
  T *values, *first, *gradients;
  ScoreView<T> view;
  int lanes, chunk_bits, thread, threads, lane, warp, warps;

  __device__ __forceinline__ const int32_t* words(int32_t at) const {
    return reinterpret_cast<const int32_t*>(image + at);
  }
  __device__ __forceinline__ const DeviceLayer& layer(int l) const {
    return reinterpret_cast<const DeviceLayer*>(image + s.layers)[l];
  }
  __device__ __forceinline__ T* second() const { return first + s.entries; }
  __device__ __forceinline__ const T* delta(int row) const { return deltas + (row - s.inputs) * lanes; }

  // Number e of the inputs and targets of a batch, lane by lane of the first input and so on.
  __device__ __forceinline__ T gathered(const Examples<T>& data, int e) const {
    const int row = e / lanes, at = e % lanes;
    if (at >= data.examples) return T(0);
    const int64_t example = data.order == nullptr ? data.from + at : data.order[data.from + at];
    if (row < s.inputs) return data.x[example * s.input_width + words(s.used_inputs)[row]];
    if (training.loss == Loss::mse) return static_cast<const T*>(data.y)[example * s.outputs + row - s.inputs];
    return T(static_cast<const int64_t*>(data.y)[example]);
  }
  __device__ __forceinline__ int gathers() const {
    return (s.inputs + (training.loss == Loss::mse ? s.outputs : 1)) * lanes;
  }
  __device__ __forceinline__ void gather(const Examples<T>& data, T mine) const {
    const int inputs = s.inputs * lanes, all = gathers();
    for (int e = thread; e < all; e += threads) {
      const T found = e == thread ? mine : gathered(data, e);
      if (e < inputs) x[e] = found;
      else targets[e - inputs] = found;
    }
  }

  // What a live neuron's or a constant one's sum begins with: its bias and the constant neurons that it reads.
  __device__ __forceinline__ T begun(int bias, int target) const {
    T sum = values[bias];
    if (SCORED || s.constants == 0) return sum;
    const int32_t* starts = words(s.edge_start);
    for (int e = starts[target]; e < starts[target + 1]; ++e)
      sum += values[s.edges + e] * constants[words(s.edge_words)[e] & 0xffff];
    return sum;
  }

  __device__ __forceinline__ void sparse_forward(const DeviceLayer& layer, bool last) const {
    const int32_t *starts = words(s.row_start), *places = words(s.places);
    for (int task = warp; task < layer.out << chunk_bits; task += warps) {
      const int row = layer.out_row + (task >> chunk_bits), number = row - s.inputs;
      const int at = (task & (s.chunks - 1)) * warp_lanes + lane;
      T sum = begun(s.biases + number, number);
      const int to = starts[number + 1];
#pragma unroll 4
      for (int k = starts[number]; k < to; ++k) sum += values[k] * x[(places[k] & 0xffff) * lanes + at];
      x[row * lanes + at] = !last && sum < 0 ? T(0) : sum;
    }
  }

  // Four neurons a warp.
  __device__ __forceinline__ void dense_forward(const DeviceLayer& layer, bool last) const {
    for (int task = warp; task < ((layer.out + 3) / 4) << chunk_bits; task += warps) {
      const int o = (task >> chunk_bits) * 4, at = (task & (s.chunks - 1)) * warp_lanes + lane;
      const T *w[4], *in = x + layer.in_row * lanes + at;
      T sum[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int row = min(o + r, layer.out - 1), number = layer.out_row - s.inputs + row;
        w[r] = values + layer.weights + row * layer.stride;
        sum[r] = begun(s.biases + number, number);
      }
      int i = 0;
      for (; i + 4 <= layer.in; i += 4) {
        const T a = in[i * lanes], b = in[(i + 1) * lanes], c = in[(i + 2) * lanes], d = in[(i + 3) * lanes];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const Four<T> weights = four(w[r] + i);
          sum[r] += weights.v[0] * a;
          sum[r] += weights.v[1] * b;
          sum[r] += weights.v[2] * c;
          sum[r] += weights.v[3] * d;
        }
      }
      for (; i < layer.in; ++i) {
        const T a = in[i * lanes];
#pragma unroll
        for (int r = 0; r < 4; ++r) sum[r] += w[r][i] * a;
      }
#pragma unroll
      for (int r = 0; r < 4; ++r)
        if (o + r < layer.out) x[(layer.out_row + o + r) * lanes + at] = !last && sum[r] < 0 ? T(0) : sum[r];
    }
  }

  __device__ __forceinline__ void forward() const {
    for (int l = 0; l < s.depth; ++l) {
      const DeviceLayer layer = this->layer(l);
      const bool last = l + 1 == s.depth;
      if (SCORED || layer.dense) dense_forward(layer, last);
      else sparse_forward(layer, last);
      for (int j = layer.constants + threads - 1 - thread; j < layer.constants + layer.constant_count; j += threads) {
        const T sum = begun(s.constant_biases + j, s.rows - s.inputs + j);
        constants[j] = sum < 0 ? T(0) : sum;
      }
      __syncthreads();
    }
  }

  // A neuron's slope in this lane, and its sum over the warp.
  __device__ __forceinline__ void put_delta(int row, int chunk, T slope) const {
    const int number = row - s.inputs;
    deltas[number * lanes + chunk * warp_lanes + lane] = slope;
    const T sum = warp_sum(slope);
    if (lane == 0) sums[number * s.chunks + chunk] = sum;
  }

  // The gradient of the mean loss over `count` examples by the outputs; 0 in lanes without an example.
  __device__ __forceinline__ void loss_slopes(int examples, int64_t count) const {
    const int row = s.rows - s.outputs, step = max(1, warps >> chunk_bits);
    const T share = T(1.0 / double(count)), factor = T(2.0 / (double(count) * double(s.outputs)));
    for (int chunk = warp & (s.chunks - 1); chunk < s.chunks; chunk += warps) {
      const int at = chunk * warp_lanes + lane;
      const T* z = x + row * lanes + at;
      T highest = z[0], sum = 0;
      if (training.loss == Loss::cross_entropy) {
        for (int o = 1; o < s.outputs; ++o) highest = z[o * lanes] > highest ? z[o * lanes] : highest;
        for (int o = 0; o < s.outputs; ++o) sum += exponential(z[o * lanes] - highest);
      }
      for (int o = warp >> chunk_bits; o < s.outputs; o += step) {
        T slope;
        if (training.loss == Loss::mse) slope = (z[o * lanes] - targets[o * lanes + at]) * factor;
        else slope = exponential(z[o * lanes] - highest) * (share / sum) - (targets[at] == T(o) ? share : T(0));
        put_delta(row + o, chunk, at < examples ? slope : T(0));
      }
    }
    __syncthreads();
  }

  __device__ __forceinline__ T gated(T slope, int row, int at) const {
    return x[row * lanes + at] <= 0 ? T(0) : slope;
  }

  __device__ __forceinline__ void sparse_backward(const DeviceLayer& layer) const {
    const int32_t *starts = words(s.column_start), *turned = words(s.turned), *places = words(s.places);
    for (int task = warp; task < layer.in << chunk_bits; task += warps) {
      const int row = layer.in_row + (task >> chunk_bits), number = row - s.inputs, chunk = task & (s.chunks - 1);
      const int at = chunk * warp_lanes + lane, to = starts[number + 1];
      T sum = 0;
#pragma unroll 4
      for (int k = starts[number]; k < to; ++k) {
        const int place = turned[k];
        sum += values[place] * delta(int(uint32_t(places[place]) >> 16))[at];
      }
      put_delta(row, chunk, gated(sum, row, at));
    }
  }

  // Four neurons a warp.
  __device__ __forceinline__ void dense_backward(const DeviceLayer& layer) const {
    for (int task = warp; task < (layer.stride / 4) << chunk_bits; task += warps) {
      const int i = (task >> chunk_bits) * 4, chunk = task & (s.chunks - 1), at = chunk * warp_lanes + lane;
      const T *w = values + layer.weights + i, *above = delta(layer.out_row) + at;
      T sum[4] = {};
#pragma unroll 4
      for (int o = 0; o < layer.out; ++o) {
        const Four<T> weights = four(w + o * layer.stride);
        const T slope = above[o * lanes];
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[c] += weights.v[c] * slope;
      }
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (i + c < layer.in) put_delta(layer.in_row + i + c, chunk, gated(sum[c], layer.in_row + i + c, at));
    }
  }

  // The slope of a target's bias.
  __device__ __forceinline__ T bias_slope(int target) const {
    const int live = s.rows - s.inputs;
    if (target >= live) return constant_deltas[target - live];
    T sum = sums[target << chunk_bits];
    for (int chunk = 1; chunk < s.chunks; ++chunk) sum += sums[(target << chunk_bits) + chunk];
    return sum;
  }

  __device__ __forceinline__ void backward() const {
    for (int l = s.depth - 1; l > 0; --l) {
      const DeviceLayer layer = this->layer(l), below = this->layer(l - 1);
      if (SCORED || layer.dense) dense_backward(layer);
      else sparse_backward(layer);
      for (int j = below.constants + threads - 1 - thread; j < below.constants + below.constant_count; j += threads) {
        const int32_t *starts = words(s.out_start), *edges = words(s.out_edges), *ends = words(s.edge_words);
        T sum = 0;
        for (int k = starts[j]; k < starts[j + 1]; ++k)
          sum += values[s.edges + edges[k]] * bias_slope(int(uint32_t(ends[edges[k]]) >> 16));
        constant_deltas[j] = constants[j] <= 0 ? T(0) : sum;
      }
      __syncthreads();
    }
  }

  // Adds the slopes of the passes before; false while there are more to come.
  __device__ __forceinline__ bool complete(int k, T& slope, bool first_pass, bool last_pass) const {
    if (first_pass && last_pass) return true;
    if (!first_pass) slope += gradients[k];
    if (!last_pass) gradients[k] = slope;
    return last_pass;
  }
  // One step of entry k. Scores: their slope is that of the effective weight times the frozen one, and with
  // edge-popup, which ranks |score|, times the score's sign.
  __device__ __forceinline__ void step(int k, T slope, const Optimizer<T>& rule, T& value, T& mean, T& square) const {
    if constexpr (SCORED) {
      T *scores = view.state + s.entries, score = scores[k];
      slope *= view.state[k];
      if (!rules.gem) slope = score < 0 ? -slope : score == 0 ? T(0) : slope;
      slope = (slope + T(rules.penalty) * score) * scores[s.entries + k];
      rule.move(slope, score, mean, square);
      if (rules.gem) score = score < 0 ? T(0) : score > 1 ? T(1) : score;
      scores[k] = score;
    } else {
      rule.move(slope, value, mean, square);
    }
  }
  __device__ __forceinline__ void moved(int k, T slope, const Optimizer<T>& rule, T mean, T square) const {
    T value = SCORED ? T(0) : values[k];
    step(k, slope, rule, value, mean, square);
    if (!SCORED) values[k] = value;
    first[k] = mean;
    if (rule.adam) second()[k] = square;
  }

  __device__ __forceinline__ void sparse_update(const Optimizer<T>& rule, bool first_pass, bool last_pass) const {
    const int32_t* places = words(s.places);
    const int quads = lanes / 4;
    for (int k = thread; k < s.sparse; k += threads) {
      const uint32_t place = uint32_t(places[k]);
      const T mean = first[k], square = second()[k];  // asked for before they are needed
      const T *d = delta(int(place >> 16)), *in = x + (place & 0xffff) * lanes;
      T sum[4] = {};
#pragma unroll 4
      for (int q = 0; q < quads; ++q) {
        const int at = ((q + thread) & (quads - 1)) * 4;
        const Four<T> a = four(d + at), b = four(in + at);
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[c] += a.v[c] * b.v[c];
      }
      T slope = (sum[0] + sum[1]) + (sum[2] + sum[3]);
      if (complete(k, slope, first_pass, last_pass)) moved(k, slope, rule, mean, square);
    }
  }

  // Two rows of four weights a thread.
  __device__ __forceinline__ void dense_update(const DeviceLayer& layer, const Optimizer<T>& rule, bool first_pass,
                                               bool last_pass) const {
    const int quads = lanes / 4, columns = layer.stride / 4, tasks = (layer.out + 1) / 2 * columns;
    for (int task = thread; task < tasks; task += threads) {
      const int o = task / columns * 2, i = task % columns * 4;
      const T *d[2], *in[4];
#pragma unroll
      for (int r = 0; r < 2; ++r) d[r] = delta(layer.out_row + min(o + r, layer.out - 1));
#pragma unroll
      for (int c = 0; c < 4; ++c) in[c] = x + (layer.in_row + min(i + c, layer.in - 1)) * lanes;
      T sum[2][4] = {};
      for (int q = 0; q < quads; ++q) {
        const int at = ((q + thread) & (quads - 1)) * 4;
        const Four<T> a[2] = {four(d[0] + at), four(d[1] + at)};
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const Four<T> b = four(in[c] + at);
#pragma unroll
          for (int r = 0; r < 2; ++r)
#pragma unroll
            for (int part = 0; part < 4; ++part) sum[r][c] += a[r].v[part] * b.v[part];
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (o + r < layer.out)
          dense_moved(layer.weights + (o + r) * layer.stride + i, sum[r], rule, first_pass, last_pass);
    }
  }
  __device__ __forceinline__ void dense_moved(int k, const T (&slopes)[4], const Optimizer<T>& rule, bool first_pass,
                                              bool last_pass) const {
    const uint32_t bits = image[s.kept + k / 32] >> (k % 32);
    Four<T> value = four(values + k), mean = four(first + k), square = four(second() + k);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      T slope = slopes[c];
      if ((bits >> c & 1) && complete(k + c, slope, first_pass, last_pass))
        step(k + c, slope, rule, value.v[c], mean.v[c], square.v[c]);
    }
    if (!last_pass) return;
    if (!SCORED) put_four(values + k, value);
    put_four(first + k, mean);
    if (rule.adam) put_four(second() + k, square);
  }

  __device__ __forceinline__ void update(const Optimizer<T>& rule, bool first_pass, bool last_pass) const {
    if (!SCORED) sparse_update(rule, first_pass, last_pass);
    for (int l = 0; l < s.depth; ++l)
      if (SCORED || layer(l).dense) dense_update(layer(l), rule, first_pass, last_pass);
    for (int k = s.biases + threads - 1 - thread; k < s.entries; k += threads) {
      if (!(image[s.kept + k / 32] >> (k % 32) & 1)) continue;
      T slope = 0;
      if (k < s.edges) {
        slope = bias_slope(k - s.biases);
      } else if (k < s.constant_biases) {
        const uint32_t ends = uint32_t(words(s.edge_words)[k - s.edges]);
        slope = constants[ends & 0xffff] * bias_slope(int(ends >> 16));
      } else if (k < s.idle) {
        slope = constant_deltas[k - s.constant_biases];
      }
      if (complete(k, slope, first_pass, last_pass)) moved(k, slope, rule, first[k], second()[k]);
    }
    __syncthreads();
  }

  __device__ __forceinline__ void choose(const int64_t* keeps) const {
    if constexpr (SCORED)
      lotterykit::choose(s, image, view.state, values, keeps, *view.choice);
  }

  __device__ __forceinline__ void train(const DeviceReplica<T>& me, const Turn& turn, const Span& span) const {
    Examples<T> batch{me.x_train, me.y_train, turn.order, span.from, 0};
    T next = 0;
    const auto ask = [&](int64_t from, int64_t end) {
      batch.from = from, batch.examples = int(min(int64_t(lanes), end - from));
      if (from < end && thread < gathers()) next = gathered(batch, thread);
    };
    ask(span.from, min(span.from + span.batch_size, span.to));
    int number = int((span.from - span.begin) / span.batch_size);
    for (int64_t start = span.from; start < span.to; start += span.batch_size, ++number) {
      const int64_t end = min(start + span.batch_size, span.to);
      const Pace pace = turn.paces[number];
      for (int64_t from = start; from < end; from += lanes) {
        const bool last_pass = from + lanes >= end;
        const int examples = batch.examples;
        gather(batch, next);
        if (last_pass) ask(end, min(end + span.batch_size, span.to));  // arrives while this pass is computed
        else ask(from + lanes, end);
        if (SCORED && from == start) choose(turn.keeps);
        __syncthreads();
        forward();
        loss_slopes(examples, end - start);
        backward();
        update(Optimizer<T>(training, pace), from == start, last_pass);
      }
    }
  }

  // The loss of one example, and whether its class is right.
  __device__ __forceinline__ double judged(int at, int& right) const {
    const T* z = x + (s.rows - s.outputs) * lanes + at;
    double loss = 0;
    if (training.loss == Loss::mse) {
      for (int o = 0; o < s.outputs; ++o) {
        const double error = double(z[o * lanes]) - double(targets[o * lanes + at]);
        loss += error * error;
      }
      return loss;
    }
    int best = 0;  // the first of the highest; a NaN counts as highest, as in torch
    T top = z[0];
    for (int o = 1; o < s.outputs; ++o) {
      const T value = z[o * lanes];
      if (value > top || (value != value && top == top)) best = o, top = value;
    }
    for (int o = 0; o < s.outputs; ++o) loss += exp(double(z[o * lanes] - top));
    const int label = int(targets[at]);
    right += best == label;
    return log(loss) + double(top) - double(z[label * lanes]);
  }

  __device__ __forceinline__ void evaluate(const TestSet<T>& test, double* found, double (&losses)[most_warps],
                                           int (&rights)[most_warps]) const {
    double loss = 0;
    int right = 0;
    for (int64_t from = 0; from < test.n; from += lanes) {
      const Examples<T> batch{test.x, test.y, nullptr, from, int(min(int64_t(lanes), test.n - from))};
      gather(batch, thread < gathers() ? gathered(batch, thread) : T(0));
      __syncthreads();
      forward();
      for (int chunk = warp; chunk < s.chunks; chunk += warps) {
        const int at = chunk * warp_lanes + lane;
        if (at < batch.examples) loss += judged(at, right);
      }
      __syncthreads();
    }
    loss = warp_sum(loss), right = warp_sum(right);
    if (lane == 0) losses[warp] = loss, rights[warp] = right;
    __syncthreads();
    if (thread == 0) {
      for (int other = 1; other < warps; ++other) loss += losses[other], right += rights[other];
      found[0] = loss / (double(test.n) * (training.loss == Loss::mse ? double(s.outputs) : 1.0));
      found[1] = double(right) / double(test.n);
    }
    __syncthreads();
  }
};

template <typename T>
__device__ __forceinline__ void copy(T* to, const T* from, int count) {
  for (int k = threadIdx.x; k < count; k += blockDim.x) to[k] = from[k];
}

template <typename T, Residence PLACE, bool SCORED>
__global__ void __launch_bounds__(most_threads<T, SCORED>, 1)
    train_span(const DeviceReplica<T>* table, const Turn* turns, const int32_t* members, Span span) {
  constexpr bool near_work = PLACE != Residence::none, near_moments = PLACE == Residence::all;
  constexpr bool near_net = PLACE == Residence::all || PLACE == Residence::work_and_net;
  __shared__ DeviceShape shape;
  __shared__ Training training;
  __shared__ ScoreRule rules;
  __shared__ double losses[most_warps];
  __shared__ int rights[most_warps];
  const DeviceReplica<T>& me = table[members[blockIdx.x]];
  copy(reinterpret_cast<uint32_t*>(&shape), me.image, int(sizeof(DeviceShape) / 4));
  if (threadIdx.x == 0) training = me.training, rules = me.scores;
  __syncthreads();

  const int lanes = shape.chunks * warp_lanes, above = shape.rows - shape.inputs, entries = shape.entries;
  T* work = near_work ? dynamic_shared<T>() : me.work;
  T* deltas = work + shape.rows * lanes;
  T* targets = deltas + above * lanes;
  T* sums = targets + (training.loss == Loss::mse ? shape.outputs : 1) * lanes;
  T* constants = sums + above * shape.chunks;
  T* constant_deltas = constants + shape.constants;
  const int own = (int(constant_deltas + shape.constants - work) + 3) & ~3;
  T* values = near_net ? dynamic_shared<T>() + own : me.state;
  T* moments = near_moments ? dynamic_shared<T>() + own + entries : me.state + entries;
  uint32_t* words = reinterpret_cast<uint32_t*>(dynamic_shared<T>() + own + (near_moments ? 3 : 1) * entries);
  if constexpr (near_net) copy(values, me.state, near_moments ? 3 * entries : entries);
  if constexpr (near_net) copy(words, me.image, shape.words);
  __syncthreads();

  const int thread = int(threadIdx.x), threads = int(blockDim.x);
  ScoreView<T> view{};
  if constexpr (SCORED) {
    view = {me.state + 3 * entries, choice_room(std::bool_constant<SCORED>())};
  }
  const Network<T, SCORED> net{shape, near_net ? words : me.image, training, rules, work, deltas, targets, sums,
                               constants, constant_deltas, values, moments, me.gradients, view, lanes,
                               __ffs(shape.chunks) - 1, thread, threads, thread % warp_lanes, thread / warp_lanes,
                               threads / warp_lanes};
  const Turn& turn = turns[members[blockIdx.x]];
  net.train(me, turn, span);
  if (SCORED && span.evaluate) net.choose(turn.ends);
  for (int64_t t = 0; span.evaluate && t < me.test_count; ++t)
    net.evaluate(me.tests[t], me.found + 2 * t, losses, rights);
  if constexpr (near_net) copy(me.state, values, near_moments ? 3 * entries : entries);
}

}  // namespace
}  // namespace lotterykit
