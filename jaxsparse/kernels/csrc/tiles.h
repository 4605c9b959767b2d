// The two loops over nonzeros that take nearly all the time.
//
// A run of floats is cut into tiles of a few vectors. The sums of a tile stay in registers during
// the loop over the nonzeros. Each nonzero reads the run of the other tensor that lies at its
// offset. So every float of the result is written once.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "vec.h"

namespace jaxsparse {

// The nonzeros of one run.
struct Taps {
  const i64* offset;  // from the written place to the place that the nonzero reads
  const float* value;
  const int* slot;  // backward only: where its gradient is added up
  int count;
};

// Endings: what is done to the sums of a run before they are written. Nothing.
struct AsIs {
  vec operator()(vec sum, i64) const { return sum; }
  float operator()(float sum, i64) const { return sum; }
};

// The norm of an output channel in inference, with the shortcut and the ReLU that follow it.
struct Normalised {
  float mean, factor, bias;
  bool relu;
  const float* shortcut;  // at the place of the run; null for none

  vec operator()(vec sum, i64 i) const {
    vec out = (sum - broadcast(mean)) * broadcast(factor) + broadcast(bias);
    if (shortcut) out += load(shortcut + i);
    return relu ? where_positive(out, out) : out;
  }
  float operator()(float sum, i64 i) const {
    float out = (sum - mean) * factor + bias;
    if (shortcut) out += shortcut[i];
    return relu ? where_positive(out, out) : out;
  }
};

// The sums of other nonzeros are added.
struct Added {
  const float* to;  // at the place of the run

  vec operator()(vec sum, i64 i) const { return sum + load(to + i); }
  float operator()(float sum, i64 i) const { return sum + to[i]; }
};

namespace tiles {

template <int T, class Ending>
inline void forward(const float* in, const Taps& taps, float* out, i64 at, const Ending& ending) {
  vec sums[T] = {};
  for (int i = 0; i < taps.count; i++) {
    const float* from = in + at + taps.offset[i];
    const vec value = broadcast(taps.value[i]);
    for (int t = 0; t < T; t++) sums[t] += value * load(from + kLanes * t);
  }
  for (int t = 0; t < T; t++) store(out + at + kLanes * t, ending(sums[t], at + kLanes * t));
}

// The same for 1 to T vectors, a number that is known at run time only.
template <int T, class Ending>
inline void forward_up_to(int num, const float* in, const Taps& taps, float* out, i64 at,
                          const Ending& ending) {
  if constexpr (T > 1) {
    if (num < T) return forward_up_to<T - 1>(num, in, taps, out, at, ending);
  }
  forward<T>(in, taps, out, at, ending);
}

template <class Ending>
inline void forward_tail(const float* in, const Taps& taps, float* out, i64 at, int width,
                         const Ending& ending) {
  float sums[kLanes] = {};
  for (int i = 0; i < taps.count; i++) {
    const float* from = in + at + taps.offset[i];
    for (int t = 0; t < width; t++) sums[t] += taps.value[i] * from[t];
  }
  for (int t = 0; t < width; t++) out[at + t] = ending(sums[t], at + t);
}

// Each vector of the output's gradient is read once and used twice: times the nonzero for the
// input's gradient, and times the input for the nonzero's gradient.
template <int T>
inline void backward(const float* grad, const Taps& taps, const float* in, float* grad_in,
                     float* grad_values) {
  vec sums[T] = {}, inputs[T];
  for (int t = 0; t < T; t++) inputs[t] = load(in + kLanes * t);
  for (int i = 0; i < taps.count; i++) {
    const float* from = grad + taps.offset[i];
    float* to = grad_values + static_cast<i64>(kLanes) * taps.slot[i];
    const vec value = broadcast(taps.value[i]);
    vec even = load(to), odd = {};  // two sums, so that additions need not wait for each other
    for (int t = 0; t < T; t++) {
      const vec g = in_register(load(from + kLanes * t));
      sums[t] += value * g;
      if (t % 2) odd += g * inputs[t];
      else even += g * inputs[t];
    }
    store(to, T > 1 ? even + odd : even);
  }
  for (int t = 0; t < T; t++) store(grad_in + kLanes * t, sums[t]);
}

template <int T>
inline void backward_up_to(int num, const float* grad, const Taps& taps, const float* in,
                           float* grad_in, float* grad_values) {
  if constexpr (T > 1) {
    if (num < T) return backward_up_to<T - 1>(num, grad, taps, in, grad_in, grad_values);
  }
  backward<T>(grad, taps, in, grad_in, grad_values);
}

inline void backward_tail(const float* grad, const Taps& taps, const float* in, float* grad_in,
                          float* grad_values, int width) {
  float sums[kLanes] = {};
  for (int i = 0; i < taps.count; i++) {
    const float* from = grad + taps.offset[i];
    float* to = grad_values + static_cast<i64>(kLanes) * taps.slot[i];
    for (int t = 0; t < width; t++) {
      sums[t] += taps.value[i] * from[t];
      to[t] += from[t] * in[t];
    }
  }
  for (int t = 0; t < width; t++) grad_in[t] = sums[t];
}

}  // namespace tiles

// Writes out[i] = ending(sum over the taps of value * in[offset + i]) for i in [0, length).
template <class Ending = AsIs>
inline void run_forward(const float* in, const Taps& taps, float* out, i64 length,
                        const Ending& ending = {}) {
  if (std::is_same_v<Ending, AsIs> && taps.count == 0) {
    std::memset(out, 0, length * sizeof(float));
    return;
  }
  i64 i = 0;
  while (i + kLanes <= length) {
    const int num = static_cast<int>(std::min<i64>(kTile, (length - i) / kLanes));
    tiles::forward_up_to<kTile>(num, in, taps, out, i, ending);
    i += num * kLanes;
  }
  if (i < length) tiles::forward_tail(in, taps, out, i, static_cast<int>(length - i), ending);
}

// For i in [0, length): writes grad_in[i] = sum over the taps of value * grad[offset + i], and adds
// grad[offset + i] * in[i] to one of the kLanes sums at each tap's slot of grad_values.
inline void run_backward(const float* grad, const Taps& taps, const float* in, float* grad_in,
                         float* grad_values, i64 length) {
  if (taps.count == 0) {
    std::memset(grad_in, 0, length * sizeof(float));
    return;
  }
  i64 i = 0;
  while (i + kLanes <= length) {
    const int num = static_cast<int>(std::min<i64>(kPairTile, (length - i) / kLanes));
    tiles::backward_up_to<kPairTile>(num, grad + i, taps, in + i, grad_in + i, grad_values);
    i += num * kLanes;
  }
  if (i < length) {
    tiles::backward_tail(grad + i, taps, in + i, grad_in + i, grad_values,
                         static_cast<int>(length - i));
  }
}

}  // namespace jaxsparse
