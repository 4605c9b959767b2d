// Copies between images of any layout and planes, whose pixels along x lie side by side.
#pragma once

#include <cstring>

#include "vec.h"

namespace jaxsparse {

typedef float quad __attribute__((vector_size(16), aligned(4), may_alias));

inline quad load_quad(const float* p) { return *reinterpret_cast<const quad*>(p); }
inline void store_quad(float* p, quad a) { *reinterpret_cast<quad*>(p) = a; }

// Transposes 4 x 4 floats.
inline void transpose_quads(const float* from, i64 from_step, float* to, i64 to_step) {
  const quad a = load_quad(from), b = load_quad(from + from_step);
  const quad c = load_quad(from + 2 * from_step), d = load_quad(from + 3 * from_step);
#if defined(__clang__) || __GNUC__ >= 12
  const quad ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const quad ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const quad cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const quad cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  store_quad(to, __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5));
  store_quad(to + to_step, __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7));
  store_quad(to + 2 * to_step, __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5));
  store_quad(to + 3 * to_step, __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7));
#else
  for (int i = 0; i < 4; i++) store_quad(to + i * to_step, quad{a[i], b[i], c[i], d[i]});
#endif
}

// Some pixels and channels of an image, wherever they lie.
struct Block {
  float* data;
  i64 pixel, channel;  // strides, in floats

  // Copies to `planes`, one channel every `pitch` floats, or from there if not `pack`.
  template <bool pack>
  void copy(float* planes, i64 pitch, i64 num_pixels, i64 num_channels) const {
    if (pixel == 1) {
      const std::size_t bytes = num_pixels * sizeof(float);
      for (i64 c = 0; c < num_channels; c++) {
        if (pack) std::memcpy(planes + c * pitch, data + c * channel, bytes);
        else std::memcpy(data + c * channel, planes + c * pitch, bytes);
      }
      return;
    }
    i64 whole = 0;  // pixels that are done in blocks of 4 pixels x 4 channels
    if (channel == 1 && num_channels % 4 == 0) {
      for (; whole + 4 <= num_pixels; whole += 4) {
        for (i64 c = 0; c < num_channels; c += 4) {
          float *image = data + whole * pixel + c, *plane = planes + c * pitch + whole;
          if (pack) transpose_quads(image, pixel, plane, pitch);
          else transpose_quads(plane, pitch, image, pixel);
        }
      }
    }
    for (i64 i = whole; i < num_pixels; i++) {
      for (i64 c = 0; c < num_channels; c++) {
        float &image = data[i * pixel + c * channel], &plane = planes[c * pitch + i];
        if (pack) plane = image;
        else image = plane;
      }
    }
  }

  void clear(i64 num_pixels, i64 num_channels) const {
    for (i64 i = 0; i < num_pixels; i++) {
      for (i64 c = 0; c < num_channels; c++) data[i * pixel + c * channel] = 0;
    }
  }
};

}  // namespace jaxsparse
