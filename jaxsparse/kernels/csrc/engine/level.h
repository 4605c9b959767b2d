// The kernels for one level of instructions. All names are of the file that includes this.
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

inline void finish(const Tile& tile, Vec sum, float* out, int at) {
  store(out + at, masked(clamped(sum, tile.low, tile.high), tile.mask + at));
}

// Sums over taps for `num` vectors. Short tiles take several taps at a time, as an addition waits
// for the one before it.
template <int num>
inline void strip(const Tile& tile, const Block& block, int at) {
  constexpr int ways = num == 1 ? 8 : num == 2 ? 4 : num <= 5 ? 2 : 1;
  const float* const arena = tile.arena + at;
  const std::int32_t* const offset = block.offset;
  const float* const weight = block.weight;
  Vec sums[ways][num];
  for (int v = 0; v < num; v++) {
    sums[0][v] = all(*block.bias);
    for (int w = 1; w < ways; w++) sums[w][v] = Vec{};
  }
  std::int64_t i = 0;
  for (; i + ways <= block.num; i += ways) {
    for (int w = 0; w < ways; w++) {
      const float* p = arena + offset[i + w];
      const Vec a = all(weight[i + w]);
      for (int v = 0; v < num; v++) sums[w][v] += a * load(p + v * kLanes);
    }
  }
  for (; ways > 1 && i < block.num; i++) {
    const float* p = arena + offset[i];
    const Vec a = all(weight[i]);
    for (int v = 0; v < num; v++) sums[0][v] += a * load(p + v * kLanes);
  }
  for (int width = ways / 2; width > 0; width /= 2) {
    for (int w = 0; w < width; w++) {
      for (int v = 0; v < num; v++) sums[w][v] += sums[w + width][v];
    }
  }
  float* const out = tile.arena + *block.out;
  for (int v = 0; v < num; v++) finish(tile, sums[0][v], out, at + v * kLanes);
}

template <int num>
void linear(const Tile& given, const Block* blocks, std::int64_t count) {
  constexpr int vectors = num * kWidth, left = vectors % kStrip;
  const Tile tile = given;
  for (const Block* block = blocks; block < blocks + count; block++) {
    int v = 0;
    for (; v + kStrip <= vectors; v += kStrip) strip<kStrip>(tile, *block, v * kLanes);
    if constexpr (left > 0) strip<left>(tile, *block, v * kLanes);
  }
}

// The same for kBlock planes with the same taps: what is loaded serves them all.
template <int num>
inline void block_strip(const Tile& tile, const Block& block, int at) {
  Vec sums[kBlock][num];
  for (int b = 0; b < kBlock; b++) {
    for (int v = 0; v < num; v++) sums[b][v] = all(block.bias[b]);
  }
  for (std::int64_t i = 0; i < block.num; i++) {
    const float* p = tile.arena + block.offset[i] + at;
    const float* weights = block.weight + i * kBlock;
    Vec x[num];
    for (int v = 0; v < num; v++) x[v] = load(p + v * kLanes);
    for (int b = 0; b < kBlock; b++) {
      const Vec a = all(weights[b]);
      for (int v = 0; v < num; v++) sums[b][v] += a * x[v];
    }
  }
  for (int b = 0; b < kBlock; b++) {
    float* const out = tile.arena + block.out[b];
    for (int v = 0; v < num; v++) finish(tile, sums[b][v], out, at + v * kLanes);
  }
}

template <int num>
void block(const Tile& given, const Block* blocks, std::int64_t count) {
  constexpr int strips = kLanes == 16 ? kBlockVectors : 2, vectors = num * kWidth;
  constexpr int left = vectors % strips;
  const Tile tile = given;
  for (const Block* block = blocks; block < blocks + count; block++) {
    int v = 0;
    for (; v + strips <= vectors; v += strips) block_strip<strips>(tile, *block, v * kLanes);
    if constexpr (left > 0) block_strip<left>(tile, *block, v * kLanes);
  }
}

inline float total(Vec a) {
  float lanes[kLanes];
  store(lanes, a);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// A plane of one pixel, from planes of one pixel. Where these lie in a row, they are read so.
float single(const float* arena, const Block& block) {
  const std::int32_t* offset = block.offset;
  const std::int64_t num = block.num;
  std::int64_t i = 0;
  float sums[4] = {*block.bias, 0, 0, 0};
  const bool in_a_row =
      num >= kLanes && offset[num - 1] - offset[0] == num - 1 && offset[1] - offset[0] == 1;
  if (in_a_row) {
    const float* p = arena + offset[0];
    Vec parts[4] = {};
    for (; i + 4 * kLanes <= num; i += 4 * kLanes) {
      for (int k = 0; k < 4; k++) {
        parts[k] += load(block.weight + i + k * kLanes) * load(p + i + k * kLanes);
      }
    }
    for (; i + kLanes <= num; i += kLanes) parts[0] += load(block.weight + i) * load(p + i);
    sums[1] = total((parts[0] + parts[1]) + (parts[2] + parts[3]));
  }
#if defined(__AVX512F__)
  else if (num >= 3 * kLanes) {  // looking up 16 at a time pays for adding up 16 sums
    Vec even{}, odd{};
    const auto looked_up = [&](std::int64_t at) -> Vec {
      return _mm512_i32gather_ps(_mm512_loadu_si512(offset + at), arena, sizeof(float));
    };
    for (; i + 2 * kLanes <= num; i += 2 * kLanes) {
      even += load(block.weight + i) * looked_up(i);
      odd += load(block.weight + i + kLanes) * looked_up(i + kLanes);
    }
    sums[1] = total(even + odd);
  }
#endif
  for (; i + 4 <= num; i += 4) {
    for (int s = 0; s < 4; s++) sums[s] += block.weight[i + s] * arena[offset[i + s]];
  }
  for (; i < num; i++) sums[0] += block.weight[i] * arena[offset[i]];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

inline Vec polynomial(Vec x, const float* c, int num) {
  Vec p = all(c[0]);
  for (int i = 1; i < num; i++) p = p * x + all(c[i]);
  return p;
}

inline Vec exp_of(Vec x) {
  // 2^(n + r) with r in [-1/2, 1/2]; e^r by its series, in which ln 2 is taken in two parts.
  const Vec least = all(-87.33654f), most = all(88.72283f);
  Vec y = x < least ? least : x;
  y = y > most ? most : y;
  y = x == x ? y : Vec{};  // NaN comes back at the end
  const Vec magic = all(12582912.0f);
  const Vec rounded = (y * all(1.442695041f) + magic) - magic;
  Vec r = y - rounded * all(0.693359375f);
  r = r - rounded * all(-2.12194440e-4f);
  static const float series[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
  Vec p = polynomial(r, series, 6);
  p = p * r * r + r + all(1.0f);
  const Bits n = __builtin_convertvector(rounded, Bits), half = n >> 1;
  const Vec found = p * reinterpret_cast<Vec>((half + 127) << 23) *
                    reinterpret_cast<Vec>((n - half + 127) << 23);
  Vec out = x > most ? all(__builtin_inff()) : found;
  out = x < least ? Vec{} : out;
  return x == x ? out : x;
}

// 1 and -1 far from 0, where a unit in the last place less would be seen in x (1 + tanh x).
inline Vec saturated(Vec found, Vec x, float limit) {
  found = x > all(limit) ? all(1.0f) : found;
  return x < all(-limit) ? all(-1.0f) : found;
}

inline Vec tanh_of(Vec x) {  // a quotient of polynomials, exact to a few units in the last place
  static const float above[] = {-2.76076847742355e-16f, 2.00018790482477e-13f,
                                -8.60467152213735e-11f, 5.12229709037114e-08f,
                                1.48572235717979e-05f, 6.37261928875436e-04f,
                                4.89352455891786e-03f};
  static const float below[] = {1.19825839466702e-06f, 1.18534705686654e-04f,
                                2.26843463243900e-03f, 4.89352518554385e-03f};
  const Vec y = clamped(x, -7.90531110763549805f, 7.90531110763549805f), s = y * y;
  const Vec found = y * polynomial(s, above, 7) / polynomial(s, below, 4);
  return saturated(found, x, 7.90531110763549805f);
}

inline Vec erf_of(Vec x) {
  static const float above[] = {0.00022905065861350646f, 0.0034082910107109506f,
                                0.050955695062380861f, 0.18520832239976145f, 1.128379143519084f};
  static const float below[] = {-1.1791602954361697e-7f, 0.000023547966471313185f,
                                0.0010179625278914885f, 0.014070470171167667f,
                                0.11098505178285362f, 0.49746925110067538f, 1.0f};
  const Vec y = clamped(x, -3.832506856900711f, 3.832506856900711f), s = y * y;
  const Vec found = y * polynomial(s, above, 5) / polynomial(s, below, 7);
  return saturated(found, x, 3.832506856900711f);
}

inline Vec logistic_of(Vec x) { return all(1.0f) / (all(1.0f) + exp_of(-x)); }
inline Vec abs_of(Vec x) { return reinterpret_cast<Vec>(reinterpret_cast<Bits>(x) & 0x7fffffff); }

template <class Of>
inline Vec by_lane(Vec x, Of of) {
  for (int i = 0; i < kLanes; i++) x[i] = of(x[i]);
  return x;
}

inline Vec applied(std::uint32_t function, Vec x) {
  switch (function) {  // the order of `Function` in program.h
    case 1: return exp_of(x);
    case 2: return by_lane(x, [](float a) { return __builtin_logf(a); });
    case 3: return tanh_of(x);
    case 4: return logistic_of(x);
    case 5: return erf_of(x);
    case 6: return by_lane(x, [](float a) { return __builtin_sqrtf(a); });
    case 7: return all(1.0f) / by_lane(x, [](float a) { return __builtin_sqrtf(a); });
    case 8: return all(1.0f) / x;
    case 9: return abs_of(x);
    case 10: return x * logistic_of(x);
    case 11: return all(0.5f) * x * (all(1.0f) + erf_of(x * all(0.70710678118654752f)));
    case 12: {
      const Vec inner = all(0.7978845608028654f) * (x + all(0.044715f) * x * x * x);
      return all(0.5f) * x * (all(1.0f) + tanh_of(inner));
    }
    default: return x;
  }
}

template <class Of>
inline void each(float* to, std::int64_t num, Of of) {
  std::int64_t i = 0;
  for (; i + kLanes <= num; i += kLanes) store(to + i, of(i, kLanes));
  if (i == num) return;
  float rest[kLanes] = {};
  store(rest, of(i, static_cast<int>(num - i)));
  for (std::int64_t k = i; k < num; k++) to[k] = rest[k - i];
}

inline Vec some(const float* p, int num) {
  if (num == kLanes) return load(p);
  float rest[kLanes] = {};
  for (int k = 0; k < num; k++) rest[k] = p[k];
  return load(rest);
}

void apply(std::uint32_t function, float* p, const std::int32_t* mask, std::int64_t num) {
  each(p, num, [&](std::int64_t i, int k) { return applied(function, some(p + i, k)); });
  for (std::int64_t i = 0; i < num; i++) p[i] = mask[i] ? p[i] : 0.0f;
}

void largest(float* to, const float* from, std::int64_t num) {
  each(to, num, [&](std::int64_t i, int k) {
    const Vec a = some(to + i, k), b = some(from + i, k);
    const Vec found = a > b ? a : b;
    return a == a ? found : a;  // NaN wins
  });
}

void select(float* to, const float* condition, const float* above, const float* otherwise,
            std::int64_t num) {
  each(to, num, [&](std::int64_t i, int k) {
    return some(condition + i, k) > Vec{} ? some(above + i, k) : some(otherwise + i, k);
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

// Every second float, as long as vectors of sources end before the row's last source.
inline void even_row(float* to, const float* from, std::int64_t width) {
  std::int64_t i = 0;
#if defined(__clang__) || __GNUC__ >= 12
#if defined(__AVX512F__)
  for (; i + 16 < width; i += 16) {
    const Vec a = load(from + 2 * i), b = load(from + 2 * i + 16);
    store(to + i, __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26,
                                          28, 30));
  }
#endif
  typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
  for (; i + 4 < width; i += 4) {
    const Four a = *reinterpret_cast<const Four*>(from + 2 * i);
    const Four b = *reinterpret_cast<const Four*>(from + 2 * i + 4);
    *reinterpret_cast<Four*>(to + i) = __builtin_shufflevector(a, b, 0, 2, 4, 6);
  }
#endif
  for (; i < width; i++) to[i] = from[2 * i];
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

}  // namespace

static const Kernels kKernels = {
    {nullptr, linear<1>, linear<2>, linear<3>, linear<4>, linear<5>, linear<6>, linear<7>,
     linear<8>, linear<9>, linear<10>, linear<11>, linear<12>},
    {nullptr, block<1>, block<2>, block<3>, block<4>, block<5>, block<6>},
    single, apply, largest, select, multiply, scale, add_up, rows,
};

}  // namespace jaxsparse::engine
