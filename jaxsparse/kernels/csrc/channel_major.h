// Convolution of channel-major images: chooses between rows.h and slabs.h.
#pragma once

#include "rows.h"
#include "slabs.h"

namespace jaxsparse {

// Whether a layer reads its inputs so often that copies pay. A nonzero reads all inputs of its
// channel, or one in (y stride * x stride).
//
// Args:
//   channels: of the tensor that is read.
inline bool copies_pay(const Layer& layer, const Nonzeros& nonzeros, i64 channels) {
  constexpr i64 kOften = 64;
  return nonzeros.count() >= kOften * channels * layer.y.stride * layer.x.stride;
}

inline void channel_major_forward(xla::ffi::ThreadPool& pool, const Layer& layer,
                                  const Nonzeros& nonzeros, const float* in, float* out,
                                  const Epilogue* epilogue = nullptr) {
  const bool copies = copies_pay(layer, nonzeros, layer.in_channels);
  (copies ? slabs_forward : rows_forward)(pool, layer, nonzeros, in, out, epilogue);
}

inline void channel_major_backward(xla::ffi::ThreadPool& pool, const Layer& layer,
                                   const Nonzeros& nonzeros, const float* in, const float* grad,
                                   float* grad_in, float* grad_values) {
  const bool copies = copies_pay(layer, nonzeros, layer.out_channels);
  (copies ? slabs_backward : rows_backward)(pool, layer, nonzeros, in, grad, grad_in, grad_values);
}

}  // namespace jaxsparse
