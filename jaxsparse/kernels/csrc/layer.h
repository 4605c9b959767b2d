// The geometry of a convolution and its nonzero weights, which all its kernels take.
#pragma once

#include <string>
#include <vector>

#include "vec.h"

namespace jaxsparse {

// One spatial axis.
struct Axis {
  i64 in, out;  // lengths of the input and the output
  i64 taps;     // of the kernel
  i64 stride, dilation;
  i64 pad;  // zeros before the input; those after it follow from the lengths
};

struct Layer {
  i64 batch, in_channels, out_channels, groups;
  Axis y, x;

  i64 group_inputs() const { return in_channels / groups; }
  i64 group_outputs() const { return out_channels / groups; }
  i64 size() const { return out_channels * y.taps * x.taps * group_inputs(); }
};

// The nonzero weights.
struct Nonzeros {
  std::vector<int> out_channel, in_channel, y,
      x;  // of each nonzero; channels count over all groups
  const float* values;

  int count() const { return static_cast<int>(out_channel.size()); }
};

// Decodes positions in a kernel of shape [out channel, y, x, in channel of the group].
//
// Returns why they are wrong, or "". A position outside of the kernel would make the convolution
// read and write anywhere in memory.
inline std::string decode(const Layer& layer, const std::int32_t* positions, i64 num,
                          const float* values, Nonzeros& to) {
  const int inputs = static_cast<int>(layer.group_inputs());
  to.values = values;
  for (auto* list : {&to.out_channel, &to.in_channel, &to.y, &to.x}) list->resize(num);
  // A row is the weights of one tap of one output channel. Divisions are slow, and are only done
  // when the row changes, which is seldom if positions rise.
  int begin = 0, end = 0, out = 0, first = 0, y = 0, x = 0;
  for (i64 i = 0; i < num; i++) {
    const int at = positions[i];
    if (at < begin || at >= end) {
      if (at < 0 || at >= layer.size()) {
        return "position " + std::to_string(at) + " of nonzero " + std::to_string(i) +
               " is not in [0, " + std::to_string(layer.size()) + ")";
      }
      const int row = at / inputs, taps = static_cast<int>(layer.x.taps);
      begin = row * inputs;
      end = begin + inputs;
      out = row / static_cast<int>(layer.y.taps * layer.x.taps);
      first = out / static_cast<int>(layer.group_outputs()) * inputs;
      y = row / taps % static_cast<int>(layer.y.taps);
      x = row % taps;
    }
    to.out_channel[i] = out;
    to.in_channel[i] = first + at - begin;
    to.y[i] = y;
    to.x[i] = x;
  }
  return "";
}

// Whether positions rise and are in the kernel. Those of `to_sparse` do; a user's own may not.
inline bool rise(const Layer& layer, const std::int32_t* positions, i64 num) {
  bool rises = num == 0 || (positions[0] >= 0 && positions[num - 1] < layer.size());
  for (i64 i = 1; i < num; i++) rises &= positions[i - 1] <= positions[i];
  return rises;
}

// The end of a convolution in inference: a norm with running statistics, a shortcut, a ReLU.
struct Epilogue {
  const float *mean, *factor, *bias;  // by output channel
  const float* shortcut;              // laid out like the outputs; null for none
  bool relu;
};

// Nonzeros sorted by a key, stably: those of key k are order[start[k]] to order[start[k + 1] - 1].
struct Grouped {
  std::vector<int> start, order;

  int count(i64 key) const { return start[key + 1] - start[key]; }
};

inline Grouped group_by(const std::vector<int>& keys, i64 num_keys) {
  Grouped grouped{std::vector<int>(num_keys + 1, 0), std::vector<int>(keys.size())};
  bool rises = true;
  for (std::size_t i = 0; i < keys.size(); i++) {
    grouped.start[keys[i] + 1]++;
    grouped.order[i] = static_cast<int>(i);
    rises = rises && (i == 0 || keys[i - 1] <= keys[i]);
  }
  for (i64 k = 0; k < num_keys; k++) grouped.start[k + 1] += grouped.start[k];
  if (rises) return grouped;
  std::vector<int> next(grouped.start.begin(), grouped.start.end() - 1);
  for (std::size_t i = 0; i < keys.size(); i++) {
    grouped.order[next[keys[i]]++] = static_cast<int>(i);
  }
  return grouped;
}

}  // namespace jaxsparse
