// Sparse convolution: y = act(x * W + bias) with the kept weights of W alone, and its gradients.
#pragma once
#include <cstdint>

#include "runtime.h"
#include "spmm.h"

namespace lotterykit {

// How images are stored: [batch][channel][row][column], [batch][row][column][channel] or
// [channel][row][column][batch]. The last is the kernels' own: such images are copied, or read and written where
// they are, and never turned.
enum class Order { channels_first, channels_last, batch_last };

// x [batch, in_channels, height, width], y [batch, out_channels, out_height, out_width], both in one order.
// W [out_channels, in_channels / groups * kernel_height * kernel_width] is a Structure of one block. Padding is what
// stands before the first row and column; what follows the last is implied by y's size.
struct Convolution {
  int64_t batch, in_channels, height, width, out_channels, out_height, out_width;
  int64_t kernel_height, kernel_width, stride_height, stride_width, padding_height, padding_width;
  int64_t dilation_height, dilation_width, groups;
  Order order;
};

// values [nnz] in CSR order, bias [out_channels] or null. False: stopped.
template <typename T>
bool conv2d(const T* x, const Convolution& conv, const Structure& w, const T* values, const T* bias, bool relu,
            T* y, const Run& run);

// dx, dvalues and dbias where they are not null, with g moved into tiles once. `gate` is conv2d's output where it
// had a ReLU, else null. All images are laid out as `conv` says. Zeros beside the image meet x: where x is not
// finite, the dvalues of every weight that reads its channel may be NaN.
template <typename T>
bool conv2d_backward(const T* g, const T* gate, const T* x, const Convolution& conv, const Structure& w,
                     const T* values, const Gradients<T>& out, const Run& run);

}  // namespace lotterykit
