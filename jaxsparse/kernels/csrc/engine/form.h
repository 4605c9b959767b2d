// A program made ready for a number of images at a time: offsets instead of taps, masks, tiles.
//
// Several images lie interleaved: a pixel is then as many floats as there are images, and all that
// holds for one image holds for them.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "program.h"

namespace jaxsparse::engine {

// A linear operation.
struct Layer {
  const Linear* linear;
  i64 vectors, num_tiles;  // of a plane; vectors of 16 floats; 0 for planes of one pixel
  const std::int32_t* mask;
  i64 num_together;           // blocks of kBlock planes, which come first; the others are of one
  // By chunk of the sources, then by plane; those of one plane by its number of taps in all.
  std::vector<Block> blocks;
  i64 num_chunks;  // 1 where planes are made together
  std::vector<i64> cost;  // of the planes of the blocks before each one of a chunk, and of all
  Ints offsets, outs, counts;  // counts: taps by plane
  Floats weights, bias;

  // Multiplications of vectors.
  i64 work() const { return cost.back() * std::max<i64>(vectors, 1); }
};

class Form {
 public:
  Form(const Program& program, i64 images) : program(program), images(images) {
    masks_.resize(program.geometries.size());
    for (const Plane& plane : program.planes) {
      Ints& mask = masks_[plane.geometry];
      if (mask.empty()) mask = mask_of(program.geometries[plane.geometry]);
    }
    for (const Operation& operation : program.operations) {
      if (const auto* linear = std::get_if<Linear>(&operation)) layers.push_back(layer_of(*linear));
    }
    for (const Array& array : program.inputs) input_places.push_back(places_of(array, false));
    for (const Array& array : program.outputs) output_places.push_back(places_of(array, true));
  }

  Form(const Form&) = delete;
  Form& operator=(const Form&) = delete;

  const Program& program;
  const i64 images;
  std::vector<Layer> layers;  // in the order of the linear operations
  std::vector<Ints> input_places, output_places;  // by array, as `places_of` says

  // Floats of a plane's pixels, with the zeros between them.
  i64 length(i64 plane) const { return in_lines(program.geometry(plane).extent() * images); }

  // An arena for these images, with the planes that never change.
  Floats arena() const {
    Floats arena(program.arena * images + kLine, 0.0f);
    for (const Constant& constant : program.constants) {
      const float* from = constant.pixels.data();
      for (const i64 plane : constant.outs) {
        const Geometry& g = program.geometry(plane);
        for (i64 y = 0; y < g.height; y++) {
          for (i64 x = 0; x < g.width; x++, from++) {
            std::fill_n(&arena[(program.first(plane) + y * g.pitch + x) * images], images, *from);
          }
        }
      }
    }
    return arena;
  }

  const std::int32_t* mask(i64 plane) const {
    return masks_[program.planes[plane].geometry].data();
  }

 private:
  Ints mask_of(const Geometry& g) const {
    Ints mask(in_lines(g.extent() * images), 0);
    for (i64 i = 0; i < g.extent() * images; i++) {
      mask[i] = i / images % g.pitch < g.width ? -1 : 0;
    }
    return mask;
  }

  // For each float of an image the pixel of the arena that it is, or -1. Empty for one image alone,
  // if a float is several pixels, if some are none although all must be, or if nearly all are none.
  Ints places_of(const Array& array, bool must_cover) const {
    constexpr i64 kRare = 64;  // floats for a pixel
    i64 pixels = 0;
    for (const i64 plane : array.planes) {
      pixels += program.geometry(plane).height * program.geometry(plane).width;
    }
    const i64 fewest = must_cover ? array.size : array.size / kRare;
    if (images == 1 || pixels == 0 || pixels > array.size || pixels < fewest) return {};
    Ints places(array.size, -1);
    for (std::size_t i = 0; i < array.planes.size(); i++) {
      const Geometry& g = program.geometry(array.planes[i]);
      for (i64 y = 0; y < g.height; y++) {
        for (i64 x = 0; x < g.width; x++) {
          std::int32_t& place = places[array.first[i] + y * array.row + x * array.column];
          if (place >= 0) return {};
          place = static_cast<std::int32_t>(program.first(array.planes[i]) + y * g.pitch + x);
        }
      }
    }
    return places;
  }

  Layer layer_of(const Linear& linear) const {
    const Geometry& g = program.geometries[linear.geometry];
    Layer layer{};
    layer.linear = &linear;
    layer.mask = masks_[linear.geometry].data();
    const i64 floats = in_lines(g.extent() * images);
    layer.vectors = floats == 1 ? 0 : floats / kLine;
    layer.offsets.reserve(linear.taps.size());
    const i64 num_shifts = static_cast<i64>(linear.shifts.size()) / 2;
    for (const i64 tap : linear.taps) {
      const std::int32_t* shift = &linear.shifts[tap % num_shifts * 2];
      const i64 first = program.first(linear.sources[tap / num_shifts]);
      layer.offsets.push_back(
          static_cast<std::int32_t>((first + shift[0] * g.pitch + shift[1]) * images));
    }
    layer.weights = linear.weights;
    layer.counts = linear.counts;
    if (layer.vectors == 0) fill_gaps(layer);
    cut_into_blocks(layer);
    const i64 most = layer.num_together > 0 ? kBlockVectors : kMostVectors;
    layer.num_tiles = std::max<i64>((layer.vectors + most - 1) / most, 1);
    cut_into_chunks(layer);
    return layer;
  }

  // Gives planes of one pixel that read many of their neighbours' sources taps of weight 0 for the
  // others: reading all in a row is faster than looking some of them up. The kernel lets nothing
  // of what it reads there through.
  static void fill_gaps(Layer& layer) {
    constexpr i64 kFewest = 16, kGap = 6;  // taps of a plane; pixels in a row for a tap
    Ints offsets, counts;
    Floats weights;
    i64 at = 0;
    for (const i64 num : layer.counts) {
      const auto first = layer.offsets.begin() + at;
      const i64 span = num > 0 ? first[num - 1] - first[0] + 1 : 0;
      const bool rises = std::is_sorted(first, first + num) &&
                         std::adjacent_find(first, first + num) == first + num;
      if (num < kFewest || !rises || span > kGap * num) {
        offsets.insert(offsets.end(), first, first + num);
        const auto from = layer.weights.begin() + at;
        weights.insert(weights.end(), from, from + num);
        counts.push_back(static_cast<std::int32_t>(num));
      } else {
        const std::size_t begin = weights.size();
        weights.resize(begin + span, 0.0f);
        for (i64 k = 0; k < span; k++) offsets.push_back(static_cast<std::int32_t>(first[0] + k));
        for (i64 k = 0; k < num; k++) weights[begin + first[k] - first[0]] = layer.weights[at + k];
        counts.push_back(static_cast<std::int32_t>(span));
      }
      at += num;
    }
    layer.offsets = std::move(offsets);
    layer.weights = std::move(weights);
    layer.counts = std::move(counts);
  }

  void cut_into_blocks(Layer& layer) const {
    const Linear& linear = *layer.linear;
    const i64 num = static_cast<i64>(linear.outs.size());
    std::vector<i64> start(num + 1, 0), order(num);
    for (i64 i = 0; i < num; i++) {
      start[i + 1] = start[i] + layer.counts[i];
      order[i] = i;
    }
    const bool together = are_alike(layer, start);
    layer.num_together = together ? num / kBlock : 0;
    // Loops that are as long as the last one are predicted well.
    std::stable_sort(order.begin() + layer.num_together * kBlock, order.end(),
                     [&](i64 i, i64 k) { return layer.counts[i] < layer.counts[k]; });
    for (const i64 i : order) {
      layer.bias.push_back(linear.bias[i]);
      layer.outs.push_back(static_cast<std::int32_t>(program.first(linear.outs[i]) * images));
    }
    const Floats given = together ? layer.weights : Floats{};
    layer.cost = {0};
    for (i64 at = 0; at < num;) {
      const i64 planes = at < layer.num_together * kBlock ? kBlock : 1, i = order[at];
      float* weights = layer.weights.data() + start[i];
      for (i64 b = 0; planes > 1 && b < planes; b++) {  // by tap, then by plane
        for (i64 k = 0; k < layer.counts[i]; k++) {
          weights[k * planes + b] = given[start[i + b] + k];
        }
      }
      layer.blocks.push_back({layer.offsets.data() + start[i], weights, layer.counts[i],
                              layer.bias.data() + at, layer.outs.data() + at, true, true});
      layer.cost.push_back(layer.cost.back() + planes * (layer.counts[i] + 4));
      at += planes;
    }
  }

  // Cuts the sources into chunks, so that what a tile reads of one stays in the nearest cache while
  // all planes add its taps. Sums are written and read between chunks, so each needs some taps.
  void cut_into_chunks(Layer& layer) const {
    constexpr i64 kNear = 1 << 11;  // floats that a tile reads of a chunk, if nothing is shifted
    constexpr i64 kFewest = 20;     // taps of a plane in a chunk, on average
    const Linear& linear = *layer.linear;
    const i64 num_sources = static_cast<i64>(linear.sources.size());
    const i64 num_shifts = static_cast<i64>(linear.shifts.size()) / 2;
    const i64 num_taps = static_cast<i64>(layer.offsets.size());
    const i64 num_planes = static_cast<i64>(layer.blocks.size());
    layer.num_chunks = 1;
    if (layer.num_together > 0 || layer.vectors == 0 || num_planes == 0) return;
    const i64 read = layer.vectors / layer.num_tiles * kLine * num_sources;
    const i64 num = std::min(read / kNear, num_taps / (kFewest * num_planes));
    if (num < 2) return;
    std::vector<Ints> offsets(num);
    std::vector<Floats> weights(num);
    std::vector<Block> blocks(num * num_planes);
    for (i64 i = 0; i < num_planes; i++) {
      const Block& block = layer.blocks[i];
      for (i64 c = 0; c < num; c++) {
        Block& part = blocks[c * num_planes + i] = block;
        part.num = -static_cast<i64>(offsets[c].size());
        part.is_first = c == 0;
        part.is_last = c == num - 1;
      }
      const std::int32_t* tap = linear.taps.data() + (block.offset - layer.offsets.data());
      for (i64 k = 0; k < block.num; k++) {
        const i64 chunk = tap[k] / num_shifts * num / num_sources;
        offsets[chunk].push_back(block.offset[k]);
        weights[chunk].push_back(block.weight[k]);
      }
      for (i64 c = 0; c < num; c++) {
        blocks[c * num_planes + i].num += static_cast<i64>(offsets[c].size());
      }
    }
    i64 at = 0;
    for (i64 c = 0; c < num; c++) {
      std::copy(offsets[c].begin(), offsets[c].end(), layer.offsets.begin() + at);
      std::copy(weights[c].begin(), weights[c].end(), layer.weights.begin() + at);
      for (i64 i = 0; i < num_planes; i++) {
        Block& block = blocks[c * num_planes + i];
        block.offset = layer.offsets.data() + at;
        block.weight = layer.weights.data() + at;
        at += block.num;
      }
    }
    layer.blocks = std::move(blocks);
    layer.num_chunks = num;
  }

  // Whether the planes of every block of neighbours have the same taps.
  static bool are_alike(const Layer& layer, const std::vector<i64>& start) {
    const i64 num = static_cast<i64>(layer.counts.size()) / kBlock * kBlock;
    bool alike = layer.vectors > 0 && num > 0 && layer.counts[0] > 0;
    for (i64 i = 0; alike && i < num; i++) {
      const i64 first = i / kBlock * kBlock;
      const auto* offsets = layer.offsets.data();
      alike = layer.counts[i] == layer.counts[first] &&
              std::equal(offsets + start[i], offsets + start[i + 1], offsets + start[first]);
    }
    return alike;
  }

  std::vector<Ints> masks_;
};

}  // namespace jaxsparse::engine
