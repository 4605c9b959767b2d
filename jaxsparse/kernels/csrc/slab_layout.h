// How slabs lie in memory: small copies of what a task of the convolution in slabs.h reads.
//
// A slab holds all channels of some images, rows and columns, as [channel, row, phase, step,
// image]. Along x it has zeros where the kernel reaches over the edge, so that all columns have the
// same taps. For example a task that writes the first two of the columns `a b c d`, with 3 taps and
// padding 1, gets the steps `0 a b c`. Column i reads steps i, i + 1 and i + 2, each a run of
// images.
//
// With stride s, the columns of each remainder modulo s lie side by side: these are the phases of
// packing.h. Forward the inputs that are read have phases, backward the inputs that are written.
#pragma once

#include <algorithm>
#include <vector>

#include "rows.h"

namespace jaxsparse {

// The columns that are read, or those that are written.
struct Columns {
  i64 size, stride, pad;

  // The column step * stride + phase - pad, or -1 if the tensor has no such column.
  i64 at(i64 step, i64 phase) const {
    const i64 column = step * stride + phase - pad;
    return column < size ? std::max<i64>(column, -1) : -1;
  }
};

struct Slabs {
  // A range of what is written. A step stands for the columns of all phases.
  struct Task {
    i64 image, end_image, row, end_row, step, end_step;
  };

  i64 channels, rows;  // of the tensor that is read
  Columns read, written;
  i64 reach;       // steps from the first to the last one that a column reads
  i64 steps_back;  // from the written step back to the first step that it reads
  std::vector<bool> reads_phase, reads_row;
  Classes ys;                      // by written row
  std::vector<i64> low, high;      // by written row: it reads rows [low, high)
  std::vector<Classes::Class> xs;  // by written phase
  i64 images, steps;               // of a task, at most
  Pitch pitch;                     // of a slab, [channel, row, phase, step, image]
  std::vector<Task> tasks;

  i64 length() const { return steps + reach; }
  i64 first_row(const Task& task) const {
    return *std::min_element(low.begin() + task.row, low.begin() + task.end_row);
  }
  i64 end_row(const Task& task) const {
    return *std::max_element(high.begin() + task.row, high.begin() + task.end_row);
  }
};

// kSlab: floats that a slab should have. A task writes at most kSlabRows rows, and kSlabSteps steps
// or as many as the kernel reaches over.
constexpr i64 kSlab = 3 << 16, kSlabSteps = 4, kSlabRows = 4;

// Sets which rows each written row reads.
inline void find_rows(const Axis& y, bool backward, Slabs& slabs) {
  slabs.ys = classes_of(y, backward);
  slabs.rows = backward ? y.out : y.in;
  slabs.reads_row.assign(slabs.rows, false);
  for (std::size_t row = 0; row < slabs.ys.index.size(); row++) {
    const Classes::Class& is = slabs.ys.all[slabs.ys.index[row]];
    i64 low = slabs.rows, high = 0;
    for (i64 tap = 0; tap < y.taps; tap++) {
      if (!is.valid[tap]) continue;
      const i64 at = slabs.ys.base[row] + is.shift[tap];
      low = std::min(low, at);
      high = std::max(high, at + 1);
      slabs.reads_row[at] = true;
    }
    slabs.low.push_back(low);
    slabs.high.push_back(high);
  }
}

// Sets which columns are read and written, and how far apart they are.
inline void find_columns(const Axis& x, bool backward, Slabs& slabs) {
  const Columns in{x.in, x.stride, x.pad}, out{x.out, 1, 0};
  slabs.read = backward ? out : in;
  slabs.written = backward ? in : out;
  slabs.reach = (x.taps - 1) * x.dilation / x.stride;
  slabs.steps_back = backward ? slabs.reach : 0;
  slabs.reads_phase.assign(slabs.read.stride, backward);
  for (i64 tap = 0; tap < x.taps; tap++) {
    if (!backward) slabs.reads_phase[tap * x.dilation % x.stride] = true;
  }
}

// Cuts what is written into tasks. They get as many images as possible first, since long runs of
// images are copied faster; then rows are given up until the slab is small enough.
inline void cut(const Layer& layer, bool backward, Slabs& slabs) {
  const Axis& y = layer.y;
  const i64 num_rows = static_cast<i64>(slabs.low.size());
  const i64 first = slabs.written.pad / slabs.written.stride;
  const i64 end = (slabs.written.size - 1 + slabs.written.pad) / slabs.written.stride + 1;
  i64 rows = std::min(num_rows, kSlabRows);
  i64& steps = slabs.steps = std::min(end - first, std::max(kSlabSteps, slabs.reach));
  i64& images = slabs.images = kLanes;
  const auto size = [&](i64 num_images, i64 num_rows) {
    const i64 span = (num_rows - 1) * (backward ? 1 : y.stride) + (y.taps - 1) * y.dilation;
    const i64 read = std::min(slabs.rows, span / (backward ? y.stride : 1) + 1);
    return slabs.channels * read * slabs.read.stride * slabs.length() * num_images;
  };
  while (images < layer.batch &&
         (images * steps < kTile * kLanes || size(2 * images, rows) <= kSlab)) {
    images *= 2;
  }
  while (rows > 1 && size(images, rows) > 2 * kSlab) rows--;
  i64 most = 0;
  for (i64 row = 0; row < num_rows; row += rows) {
    for (i64 step = first; step < end; step += steps) {
      for (i64 image = 0; image < layer.batch; image += images) {
        slabs.tasks.push_back({image, std::min(image + images, layer.batch), row,
                               std::min(row + rows, num_rows), step, std::min(step + steps, end)});
      }
    }
    most = std::max(most, slabs.end_row(slabs.tasks.back()) - slabs.first_row(slabs.tasks.back()));
  }
  const i64 row_size = slabs.read.stride * slabs.length() * images;
  // Channels are an odd number of vectors apart: otherwise they would compete for the same places
  // in the cache.
  slabs.pitch = {(most * row_size / kLanes | 1) * kLanes, row_size, images};
}

inline Slabs slabs_of(const Layer& layer, bool backward) {
  const Axis& x = layer.x;
  Slabs slabs;
  slabs.channels = backward ? layer.out_channels : layer.in_channels;
  find_rows(layer.y, backward, slabs);
  find_columns(x, backward, slabs);
  cut(layer, backward, slabs);
  for (i64 phase = 0; phase < slabs.written.stride; phase++) {
    Classes::Class is{std::vector<bool>(x.taps), std::vector<i64>(x.taps)};
    for (i64 tap = 0; tap < x.taps; tap++) {
      const i64 of = tap * x.dilation % x.stride, step = tap * x.dilation / x.stride;
      is.valid[tap] = !backward || of == phase;
      is.shift[tap] = backward ? slabs.reach - step : of * slabs.length() + step;
    }
    slabs.xs.push_back(is);
  }
  return slabs;
}

// Copies a run of floats. `ending` is applied to each vector, and to each float that is left over.
template <class Ending = AsIs>
inline void copy_run(const float* from, float* to, i64 length, const Ending& ending = {}) {
  i64 i = 0;
  for (; i + kLanes <= length; i += kLanes) store(to + i, ending(load(from + i), i));
  for (; i < length; i++) to[i] = ending(from[i], i);
}

// Copies what a task reads into its slab. Columns outside of the tensor, and the images that a task
// at the end of the batch lacks, are zeros.
inline void fill(const Slabs& slabs, const Slabs::Task& task, const float* tensor, i64 batch,
                 float* slab) {
  std::vector<i64> columns, places;
  for (i64 phase = 0; phase < slabs.read.stride; phase++) {
    for (i64 step = 0; slabs.reads_phase[phase] && step < slabs.length(); step++) {
      columns.push_back(slabs.read.at(task.step - slabs.steps_back + step, phase));
      places.push_back((phase * slabs.length() + step) * slabs.images);
    }
  }
  std::vector<i64> rows;
  for (i64 row = slabs.first_row(task); row < slabs.end_row(task); row++) {
    if (slabs.reads_row[row]) rows.push_back(row);
  }
  const i64 num = task.end_image - task.image, num_lines = static_cast<i64>(rows.size());
  const auto line = [&](i64 i) {
    const i64 channel = i / num_lines, row = rows[i % num_lines];
    return tensor + (channel * slabs.rows + row) * slabs.read.size * batch + task.image;
  };
  for (i64 i = 0; i < slabs.channels * num_lines; i++) {
    const float *from = line(i), *next = line(std::min(i + 1, slabs.channels * num_lines - 1));
    float* to = slab + i / num_lines * slabs.pitch.channel +
                (rows[i % num_lines] - rows[0]) * slabs.pitch.y;
    for (std::size_t at = 0; at < columns.size(); at++) {
      const i64 column = columns[at] * batch;
      if (column >= 0) {
        prefetch(next + column, num);
        copy_run(from + column, to + places[at], num);
      }
      std::fill(to + places[at] + (column >= 0 ? num : 0), to + places[at] + slabs.images, 0.0f);
    }
  }
}

}  // namespace jaxsparse
