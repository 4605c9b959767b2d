// Vectors of floats as wide as the instruction set that this file is compiled for.
//
// Wider vectors than the registers would spill, narrower ones would waste them; so everything that
// is laid out in vectors asks here. The extensions used are those that GCC and Clang share.
#pragma once

#include <cstdint>

namespace jaxsparse {

using i64 = std::int64_t;

// kTile: vectors that a loop over nonzeros holds as sums, enough to hide that an addition takes
// several cycles. kPairTile: as many sums and as many inputs, so that all fit in the registers.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kTile = 8, kPairTile = 8;
#elif defined(__AVX__)
constexpr int kLanes = 8, kTile = 8, kPairTile = 4;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kTile = 16, kPairTile = 8;
#else
constexpr int kLanes = 4, kTile = 8, kPairTile = 4;
#endif

typedef float vec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline vec load(const float* p) { return *reinterpret_cast<const vec*>(p); }
inline void store(float* p, vec a) { *reinterpret_cast<vec*>(p) = a; }
inline vec broadcast(float value) { return value - vec{}; }

// The same vector, which the compiler must not load once more where it is used again.
inline vec in_register(vec a) {
#if defined(__AVX512F__)
  asm("" : "+v"(a));
#elif defined(__x86_64__)
  asm("" : "+x"(a));
#elif defined(__aarch64__)
  asm("" : "+w"(a));
#endif
  return a;
}

// Asks for floats that will be read soon.
inline void prefetch(const float* p, i64 num) {
  for (i64 i = 0; i < num; i += 64 / static_cast<i64>(sizeof(float))) __builtin_prefetch(p + i);
}

// `then` where `of` is positive, else 0. Written so that NaN goes through.
inline vec where_positive(vec of, vec then) { return of <= vec{} ? vec{} : then; }
inline float where_positive(float of, float then) { return of <= 0 ? 0 : then; }

// The lanes added up pairwise, in the same order everywhere.
inline float sum(vec a) {
  float lanes[kLanes];
  store(lanes, a);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

}  // namespace jaxsparse
