// What all parts of the driver draw from, and how they say that something is wrong.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "vec.h"

using jaxsparse::i64;
using Floats = std::vector<float>;

struct Random {
  std::mt19937_64 bits;

  // In [low, high].
  i64 in(i64 low, i64 high) { return low + static_cast<i64>(bits() % (high - low + 1)); }
  bool chance(int percent) { return in(1, 100) <= percent; }
  template <class T, std::size_t n>
  T of(const T (&choices)[n]) {
    return choices[in(0, n - 1)];
  }
  Floats floats(i64 size) {
    Floats found(size);
    for (float& x : found) x = static_cast<float>(in(-1000, 1000)) / 500;
    return found;
  }
};

inline void fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}
