// The arithmetic of the replica trainer. No include guard: replica.cpp includes it once per instruction set,
// inside a namespace, with LK_TARGET (the functions' attribute), LK_BYTES (of a vector) and LK_LEVEL (0 plain,
// 1 AVX2, 2 AVX-512) defined.
//
// Activations are [neurons][LANES]: a lane is an example, so a kept weight is one multiply-add of vectors, dense
// or sparse alike, and no sum runs across lanes but those of the gradients.

template <typename T>
struct Vectors {
  typedef T type __attribute__((vector_size(LK_BYTES)));
  static constexpr int width = LK_BYTES / sizeof(T);
};
template <typename T>
using V = typename Vectors<T>::type;

template <typename T>
LK_TARGET inline V<T> load(const T* p) {
  return *reinterpret_cast<const V<T>*>(p);
}
template <typename T>
LK_TARGET inline void store(T* p, V<T> v) {
  *reinterpret_cast<V<T>*>(p) = v;
}
template <typename T>
LK_TARGET inline V<T> splat(T a) {
  return a - V<T>{};  // one broadcast; filling lane by lane, gcc 12 inserts each lane by itself
}

// max(0, x) that hands NaN on; d where x > 0 or NaN, else 0; the square root.
#if LK_LEVEL == 2
LK_TARGET inline V<float> relu(V<float> x) { return (V<float>)_mm512_max_ps(_mm512_setzero_ps(), (__m512)x); }
LK_TARGET inline V<double> relu(V<double> x) { return (V<double>)_mm512_max_pd(_mm512_setzero_pd(), (__m512d)x); }
LK_TARGET inline V<float> gate(V<float> d, V<float> x) {
  const __mmask16 on = _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_NLE_UQ);
  return (V<float>)_mm512_maskz_mov_ps(on, (__m512)d);
}
LK_TARGET inline V<double> gate(V<double> d, V<double> x) {
  const __mmask8 on = _mm512_cmp_pd_mask((__m512d)x, _mm512_setzero_pd(), _CMP_NLE_UQ);
  return (V<double>)_mm512_maskz_mov_pd(on, (__m512d)d);
}
LK_TARGET inline V<float> root(V<float> x) { return (V<float>)_mm512_sqrt_ps((__m512)x); }
LK_TARGET inline V<double> root(V<double> x) { return (V<double>)_mm512_sqrt_pd((__m512d)x); }
#elif LK_LEVEL == 1
LK_TARGET inline V<float> relu(V<float> x) { return (V<float>)_mm256_max_ps(_mm256_setzero_ps(), (__m256)x); }
LK_TARGET inline V<double> relu(V<double> x) { return (V<double>)_mm256_max_pd(_mm256_setzero_pd(), (__m256d)x); }
LK_TARGET inline V<float> gate(V<float> d, V<float> x) {
  return (V<float>)_mm256_and_ps(_mm256_cmp_ps((__m256)x, _mm256_setzero_ps(), _CMP_NLE_UQ), (__m256)d);
}
LK_TARGET inline V<double> gate(V<double> d, V<double> x) {
  return (V<double>)_mm256_and_pd(_mm256_cmp_pd((__m256d)x, _mm256_setzero_pd(), _CMP_NLE_UQ), (__m256d)d);
}
LK_TARGET inline V<float> root(V<float> x) { return (V<float>)_mm256_sqrt_ps((__m256)x); }
LK_TARGET inline V<double> root(V<double> x) { return (V<double>)_mm256_sqrt_pd((__m256d)x); }
#else
template <typename Vector>
inline Vector relu(Vector x) {
  for (size_t i = 0; i < sizeof(x) / sizeof(x[0]); ++i) x[i] = x[i] < 0 ? 0 : x[i];
  return x;
}
template <typename Vector>
inline Vector gate(Vector d, Vector x) {
  for (size_t i = 0; i < sizeof(x) / sizeof(x[0]); ++i) d[i] = x[i] <= 0 ? 0 : d[i];
  return d;
}
template <typename Vector>
inline Vector root(Vector x) {
  for (size_t i = 0; i < sizeof(x) / sizeof(x[0]); ++i) x[i] = std::sqrt(x[i]);
  return x;
}
#endif

// One halving of the transposing sum: neighbours of a, then neighbours of b, are added.
template <typename Vector>
LK_TARGET inline Vector paired_sum(Vector a, Vector b) {
  constexpr int width = sizeof(Vector) / sizeof(a[0]);
  if constexpr (width == 2)
    return __builtin_shufflevector(a, b, 0, 2) + __builtin_shufflevector(a, b, 1, 3);
  else if constexpr (width == 4)
    return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
  else if constexpr (width == 8)
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14) +
           __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
  else
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

// Lane i of the result is the sum over the lanes of a[i].
template <typename T>
LK_TARGET inline V<T> sums_of(V<T>* a) {
#pragma GCC unroll 4
  for (int n = Vectors<T>::width / 2; n >= 1; n /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) a[i] = paired_sum(a[2 * i], a[2 * i + 1]);
  return a[0];
}

// e^x to about 2 ulp (Cephes' polynomial), for softmax's x <= 0; NaN stays NaN.
LK_TARGET inline V<float> exponential(V<float> x) {
  const V<float> low = splat(-87.0f);
  x = x < low ? low : x;
  V<float> n = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to the nearest integer
  typedef int32_t Ints __attribute__((vector_size(LK_BYTES)));
  const Ints power = ((Ints)n - 0x4B400000 + 127) << 23;
  n -= 12582912.0f;
  const V<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  V<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return (p * r * r + r + 1.0f) * (V<float>)power;
}
LK_TARGET inline V<double> exponential(V<double> x) {
  for (int i = 0; i < Vectors<double>::width; ++i) x[i] = std::exp(x[i]);
  return x;
}

enum class Finish { plain, relu, gate };

template <typename T, Finish FINISH>
LK_TARGET inline V<T> finished(V<T> v, const T* gate_at) {
  if constexpr (FINISH == Finish::relu) return relu(v);
  if constexpr (FINISH == Finish::gate) return gate(v, load(gate_at));
  (void)gate_at;
  return v;
}

// ROWS rows of a dense product over COLUMNS vectors: out[r] = start[r] + sum_k w[r * row_step + k * k_step] x[k].
template <typename T, int LANES, int ROWS, int COLUMNS, Finish FINISH>
LK_TARGET inline void dense_tile(const T* w, int64_t row_step, int64_t k_step, int64_t n, const T* start,
                                 const T* x, T* out, const T* gates) {
  constexpr int width = Vectors<T>::width;
  V<T> sum[ROWS][COLUMNS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < COLUMNS; ++c) sum[r][c] = splat(start == nullptr ? T(0) : start[r]);
  for (int64_t k = 0; k < n; ++k) {
    V<T> in[COLUMNS];
#pragma GCC unroll 4
    for (int c = 0; c < COLUMNS; ++c) in[c] = load(x + k * LANES + c * width);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const T weight = w[r * row_step + k * k_step];
#pragma GCC unroll 4
      for (int c = 0; c < COLUMNS; ++c) sum[r][c] += weight * in[c];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < COLUMNS; ++c)
      store(out + r * LANES + c * width, finished<T, FINISH>(sum[r][c], gates + r * LANES + c * width));
}

// The registers decide how many rows a tile takes: with 32 of them 12 x 2 sums, with 16 of them 6 x 2.
template <typename T, int LANES, Finish FINISH>
LK_TARGET void dense_product(const T* w, int64_t row_step, int64_t k_step, int64_t rows, int64_t n, const T* start,
                             const T* x, T* out, const T* gates) {
  constexpr int width = Vectors<T>::width, all = LANES / width, columns = all < 2 ? all : 2;
  int64_t r = 0;
#define LK_ROWS(height)                                                                                   \
  for (; r + height <= rows; r += height)                                                                 \
    for (int c = 0; c < all; c += columns)                                                                \
      dense_tile<T, LANES, height, columns, FINISH>(w + r * row_step, row_step, k_step, n,                \
                                                    start == nullptr ? nullptr : start + r, x + c * width, \
                                                    out + r * LANES + c * width, gates + r * LANES + c * width);
  LK_ROWS((LK_LEVEL == 2 ? 12 : 6))
  LK_ROWS(4)
  LK_ROWS(2)
  LK_ROWS(1)
#undef LK_ROWS
}

// ROWS rows of dW over COLUMNS vectors of inputs: g[o][i] (+)= sum over examples of delta[o][b] x[b][i].
template <typename T, int LANES, int ROWS, int COLUMNS>
LK_TARGET inline void slope_tile(const T* deltas, const T* turned, int64_t stride, int64_t examples, bool add, T* g) {
  constexpr int width = Vectors<T>::width;
  V<T> sum[ROWS][COLUMNS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < COLUMNS; ++c) sum[r][c] = add ? load(g + r * stride + c * width) : V<T>{};
  for (int64_t b = 0; b < examples; ++b) {
    V<T> in[COLUMNS];
#pragma GCC unroll 4
    for (int c = 0; c < COLUMNS; ++c) in[c] = load(turned + b * stride + c * width);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const T delta = deltas[r * LANES + b];
#pragma GCC unroll 4
      for (int c = 0; c < COLUMNS; ++c) sum[r][c] += delta * in[c];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < COLUMNS; ++c) store(g + r * stride + c * width, sum[r][c]);
}

template <typename T, int LANES, int COLUMNS>
LK_TARGET void slope_columns(const T* deltas, const T* turned, int64_t rows, int64_t stride, int64_t examples,
                             bool add, T* g) {
  int64_t r = 0;
#define LK_ROWS(height)                   \
  for (; r + height <= rows; r += height) \
    slope_tile<T, LANES, height, COLUMNS>(deltas + r * LANES, turned, stride, examples, add, g + r * stride);
  LK_ROWS(6)
  LK_ROWS(4)
  LK_ROWS(2)
  LK_ROWS(1)
#undef LK_ROWS
}

template <typename T, int LANES>
LK_TARGET void dense_slopes(const T* deltas, const T* turned, int64_t rows, int64_t stride, int64_t examples,
                            bool add, T* g) {
  constexpr int width = Vectors<T>::width, most = LK_LEVEL == 2 ? 4 : 2;
  int64_t i = 0;
  for (; i + most * width <= stride; i += most * width)
    slope_columns<T, LANES, most>(deltas, turned + i, rows, stride, examples, add, g + i);
  if constexpr (most == 4)
    if (i + 3 * width <= stride) {
      slope_columns<T, LANES, 3>(deltas, turned + i, rows, stride, examples, add, g + i);
      i += 3 * width;
    }
  if (i + 2 * width <= stride) {
    slope_columns<T, LANES, 2>(deltas, turned + i, rows, stride, examples, add, g + i);
    i += 2 * width;
  }
  if (i + width <= stride) slope_columns<T, LANES, 1>(deltas, turned + i, rows, stride, examples, add, g + i);
}

// out[r] = start[r] + sum over the places of row r of w[place] x[column]; `order` (may be null) names the place.
template <typename T, int LANES, Finish FINISH>
LK_TARGET void sparse_product(const T* w, const int32_t* order, const std::vector<int32_t>& offsets,
                              const std::vector<int32_t>& columns, int64_t rows, const T* start, const T* x, T* out,
                              const T* gates) {
  constexpr int width = Vectors<T>::width, all = LANES / width, part = all < 4 ? all : 4;
  for (int64_t r = 0; r < rows; ++r) {
    const int32_t from = offsets[r], to = offsets[r + 1];
    for (int at = 0; at < LANES; at += part * width) {
      V<T> even[part], odd[part];
#pragma GCC unroll 4
      for (int c = 0; c < part; ++c) even[c] = splat(start == nullptr ? T(0) : start[r]), odd[c] = V<T>{};
      int32_t k = from;
      for (; k + 2 <= to; k += 2) {
        const T w0 = w[order == nullptr ? k : order[k]], w1 = w[order == nullptr ? k + 1 : order[k + 1]];
        const T *x0 = x + int64_t(columns[k]) * LANES + at, *x1 = x + int64_t(columns[k + 1]) * LANES + at;
#pragma GCC unroll 4
        for (int c = 0; c < part; ++c) {
          even[c] += w0 * load(x0 + c * width);
          odd[c] += w1 * load(x1 + c * width);
        }
      }
      if (k < to) {
        const T w0 = w[order == nullptr ? k : order[k]];
        const T* x0 = x + int64_t(columns[k]) * LANES + at;
#pragma GCC unroll 4
        for (int c = 0; c < part; ++c) even[c] += w0 * load(x0 + c * width);
      }
#pragma GCC unroll 4
      for (int c = 0; c < part; ++c) {
        const int64_t to_store = r * LANES + at + c * width;
        store(out + to_store, finished<T, FINISH>(even[c] + odd[c], gates + to_store));
      }
    }
  }
}

// The sum over the lanes of a row, as a vector still to be summed.
template <typename T, int LANES>
LK_TARGET inline V<T> folded(const T* row) {
  V<T> sum = load(row);
#pragma GCC unroll 16
  for (int c = Vectors<T>::width; c < LANES; c += Vectors<T>::width) sum += load(row + c);
  return sum;
}

// g[o] (+)= the sum of deltas [rows][LANES] over the lanes; g has room for whole vectors.
template <typename T, int LANES>
LK_TARGET void bias_slopes(const T* deltas, int64_t rows, bool add, T* g) {
  constexpr int width = Vectors<T>::width;
  for (int64_t r = 0; r < rows; r += width) {
    V<T> parts[width];
    for (int i = 0; i < width; ++i)
      parts[i] = r + i < rows ? folded<T, LANES>(deltas + (r + i) * LANES) : V<T>{};
    const V<T> sum = sums_of<T>(parts);
    store(g + r, add ? load(g + r) + sum : sum);
  }
}

// g[place] (+)= deltas[row] . x[column]; the places are padded to whole vectors with row and column 0.
template <typename T, int LANES>
LK_TARGET void sparse_slopes(const T* deltas, const T* x, const std::vector<int32_t>& rows,
                             const std::vector<int32_t>& columns, bool add, T* g) {
  constexpr int width = Vectors<T>::width;
  const int64_t n = int64_t(rows.size());
  for (int64_t k = 0; k < n; k += width) {
    V<T> parts[width];
#pragma GCC unroll 16
    for (int i = 0; i < width; ++i) {
      const T *d = deltas + int64_t(rows[k + i]) * LANES, *in = x + int64_t(columns[k + i]) * LANES;
      V<T> sum = load(d) * load(in);
#pragma GCC unroll 16
      for (int c = width; c < LANES; c += width) sum += load(d + c) * load(in + c);
      parts[i] = sum;
    }
    const V<T> sum = sums_of<T>(parts);
    store(g + k, add ? load(g + k) + sum : sum);
  }
}

// The values of the constant neurons, and the biases of the live ones with what constants add to them.
template <typename T>
LK_TARGET void constants_forward(const Replica<T>& net, Workspace<T>& work) {
  const int64_t depth = int64_t(net.layers.size());
  for (int64_t l = 0; l < depth; ++l) {
    const LiveLayer& layer = net.layers[l];
    T *biases = work.biases.get() + work.bias_at[l], *constants = work.constants.get() + work.constant_at[l + 1];
    const T* below = work.constants.get() + work.constant_at[l];
    if (layer.fed_by_constants)
      for (int64_t o = 0; o < layer.out; ++o) biases[o] = net.values[layer.biases + o];
    for (int64_t j = 0; j < layer.constants; ++j) constants[j] = net.values[layer.constant_biases + j];
    // Each sum takes its edges in the same order either way; by neuron, no addition waits for the one before.
    for (const ConstantEdge& e : layer.outward)
      (e.to_constant ? constants : biases)[e.to] += net.values[e.at] * below[e.from];
    for (int64_t j = 0; j < layer.constants; ++j) constants[j] = constants[j] < 0 ? T(0) : constants[j];
  }
}

// Gradients of constant neurons' biases and edges, from the biases' gradients of the live neurons.
template <typename T>
LK_TARGET void constants_backward(const Replica<T>& net, Workspace<T>& work) {
  for (int64_t l = int64_t(net.layers.size()) - 1; l >= 0; --l) {
    const LiveLayer& layer = net.layers[l];
    T *below = work.constant_deltas.get() + work.constant_at[l], *here = work.constant_deltas.get() + work.constant_at[l + 1];
    const T* values = work.constants.get() + work.constant_at[l];
    for (int64_t j = 0; j < layer.constants; ++j) net.gradients[layer.constant_biases + j] = here[j];
    const int64_t count = l == 0 ? 0 : net.layers[l - 1].constants;
    for (int64_t j = 0; j < count; ++j) below[j] = 0;
    for (const ConstantEdge& e : layer.edges) {
      const T delta = e.to_constant ? here[e.to] : net.gradients[layer.biases + e.to];
      net.gradients[e.at] = values[e.from] * delta;
      below[e.from] += net.values[e.at] * delta;
    }
    for (int64_t j = 0; j < count; ++j) below[j] = values[j] <= 0 ? T(0) : below[j];
  }
}

// The examples' inputs in use as [inputs][LANES]; lanes without an example are 0.
template <typename T, int LANES>
LK_TARGET void gather(const Replica<T>& net, const Examples<T>& data, const int64_t* order, int64_t examples, T* out) {
  const int64_t used = int64_t(net.inputs.size()), n_in = net.widths.front();
  for (int64_t b = 0; b < LANES; ++b) {
    if (b >= examples) {
      for (int64_t i = 0; i < used; ++i) out[i * LANES + b] = 0;
      continue;
    }
    const T* x = data.x + order[b] * n_in;
    for (int64_t i = 0; i < used; ++i) out[i * LANES + b] = x[net.inputs[i]];
  }
}

// work.activations of every layer, the output last, without its ReLU.
template <typename T, int LANES>
LK_TARGET void forward(const Replica<T>& net, Workspace<T>& work) {
  const int64_t depth = int64_t(net.layers.size());
  for (int64_t l = 0; l < depth; ++l) {
    const LiveLayer& layer = net.layers[l];
    const T* x = work.activations.get() + work.activation_at[l];
    T* y = work.activations.get() + work.activation_at[l + 1];
    const T *w = net.values.get() + layer.weights, *biases = net.values.get() + layer.biases;
    if (layer.fed_by_constants) biases = work.biases.get() + work.bias_at[l];
    if (layer.dense && l + 1 < depth)
      dense_product<T, LANES, Finish::relu>(w, layer.stride, 1, layer.out, layer.in, biases, x, y, y);
    else if (layer.dense)
      dense_product<T, LANES, Finish::plain>(w, layer.stride, 1, layer.out, layer.in, biases, x, y, y);
    else if (l + 1 < depth)
      sparse_product<T, LANES, Finish::relu>(w, nullptr, layer.row_offsets, layer.columns, layer.out, biases, x, y, y);
    else
      sparse_product<T, LANES, Finish::plain>(w, nullptr, layer.row_offsets, layer.columns, layer.out, biases, x, y, y);
  }
}

// The gradient of the mean loss over `count` examples by the outputs; 0 in lanes without an example.
template <typename T, int LANES>
LK_TARGET void loss_slopes(const Replica<T>& net, const int64_t* order, int64_t examples, int64_t count,
                           const T* output, T* deltas) {
  constexpr int width = Vectors<T>::width;
  const int64_t outputs = net.widths.back();
  if (net.training.loss == Loss::mse) {
    const T factor = T(2.0 / (double(count) * double(outputs)));
    const T* y = static_cast<const T*>(net.training_data.y);
    for (int64_t o = 0; o < outputs; ++o)
      for (int64_t b = 0; b < LANES; ++b)
        deltas[o * LANES + b] =
            b < examples ? (output[o * LANES + b] - y[order[b] * outputs + o]) * factor : T(0);
    return;
  }
  const T share = T(1.0 / double(count));
  for (int c = 0; c < LANES; c += width) {
    V<T> highest = load(output + c), sum = {};
    for (int64_t o = 1; o < outputs; ++o) {
      const V<T> z = load(output + o * LANES + c);
      highest = z > highest ? z : highest;
    }
    for (int64_t o = 0; o < outputs; ++o) {
      const V<T> e = exponential(load(output + o * LANES + c) - highest);
      sum += e;
      store(deltas + o * LANES + c, e);
    }
    const V<T> factor = share / sum;
    for (int64_t o = 0; o < outputs; ++o) store(deltas + o * LANES + c, load(deltas + o * LANES + c) * factor);
  }
  const int64_t* classes = static_cast<const int64_t*>(net.training_data.y);
  for (int64_t b = 0; b < examples; ++b) deltas[classes[order[b]] * LANES + b] -= share;
  if (examples < LANES)
    for (int64_t o = 0; o < outputs; ++o)
      for (int64_t b = examples; b < LANES; ++b) deltas[o * LANES + b] = 0;
}

// The first and the second half of a and b, lane by lane in turn.
template <typename Vector, size_t... I>
LK_TARGET inline Vector interleaved(Vector a, Vector b, std::index_sequence<I...>) {
  constexpr size_t width = sizeof...(I);
  return __builtin_shufflevector(a, b, (I / 2 + (I % 2) * width)...);
}
template <typename Vector, size_t... I>
LK_TARGET inline Vector interleaved_after(Vector a, Vector b, std::index_sequence<I...>) {
  constexpr size_t width = sizeof...(I);
  return __builtin_shufflevector(a, b, (I / 2 + (I % 2) * width + width / 2)...);
}

// Rows [rows][LANES] as [examples][stride]; the rest of each row is 0. Interleaving the halves of a square of
// vectors log2(width) times transposes it.
template <typename T, int LANES>
LK_TARGET void turn(const T* x, int64_t rows, int64_t stride, int64_t examples, T* out) {
  constexpr int width = Vectors<T>::width;
  constexpr auto lanes = std::make_index_sequence<width>();
  for (int64_t i = 0; i < stride; i += width)
    for (int64_t b = 0; b < examples; b += width) {
      V<T> here[width], next[width];
#pragma GCC unroll 16
      for (int r = 0; r < width; ++r) here[r] = i + r < rows ? load(x + (i + r) * LANES + b) : V<T>{};
#pragma GCC unroll 4
      for (int half = 1; half < width; half *= 2) {
#pragma GCC unroll 8
        for (int r = 0; r < width / 2; ++r) {
          next[2 * r] = interleaved(here[r], here[r + width / 2], lanes);
          next[2 * r + 1] = interleaved_after(here[r], here[r + width / 2], lanes);
        }
#pragma GCC unroll 16
        for (int r = 0; r < width; ++r) here[r] = next[r];
      }
#pragma GCC unroll 16
      for (int r = 0; r < width; ++r)
        if (b + r < examples) store(out + (b + r) * stride + i, here[r]);
    }
}

template <typename T, int LANES>
LK_TARGET void backward(const Replica<T>& net, Workspace<T>& work, int64_t examples, bool add) {
  const int64_t depth = int64_t(net.layers.size());
  T *deltas = work.deltas.get() + work.activation_at[depth], *turned = work.turned.get();
  for (int64_t l = depth - 1; l >= 0; --l) {
    const LiveLayer& layer = net.layers[l];
    const T *x = work.activations.get() + work.activation_at[l], *w = net.values.get() + layer.weights;
    T *below = work.deltas.get() + work.activation_at[l], *g = net.gradients.get() + layer.weights;
    bias_slopes<T, LANES>(deltas, layer.out, add, net.gradients.get() + layer.biases);
    if (layer.dense) {
      if (l > 0) dense_product<T, LANES, Finish::gate>(w, 1, layer.stride, layer.in, layer.out, nullptr, deltas, below, x);
      turn<T, LANES>(x, layer.in, layer.stride, examples, turned + work.turned_at[l]);
      dense_slopes<T, LANES>(deltas, turned + work.turned_at[l], layer.out, layer.stride, examples, add, g);
    } else {
      if (l > 0)
        sparse_product<T, LANES, Finish::gate>(w, layer.order.data(), layer.column_offsets, layer.turned_rows,
                                               layer.in, nullptr, deltas, below, x);
      sparse_slopes<T, LANES>(deltas, x, layer.rows, layer.columns, add, g);
    }
    deltas = below;
  }
}

// One step of the optimizer over the flat arrays: torch.optim's Adam and SGD, with L2 weight decay. It acts on
// the values, or on the scores: their slope is that of the effective weight times the frozen one, and with
// edge-popup, which ranks |score|, times the score's sign.
template <typename T>
LK_TARGET void optimize(const Replica<T>& net, double learning_rate, int64_t step) {
  constexpr int width = Vectors<T>::width;
  const Training& rule = net.training;
  const ScoreState<T>* scored = net.scored.get();
  const T decay = T(rule.weight_decay);
  T *p = scored == nullptr ? net.values.get() : scored->values.get(), *m = net.first.get(), *v = net.second.get();
  const T *g = net.gradients.get(), *kept = net.kept.get();
  const double first_correction = 1 - std::pow(rule.beta1, double(step)), rate = learning_rate / first_correction;
  const T pace = T(rate), plain_pace = T(learning_rate), eps = T(rule.eps), momentum = T(rule.momentum);
  const T fresh = T(1 - rule.beta1), old_square = T(rule.beta2), new_square = T(1 - rule.beta2);
  const T root_correction = T(1 / std::sqrt(1 - std::pow(rule.beta2, double(step))));
  const T penalty = T(net.full_scores.penalty);
  const V<T> zero = {}, one = splat(T(1));
  for (int64_t i = 0; i < net.entries; i += width) {
    V<T> slope = load(g + i), value = load(p + i);
    if (scored != nullptr) {
      slope *= load(scored->frozen.get() + i);
      if (!net.full_scores.gem) slope = value < zero ? -slope : (value == zero ? zero : slope);
      slope = (slope + penalty * value) * load(scored->active.get() + i);
    }
    else if (net.masked)
      slope *= load(kept + i);
    slope += decay * value;
    if (rule.rule == Rule::adam) {
      V<T> mean = load(m + i), square = load(v + i);
      mean += fresh * (slope - mean);
      square = old_square * square + new_square * slope * slope;
      store(m + i, mean);
      store(v + i, square);
      value -= pace * mean / (root(square) * root_correction + eps);
    } else {
      if (rule.momentum != 0) {
        slope += momentum * load(m + i);
        store(m + i, slope);
      }
      value -= plain_pace * slope;
    }
    if (net.full_scores.gem) {
      value = value < zero ? zero : value;
      value = value > one ? one : value;
    }
    store(p + i, value);
  }
}

// |score| (Gem-Miner's are not negative); NaN stays NaN.
template <typename T>
LK_TARGET inline V<T> key_of(V<T> score) {
  return score < V<T>{} ? -score : score;
}

template <typename T>
LK_TARGET inline int any_between(V<T> keys, V<T> low, V<T> high) {
#if LK_LEVEL == 2
  if constexpr (sizeof(T) == 4)
    return _mm512_cmp_ps_mask((__m512)keys, (__m512)low, _CMP_GE_OQ) &
           _mm512_cmp_ps_mask((__m512)keys, (__m512)high, _CMP_LE_OQ);
  else
    return _mm512_cmp_pd_mask((__m512d)keys, (__m512d)low, _CMP_GE_OQ) &
           _mm512_cmp_pd_mask((__m512d)keys, (__m512d)high, _CMP_LE_OQ);
#elif LK_LEVEL == 1
  if constexpr (sizeof(T) == 4)
    return _mm256_movemask_ps(_mm256_and_ps(_mm256_cmp_ps((__m256)keys, (__m256)low, _CMP_GE_OQ),
                                            _mm256_cmp_ps((__m256)keys, (__m256)high, _CMP_LE_OQ)));
  else
    return _mm256_movemask_pd(_mm256_and_pd(_mm256_cmp_pd((__m256d)keys, (__m256d)low, _CMP_GE_OQ),
                                            _mm256_cmp_pd((__m256d)keys, (__m256d)high, _CMP_LE_OQ)));
#else
  int bits = 0;
  for (int i = 0; i < Vectors<T>::width; ++i) bits |= int(keys[i] >= low[i] && keys[i] <= high[i]) << i;
  return bits;
#endif
}

// How many keys of the group lie above `high`; those in [low, high] are appended to the candidates.
template <typename T>
LK_TARGET int64_t split_scores(ScoreState<T>& state, const ScoreGroup<T>& group, T low, T high) {
  constexpr int width = Vectors<T>::width;
  const V<T> lows = splat(low), highs = splat(high), one = splat(T(1)), zero = {};
  V<T> above = {};  // exact: fewer than 2^24 vectors
  int64_t count = 0;
  state.candidates.clear();
  for (const ScoredRows& tensor : group.tensors) {
    const int64_t end = tensor.start + (tensor.rows > 1 ? tensor.rows * tensor.stride : tensor.columns);
    for (int64_t i = tensor.start; i < end; i += width) {
      const V<T> keys = key_of<T>(load(state.values.get() + i));
      above += keys > highs ? one : zero;
      if (int bits = any_between<T>(keys, lows, highs))
        for (; bits; bits &= bits - 1) {
          const int lane = __builtin_ctz(unsigned(bits));
          state.candidates.push_back({keys[lane], i + lane});
        }
    }
  }
  for (int i = 0; i < width; ++i) count += int64_t(above[i]);
  return count;
}

// The effective weights of the group: the frozen ones where the key is above `threshold`.
template <typename T>
LK_TARGET void keep_above(const Replica<T>& net, const ScoreGroup<T>& group, T threshold) {
  constexpr int width = Vectors<T>::width;
  const ScoreState<T>& state = *net.scored;
  const V<T> thresholds = splat(threshold), zero = {};
  for (const ScoredRows& tensor : group.tensors) {
    const int64_t end = tensor.start + (tensor.rows > 1 ? tensor.rows * tensor.stride : tensor.columns);
    for (int64_t i = tensor.start; i < end; i += width) {
      const V<T> keys = key_of<T>(load(state.values.get() + i));
      store(net.values.get() + i, keys > thresholds ? load(state.frozen.get() + i) : zero);
    }
  }
}

// The masks that the scores stand for: exactly keeps[g] of each group, ties by the seeded order.
template <typename T>
LK_TARGET void choose(const Replica<T>& net) {
  const T infinity = std::numeric_limits<T>::infinity();
  ScoreState<T>& state = *net.scored;
  for (size_t g = 0; g < state.groups.size(); ++g) {
    ScoreGroup<T>& group = state.groups[g];
    const int64_t keep = net.keeps[g];
    if (keep == every_active)
      keep_active(net, group);
    else if (keep == from_half)
      keep_above(net, group, std::nextafter(T(0.5), T(0)));
    else if (keep == 0)
      keep_above(net, group, infinity);
    else {
      int64_t above = -1;
      if (group.warm) {
        above = split_scores(state, group, group.threshold - group.margin, group.threshold + group.margin);
        if (above >= keep || above + int64_t(state.candidates.size()) < keep) above = -1, group.margin *= 4;
      }
      if (above < 0) {
        above = split_scores(state, group, -infinity, infinity);
        if (above + int64_t(state.candidates.size()) < keep) add_nans(state, group);
      }
      settle(state, group, keep - above);
      keep_above(net, group, group.threshold);
      for (const Candidate<T>& tied : state.candidates) net.values[tied.at] = state.frozen[tied.at];
    }
  }
}

template <typename T, int LANES>
LK_TARGET void gradients_of(const Replica<T>& net, const int64_t* order, int64_t count, Workspace<T>& work) {
  const int64_t depth = int64_t(net.layers.size());
  const T* output = work.activations.get() + work.activation_at[depth];
  T* deltas = work.deltas.get() + work.activation_at[depth];
  constants_forward(net, work);
  for (int64_t from = 0; from < count; from += LANES) {
    const int64_t examples = std::min<int64_t>(LANES, count - from);
    gather<T, LANES>(net, net.training_data, order + from, examples, work.activations.get());
    forward<T, LANES>(net, work);
    loss_slopes<T, LANES>(net, order + from, examples, count, output, deltas);
    backward<T, LANES>(net, work, examples, from > 0);
  }
  constants_backward(net, work);
}

// One training step on the examples order[0:count].
template <typename T>
LK_TARGET void train_step(const Replica<T>& net, const int64_t* order, int64_t count, double learning_rate,
                          int64_t step, Workspace<T>& work) {
  constexpr int width = Vectors<T>::width;
  if (net.scored != nullptr) choose(net);
  if constexpr (LK_LEVEL > 0 && width <= 8) {
    if (count <= 8) {
      gradients_of<T, 8>(net, order, count, work);
      return optimize(net, learning_rate, step);
    }
  }
  if constexpr (LK_LEVEL > 0) {
    if (count <= 16) {
      gradients_of<T, 16>(net, order, count, work);
      return optimize(net, learning_rate, step);
    }
  }
  gradients_of<T, most_lanes>(net, order, count, work);
  optimize(net, learning_rate, step);
}

template <typename T>
LK_TARGET Evaluation evaluate(const Replica<T>& net, const Examples<T>& data, Workspace<T>& work) {
  constexpr int LANES = most_lanes;
  const int64_t outputs = net.widths.back();
  const T* output = work.activations.get() + work.activation_at[net.layers.size()];
  double loss = 0;
  int64_t right = 0, order[LANES];
  constants_forward(net, work);
  for (int64_t from = 0; from < data.n; from += LANES) {
    const int64_t examples = std::min<int64_t>(LANES, data.n - from);
    for (int64_t b = 0; b < examples; ++b) order[b] = from + b;
    gather<T, LANES>(net, data, order, examples, work.activations.get());
    forward<T, LANES>(net, work);
    for (int64_t b = 0; b < examples; ++b) {
      if (net.training.loss == Loss::mse) {
        const T* y = static_cast<const T*>(data.y) + (from + b) * outputs;
        for (int64_t o = 0; o < outputs; ++o) {
          const double error = double(output[o * LANES + b]) - double(y[o]);
          loss += error * error;
        }
        continue;
      }
      const int64_t label = static_cast<const int64_t*>(data.y)[from + b];
      int64_t best = 0;  // the first of the highest; a NaN counts as highest, as in torch
      for (int64_t o = 1; o < outputs; ++o) {
        const T z = output[o * LANES + b], top = output[best * LANES + b];
        if (z > top || (std::isnan(z) && !std::isnan(top))) best = o;
      }
      double sum = 0;
      for (int64_t o = 0; o < outputs; ++o) sum += std::exp(double(output[o * LANES + b] - output[best * LANES + b]));
      loss += std::log(sum) + double(output[best * LANES + b]) - double(output[label * LANES + b]);
      right += best == label;
    }
  }
  const double count = double(data.n) * (net.training.loss == Loss::mse ? double(outputs) : 1.0);
  return {loss / count, double(right) / double(data.n)};
}
