// Vectors of one level of instructions, as level.h uses them; all names are of the file that
// includes it.
#pragma once

#include <cstdint>

#if defined(__AVX__)
#if defined(__GNUC__) && !defined(__clang__)  // which warns of its own header
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#endif

#include "kernels.h"

namespace jaxsparse::engine {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
// A tile is cut into strips whose sums fit in the registers; kMostVectors counts 16 floats each.
constexpr int kWidth = 16 / kLanes;
constexpr int kStrip = kLanes == 16 ? 12 : 8;

typedef float Vec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef std::int32_t Bits __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec a) { *reinterpret_cast<Vec*>(p) = a; }
inline Vec all(float value) { return value - Vec{}; }

// NaN stays NaN.
inline Vec clamped(Vec x, float low, float high) {
#if defined(__AVX512F__)
  return _mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), x));
#elif defined(__AVX__)
  return _mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), x));
#else
  x = x < all(low) ? all(low) : x;
  return x > all(high) ? all(high) : x;
#endif
}
inline float clamped(float x, float low, float high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

inline Vec masked(Vec x, const std::int32_t* mask) {
  return reinterpret_cast<Vec>(reinterpret_cast<Bits>(x) & *reinterpret_cast<const Bits*>(mask));
}

// Load the first `num` floats at p, and zeros behind them, or store to them; touch no others.
#if defined(__AVX512F__)
inline Vec load_first(const float* p, int num) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << num) - 1), p);
}
inline void store_first(float* p, Vec a, int num) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << num) - 1), a);
}
#elif defined(__AVX__)
inline __m256i mask_of_first(int num) {
  alignas(32) static constexpr std::int32_t kMask[2 * kLanes] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMask + kLanes - num));
}
inline Vec load_first(const float* p, int num) {
  return _mm256_maskload_ps(p, mask_of_first(num));
}
inline void store_first(float* p, Vec a, int num) {
  _mm256_maskstore_ps(p, mask_of_first(num), a);
}
#else
inline Vec load_first(const float* p, int num) {
  float rest[kLanes] = {};
  for (int k = 0; k < num; k++) rest[k] = p[k];
  return load(rest);
}
inline void store_first(float* p, Vec a, int num) {
  float rest[kLanes];
  store(rest, a);
  for (int k = 0; k < num; k++) p[k] = rest[k];
}
#endif

inline Vec some(const float* p, int num) { return num == kLanes ? load(p) : load_first(p, num); }

template <class Of>
inline void each(float* to, std::int64_t num, Of of) {
  std::int64_t i = 0;
  for (; i + kLanes <= num; i += kLanes) store(to + i, of(i, kLanes));
  if (i == num) return;
  const int rest = static_cast<int>(num - i);
  store_first(to + i, of(i, rest), rest);
}

// NaN wins.
inline Vec larger(Vec a, Vec b) {
  const Vec found = a > b ? a : b;
  return a == a ? found : a;
}

}  // namespace
}  // namespace jaxsparse::engine
