// The two loops over nonzeros that all time goes into, over one run of floats.
//
// A run is written once: its sums stay in registers while the nonzeros pass by, each of which reads
// the same run of another tensor, shifted by its offset.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "vec.h"

namespace jaxsparse {

// Nonzeros as the loops want them.
struct Taps {
  const i64* offset;    // from the place that is written to what the nonzero reads
  const float* value;
  const int* slot;      // backward: where its gradient is added up
  int count;
};

// What becomes of the sums of a run before they are written: nothing,
struct AsIs {
  vec operator()(vec sum, i64) const { return sum; }
  float operator()(float sum, i64) const { return sum; }
};

// or what a norm and what follows it make of an output channel, in inference.
struct Normalised {
  float mean, factor, bias;
  bool relu;
  const float* shortcut;  // that of the run, or null

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

// or their sum with those of other nonzeros.
struct Added {
  const float* to;  // of the run

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

// The same for a number of vectors, from 1 to T, that is known when it runs.
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

// Reads a run of the output's gradient once for both: for the input's gradient it is weighted by the
// nonzero, for the nonzero's gradient by the input.
template <int T>
inline void backward(const float* grad, const Taps& taps, const float* in, float* grad_in,
                     float* grad_values) {
  vec sums[T] = {}, inputs[T];
  for (int t = 0; t < T; t++) inputs[t] = load(in + kLanes * t);
  for (int i = 0; i < taps.count; i++) {
    const float* from = grad + taps.offset[i];
    float* to = grad_values + static_cast<i64>(kLanes) * taps.slot[i];
    const vec value = broadcast(taps.value[i]);
    vec even = load(to), odd = {};  // two sums, so that one addition need not wait for another
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

// out[i] = what the ending makes of the sum over the taps of value * in[offset + i], for i in
// [0, length).
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

// grad_in[i] = sum over the taps of value * grad[offset + i]; and to the kLanes sums at every tap's
// slot of grad_values it adds grad[offset + i] * in[i], for i in [0, length).
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
