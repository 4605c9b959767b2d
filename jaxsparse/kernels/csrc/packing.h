// How the planes of a convolution lie in memory, and the copies from images to planes and back.
//
// A plane holds one channel with zeros around every row, so that a tap reads all its inputs at one
// offset from the outputs. A row `a b c d` with 3 taps and padding 1 becomes `0 a b c d`, and the
// rows follow each other:
//
//   inputs   0 a b c d 0 e f g h 0 ...
//   outputs  p q r s - t u v w - ...
//
// Output p reads `0 a b`, and s reads `c d 0`: the last zero is the first place of the next row. So
// outputs are computed in one run over all rows and images; those marked `-` are computed as well,
// and nobody takes them.
//
// A stride of s cuts an axis into s phases: phase k holds every s-th padded position from k on. A
// stride of 2 cuts the row above into the phases `0 b d` and `a c 0`. Output i reads place i of
// phase 0, place i of phase 1 and place i + 1 of phase 0, so that neighbouring outputs still read
// neighbouring floats. Every phase is a plane of its own; phases that no tap reads are left out.
#pragma once

#include <algorithm>
#include <vector>

#include "layer.h"
#include "transpose.h"

namespace jaxsparse {

// Distances between the elements of a batch of images, in floats.
struct Strides {
  i64 image, channel, y, x;
};

// One axis of an image in its planes.
struct PackedAxis {
  // `count` inputs, `stride` apart, which lie side by side in a plane.
  struct Run {
    i64 first;  // input
    i64 count;
    i64 at;     // place of the first input in its phase
    int phase;  // -1 if no tap reads these inputs
  };
  std::vector<i64> kept;  // by phase: the remainder of its positions modulo the stride
  std::vector<Run> runs;
  i64 reach;   // how far ahead the last tap reads, in places of its phase
  i64 length;  // places from row to row; the zeros behind a row are those before the next one

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
  // The inputs of every phase lie in places [first_input(), end_input()); [0, 0) if no tap reads an
  // input.
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
  // The phase of a padded position, or -1 if no tap reads that phase.
  int phase(i64 position) const {
    const auto place = std::find(kept.begin(), kept.end(), position % stride_);
    return place == kept.end() ? -1 : static_cast<int>(place - kept.begin());
  }

 private:
  i64 stride_;
};

// Channels that are packed at a time. In the channel-innermost layout they fill a cache line.
constexpr i64 kGroup = 16;

// How a layer's images are cut into blocks, and how a block lies in memory.
class Packing {
 public:
  explicit Packing(const Layer& layer) : layer_(layer), y_(layer.y), x_(layer.x) {
    const i64 image = y_.length * x_.length;
    const i64 planes = layer.in_channels * num_phases() + layer.out_channels;
    // The planes of a block take at most half a megabyte, unless one image takes more. So they stay
    // in the level-2 cache of most processors.
    images = std::clamp<i64>((1 << 17) / (planes * image), 1, layer.batch);
    num_blocks = (layer.batch + images - 1) / images;
    margin = y_.reach * x_.length + x_.reach;
    // Loops over a plane end at the last output of the last image. Loops over inputs begin at the
    // first input of any phase and end at the last one.
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

  i64 images;  // of a block
  i64 num_blocks;
  i64 length;         // of the outputs of a block in a plane, rounded up to a whole vector
  i64 first_input;    // place of the first input in a plane
  i64 inputs_length;  // from the first input to the last one, rounded up to a whole vector
  i64 margin;         // zeros for reads beyond the end of a plane, or before its beginning
  i64 pitch;          // floats from plane to plane

  i64 num_phases() const { return y_.num_phases() * x_.num_phases(); }
  i64 plane(const Nonzeros& nonzeros, int i) const {
    return nonzeros.in_channel[i] * num_phases() + tap(nonzeros, i).phase;
  }
  // The offset that a nonzero of input channel 0 reads at. Taps are counted y before x.
  i64 base(i64 tap) const { return taps_[tap].phase * pitch + taps_[tap].ahead; }
  // An estimate of the multiplications of a block. Copying a plane counts as one for each float.
  i64 work(i64 num_nonzeros) const {
    return length * (num_nonzeros + layer_.in_channels * num_phases() + layer_.out_channels);
  }
  i64 ahead(const Nonzeros& nonzeros, int i) const { return tap(nonzeros, i).ahead; }

  // Copies input channels [begin, end) of a block into their planes. The zeros between the inputs
  // must be there before; they are not written.
  void pack_inputs(const float* in, const Strides& strides, i64 block, i64 begin, i64 end,
                   float* planes) const {
    inputs<true>(const_cast<float*>(in), strides, block, begin, end, planes);
  }
  // Copies the planes back into the images. An input that no tap reads becomes 0.
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

  // The last block may have fewer images. The places of the missing ones then hold floats of an
  // earlier block, and no result of theirs is used.
  i64 images_of(i64 block) const { return std::min(images, layer_.batch - block * images); }

  // `planes` begins with the planes of channel `begin`.
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

}  // namespace jaxsparse
