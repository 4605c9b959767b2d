// Convolution by way of planes: images are packed channel by channel with zeros around them, so that
// every tap is one offset for whole planes, and what comes out is unpacked.
//
// It serves every layout: images with the channel innermost, as Flax has them, and channel-major ones
// of a batch too small to be a vector. Packing costs little where it stays in the cache, so a block
// of images is done at a time.
//
// A plane of an axis with stride s is s planes, by the remainder of the padded position, of which
// those that some tap reads are kept; so the taps of all outputs read without gaps. Input and output
// planes have the same pitch from row to row and from image to image, wide enough that reads ahead
// of one end in zeros, or in outputs that nobody takes.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "layer.h"
#include "threads.h"
#include "tiles.h"
#include "transpose.h"

namespace jaxsparse {

// Where the elements of a batch of images lie, in floats.
struct Strides {
  i64 image, channel, y, x;
};

struct PackedAxis {
  // Inputs first, first + stride, ... lie side by side in a phase, from `at` on; those of phase -1
  // are read by no tap.
  struct Run {
    i64 first, count, at;
    int phase;
  };
  std::vector<i64> kept;  // by phase: the remainder
  std::vector<Run> runs;
  i64 reach;   // how far ahead the last tap reads, in positions of its phase
  // From row to row of a phase: the zeros behind a row are also those before the next one.
  i64 length;

  explicit PackedAxis(const Axis& axis) : stride_(axis.stride) {
    for (i64 tap = 0; tap < axis.taps; tap++) {
      const i64 position = tap * axis.dilation;
      if (phase(position) < 0) kept.push_back(position % stride_);
    }
    reach = (axis.taps - 1) * axis.dilation / axis.stride;
    const i64 end = axis.out + reach;
    length = axis.out;
    for (i64 first = 0; first < std::min(axis.stride, axis.in); first++) {
      const i64 at = (axis.pad + first) / axis.stride;
      const int number = phase(axis.pad + first);
      const i64 count = (axis.in - first + axis.stride - 1) / axis.stride;
      const i64 read = number < 0 ? 0 : std::clamp<i64>(end - at, 0, count);
      if (read > 0) {
        runs.push_back({first, read, at, number});
        length = std::max({length, at + read, end - at});
      }
      if (read < count) runs.push_back({first + read * axis.stride, count - read, 0, -1});
    }
  }

  i64 num_phases() const { return static_cast<i64>(kept.size()); }
  // Of all phases; where no tap reads an input, 0 and 0.
  i64 first_input() const {
    i64 first = length;
    for (const Run& run : runs) first = run.phase < 0 ? first : std::min(first, run.at);
    return first < length ? first : 0;
  }
  i64 end_input() const {
    i64 end = 0;
    for (const Run& run : runs) end = run.phase < 0 ? end : std::max(end, run.at + run.count);
    return end;
  }
  // Of a padded position, or -1.
  int phase(i64 position) const {
    const auto place = std::find(kept.begin(), kept.end(), position % stride_);
    return place == kept.end() ? -1 : static_cast<int>(place - kept.begin());
  }

 private:
  i64 stride_;
};

// The channels that are packed at a time: a cache line of the channel-innermost layout.
constexpr i64 kGroup = 16;

// How a layer's images are cut into blocks, and how a block lies in memory.
class Packing {
 public:
  explicit Packing(const Layer& layer) : layer_(layer), y_(layer.y), x_(layer.x) {
    const i64 image = y_.length * x_.length;
    const i64 planes = layer.in_channels * num_phases() + layer.out_channels;
    // Half a megabyte: in the level-2 cache of most, beside what else is needed.
    images = std::clamp<i64>((1 << 17) / (planes * image), 1, layer.batch);
    num_blocks = (layer.batch + images - 1) / images;
    margin = y_.reach * x_.length + x_.reach;
    // Behind the last output of the last image nothing is wanted, and the inputs that are wanted lie
    // from the first one of any phase to the last one.
    length = whole((images - 1) * image + (layer.y.out - 1) * x_.length + layer.x.out);
    first_input = y_.first_input() * x_.length + x_.first_input();
    const i64 last = (y_.end_input() - 1) * x_.length + x_.end_input();
    inputs_length = whole(std::max<i64>((images - 1) * image + last - first_input, 0));
    pitch = std::max({images * image, length, first_input + inputs_length}) + margin;
    for (i64 y = 0; y < layer.y.taps * layer.y.dilation; y += layer.y.dilation) {
      for (i64 x = 0; x < layer.x.taps * layer.x.dilation; x += layer.x.dilation) {
        taps_.push_back({y_.phase(y) * x_.num_phases() + x_.phase(x),
                         y / layer.y.stride * x_.length + x / layer.x.stride});
      }
    }
  }

  i64 images;      // of a block
  i64 num_blocks;
  i64 length;      // of all outputs of a block in a plane, up to a whole vector
  i64 first_input, inputs_length;  // where inputs lie in a plane, and how far, up to a whole vector
  i64 margin;      // zeros that reads ahead of the end, or back from the beginning, find
  i64 pitch;       // from plane to plane

  i64 num_phases() const { return y_.num_phases() * x_.num_phases(); }
  i64 plane(const Nonzeros& nonzeros, int i) const {
    return nonzeros.in_channel[i] * num_phases() + tap(nonzeros, i).phase;
  }
  // What a nonzero of the first input channel reads, by tap, y before x.
  i64 base(i64 tap) const { return taps_[tap].phase * pitch + taps_[tap].ahead; }
  // Multiplications of a block; copying counts as some.
  i64 work(i64 num_nonzeros) const {
    return length * (num_nonzeros + layer_.in_channels * num_phases() + layer_.out_channels);
  }
  i64 ahead(const Nonzeros& nonzeros, int i) const { return tap(nonzeros, i).ahead; }

  // Copies a group of input channels, [begin, end), of a block into their planes. Zeros that the
  // planes have where no input lies are left alone.
  void pack_inputs(const float* in, const Strides& strides, i64 block, i64 begin, i64 end,
                   float* planes) const {
    inputs<true>(const_cast<float*>(in), strides, block, begin, end, planes);
  }
  // The way back; an input that no tap reads becomes 0.
  void unpack_inputs(float* planes, i64 block, i64 begin, i64 end, const Strides& strides,
                     float* in) const {
    inputs<false>(in, strides, block, begin, end, planes);
  }
  void pack_outputs(const float* out, const Strides& strides, i64 block, i64 begin, i64 end,
                    float* planes) const {
    outputs<true>(const_cast<float*>(out), strides, block, begin, end, planes);
  }
  void unpack_outputs(float* planes, i64 block, i64 begin, i64 end, const Strides& strides,
                      float* out) const {
    outputs<false>(out, strides, block, begin, end, planes);
  }

 private:
  static i64 whole(i64 length) { return (length + kLanes - 1) / kLanes * kLanes; }

  // Planes are those of the channels from `begin` on. The last block may have images too few: what
  // its planes hold in their places is that of another block, which nobody takes.
  i64 images_of(i64 block) const { return std::min(images, layer_.batch - block * images); }

  template <bool pack>
  void inputs(float* in, const Strides& strides, i64 block, i64 begin, i64 end,
              float* planes) const {
    const i64 step = num_phases() * pitch;
    for (i64 image = 0; image < images_of(block); image++) {
      for (const auto& y : y_.runs) {
        for (i64 row = 0; row < y.count; row++) {
          float* line = in + (block * images + image) * strides.image + begin * strides.channel +
                        (y.first + row * layer_.y.stride) * strides.y;
          for (const auto& x : x_.runs) {
            Block from{line + x.first * strides.x, layer_.x.stride * strides.x, strides.channel};
            if (y.phase >= 0 && x.phase >= 0) {
              float* to = planes + (y.phase * x_.num_phases() + x.phase) * pitch +
                          (image * y_.length + y.at + row) * x_.length + x.at;
              from.copy<pack>(to, step, x.count, end - begin);
            } else if (!pack) {
              from.clear(x.count, end - begin);
            }
          }
        }
      }
    }
  }

  template <bool pack>
  void outputs(float* out, const Strides& strides, i64 block, i64 begin, i64 end,
               float* planes) const {
    for (i64 image = 0; image < images_of(block); image++) {
      for (i64 y = 0; y < layer_.y.out; y++) {
        Block from{out + (block * images + image) * strides.image + begin * strides.channel +
                       y * strides.y,
                   strides.x, strides.channel};
        from.copy<pack>(planes + (image * y_.length + y) * x_.length, pitch, layer_.x.out,
                        end - begin);
      }
    }
  }

  struct Tap {
    i64 phase, ahead;
  };
  const Tap& tap(const Nonzeros& nonzeros, int i) const {
    return taps_[nonzeros.y[i] * layer_.x.taps + nonzeros.x[i]];
  }

  Layer layer_;
  PackedAxis y_, x_;
  std::vector<Tap> taps_;  // y before x
};

// Blocks go to tasks, a few each, which do them one after the other; where there are too few of
// them, the tasks are the channels of one block. How many tasks there are does not depend on the
// threads: sums over images are added up task by task.
constexpr i64 kTasks = 8;

// Nonzeros that take as long to decode as to wake another thread.
constexpr i64 kWorthAPart = 1 << 13;

// The nonzeros grouped by a channel, as the loops over them want them.
struct PlaneTaps {
  std::vector<int> start;  // by channel
  std::vector<i64> offset;
  const float* value;
  const int* slot;  // within the channel; of forward taps null

  std::vector<int> order;  // of the nonzeros, where they did not come grouped
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

// The same of positions that rise, which are grouped already: one pass, in place of several that
// take longer than the convolution of a single image. `positions` are in the kernel.
inline PlaneTaps rising_forward_taps(xla::ffi::ThreadPool& pool, const Layer& layer,
                                     const Packing& packing, const std::int32_t* positions,
                                     i64 num, const float* values) {
  PlaneTaps taps{};
  taps.value = values;
  taps.offset.resize(num);
  taps.start.resize(layer.out_channels + 1);
  const i64 inputs = layer.group_inputs(), step = packing.num_phases() * packing.pitch;
  const i64 rows = layer.y.taps * layer.x.taps;  // of an output channel, one by tap
  // A division takes long, and a loop over rows of a few positions each guesses their ends wrong.
  // The half keeps the quotient away from whole numbers, by more than it is rounded.
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

// Calls body(begin, end) for groups of channels: of at most kGroup, and smaller where they are the
// tasks.
template <class Loop, class Body>
void for_groups(const Loop& loop, i64 channels, i64 num_blocks, const Body& body) {
  const i64 quarter = (channels + 15) / 16 * 4;
  const i64 group = num_blocks < kTasks ? std::min(kGroup, quarter) : kGroup;
  loop((channels + group - 1) / group, [&](i64 number) {
    body(number * group, std::min(channels, (number + 1) * group));
  });
}

// Multiplications that take as long as to wake another thread.
constexpr i64 kWorthAThread = 1 << 18;

// Calls body(task, first block, last block, loop), where the loop is over the channels of a block,
// each of `work` multiplications.
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
  std::vector<std::vector<float>> partial(kTasks);  // by task: gradients of the values, as grouped
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
