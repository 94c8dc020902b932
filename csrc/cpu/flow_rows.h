// The rows of |W| times double vectors of `lanes` positions. Included once an instruction set by
// flow_products.cpp, which defines TARGET (the function attribute) and LANES (doubles of a register): generic
// vectors are lowered by the attribute of the function they stand in, so one template cannot serve all.
// No include guard, for that reason.

// Sums of `vectors` registers stay there over a row; `chains` sums run side by side where these alone would
// wait for each other. One span of positions for all rows: its part of x then stays in the nearest caches.
template <typename T, typename V, int vectors, int chains>
TARGET inline void forward_span(const FlowLayer<T>& l, int64_t from, double* y) {
  constexpr int64_t width = sizeof(V) / sizeof(double);
  const int32_t* offsets = l.offsets.data();
  for (int64_t r = 0; r < l.rows; ++r) {
    const double* x = l.x + r / l.rows_per_group * l.group_stride + from;
    V sum[chains][vectors] = {};
    int64_t k = l.starts[size_t(r)];
    const int64_t last = l.starts[size_t(r) + 1];
    for (; k + chains <= last; k += chains)
#pragma GCC unroll 4
      for (int c = 0; c < chains; ++c) {
        const double* at = x + offsets[l.places[size_t(k + c)]];
        const double value = double(l.magnitudes[size_t(k + c)]);
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) sum[c][v] += value * reinterpret_cast<const Loose<V>*>(at + v * width)->v;
      }
    for (; k < last; ++k) {
      const double* at = x + offsets[l.places[size_t(k)]];
      const double value = double(l.magnitudes[size_t(k)]);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sum[0][v] += value * reinterpret_cast<const Loose<V>*>(at + v * width)->v;
    }
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
#pragma GCC unroll 4
      for (int c = 1; c < chains; ++c) sum[0][v] += sum[c][v];
      reinterpret_cast<Loose<V>*>(y + r * l.lanes + from + v * width)->v = sum[0][v];
    }
  }
}

// The entries of a register, by halves: one after the other costs more than the product.
template <typename V>
TARGET inline double total(const V& v) {
  if constexpr (sizeof(V) == sizeof(double)) {
    return v;
  } else if constexpr (sizeof(V) == sizeof(Two)) {
    return v[0] + v[1];
  } else if constexpr (sizeof(V) == sizeof(Four)) {
    return total<Two>(__builtin_shufflevector(v, v, 0, 1) + __builtin_shufflevector(v, v, 2, 3));
  } else {
    return total<Four>(__builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7));
  }
}

// x . g over one span of positions, and dx += |W|^T g. `dots` carries the sums from the first span to the last,
// which makes scores of them.
template <typename T, typename V, int vectors, bool wants_dx>
TARGET inline void backward_span(FlowLayer<T>& l, int64_t from, double* dx, double* dots) {
  constexpr int64_t width = sizeof(V) / sizeof(double);
  const int32_t* offsets = l.offsets.data();
  const int32_t* places = l.places.data();
  const T* magnitudes = l.magnitudes.data();
  float* scores = l.scores.data();
  const double scale = l.score_scale;
  const bool first = from == 0, last_span = from + vectors * width == l.lanes;
  for (int64_t r = 0; r < l.rows; ++r) {
    const int64_t shift = r / l.rows_per_group * l.group_stride + from;
    V g[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) g[v] = reinterpret_cast<const Loose<V>*>(l.g + r * l.lanes + from + v * width)->v;
    for (int64_t k = l.starts[size_t(r)], last = l.starts[size_t(r) + 1]; k < last; ++k) {
      const int64_t at = shift + offsets[places[k]];
      const double value = double(magnitudes[k]);
      V dot = g[0] * reinterpret_cast<const Loose<V>*>(l.x + at)->v;
#pragma GCC unroll 8
      for (int v = 1; v < vectors; ++v) dot += g[v] * reinterpret_cast<const Loose<V>*>(l.x + at + v * width)->v;
      if (wants_dx) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) reinterpret_cast<Loose<V>*>(dx + at + v * width)->v += value * g[v];
      }
      double sum = total<V>(dot);
      if (!first) sum += dots[k];
      if (last_span) scores[k] = float(value * (sum * scale));
      else dots[k] = sum;
    }
  }
}

template <typename T>
TARGET void forward_rows(const FlowLayer<T>& l, double* y) {
  int64_t from = 0;
  for (; l.lanes - from >= 8 * LANES; from += 8 * LANES) forward_span<T, Wide, 8, 1>(l, from, y);
  for (; l.lanes - from >= 4 * LANES; from += 4 * LANES) forward_span<T, Wide, 4, 2>(l, from, y);
  for (; l.lanes - from >= 2 * LANES; from += 2 * LANES) forward_span<T, Wide, 2, 4>(l, from, y);
  for (; l.lanes - from >= LANES; from += LANES) forward_span<T, Wide, 1, 4>(l, from, y);
  for (; l.lanes - from >= 4; from += 4) forward_span<T, Four, 1, 4>(l, from, y);
  for (; l.lanes - from >= 1; from += 1) forward_span<T, One, 1, 4>(l, from, y);
}

template <typename T, bool wants_dx>
TARGET void backward_rows(FlowLayer<T>& l, double* dx, double* dots) {
  int64_t from = 0;
  for (; l.lanes - from >= 8 * LANES; from += 8 * LANES) backward_span<T, Wide, 8, wants_dx>(l, from, dx, dots);
  for (; l.lanes - from >= 4 * LANES; from += 4 * LANES) backward_span<T, Wide, 4, wants_dx>(l, from, dx, dots);
  for (; l.lanes - from >= 2 * LANES; from += 2 * LANES) backward_span<T, Wide, 2, wants_dx>(l, from, dx, dots);
  for (; l.lanes - from >= LANES; from += LANES) backward_span<T, Wide, 1, wants_dx>(l, from, dx, dots);
  for (; l.lanes - from >= 4; from += 4) backward_span<T, Four, 1, wants_dx>(l, from, dx, dots);
  for (; l.lanes - from >= 1; from += 1) backward_span<T, One, 1, wants_dx>(l, from, dx, dots);
}

// One position: places are offsets, and loads are gathers, which vectors do not speed up.
template <typename T>
TARGET void forward_single(const FlowLayer<T>& l, double* y) {
  for (int64_t r = 0; r < l.rows; ++r) {
    const double* x = l.x + r / l.rows_per_group * l.group_stride;
    const int32_t* places = l.places.data();
    const T* magnitudes = l.magnitudes.data();
    double sum[4] = {};
    int64_t k = l.starts[size_t(r)];
    const int64_t last = l.starts[size_t(r) + 1];
    for (; k + 4 <= last; k += 4)
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) sum[c] += double(magnitudes[k + c]) * x[places[k + c]];
    for (; k < last; ++k) sum[0] += double(magnitudes[k]) * x[places[k]];
    y[r] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
}

template <typename T, bool wants_dx>
TARGET void backward_single(FlowLayer<T>& l, double* dx) {
  for (int64_t r = 0; r < l.rows; ++r) {
    const int64_t shift = r / l.rows_per_group * l.group_stride;
    const double* x = l.x + shift;
    const double g = l.g[r], scaled = g * l.score_scale;
    for (int64_t k = l.starts[size_t(r)], last = l.starts[size_t(r) + 1]; k < last; ++k) {
      const int64_t at = l.places[size_t(k)];
      const double value = double(l.magnitudes[size_t(k)]);
      if (wants_dx) dx[shift + at] += value * g;
      l.scores[size_t(k)] = float(value * (x[at] * scaled));
    }
  }
}
