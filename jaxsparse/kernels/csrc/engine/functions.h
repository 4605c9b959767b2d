// Functions of every number, for one level of instructions; part of level.h.
#pragma once

#include "vectors.h"

namespace jaxsparse::engine {
namespace {

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

// Exact near 0 too: there by its series.
inline Vec expm1_of(Vec x) {
  static const float series[] = {2.4801587e-5f, 1.9841270e-4f, 1.3888889e-3f, 8.3333333e-3f,
                                 4.1666667e-2f, 1.6666667e-1f, 0.5f,          1.0f};
  const Vec found = exp_of(x) - all(1.0f), limit = all(0.4f);
  const Vec near = x * polynomial(clamped(x, -0.4f, 0.4f), series, 8);
  return x < limit ? (x > -limit ? near : found) : found;
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

inline Vec abs_of(Vec x) { return reinterpret_cast<Vec>(reinterpret_cast<Bits>(x) & 0x7fffffff); }

// t exp(-x^2 + polynomial of t), which is exact far above 0 too.
inline Vec erfc_of(Vec x) {
  static const float inner[] = {0.17087277f,  -0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f,
                                -0.18628806f, 0.09678418f,  0.37409196f, 1.00002368f,  -1.26551223f};
  const Vec z = abs_of(x), t = all(1.0f) / (all(1.0f) + all(0.5f) * z);
  const Vec found = t * exp_of(polynomial(t, inner, 10) - z * z);
  return x < Vec{} ? all(2.0f) - found : found;
}

inline Vec logistic_of(Vec x) { return all(1.0f) / (all(1.0f) + exp_of(-x)); }

template <class Of>
inline Vec by_lane(Vec x, Of of) {
  for (int i = 0; i < kLanes; i++) x[i] = of(x[i]);
  return x;
}

// log(1 + e^x), exact far from 0 too.
inline Vec softplus_of(Vec x) {
  const Vec small = by_lane(exp_of(-abs_of(x)), [](float a) { return __builtin_log1pf(a); });
  return (x > Vec{} ? x : Vec{}) + small;
}

// x tanh(log(1 + e^x)), as a quotient.
inline Vec mish_of(Vec x) {
  const Vec most = all(20.0f), e = exp_of(x > most ? most : x), a = e * (e + all(2.0f));
  return x * (a / (a + all(2.0f)));
}

inline Vec applied(const Applied& by, Vec x) {
  switch (by.function) {  // the order of `Function` in program.h
    case 1: return exp_of(x);
    case 2: return expm1_of(x);
    case 3: return by_lane(x, [](float a) { return __builtin_logf(a); });
    case 4: return tanh_of(x);
    case 5: return logistic_of(x);
    case 6: return erf_of(x);
    case 7: return erfc_of(x);
    case 8: return by_lane(x, [](float a) { return __builtin_sqrtf(a); });
    case 9: return all(1.0f) / by_lane(x, [](float a) { return __builtin_sqrtf(a); });
    case 10: return all(1.0f) / x;
    case 11: return abs_of(x);
    case 12: return x * logistic_of(x);
    case 13: return all(0.5f) * x * (all(1.0f) + erf_of(x * all(0.70710678118654752f)));
    case 14: {
      const Vec inner = all(0.7978845608028654f) * (x + all(0.044715f) * x * x * x);
      return all(0.5f) * x * (all(1.0f) + tanh_of(inner));
    }
    case 15: return softplus_of(x);
    case 16: return mish_of(x);
    case 17: return x * clamped(x + all(3.0f), 0, 6) / all(6.0f);
    case 18: return x > Vec{} ? x : all(by.low) * x;
    case 19: {
      const Vec below = all(by.low) * expm1_of(x);
      return x > Vec{} ? all(by.high) * x : below;
    }
    default: return x;
  }
}

void apply(const Applied& by, float* p, const std::int32_t* mask, std::int64_t num) {
  each(p, num, [&](std::int64_t i, int k) { return applied(by, some(p + i, k)); });
  for (std::int64_t i = 0; i < num; i++) p[i] = mask[i] ? p[i] : 0.0f;
}

}  // namespace
}  // namespace jaxsparse::engine
