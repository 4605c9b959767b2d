// Batch normalisation of channel-major images, with what follows it in a residual network.
//
// A channel is one piece of memory. It is read for the statistics, and again for the normalisation
// while it is still in the cache. Shortcut and ReLU are part of that second loop. XLA makes a pass
// over all channels for each of these.
#pragma once

#include <cmath>

#include "threads.h"
#include "vec.h"

namespace jaxsparse {

struct Norm {
  i64 channels, size;  // floats of a channel
  float epsilon;
  bool relu;
};

namespace norm {

// Floats of a block of a sum. Longer plain sums lose digits, and may change the sign of what goes
// into a ReLU.
constexpr i64 kBlock = 2048;

// Returns the sum over [0, size) block by block. term(i) is the vector at i, and one(i) the float
// at i, for what is left over.
template <class Term, class One>
inline float sum_over(i64 size, const Term& term, const One& one) {
  vec sums = {};
  i64 i = 0;
  while (i + kLanes <= size) {
    vec block = {};
    for (const i64 end = std::min(size, i + kBlock); i + kLanes <= end; i += kLanes) {
      block += term(i);
    }
    sums += block;
  }
  float total = sum(sums);
  for (; i < size; i++) total += one(i);
  return total;
}

// Calls each(i) for the vectors of [0, size), and one(i) for the floats that are left over.
template <class Each, class One>
inline void for_each(i64 size, const Each& each, const One& one) {
  i64 i = 0;
  for (; i + kLanes <= size; i += kLanes) each(i);
  for (; i < size; i++) one(i);
}

}  // namespace norm

// Writes y = (x - mean) / sqrt(variance + epsilon) * scale + bias, plus the shortcut if it is not
// null, and the positive part of that if `relu`; also mean and biased variance of every channel.
inline void norm_forward(xla::ffi::ThreadPool& pool, const Norm& norm, const float* x,
                         const float* scale, const float* bias, const float* shortcut, float* y,
                         float* means, float* variances) {
  parallel_for(pool, norm.channels, [&](i64 c) {
    const float* from = x + c * norm.size;
    const float* more = shortcut ? shortcut + c * norm.size : nullptr;
    float* to = y + c * norm.size;
    const float n = static_cast<float>(norm.size);
    const auto value = [&](i64 i) { return load(from + i); };
    const auto value_one = [&](i64 i) { return from[i]; };
    const float mean = norm::sum_over(norm.size, value, value_one) / n;
    const vec means_of = broadcast(mean);
    const auto square = [&](i64 i) {
      const vec d = load(from + i) - means_of;
      return d * d;
    };
    const auto square_one = [&](i64 i) {
      const float d = from[i] - mean;
      return d * d;
    };
    const float variance = norm::sum_over(norm.size, square, square_one) / n;
    means[c] = mean;
    variances[c] = variance;
    const float factor = scale[c] / std::sqrt(variance + norm.epsilon);
    const vec factors = broadcast(factor), biases = broadcast(bias[c]);
    norm::for_each(
        norm.size,
        [&](i64 i) {
          vec out = (load(from + i) - means_of) * factors + biases;
          if (more) out += load(more + i);
          store(to + i, norm.relu ? where_positive(out, out) : out);
        },
        [&](i64 i) {
          float out = (from[i] - mean) * factor + bias[c];
          if (more) out += more[i];
          to[i] = norm.relu ? where_positive(out, out) : out;
        });
  });
}

// Writes the gradients of x, scale and bias, and of the shortcut if grad_shortcut is not null.
inline void norm_backward(xla::ffi::ThreadPool& pool, const Norm& norm, const float* x,
                          const float* y, const float* grad, const float* scale, const float* means,
                          const float* variances, float* grad_x, float* grad_scale,
                          float* grad_bias, float* grad_shortcut) {
  parallel_for(pool, norm.channels, [&](i64 c) {
    const i64 at = c * norm.size;
    const float *from = x + at, *out = y + at, *given = grad + at;
    const float mean = means[c], inverse = 1 / std::sqrt(variances[c] + norm.epsilon);
    const vec means_of = broadcast(mean);
    // The gradient that the ReLU lets through.
    const auto through = [&](i64 i) {
      return norm.relu ? where_positive(load(out + i), load(given + i)) : load(given + i);
    };
    const auto through_one = [&](i64 i) {
      return norm.relu ? where_positive(out[i], given[i]) : given[i];
    };
    const float sum_grad = norm::sum_over(norm.size, through, through_one);
    // An empty channel has NaN for its variance; its gradient is 0.
    const auto product = [&](i64 i) { return through(i) * (load(from + i) - means_of); };
    const auto product_one = [&](i64 i) { return through_one(i) * (from[i] - mean); };
    const float sum_product =
        norm.size == 0 ? 0 : inverse * norm::sum_over(norm.size, product, product_one);
    grad_bias[c] = sum_grad;
    grad_scale[c] = sum_product;
    const float n = static_cast<float>(norm.size);
    const float factor = scale[c] * inverse;
    const float shift = sum_grad / n, slope = sum_product / n * inverse;
    const vec factors = broadcast(factor), shifts = broadcast(shift), slopes = broadcast(slope);
    norm::for_each(
        norm.size,
        [&](i64 i) {
          const vec g = through(i);
          if (grad_shortcut) store(grad_shortcut + at + i, g);
          store(grad_x + at + i, factors * (g - shifts - (load(from + i) - means_of) * slopes));
        },
        [&](i64 i) {
          const float g = through_one(i);
          if (grad_shortcut) grad_shortcut[at + i] = g;
          grad_x[at + i] = factor * (g - shift - (from[i] - mean) * slope);
        });
  });
}

}  // namespace jaxsparse
