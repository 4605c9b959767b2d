// Runs a program's operations on an arena, each whole or one of several parts of it.
#pragma once

#include <limits>

#include "form.h"

namespace jaxsparse::engine {

struct Part {
  i64 number, of;
  i64 begin(i64 num) const { return num * number / of; }
  i64 end(i64 num) const { return num * (number + 1) / of; }
};

class Runner {
 public:
  Runner(const Form& form, const Kernels& kernels, float* arena)
      : form_(form), program_(form.program), kernels_(kernels), arena_(arena), g_(form.images) {}

  // Copies images into the arena, at most as many as the form has.
  void load(std::size_t input, const float* from, i64 images) const {
    const Array& array = program_.inputs[input];
    if (const Ints& places = form_.input_places[input]; !places.empty()) {
      kernels_.interleave(arena_, places.data(), from, array.size, array.size,
                          static_cast<int>(images));
    } else if (g_ == 1 && !array.neighbours.empty()) {
      for (const Neighbours& some : array.neighbours) {
        copy_few(from + some.in_array, arena_ + some.in_arena, some.num);
      }
    } else {
      for_rows(array, images, [&](i64 place, float* row, i64 width) {
        copy_apart(from + place, array.column, row, g_, width);
      });
    }
  }

  void save(std::size_t output, float* to, i64 images) const {
    const Array& array = program_.outputs[output];
    if (const Ints& places = form_.output_places[output]; !places.empty()) {
      kernels_.separate(to, array.size, array.size, static_cast<int>(images), arena_,
                        places.data());
    } else if (g_ == 1 && !array.neighbours.empty()) {
      for (const Neighbours& some : array.neighbours) {
        copy_few(arena_ + some.in_arena, to + some.in_array, some.num);
      }
    } else {
      for_rows(array, images, [&](i64 place, const float* row, i64 width) {
        copy_apart(row, g_, to + place, array.column, width);
      });
    }
  }

  // Tile by tile, so that what a tile reads stays in the cache for all planes.
  void run(const Layer& layer, Part part) const {
    const i64 whole = layer.cost.back(), total = whole * layer.num_tiles;
    const i64 end = part.end(total);
    i64 at = part.begin(total);
    for (i64 tile = whole > 0 ? at / whole : 0; at < end; tile++) {
      const i64 stop = std::min(end - tile * whole, whole);
      const auto from = std::lower_bound(layer.cost.begin(), layer.cost.end(), at - tile * whole);
      const auto to = std::lower_bound(layer.cost.begin(), layer.cost.end(), stop);
      run_blocks(layer, from - layer.cost.begin(), to - layer.cost.begin(), tile);
      at = (tile + 1) * whole;
    }
  }

  void run(const Copy& copy, Part part) const {
    const i64 num = static_cast<i64>(copy.outs.size());
    for (i64 i = part.begin(num); i < part.end(num); i++) {
      const Geometry &to = program_.geometry(copy.outs[i]), &from = program_.geometry(copy.sources[i]);
      const i64 first_y = copy.first_y[i], first_x = copy.first_x[i];
      if (to.extent() == 1 && in_range(first_y, from.height) && in_range(first_x, from.width)) {
        const float* source = first(copy.sources[i]) + (first_y * from.pitch + first_x) * g_;
        float* out = first(copy.outs[i]);
        if (g_ == 1) *out = *source;
        else std::copy_n(source, kLine, out);
        continue;
      }
      const i64 begin = first_inside(copy.first_x[i], copy.stride_x, to.width);
      const i64 end = end_inside(copy.first_x[i], copy.stride_x, to.width, from.width);
      const i64 top = first_inside(copy.first_y[i], copy.stride_y, to.height);
      const i64 bottom = end_inside(copy.first_y[i], copy.stride_y, to.height, from.height);
      float* out = first(copy.outs[i]);
      if (begin > 0 || end < to.width || top > 0 || bottom < to.height) {
        for (i64 y = 0; y < to.height; y++) {
          std::fill_n(out + y * to.pitch * g_, to.width * g_, 0.0f);
        }
      }
      if (begin >= end || top >= bottom) continue;
      const i64 source_y = top * copy.stride_y + copy.first_y[i];
      const i64 source_x = begin * copy.stride_x + copy.first_x[i];
      const float* source =
          first(copy.sources[i]) + (source_y * from.pitch + source_x) * g_;
      out += (top * to.pitch + begin) * g_;
      const i64 down = from.pitch * copy.stride_y * g_;
      if (copy.stride_x == 1 || (copy.stride_x == 2 && g_ == 1)) {
        kernels_.rows(out, to.pitch * g_, source, down, bottom - top, (end - begin) * g_,
                      copy.stride_x);
        continue;
      }
      for (i64 y = top; y < bottom; y++, out += to.pitch * g_, source += down) {
        for (i64 x = 0; x < end - begin; x++) {
          std::copy_n(source + x * copy.stride_x * g_, g_, out + x * g_);
        }
      }
    }
  }

  void run(const Reflow& reflow, Part part) const {
    const i64 num = static_cast<i64>(reflow.outs.size());
    for (i64 i = part.begin(num); i < part.end(num); i++) {
      const Geometry& to = program_.geometry(reflow.outs[i]);
      const Geometry& from = program_.geometry(reflow.sources[i]);
      float* out = first(reflow.outs[i]);
      const float* source = first(reflow.sources[i]);
      // As many pixels at a time as are in one row of both.
      for (i64 at = 0, together; at < to.height * to.width; at += together) {
        const i64 x = at % to.width, source_x = at % from.width;
        together = std::min(to.width - x, from.width - source_x);
        std::copy_n(source + (at / from.width * from.pitch + source_x) * g_, together * g_,
                    out + (at / to.width * to.pitch + x) * g_);
      }
    }
  }

  void run(const Pool& pool, Part part) const {
    constexpr i64 kSmall = 9;  // most pixels of a window that `windows` is faster for
    const i64 num = static_cast<i64>(pool.outs.size());
    for (i64 i = part.begin(num); i < part.end(num); i++) {
      const Geometry &to = program_.geometry(pool.outs[i]), &from = program_.geometry(pool.sources[i]);
      const i64 end_y = pool.first_y + (to.height - 1) * pool.stride_y + pool.window_y;
      const bool is_inside = pool.first_y >= 0 && pool.first_x >= 0 && end_y <= from.height &&
                          pool.first_x + pool_span(pool, to) <= from.width;
      float* out = first(pool.outs[i]);
      const float* source = first(pool.sources[i]);
      if (g_ == 1 && is_inside && pool.stride_x <= 2 && pool.window_y * pool.window_x <= kSmall) {
        const Windows windows{to.height,     to.width,      to.pitch,      from.pitch,
                              pool.window_y, pool.window_x, pool.stride_y, pool.stride_x};
        kernels_.windows(windows, out, source + pool.first_y * from.pitch + pool.first_x);
      } else {
        row_by_row(pool, to, from, out, source);
      }
    }
  }

  void run(const Sum& sum, Part part) const {
    const i64 num = static_cast<i64>(sum.outs.size());
    for (i64 i = part.begin(num); i < part.end(num); i++) {
      float sums[kLine] = {};
      kernels_.add_up(sums, first(sum.sources[i]), form_.length(sum.sources[i]));
      for (i64 width = kLine / 2; width >= g_; width /= 2) {
        for (i64 k = 0; k < width; k++) sums[k] += sums[k + width];
      }
      for (i64 k = 0; k < g_; k++) first(sum.outs[i])[k] = sums[k];
    }
  }

  void run(const Product& product, Part part) const {
    const i64 num = static_cast<i64>(product.outs.size());
    for (i64 i = part.begin(num); i < part.end(num); i++) {
      const i64 length = form_.length(product.outs[i]);
      const i64 right = product.right[i];
      float *to = first(product.outs[i]), *left = first(product.left[i]);
      if (program_.planes[right].geometry == program_.planes[product.outs[i]].geometry) {
        kernels_.multiply(to, left, first(right), length);
      } else {
        float factors[kLine];
        for (i64 k = 0; k < kLine; k++) factors[k] = first(right)[k % g_];
        kernels_.scale(to, left, factors, length);
        kernels_.apply({}, to, form_.mask(product.outs[i]), length);  // 0 times infinity is not 0
      }
    }
  }

  void run(const Select& select, Part part) const {
    const i64 num = static_cast<i64>(select.outs.size());
    for (i64 i = part.begin(num); i < part.end(num); i++) {
      kernels_.select(first(select.outs[i]), first(select.condition[i]), first(select.above[i]),
                      first(select.otherwise[i]), select.or_zero, form_.length(select.outs[i]));
    }
  }

  void run(const Largest& largest, Part part) const {
    const i64 num = static_cast<i64>(largest.outs.size());
    i64 at = 0;
    for (i64 i = 0; i < part.end(num); at += largest.counts[i], i++) {
      if (i < part.begin(num)) continue;
      const i64 length = form_.length(largest.outs[i]);
      float* to = first(largest.outs[i]);
      std::copy_n(first(largest.sources[at]), length, to);
      for (i64 k = 1; k < largest.counts[i]; k++) {
        kernels_.largest(to, first(largest.sources[at + k]), length);
      }
    }
  }

 private:
  float* first(i64 plane) const { return arena_ + program_.first(plane) * g_; }

  // First down the columns, into a row with room for what windows see beside the image.
  void row_by_row(const Pool& pool, const Geometry& to, const Geometry& from, float* out,
                  const float* source) const {
    const float least = -std::numeric_limits<float>::infinity();
    const i64 span = pool_span(pool, to), begin = std::max<i64>(pool.first_x, 0);
    const i64 width = std::min(from.width, pool.first_x + span) - begin;
    const auto widest = g_ == 1 ? kernels_.widest : kernels_.widest_of_16;
    thread_local Floats row;
    row.assign(span * g_, least);
    for (i64 y = 0; y < to.height; y++, out += to.pitch * g_) {
      const i64 first_y = y * pool.stride_y + pool.first_y, top = std::max<i64>(first_y, 0);
      const i64 rows = std::min(from.height, first_y + pool.window_y) - top;
      if (rows <= 0 || width <= 0) {
        std::fill_n(out, to.width * g_, least);
        continue;
      }
      kernels_.tallest(&row[(begin - pool.first_x) * g_], source + (top * from.pitch + begin) * g_,
                       from.pitch * g_, rows, width * g_);
      widest(out, row.data(), pool.window_x, pool.stride_x, to.width);
    }
  }

  // Calls each(its place in the array, its first float in the arena, its width) for the rows of all
  // planes of the first images.
  template <class Each>
  void for_rows(const Array& array, i64 images, const Each& each) const {
    for (std::size_t i = 0; i < array.planes.size(); i++) {
      const Geometry& g = program_.geometry(array.planes[i]);
      float* plane = first(array.planes[i]);
      for (i64 k = 0; k < images; k++) {
        for (i64 y = 0; y < g.height; y++) {
          each(k * array.size + array.first[i] + y * array.row, plane + y * g.pitch * g_ + k,
               g.width);
        }
      }
    }
  }

  // For a few floats a loop is faster than a call.
  static void copy_few(const float* from, float* to, i64 num) {
    constexpr i64 kFew = 16;
    if (num > kFew) {
      std::copy_n(from, num, to);
    } else {
      for (i64 i = 0; i < num; i++) to[i] = from[i];
    }
  }

  // Copies floats that are some floats apart.
  static void copy_apart(const float* from, i64 apart, float* to, i64 to_apart, i64 num) {
    if (apart == 1 && to_apart == 1) {
      std::copy_n(from, num, to);
    } else {
      for (i64 i = 0; i < num; i++) to[i * to_apart] = from[i * apart];
    }
  }

  void run_blocks(const Layer& layer, i64 first, i64 last, i64 number) const {
    const Activation& a = layer.linear->activation;
    const bool clamps = a.function == Function::clamp;
    const float infinity = std::numeric_limits<float>::infinity();
    const float low = clamps ? a.low : -infinity, high = clamps ? a.high : infinity;
    const Block* blocks = layer.blocks.data();
    if (layer.vectors == 0) {
      for (const Block* block = blocks + first; block < blocks + last; block++) {
        float* to = arena_ + *block->out;
        const float x = kernels_.single(arena_, *block);
        *to = x < low ? low : x > high ? high : x;
        if (!clamps) apply(a, to, layer.mask, 1);
      }
      return;
    }
    const i64 begin = layer.vectors * number / layer.num_tiles;
    const i64 vectors = layer.vectors * (number + 1) / layer.num_tiles - begin;
    const i64 at = begin * kLine, middle = std::clamp(layer.num_together, first, last);
    const Tile tile{arena_ + at, layer.mask + at, low, high};
    if (middle > first) kernels_.block[vectors](tile, blocks + first, middle - first);
    if (last > middle) {
      const i64 num = static_cast<i64>(layer.blocks.size()) / layer.num_chunks;
      for (i64 chunk = 0; chunk < layer.num_chunks; chunk++) {
        kernels_.linear[vectors](tile, blocks + chunk * num + middle, last - middle);
      }
    }
    if (clamps) return;
    const i64 together = kBlock - 1;  // planes more that a block of several has
    const i64 end = last + std::min(last, layer.num_together) * together;
    for (i64 i = first + std::min(first, layer.num_together) * together; i < end; i++) {
      apply(a, tile.arena + layer.outs[i], tile.mask, vectors * kLine);
    }
  }

  void apply(const Activation& a, float* to, const std::int32_t* mask, i64 num) const {
    kernels_.apply({static_cast<std::uint32_t>(a.function), a.low, a.high}, to, mask, num);
  }

  static bool in_range(i64 at, i64 length) { return 0 <= at && at < length; }

  // Of the places x in [0, num), the first one at which x * stride + shift is 0 or more, and the
  // end of those where it is below `limit`.
  static i64 first_inside(i64 shift, i64 stride, i64 num) {
    if (shift >= 0) return 0;
    return stride == 0 ? num : std::min(num, (-shift + stride - 1) / stride);
  }
  static i64 end_inside(i64 shift, i64 stride, i64 num, i64 limit) {
    if (shift >= limit) return 0;
    return stride == 0 ? num : std::min(num, (limit - 1 - shift) / stride + 1);
  }

  const Form& form_;
  const Program& program_;
  const Kernels& kernels_;
  float* const arena_;
  const i64 g_;
};

}  // namespace jaxsparse::engine
