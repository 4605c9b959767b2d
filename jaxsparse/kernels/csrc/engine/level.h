// The kernels for one level of instructions. All names are of the file that includes this.
#pragma once

#include "functions.h"
#include "interleaving.h"
#include "sums.h"

namespace jaxsparse::engine {
namespace {

void largest(float* to, const float* from, std::int64_t num) {
  each(to, num, [&](std::int64_t i, int k) {
    return larger(some(to + i, k), some(from + i, k));
  });
}

void select(float* to, const float* condition, const float* above, const float* otherwise,
            bool or_zero, std::int64_t num) {
  each(to, num, [&](std::int64_t i, int k) {
    const Vec where = some(condition + i, k), yes = some(above + i, k), no = some(otherwise + i, k);
    return or_zero ? (where >= Vec{} ? yes : no) : (where > Vec{} ? yes : no);
  });
}

void multiply(float* to, const float* a, const float* b, std::int64_t num) {
  each(to, num, [&](std::int64_t i, int k) { return some(a + i, k) * some(b + i, k); });
}

// Both have 16 numbers, which are taken in turn.
void scale(float* to, const float* from, const float* factors, std::int64_t num) {
  each(to, num, [&](std::int64_t i, int k) { return some(from + i, k) * load(factors + i % 16); });
}

void add_up(float* sums, const float* from, std::int64_t num) {
  for (std::int64_t i = 0; i < num; i += kLanes) {
    const std::int64_t left = num - i;
    float* to = sums + i % 16;
    store(to, load(to) + some(from + i, left < kLanes ? static_cast<int>(left) : kLanes));
  }
}

// Returns the floats of two vectors at even places, or at odd ones.
#if defined(__clang__) || __GNUC__ >= 12
template <int odd>
inline Vec half(Vec a, Vec b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, odd, odd + 2, odd + 4, odd + 6, odd + 8, odd + 10, odd + 12,
                                 odd + 14, odd + 16, odd + 18, odd + 20, odd + 22, odd + 24,
                                 odd + 26, odd + 28, odd + 30);
#elif defined(__AVX__)
  return __builtin_shufflevector(a, b, odd, odd + 2, odd + 4, odd + 6, odd + 8, odd + 10, odd + 12,
                                 odd + 14);
#else
  return __builtin_shufflevector(a, b, odd, odd + 2, odd + 4, odd + 6);
#endif
}
#else
template <int odd>
inline Vec half(Vec a, Vec b) {
  float both[2 * kLanes], found[kLanes];
  store(both, a);
  store(both + kLanes, b);
  for (int k = 0; k < kLanes; k++) found[k] = both[2 * k + odd];
  return load(found);
}
#endif

// Returns the floats at even places, or at odd ones, among the first `num` at p.
template <int odd>
inline Vec half_of(const float* p, int num) {
  const Vec a = some(p, num < kLanes ? num : kLanes);
  return half<odd>(a, num > kLanes ? some(p + kLanes, num - kLanes) : Vec{});
}

// Copies every second float; reads none behind the last.
inline void even_row(float* to, const float* from, std::int64_t width) {
  each(to, width, [&](std::int64_t i, int k) { return half_of<0>(from + 2 * i, 2 * k - 1); });
}

void rows(float* to, std::int64_t to_pitch, const float* from, std::int64_t from_pitch,
          std::int64_t num, std::int64_t width, std::int64_t stride) {
  for (; num > 0; num--, to += to_pitch, from += from_pitch) {
    if (stride == 2) {
      even_row(to, from, width);
    } else {
      __builtin_memcpy(to, from, width * sizeof(float));
    }
  }
}

// The largest of `num` rows, at every place.
void tallest(float* to, const float* from, std::int64_t pitch, std::int64_t num,
             std::int64_t width) {
  each(to, width, [&](std::int64_t i, int k) {
    Vec found = some(from + i, k);
    for (std::int64_t row = 1; row < num; row++) {
      found = larger(found, some(from + row * pitch + i, k));
    }
    return found;
  });
}

inline float largest_of(const float* from, std::int64_t num) {
  float found[kLanes];
  Vec most = all(-__builtin_inff());
  std::int64_t i = 0;
  for (; i + kLanes <= num; i += kLanes) most = larger(most, load(from + i));
  store(found, most);
  for (; i < num; i++) found[0] = found[0] >= from[i] || found[0] != found[0] ? found[0] : from[i];
  for (int k = 1; k < kLanes; k++) {
    found[0] = found[0] >= found[k] || found[0] != found[0] ? found[0] : found[k];
  }
  return found[0];
}

// The largest of `window` neighbours, at every `stride`-th place.
void widest(float* to, const float* from, std::int64_t window, std::int64_t stride,
            std::int64_t width) {
  constexpr std::int64_t kSome = 64;
  float some_of_them[kSome];
  if (width == 1) {
    *to = largest_of(from, window);
    return;
  }
  for (; width > 0; width -= kSome, to += kSome, from += kSome * stride) {
    const std::int64_t here = width < kSome ? width : kSome;
    for (std::int64_t w = 0; w < window; w++) {
      const float* next = from + w;
      if (stride == 2) {
        even_row(some_of_them, next, here);
      } else if (stride > 2) {
        for (std::int64_t i = 0; i < here; i++) some_of_them[i] = next[i * stride];
      }
      if (stride > 1) next = some_of_them;
      if (w == 0) {
        __builtin_memcpy(to, next, here * sizeof(float));
      } else {
        largest(to, next, here);
      }
    }
  }
}

// The same for places of 16 numbers.
void widest_of_16(float* to, const float* from, std::int64_t window, std::int64_t stride,
                  std::int64_t width) {
  for (; width > 0; width--, to += 16, from += 16 * stride) tallest(to, from, 16, window, 16);
}

// Loads the pixels of each window anew, also those that the next one shares: for small windows.
void windows(const Windows& of, float* to, const float* from) {
  for (std::int64_t y = 0; y < of.rows; y++) {
    const float* first = from + y * of.stride_y * of.pitch;
    each(to + y * of.to_pitch, of.width, [&](std::int64_t i, int k) {
      Vec found = all(-__builtin_inff());
      for (std::int64_t row = 0; row < of.window_y; row++) {
        const float* p = first + row * of.pitch + i * of.stride_x;
        if (of.stride_x == 1) {
          for (std::int64_t w = 0; w < of.window_x; w++) found = larger(found, some(p + w, k));
          continue;
        }
        for (std::int64_t w = 0; w < of.window_x; w += 2) {
          found = larger(found, half_of<0>(p + w, 2 * k - 1));
          if (w + 1 < of.window_x) found = larger(found, half_of<1>(p + w, 2 * k));
        }
      }
      return found;
    });
  }
}

}  // namespace

static const Kernels kKernels = {
    {nullptr, linear<1>, linear<2>, linear<3>, linear<4>, linear<5>, linear<6>, linear<7>,
     linear<8>, linear<9>, linear<10>, linear<11>, linear<12>},
    {nullptr, block<1>, block<2>, block<3>, block<4>, block<5>, block<6>},
    single, apply, largest, select, multiply, scale, add_up, rows,
    tallest, widest, widest_of_16, windows, interleave, separate,
};

}  // namespace jaxsparse::engine
