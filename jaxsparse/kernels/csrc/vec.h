// Vectors of floats, as wide as the registers of the instruction set that is compiled for.
//
// Wider vectors would not fit in registers, and narrower ones would waste them. Only extensions
// that GCC and Clang share are used.
#pragma once

#include <cstdint>
#include <utility>

namespace jaxsparse {

using i64 = std::int64_t;

// kTile: sums that a loop over nonzeros holds, in vectors; enough to hide that an addition takes
// several cycles. kPairTile: the same for a loop that holds as many inputs beside its sums; all of
// them must fit in the registers.
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

// Keeps a vector in a register, so that the compiler does not load it again for its second use.
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

// Prefetches `num` floats.
inline void prefetch(const float* p, i64 num) {
  for (i64 i = 0; i < num; i += 64 / static_cast<i64>(sizeof(float))) __builtin_prefetch(p + i);
}

// `then` if `of` is positive or NaN, else 0.
inline vec where_positive(vec of, vec then) { return of <= vec{} ? vec{} : then; }
inline float where_positive(float of, float then) { return of <= 0 ? 0 : then; }

// Adds up the lanes pairwise, always in the same order.
inline float sum(vec a) {
  float lanes[kLanes];
  store(lanes, a);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

#if defined(__clang__) || __GNUC__ >= 12
// Adds the second half of each block of `width` lanes to its first half: those of a, then those of
// b.
template <int width, int... I>
inline vec halves(vec a, vec b, std::integer_sequence<int, I...>) {
  constexpr int half = width / 2;
  const vec low = __builtin_shufflevector(a, b, (I / half * width + I % half)...);
  return low + __builtin_shufflevector(a, b, (I / half * width + half + I % half)...);
}

// Folds n vectors, which lie one after the other, into one: kLanes / n lanes are left of each.
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

// Adds to to[i] the sum of the lanes of vector i, to the bit as `sum` gives it. kLanes vectors are
// done together, since additions of one vector wait for each other.
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
