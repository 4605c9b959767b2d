// Convolution of channel-major images, [channel, y, x, image], straight from the tensor: nothing is
// packed or padded. Every position is a run of `batch` floats, from 16 images on.
//
// At an edge the kernel reaches over the image, and some taps fall away. So the positions of an
// axis are sorted into classes: positions of one class have the same taps and read at the same
// distances. With 3 taps, stride 1 and padding 1, the positions of an axis of length 5 have 3
// classes:
//
//   position 0        taps 1 and 2   (tap 0 would read position -1)
//   positions 1 to 3  taps 0, 1, 2
//   position 4        taps 0 and 1   (tap 2 would read position 5)
//
// Each pair of a y class and an x class has its own list of nonzeros, 3 x 3 lists here. Positions 1
// to 3 are one run: their floats are next to each other and are computed in one loop.
//
// The next channel often lies a page or more away, where the processor prefetches nothing by
// itself. So its floats are prefetched while this one is computed.
#pragma once

#include <algorithm>
#include <vector>

#include "layer.h"
#include "threads.h"
#include "tiles.h"

namespace jaxsparse {

// The classes of the positions that are written along one axis.
struct Classes {
  struct Class {
    std::vector<bool> valid;  // by tap
    std::vector<i64> shift;   // by tap: the position that it reads, minus the base
    bool operator==(const Class& other) const {
      return valid == other.valid && shift == other.shift;
    }
  };
  struct Run {
    i64 begin, end;  // positions of one class; each reads one position further than the last
    int index;       // of the class
  };
  std::vector<Class> all;
  std::vector<int> index;  // by position
  std::vector<i64> base;   // by position
  std::vector<Run> runs;
};

// Forward, an output position reads inputs. Backward, an input position reads the outputs that it
// contributed to; with a stride above 1, only some of the taps have such an output.
inline Classes classes_of(const Axis& axis, bool backward) {
  Classes found;
  const i64 written = backward ? axis.in : axis.out, read = backward ? axis.out : axis.in;
  for (i64 at = 0; at < written; at++) {
    Classes::Class is{std::vector<bool>(axis.taps), std::vector<i64>(axis.taps)};
    const i64 base = backward ? (at + axis.pad) / axis.stride : at * axis.stride - axis.pad;
    for (i64 tap = 0; tap < axis.taps; tap++) {
      i64 shift = tap * axis.dilation;
      if (backward) {
        const i64 ahead = (at + axis.pad) % axis.stride - shift;
        if (ahead % axis.stride != 0) continue;
        shift = ahead / axis.stride;
      }
      if (base + shift < 0 || base + shift >= read) continue;
      is.valid[tap] = true;
      is.shift[tap] = shift;
    }
    const auto place = std::find(found.all.begin(), found.all.end(), is);
    const int index = static_cast<int>(place - found.all.begin());
    if (place == found.all.end()) found.all.push_back(is);
    const bool goes_on =
        axis.stride == 1 && !found.runs.empty() && found.runs.back().index == index;
    if (goes_on) found.runs.back().end = at + 1;
    else found.runs.push_back({at, at + 1, index});
    found.index.push_back(index);
    found.base.push_back(base);
  }
  return found;
}

// The nonzeros of a range of written channels, for one pair of classes.
struct RowTaps {
  std::vector<int> start;  // by channel, counted from the first of the range
  std::vector<i64> offset;
  std::vector<float> value;
  std::vector<int> slot;

  Taps of(i64 channel) const {
    const int first = start[channel];
    return {offset.data() + first, value.data() + first, slot.data() + first,
            start[channel + 1] - first};
  }
};

struct Pitch {
  i64 channel, y, x;  // floats from one to the next
};

// Args:
//   grouped: nonzeros by the channel that is written.
//   begin, end: range of these channels; slots count from each channel's first nonzero.
//   from: the channel that each nonzero reads.
inline RowTaps row_taps(const Nonzeros& nonzeros, const Grouped& grouped, i64 begin, i64 end,
                        const std::vector<int>& from, const Classes::Class& y,
                        const Classes::Class& x, const Pitch& pitch) {
  RowTaps taps;
  taps.start.push_back(0);
  for (i64 channel = begin; channel < end; channel++) {
    for (int at = grouped.start[channel]; at < grouped.start[channel + 1]; at++) {
      const int i = grouped.order[at];
      if (!y.valid[nonzeros.y[i]] || !x.valid[nonzeros.x[i]]) continue;
      taps.offset.push_back(from[i] * pitch.channel + y.shift[nonzeros.y[i]] * pitch.y +
                            x.shift[nonzeros.x[i]] * pitch.x);
      taps.value.push_back(nonzeros.values[i]);
      taps.slot.push_back(at - grouped.start[channel]);
    }
    taps.start.push_back(static_cast<int>(taps.offset.size()));
  }
  return taps;
}

// Floats of a run that are done for all channels before the rest of the run. If a channel has many
// nonzeros, the next one reads the same floats again, and these should still be in the cache.
constexpr i64 kRunBlock = 128;
inline i64 block_of(i64 length, i64 num_nonzeros, i64 channels) {
  return num_nonzeros < 4 * channels ? length : kRunBlock;
}

// Number of rows that are done together, block by block. Neighbouring rows read mostly the same
// floats, and the first row brings these into the cache. At least `num_tasks` tasks are left, if
// there are so many rows.
inline i64 rows_together(i64 rows, i64 num_tasks) {
  return std::clamp<i64>(rows / num_tasks, 1, 4);
}

// Prefetches the beginning of a run; the processor prefetches the rest by itself.
inline void ask_for(const float* run, i64 length) { prefetch(run, std::min(length, kRunBlock)); }

// Args:
//   epilogue: what is done to the outputs before they are written; null for nothing.
inline void rows_forward(xla::ffi::ThreadPool& pool, const Layer& layer, const Nonzeros& nonzeros,
                         const float* in, float* out, const Epilogue* epilogue = nullptr) {
  const i64 batch = layer.batch;
  const Grouped grouped = group_by(nonzeros.out_channel, layer.out_channels);
  const Classes ys = classes_of(layer.y, false), xs = classes_of(layer.x, false);
  const Pitch pitch{layer.y.in * layer.x.in * batch, layer.x.in * batch, batch};
  const i64 out_pitch = layer.y.out * layer.x.out * batch;
  std::vector<RowTaps> taps(ys.all.size() * xs.all.size());
  parallel_for(pool, static_cast<i64>(taps.size()), [&](i64 i) {
    taps[i] = row_taps(nonzeros, grouped, 0, layer.out_channels, nonzeros.in_channel,
                       ys.all[i / xs.all.size()], xs.all[i % xs.all.size()], pitch);
  });
  const i64 rows = rows_together(layer.y.out, 4 * std::max<i64>(pool.num_threads(), 1));
  parallel_for(pool, (layer.y.out + rows - 1) / rows, [&](i64 task) {
    const i64 end = std::min((task + 1) * rows, layer.y.out);
    for (const auto& run : xs.runs) {
      const i64 length = (run.end - run.begin) * batch;
      const i64 block = block_of(length, nonzeros.count(), layer.in_channels);
      for (i64 i = 0; i < length; i += block) {
        const i64 num = std::min(block, length - i);
        for (i64 y = task * rows; y < end; y++) {
          const RowTaps& list = taps[ys.index[y] * xs.all.size() + run.index];
          const float* from = in + ys.base[y] * pitch.y + xs.base[run.begin] * pitch.x + i;
          for (i64 channel = 0; channel < layer.out_channels; channel++) {
            const i64 place = channel * out_pitch + (y * layer.x.out + run.begin) * batch + i;
            const i64 next = place + (channel + 1 < layer.out_channels ? out_pitch : 0);
            ask_for(out + next, num);
            if (epilogue == nullptr) {
              run_forward(from, list.of(channel), out + place, num);
              continue;
            }
            const float* shortcut = epilogue->shortcut;
            if (shortcut) ask_for(shortcut + next, num);
            run_forward(from, list.of(channel), out + place, num,
                        Normalised{epilogue->mean[channel], epilogue->factor[channel],
                                   epilogue->bias[channel], epilogue->relu,
                                   shortcut ? shortcut + place : nullptr});
          }
        }
      }
    }
  });
}

// Cuts the input channels into ranges of at most `most` channels and returns the channels where
// they begin and end. The sums of a range for the values' gradients must stay in the cache.
inline std::vector<i64> channel_ranges(const Grouped& grouped, i64 channels, i64 most) {
  constexpr int kSums = 1 << 11;
  std::vector<i64> ends{0};
  for (i64 channel = 1; channel < channels; channel++) {
    const i64 first = ends.back();
    if (grouped.start[channel + 1] - grouped.start[first] > kSums || channel - first >= most) {
      ends.push_back(channel);
    }
  }
  ends.push_back(channels);
  return ends;
}

// A task is a range of input channels and a range of rows. There are few ranges of channels, since
// each range reads all outputs again. With a stride along x there are more: then the written
// columns lie apart, and a task of many channels would write to so many pages that address
// translation (the TLB) took most of the time. The tasks do not depend on the number of threads, so
// that the gradient of a nonzero is always added up in the same order.
inline void rows_backward(xla::ffi::ThreadPool& pool, const Layer& layer, const Nonzeros& nonzeros,
                          const float* in, const float* grad, float* grad_in, float* grad_values) {
  constexpr i64 kAtLeast = 8;  // tasks
  const i64 batch = layer.batch;
  const Grouped grouped = group_by(nonzeros.in_channel, layer.in_channels);
  const Classes ys = classes_of(layer.y, true), xs = classes_of(layer.x, true);
  const Pitch pitch{layer.y.out * layer.x.out * batch, layer.x.out * batch, batch};
  const i64 in_pitch = layer.y.in * layer.x.in * batch;
  const i64 most =
      layer.x.stride > 1 ? (layer.in_channels + kAtLeast - 1) / kAtLeast : layer.in_channels;
  const std::vector<i64> ends = channel_ranges(grouped, layer.in_channels, most);
  const i64 num_ranges = static_cast<i64>(ends.size()) - 1;
  const i64 num_parts = std::min((kAtLeast + num_ranges - 1) / num_ranges, layer.y.in);
  const i64 num_lists = static_cast<i64>(ys.all.size() * xs.all.size());
  std::vector<RowTaps> taps(num_ranges * num_lists);
  parallel_for(pool, num_ranges * num_lists, [&](i64 i) {
    const i64 range = i / num_lists, list = i % num_lists;
    taps[i] = row_taps(nonzeros, grouped, ends[range], ends[range + 1], nonzeros.out_channel,
                       ys.all[list / xs.all.size()], xs.all[list % xs.all.size()], pitch);
  });
  // By range of rows: gradients of the values, in the order of the groups.
  std::vector<std::vector<float>> partial(num_parts);
  for (auto& part : partial) part.resize(nonzeros.count());
  parallel_for(pool, num_ranges * num_parts, [&](i64 task) {
    const i64 range = task % num_ranges, part = task / num_ranges;
    const i64 begin = ends[range], end = ends[range + 1];
    const int first = grouped.start[begin], num = grouped.start[end] - first;
    std::vector<float> sums(static_cast<std::size_t>(num) * kLanes);
    const i64 begin_row = layer.y.in * part / num_parts;
    const i64 end_row = layer.y.in * (part + 1) / num_parts;
    // With a stride, more rows together were not faster.
    const i64 rows = layer.x.stride > 1 ? 1 : rows_together(end_row - begin_row, 1);
    for (i64 row = begin_row; row < end_row; row += rows) {
      for (const auto& run : xs.runs) {
        const i64 length = (run.end - run.begin) * batch;
        const i64 block = block_of(length, num, end - begin);
        for (i64 i = 0; i < length; i += block) {
          const i64 run_length = std::min(block, length - i);
          for (i64 y = row; y < std::min(row + rows, end_row); y++) {
            const RowTaps& list = taps[range * num_lists + ys.index[y] * xs.all.size() + run.index];
            const float* from = grad + ys.base[y] * pitch.y + xs.base[run.begin] * pitch.x + i;
            i64 place = begin * in_pitch + (y * layer.x.in + run.begin) * batch + i;
            for (i64 channel = begin; channel < end; channel++, place += in_pitch) {
              const i64 next = place + (channel + 1 < end ? in_pitch : 0);
              ask_for(in + next, run_length);
              ask_for(grad_in + next, run_length);
              run_backward(from, list.of(channel - begin), in + place, grad_in + place,
                           sums.data() + i64{kLanes} * (grouped.start[channel] - first),
                           run_length);
            }
          }
        }
      }
    }
    for (int i = 0; i < num; i++) {
      partial[part][first + i] = sum(load(sums.data() + i64{kLanes} * i));
    }
  });
  for (int at = 0; at < nonzeros.count(); at++) {
    float total = 0;
    for (const auto& part : partial) total += part[at];
    grad_values[grouped.order[at]] = total;
  }
}

}  // namespace jaxsparse
