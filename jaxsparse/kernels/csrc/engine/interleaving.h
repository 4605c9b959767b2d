// Images to their places among 16, and back, for one level of instructions; part of level.h.
#pragma once

#include "vectors.h"

namespace jaxsparse::engine {
namespace {

// Returns the floats of the first halves of two vectors in turn, or of the second halves.
#if defined(__clang__) || __GNUC__ >= 12
template <int second>
inline Vec zip(Vec a, Vec b) {
  constexpr int n = kLanes, i = second * n / 2;
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, i, n + i, i + 1, n + i + 1, i + 2, n + i + 2, i + 3,
                                 n + i + 3, i + 4, n + i + 4, i + 5, n + i + 5, i + 6, n + i + 6,
                                 i + 7, n + i + 7);
#elif defined(__AVX__)
  return __builtin_shufflevector(a, b, i, n + i, i + 1, n + i + 1, i + 2, n + i + 2, i + 3,
                                 n + i + 3);
#else
  return __builtin_shufflevector(a, b, i, n + i, i + 1, n + i + 1);
#endif
}
#else
template <int second>
inline Vec zip(Vec a, Vec b) {
  float in[2][kLanes], found[kLanes];
  store(in[0], a);
  store(in[1], b);
  for (int k = 0; k < kLanes; k++) found[k] = in[k % 2][second * kLanes / 2 + k / 2];
  return load(found);
}
#endif

// Transposes as many vectors as one has floats. A round shuffles the two halves into each other;
// after as many rounds as the number has factors of 2, rows and columns have changed places.
inline void transpose(Vec (&rows)[kLanes]) {
  for (int round = kLanes; round > 1; round /= 2) {
    Vec zipped[kLanes];
    for (int i = 0; i < kLanes / 2; i++) {
      zipped[2 * i] = zip<0>(rows[i], rows[i + kLanes / 2]);
      zipped[2 * i + 1] = zip<1>(rows[i], rows[i + kLanes / 2]);
    }
    for (int i = 0; i < kLanes; i++) rows[i] = zipped[i];
  }
}

// Lanes without an image become 0.
void interleave(float* arena, const std::int32_t* place, const float* images, std::int64_t apart,
                std::int64_t size, int num) {
  for (std::int64_t i = 0; i < size; i += kLanes) {
    const int floats = size - i < kLanes ? static_cast<int>(size - i) : kLanes;
    int found = 0;
    for (int k = 0; k < floats; k++) found += place[i + k] >= 0;
    if (4 * found <= kLanes) {  // one by one is faster than transposing
      for (int k = 0; found > 0 && k < floats; k++) {
        if (place[i + k] < 0) continue;
        float* const to = arena + 16LL * place[i + k];
        for (int image = 0; image < 16; image++) {
          to[image] = image < num ? images[image * apart + i + k] : 0.0f;
        }
      }
      continue;
    }
    for (int first = 0; first < 16; first += kLanes) {
      Vec rows[kLanes];
      for (int k = 0; k < kLanes; k++) {
        rows[k] = first + k < num ? some(images + (first + k) * apart + i, floats) : Vec{};
      }
      transpose(rows);
      for (int k = 0; k < floats; k++) {
        if (place[i + k] >= 0) store(arena + 16LL * place[i + k] + first, rows[k]);
      }
    }
  }
}

void separate(float* images, std::int64_t apart, std::int64_t size, int num, const float* arena,
              const std::int32_t* place) {
  for (std::int64_t i = 0; i < size; i += kLanes) {
    const int floats = size - i < kLanes ? static_cast<int>(size - i) : kLanes;
    for (int first = 0; first < num; first += kLanes) {
      Vec rows[kLanes];
      for (int k = 0; k < kLanes; k++) {
        rows[k] = k < floats ? load(arena + 16LL * place[i + k] + first) : Vec{};
      }
      transpose(rows);
      for (int k = 0; k < kLanes && first + k < num; k++) {
        float* const to = images + (first + k) * apart + i;
        if (floats == kLanes) store(to, rows[k]);
        else store_first(to, rows[k], floats);
      }
    }
  }
}

}  // namespace
}  // namespace jaxsparse::engine
