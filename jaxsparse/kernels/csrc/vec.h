// Vectors of floats as wide as the instruction set that this file is compiled for.
//
// Wider vectors than the registers would spill, narrower ones would waste them; so everything that
// is laid out in vectors asks here. The extensions used are those that GCC and Clang share.
#pragma once

#include <cstdint>
#include <utility>

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

#if defined(__clang__) || __GNUC__ >= 12
// Of blocks of `width` lanes the first halves plus the second ones: a's, then b's.
template <int width, int... I>
inline vec halves(vec a, vec b, std::integer_sequence<int, I...>) {
  constexpr int half = width / 2;
  const vec low = __builtin_shufflevector(a, b, (I / half * width + I % half)...);
  return low + __builtin_shufflevector(a, b, (I / half * width + half + I % half)...);
}

// n vectors, one after the other, of each of which kLanes / n lanes are left to be added up.
template <int n>
inline vec folded(const float* p) {
  if constexpr (n == 1) {
    return load(p);
  } else {
    const vec a = folded<n / 2>(p), b = folded<n / 2>(p + n / 2 * kLanes);
    return halves<2 * kLanes / n>(a, b, std::make_integer_sequence<int, kLanes>{});
  }
}
#endif

// Adds to each float the sum of the lanes of its vector. Many at a time, as lane by lane the
// processor waits longer than it adds; to the bit what `sum` gives.
inline void add_sums(const float* vectors, i64 num, float* to) {
  i64 i = 0;
#if defined(__clang__) || __GNUC__ >= 12
  for (; i + kLanes <= num; i += kLanes) {
    store(to + i, load(to + i) + folded<kLanes>(vectors + i * kLanes));
  }
#endif
  for (; i < num; i++) to[i] += sum(load(vectors + i * kLanes));
}

}  // namespace jaxsparse
