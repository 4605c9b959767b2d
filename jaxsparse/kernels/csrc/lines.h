// DyReLU on channel-major images: the larger of two lines, which differ by channel and image.
//
// The gradient of the lines is four sums. XLA makes a pass over the images for each of them and
// adds up one float after the other. Here one pass makes all four, a vector of images at a time.
#pragma once

#include <algorithm>

#include "threads.h"
#include "vec.h"

namespace jaxsparse {

struct Lines {
  i64 channels, pixels, images;
};

// Writes y = max(a x + c, b x + d). `coefficients` is [channel, (a, b, c, d), image].
inline void lines_forward(xla::ffi::ThreadPool& pool, const Lines& lines, const float* x,
                          const float* coefficients, float* y) {
  const i64 n = lines.images;
  parallel_for(pool, lines.channels, [&](i64 channel) {
    const float *a = coefficients + 4 * channel * n, *b = a + n, *c = b + n, *d = c + n;
    for (i64 pixel = 0; pixel < lines.pixels; pixel++) {
      const i64 at = (channel * lines.pixels + pixel) * n;
      i64 i = 0;
      for (; i + kLanes <= n; i += kLanes) {
        const vec in = load(x + at + i);
        const vec first = load(a + i) * in + load(c + i), second = load(b + i) * in + load(d + i);
        store(y + at + i, first > second ? first : second);
      }
      for (; i < n; i++) {
        const float in = x[at + i], first = a[i] * in + c[i], second = b[i] * in + d[i];
        y[at + i] = first > second ? first : second;
      }
    }
  });
}

// Writes the gradients of x and of the lines. If both lines are equal, the second one gets it.
inline void lines_backward(xla::ffi::ThreadPool& pool, const Lines& lines, const float* x,
                           const float* coefficients, const float* grad, float* grad_x,
                           float* grad_coefficients) {
  const i64 n = lines.images;
  parallel_for(pool, lines.channels, [&](i64 channel) {
    const float *a = coefficients + 4 * channel * n, *b = a + n, *c = b + n, *d = c + n;
    float *to_a = grad_coefficients + 4 * channel * n, *to_b = to_a + n, *to_c = to_b + n,
          *to_d = to_c + n;
    std::fill(to_a, to_a + 4 * n, 0.0f);
    for (i64 pixel = 0; pixel < lines.pixels; pixel++) {
      const i64 at = (channel * lines.pixels + pixel) * n;
      i64 i = 0;
      for (; i + kLanes <= n; i += kLanes) {
        const vec in = load(x + at + i), g = load(grad + at + i), product = g * in, none = {};
        const vec slope = load(a + i), other = load(b + i);
        const auto is_first = slope * in + load(c + i) > other * in + load(d + i);
        store(grad_x + at + i, g * (is_first ? slope : other));
        store(to_a + i, load(to_a + i) + (is_first ? product : none));
        store(to_b + i, load(to_b + i) + (is_first ? none : product));
        store(to_c + i, load(to_c + i) + (is_first ? g : none));
        store(to_d + i, load(to_d + i) + (is_first ? none : g));
      }
      for (; i < n; i++) {
        const float in = x[at + i], g = grad[at + i];
        const bool is_first = a[i] * in + c[i] > b[i] * in + d[i];
        grad_x[at + i] = g * (is_first ? a[i] : b[i]);
        (is_first ? to_a : to_b)[i] += g * in;
        (is_first ? to_c : to_d)[i] += g;
      }
    }
  });
}

}  // namespace jaxsparse
