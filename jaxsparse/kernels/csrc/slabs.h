// The convolution of rows.h from copies, for layers that read everything many times.
//
// Channels lie so far apart that what one of them has read is gone from the cache before the next
// one comes to read it. So a task copies what it reads: all channels of some images, rows and
// columns. A slab like that is small and in one piece, and stays in the level-2 cache. It has zeros
// where the kernel reaches over the edge along x, so that all columns have the same taps; and columns
// that a stride takes apart lie side by side in it, phase by phase.
#pragma once

#include <algorithm>
#include <vector>

#include "planes.h"
#include "rows.h"
#include "scratch.h"

namespace jaxsparse {

// Columns are step * stride + phase - pad, those that are read or those that are written.
struct Columns {
  i64 size, stride, pad;

  // Or -1 where there is none.
  i64 at(i64 step, i64 phase) const {
    const i64 column = step * stride + phase - pad;
    return column < size ? std::max<i64>(column, -1) : -1;
  }
};

struct Slabs {
  // What is written, as ranges; steps are those of all phases.
  struct Task {
    i64 image, end_image, row, end_row, step, end_step;
  };

  i64 channels, rows;  // of the tensor that is read
  Columns read, written;
  i64 reach;       // steps from the first to the last one that a column reads
  i64 steps_back;  // of the first one
  std::vector<bool> reads_phase, reads_row;
  Classes ys;                      // by row that is written
  std::vector<i64> low, high;      // range of rows that it reads
  std::vector<Classes::Class> xs;  // by phase that is written
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

// Floats of a slab, if it can be as small, and the steps and rows that a task writes at most.
constexpr i64 kSlab = 3 << 16, kSlabSteps = 4, kSlabRows = 4;

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

// Most images first: the more lie side by side in the tensors, the faster they are copied.
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
  // An odd number of vectors, so that channels do not compete for places in the cache.
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

// Runs of images and what is made of each vector, or of each float that is left over.
template <class Ending = AsIs>
inline void copy_run(const float* from, float* to, i64 length, const Ending& ending = {}) {
  i64 i = 0;
  for (; i + kLanes <= length; i += kLanes) store(to + i, ending(load(from + i), i));
  for (; i < length; i++) to[i] = ending(from[i], i);
}

// Images that a block lacks are zeros.
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

// Input channels whose part of what a block of sums reads stays in the level-1 cache, where sums of
// so many nonzeros are made at a time that it pays to keep them aside meanwhile; else all.
inline i64 channels_together(const Layer& layer, const Slabs& slabs, i64 num_nonzeros) {
  constexpr i64 kCache = 9000, kPays = 8;
  const i64 steps = (kTile * kLanes + slabs.images - 1) / slabs.images + slabs.reach;
  const i64 read = std::min(layer.y.taps, layer.y.in) * slabs.read.stride * steps * slabs.images;
  const i64 few = std::max<i64>(kCache / read, 1);
  const bool pays = num_nonzeros * few >= kPays * layer.in_channels * layer.out_channels;
  return pays ? std::min(few, layer.in_channels) : layer.in_channels;
}

inline void slabs_forward(xla::ffi::ThreadPool& pool, const Layer& layer, const Nonzeros& nonzeros,
                          const float* in, float* out, const Epilogue* epilogue = nullptr) {
  constexpr i64 kBlock = kTile * kLanes;
  const i64 batch = layer.batch, outputs = layer.out_channels;
  const Slabs slabs = slabs_of(layer, false);
  const i64 together = channels_together(layer, slabs, nonzeros.count());
  const i64 num_keys = (layer.in_channels + together - 1) / together * outputs;
  std::vector<int> keys(nonzeros.count());
  for (int i = 0; i < nonzeros.count(); i++) {
    const i64 inputs = nonzeros.in_channel[i] / together;
    keys[i] = static_cast<int>(inputs * outputs + nonzeros.out_channel[i]);
  }
  const Grouped grouped = group_by(keys, num_keys);
  std::vector<RowTaps> taps(slabs.ys.all.size());
  parallel_for(pool, static_cast<i64>(taps.size()), [&](i64 i) {
    taps[i] = row_taps(nonzeros, grouped, 0, num_keys, nonzeros.in_channel, slabs.ys.all[i],
                       slabs.xs[0], slabs.pitch);
  });
  // A block of sums of all channels, from the slab on; then they are written.
  const auto sums_of = [&](const float* from, const RowTaps& list, i64 length, float* sums) {
    for (i64 key = 0; key < num_keys; key++) {
      float* to = sums + key % outputs * kBlock;
      if (key < outputs) run_forward(from, list.of(key), to, length);
      else if (list.of(key).count > 0) run_forward(from, list.of(key), to, length, Added{to});
    }
  };
  const auto write = [&](const float* sums, i64 channel, float* to, i64 length) {
    if (epilogue == nullptr) return copy_run(sums, to, length);
    const float* shortcut = epilogue->shortcut;
    copy_run(sums, to, length,
             Normalised{epilogue->mean[channel], epilogue->factor[channel], epilogue->bias[channel],
                        epilogue->relu, shortcut ? shortcut + (to - out) : nullptr});
  };
  parallel_for(pool, static_cast<i64>(slabs.tasks.size()), [&](i64 number) {
    const Slabs::Task& task = slabs.tasks[number];
    thread_local Scratch slab, sums;
    slab.resize(slabs.channels * slabs.pitch.channel);
    sums.resize(outputs * kBlock);
    fill(slabs, task, in, batch, slab.data());
    const i64 length = (task.end_step - task.step) * slabs.images, first = slabs.first_row(task);
    for (i64 row = task.row; row < task.end_row; row++) {
      const float* from = slab.data() + (slabs.ys.base[row] - first) * slabs.pitch.y;
      for (i64 i = 0; i < length; i += kBlock) {
        const i64 block = std::min(kBlock, length - i);
        sums_of(from + i, taps[slabs.ys.index[row]], block, sums.data());
        for (i64 channel = 0; channel < outputs; channel++) {
          float* to = out + ((channel * layer.y.out + row) * layer.x.out + task.step) * batch;
          for (i64 j = 0, next; j < block; j = next) {  // a run of images of one column
            const i64 column = (i + j) / slabs.images, image = (i + j) % slabs.images;
            next = std::min(block, j + slabs.images - image);
            const i64 num = std::min(next - j, task.end_image - task.image - image);
            write(sums.data() + channel * kBlock + j, channel,
                  to + column * batch + task.image + image, num);
          }
        }
      }
    }
  });
}

inline void slabs_backward(xla::ffi::ThreadPool& pool, const Layer& layer, const Nonzeros& nonzeros,
                           const float* in, const float* grad, float* grad_in, float* grad_values) {
  const i64 batch = layer.batch;
  const Slabs slabs = slabs_of(layer, true);
  const Grouped grouped = group_by(nonzeros.in_channel, layer.in_channels);
  const i64 phases = slabs.written.stride, num_tasks = static_cast<i64>(slabs.tasks.size());
  std::vector<RowTaps> taps(slabs.ys.all.size() * phases);
  parallel_for(pool, static_cast<i64>(taps.size()), [&](i64 i) {
    taps[i] = row_taps(nonzeros, grouped, 0, layer.in_channels, nonzeros.out_channel,
                       slabs.ys.all[i / phases], slabs.xs[i % phases], slabs.pitch);
  });
  const i64 in_pitch = layer.y.in * layer.x.in * batch;
  std::vector<std::vector<float>> partial(kTasks);  // gradients of the values, as grouped
  parallel_for(pool, kTasks, [&](i64 part) {
    const i64 begin = num_tasks * part / kTasks, end = num_tasks * (part + 1) / kTasks;
    if (begin == end) return;
    partial[part].assign(nonzeros.count(), 0.0f);
    Scratch slab, sums, inputs, found;
    slab.resize(slabs.channels * slabs.pitch.channel);
    found.resize(slabs.steps * slabs.images);
    for (i64 number = begin; number < end; number++) {
      const Slabs::Task& task = slabs.tasks[number];
      const i64 num = task.end_image - task.image, first = slabs.first_row(task);
      fill(slabs, task, grad, batch, slab.data());
      inputs.resize(slabs.steps * slabs.images);
      std::fill_n(inputs.data(), slabs.steps * slabs.images, 0.0f);
      for (i64 channel = 0; channel < layer.in_channels; channel++) {
        const int start = grouped.start[channel], count = grouped.count(channel);
        sums.resize(i64{kLanes} * count);
        std::fill_n(sums.data(), i64{kLanes} * count, 0.0f);
        for (i64 row = task.row; row < task.end_row; row++) {
          const float* from = slab.data() + (slabs.ys.base[row] - first) * slabs.pitch.y;
          const i64 at = channel * in_pitch + row * layer.x.in * batch + task.image;
          for (i64 phase = 0; phase < phases; phase++) {
            i64 step = task.step, end_step = task.end_step;
            while (step < end_step && slabs.written.at(step, phase) < 0) step++;
            while (step < end_step && slabs.written.at(end_step - 1, phase) < 0) end_step--;
            const i64 place = at + slabs.written.at(step, phase) * batch, columns = end_step - step;
            if (columns == 0) continue;
            for (i64 i = 0; i < columns; i++) {
              const float* run = in + place + i * phases * batch;
              if (channel + 1 < layer.in_channels) prefetch(run + in_pitch, num);
              copy_run(run, inputs.data() + i * slabs.images, num);
            }
            run_backward(from + (step - task.step) * slabs.images,
                         taps[slabs.ys.index[row] * phases + phase].of(channel), inputs.data(),
                         found.data(), sums.data(), columns * slabs.images);
            for (i64 i = 0; i < columns; i++) {
              copy_run(found.data() + i * slabs.images, grad_in + place + i * phases * batch, num);
            }
          }
        }
        add_sums(sums.data(), count, partial[part].data() + start);
      }
    }
  });
  for (int at = 0; at < nonzeros.count(); at++) {
    float total = 0;
    for (const auto& part : partial) total += part.empty() ? 0.0f : part[at];
    grad_values[grouped.order[at]] = total;
  }
}

// Whether what is read is read so often that copies pay.
inline bool copies_pay(const Layer& layer, const Nonzeros& nonzeros, i64 channels) {
  constexpr i64 kOften = 64;
  return nonzeros.count() >= kOften * channels * layer.y.stride * layer.x.stride;
}

inline void channel_major_forward(xla::ffi::ThreadPool& pool, const Layer& layer,
                                  const Nonzeros& nonzeros, const float* in, float* out,
                                  const Epilogue* epilogue = nullptr) {
  const bool copies = copies_pay(layer, nonzeros, layer.in_channels);
  (copies ? slabs_forward : rows_forward)(pool, layer, nonzeros, in, out, epilogue);
}

inline void channel_major_backward(xla::ffi::ThreadPool& pool, const Layer& layer,
                                   const Nonzeros& nonzeros, const float* in, const float* grad,
                                   float* grad_in, float* grad_values) {
  const bool copies = copies_pay(layer, nonzeros, layer.out_channels);
  (copies ? slabs_backward : rows_backward)(pool, layer, nonzeros, in, grad, grad_in, grad_values);
}

}  // namespace jaxsparse
