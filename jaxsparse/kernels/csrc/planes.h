// Convolution by way of planes: images are copied into planes with zeros around them (packing.h),
// so that each nonzero weight is one offset for all outputs; the outputs are copied back.
//
// This serves every layout: images with the channel innermost, as Flax has them, and channel-major
// ones if the batch is too small to fill a vector. Copies are cheap as long as they stay in the
// cache, so a block of images is done at a time.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "layer.h"
#include "packing.h"
#include "threads.h"
#include "tiles.h"

namespace jaxsparse {

// Below this number of nonzeros, waking another thread takes longer than decoding them.
constexpr i64 kWorthAPart = 1 << 13;

// The nonzeros, grouped by a key: the output channel forward, the input plane backward.
struct PlaneTaps {
  std::vector<int> start;  // by key: its first nonzero
  std::vector<i64> offset;
  const float* value;
  const int* slot;  // place within the key; null in `rising_forward_taps`

  std::vector<int> order;  // of the nonzeros; empty if they came grouped
  std::vector<float> own_value;
  std::vector<int> own_slot;

  int count() const { return static_cast<int>(offset.size()); }
  Taps of(i64 key) const {
    const int first = start[key];
    return {offset.data() + first, value + first, slot ? slot + first : nullptr,
            start[key + 1] - first};
  }
};

template <class Offset>
PlaneTaps plane_taps(const Nonzeros& nonzeros, const Grouped& grouped, const Offset& offset_of) {
  PlaneTaps taps{};
  const int count = nonzeros.count();
  taps.start = grouped.start;
  taps.order = grouped.order;
  taps.offset.reserve(count);
  taps.own_value.reserve(count);
  taps.own_slot.reserve(count);
  for (std::size_t key = 0; key + 1 < grouped.start.size(); key++) {
    for (int at = grouped.start[key]; at < grouped.start[key + 1]; at++) {
      const int i = grouped.order[at];
      taps.offset.push_back(offset_of(i));
      taps.own_value.push_back(nonzeros.values[i]);
      taps.own_slot.push_back(at - grouped.start[key]);
    }
  }
  taps.value = taps.own_value.data();
  taps.slot = taps.own_slot.data();
  return taps;
}

inline PlaneTaps forward_taps(const Layer& layer, const Packing& packing,
                              const Nonzeros& nonzeros) {
  const Grouped grouped = group_by(nonzeros.out_channel, layer.out_channels);
  return plane_taps(nonzeros, grouped, [&](int i) {
    return packing.plane(nonzeros, i) * packing.pitch + packing.ahead(nonzeros, i);
  });
}

// The same for positions that rise and are in the kernel. They are grouped by output channel
// already, so one pass is enough. The several passes above take longer than the convolution of one
// image.
//
// A position is ((channel * y taps + y) * x taps + x) * inputs + input. The offset that it reads at
// rises by `step` with every input, so it is base[tap] + position * step with a base for each tap.
inline PlaneTaps rising_forward_taps(xla::ffi::ThreadPool& pool, const Layer& layer,
                                     const Packing& packing, const std::int32_t* positions, i64 num,
                                     const float* values) {
  PlaneTaps taps{};
  taps.value = values;
  taps.offset.resize(num);
  taps.start.resize(layer.out_channels + 1);
  const i64 inputs = layer.group_inputs(), step = packing.num_phases() * packing.pitch;
  const i64 rows = layer.y.taps * layer.x.taps;  // of an output channel: one for each tap
  // The tap is (position / inputs) - row. An integer division is slow, and the branches of a loop
  // over rows of few positions are predicted badly, so it is a multiplication by a float64. The 0.5
  // below keeps the product away from whole numbers by more than the rounding error: with inputs =
  // 3, position 6 gives 6.5 / 3 = 2.17, which is 2 for sure.
  const double per_row = 1.0 / static_cast<double>(inputs);
  const i64 parts = num < kWorthAPart ? 1 : kTasks;
  parallel_for(pool, parts, [&](i64 part) {
    std::vector<i64> base(rows);
    i64 channel = layer.out_channels * part / parts;
    const i64 end_channel = layer.out_channels * (part + 1) / parts;
    i64 i = std::lower_bound(positions, positions + num, channel * rows * inputs) - positions;
    for (; channel < end_channel; channel++) {
      const i64 row = channel * rows, first = channel / layer.group_outputs() * inputs;
      for (i64 tap = 0; tap < rows; tap++) {
        base[tap] = packing.base(tap) + (first - (row + tap) * inputs) * step;
      }
      for (const i64 end = (row + rows) * inputs; i < num && positions[i] < end; i++) {
        const i64 tap = static_cast<int>((positions[i] + 0.5) * per_row) - row;
        taps.offset[i] = base[tap] + positions[i] * step;
      }
      taps.start[channel + 1] = static_cast<int>(i);
    }
  });
  return taps;
}

// Calls body(begin, end) for groups of at most kGroup channels. If there are few blocks, the groups
// are what the threads share: then a layer has at least four, of a multiple of 4 channels each.
template <class Loop, class Body>
void for_groups(const Loop& loop, i64 channels, i64 num_blocks, const Body& body) {
  const i64 quarter = (channels + 15) / 16 * 4;
  const i64 group = num_blocks < kTasks ? std::min(kGroup, quarter) : kGroup;
  loop((channels + group - 1) / group,
       [&](i64 number) { body(number * group, std::min(channels, (number + 1) * group)); });
}

// Below this number of multiplications, waking another thread takes longer than doing them.
constexpr i64 kWorthAThread = 1 << 18;

// Calls body(task, first block, end block, loop), where loop(n, each) calls each(i) for i in [0,
// n).
//
// If there are kTasks blocks or more, every task is some of the blocks, and its loop is a plain
// one. If there are fewer, one call does all blocks, and its loop shares the channels of a block
// among the threads. `work` is the number of multiplications of a block.
template <class Body>
void for_blocks(xla::ffi::ThreadPool& pool, i64 num_blocks, i64 work, const Body& body) {
  const auto loop = [](i64 n, const auto& each) {
    for (i64 i = 0; i < n; i++) each(i);
  };
  if (num_blocks < kTasks) {
    if (work < kWorthAThread) return body(0, 0, num_blocks, loop);
    return body(0, 0, num_blocks, [&](i64 n, const auto& each) { parallel_for(pool, n, each); });
  }
  parallel_for(pool, kTasks, [&](i64 task) {
    body(task, num_blocks * task / kTasks, num_blocks * (task + 1) / kTasks, loop);
  });
}

// Args:
//   epilogue: what is done to the outputs before they are written; null for nothing.
inline void planes_forward(xla::ffi::ThreadPool& pool, const Layer& layer, const Packing& packing,
                           const PlaneTaps& taps, const float* in, const Strides& in_strides,
                           float* out, const Strides& out_strides,
                           const Epilogue* epilogue = nullptr) {
  const i64 phases = packing.num_phases(), work = packing.work(taps.count());
  for_blocks(pool, packing.num_blocks, work, [&](i64, i64 first, i64 last, const auto& loop) {
    const i64 of_channel = phases * packing.pitch;
    const std::unique_ptr<float[]> planes(new float[layer.in_channels * of_channel]);
    for (i64 block = first; block < last; block++) {
      for_groups(loop, layer.in_channels, packing.num_blocks, [&](i64 begin, i64 end) {
        float* to = planes.get() + begin * of_channel;
        if (block == first) std::fill_n(to, (end - begin) * of_channel, 0.0f);
        packing.pack_inputs(in, in_strides, block, begin, end, to);
      });
      for_groups(loop, layer.out_channels, packing.num_blocks, [&](i64 begin, i64 end) {
        thread_local std::vector<float> found, more;
        found.resize(kGroup * packing.pitch);
        const float* shortcut = epilogue ? epilogue->shortcut : nullptr;
        if (shortcut) {
          more.resize(kGroup * packing.pitch);
          packing.pack_outputs(shortcut, out_strides, block, begin, end, more.data());
        }
        for (i64 channel = begin; channel < end; channel++) {
          const i64 at = (channel - begin) * packing.pitch;
          if (epilogue == nullptr) {
            run_forward(planes.get(), taps.of(channel), found.data() + at, packing.length);
          } else {
            run_forward(planes.get(), taps.of(channel), found.data() + at, packing.length,
                        Normalised{epilogue->mean[channel], epilogue->factor[channel],
                                   epilogue->bias[channel], epilogue->relu,
                                   shortcut ? more.data() + at : nullptr});
          }
        }
        packing.unpack_outputs(found.data(), block, begin, end, out_strides, out);
      });
    }
  });
}

// Place p of an input plane gets the sum over its nonzeros of value * gradient[p - ahead], where
// `ahead` is how far the tap reads ahead of its output. Output planes begin with `margin` zeros, so
// that p - ahead is never outside of them.
inline void planes_backward(xla::ffi::ThreadPool& pool, const Layer& layer,
                            const Nonzeros& nonzeros, const float* in, const Strides& in_strides,
                            const float* grad, const Strides& out_strides, float* grad_in,
                            float* grad_values) {
  const Packing packing(layer);
  const i64 phases = packing.num_phases(), num_planes = layer.in_channels * phases;
  std::vector<int> plane(nonzeros.count());
  for (int i = 0; i < nonzeros.count(); i++) {
    plane[i] = static_cast<int>(packing.plane(nonzeros, i));
  }
  const Grouped grouped = group_by(plane, num_planes);
  const PlaneTaps taps = plane_taps(nonzeros, grouped, [&](int i) {
    return nonzeros.out_channel[i] * packing.pitch + packing.margin - packing.ahead(nonzeros, i);
  });
  // By task: gradients of the values, in the order of the groups. Each task adds up its blocks, and
  // the tasks are added up last, in the same order however many threads there are.
  std::vector<std::vector<float>> partial(kTasks);
  const i64 work = packing.work(taps.count());
  for_blocks(pool, packing.num_blocks, work, [&](i64 task, i64 first, i64 last, const auto& loop) {
    std::vector<float> grads(layer.out_channels * packing.pitch);
    partial[task].assign(nonzeros.count(), 0.0f);
    for (i64 block = first; block < last; block++) {
      for_groups(loop, layer.out_channels, packing.num_blocks, [&](i64 begin, i64 end) {
        float* to = grads.data() + begin * packing.pitch + packing.margin;
        packing.pack_outputs(grad, out_strides, block, begin, end, to);
      });
      for_groups(loop, layer.in_channels, packing.num_blocks, [&](i64 begin, i64 end) {
        thread_local std::vector<float> inputs, found, sums;
        const i64 size = kGroup * phases * packing.pitch;
        inputs.assign(size, 0.0f);
        found.resize(size);
        packing.pack_inputs(in, in_strides, block, begin, end, inputs.data());
        for (i64 key = begin * phases; key < end * phases; key++) {
          const i64 at = (key - begin * phases) * packing.pitch + packing.first_input;
          const Taps list = taps.of(key);
          sums.assign(static_cast<std::size_t>(list.count) * kLanes, 0.0f);
          run_backward(grads.data() + packing.first_input, list, inputs.data() + at,
                       found.data() + at, sums.data(), packing.inputs_length);
          add_sums(sums.data(), list.count, partial[task].data() + taps.start[key]);
        }
        packing.unpack_inputs(found.data(), block, begin, end, in_strides, grad_in);
      });
    }
  });
  for (int at = 0; at < nonzeros.count(); at++) {
    float total = 0;
    for (const auto& part : partial) total += part.empty() ? 0.0f : part[at];
    grad_values[taps.order[at]] = total;
  }
}

}  // namespace jaxsparse
