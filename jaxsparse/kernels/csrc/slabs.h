// The convolution of rows.h from copies, for layers that read every input many times.
//
// Channels lie far apart in channel-major images. The inputs that one output channel has read are
// gone from the cache before the next one reads them. So a task first copies what it reads into a
// slab (slab_layout.h), which is one small piece of memory and stays in the level-2 cache.
#pragma once

#include <algorithm>
#include <vector>

#include "rows.h"
#include "scratch.h"
#include "slab_layout.h"
#include "threads.h"
#include "tiles.h"

namespace jaxsparse {

// How many input channels are done before the next ones.
//
// All output channels read the inputs of a block of columns. These stay in the level-1 cache if
// they are those of few input channels; but then the sums of all outputs are stored and loaded
// again for each range of input channels. That pays if a sum gets kPays nonzeros or more from each
// range; otherwise all channels are done together.
inline i64 channels_together(const Layer& layer, const Slabs& slabs, i64 num_nonzeros) {
  constexpr i64 kCache = 9000, kPays = 8;
  const i64 steps = (kTile * kLanes + slabs.images - 1) / slabs.images + slabs.reach;
  const i64 read = std::min(layer.y.taps, layer.y.in) * slabs.read.stride * steps * slabs.images;
  const i64 few = std::max<i64>(kCache / read, 1);
  const bool pays = num_nonzeros * few >= kPays * layer.in_channels * layer.out_channels;
  return pays ? std::min(few, layer.in_channels) : layer.in_channels;
}

// Args:
//   epilogue: what is done to the outputs before they are written; null for nothing.
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
  // Computes the sums of a block for all output channels.
  const auto sums_of = [&](const float* from, const RowTaps& list, i64 length, float* sums) {
    for (i64 key = 0; key < num_keys; key++) {
      float* to = sums + key % outputs * kBlock;
      if (key < outputs) run_forward(from, list.of(key), to, length);
      else if (list.of(key).count > 0) run_forward(from, list.of(key), to, length, Added{to});
    }
  };
  // Writes the sums of one channel, as they are or normalised.
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
  // By part of the tasks: gradients of the values, in the order of the groups.
  std::vector<std::vector<float>> partial(kTasks);
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

}  // namespace jaxsparse
