// The inner loops of the engine, compiled once for each level of instructions.
//
// The engine's library holds all levels and chooses one when it is loaded. So nothing here may be
// shared by the linker between levels: all names are of this file alone, and no other header has
// functions that are called here.
#pragma once

#include <cstdint>

namespace jaxsparse::engine {

// One tile: the same pixels of many planes, as long as some whole vectors.
struct Tile {
  float* arena;  // the arena, moved on by the tile's first float
  const std::int32_t* mask;
  float low, high;  // what the results are clamped to
};

// A plane to make from its taps, or kBlock planes that have the same taps. A plane may be made by
// several blocks, each of which adds some taps to what the one before has written.
struct Block {
  const std::int32_t* offset;  // by tap: what it reads, from the beginning of the arena
  const float* weight;         // by tap, then by plane
  std::int64_t num;            // of taps
  const float* bias;           // by plane
  const std::int32_t* out;     // by plane: where it begins, from the beginning of the arena
  bool is_first, is_last;      // of its planes; blocks of kBlock planes are both
};

// A function of `Function` in program.h, by its number, and the two numbers that some take.
struct Applied {
  std::uint32_t function;
  float low, high;
};

// Windows inside of an image: rows of them, and what each sees.
struct Windows {
  std::int64_t rows, width, to_pitch;  // of the results
  std::int64_t pitch;                  // of the image
  std::int64_t window_y, window_x, stride_y, stride_x;  // stride_x is 1 or 2
};

constexpr int kMostVectors = 12;  // of a tile
constexpr int kBlock = 4;         // planes with the same taps that are made together
constexpr int kBlockVectors = 6;  // of a tile of such planes

// A level's kernels. Masks are all ones where a pixel is and 0 elsewhere.
struct Kernels {
  // Make `num` blocks, by the number of 16 floats of the tile: of one plane, or of kBlock.
  using Make = void (*)(const Tile&, const Block*, std::int64_t num);
  Make linear[kMostVectors + 1];
  Make block[kBlockVectors + 1];
  float (*single)(const float* arena, const Block&);  // a plane of one pixel, not yet clamped
  void (*apply)(const Applied&, float* p, const std::int32_t* mask, std::int64_t num);
  void (*largest)(float* to, const float* from, std::int64_t num);
  void (*select)(float* to, const float* condition, const float* above, const float* otherwise,
                 bool or_zero, std::int64_t num);
  void (*multiply)(float* to, const float* a, const float* b, std::int64_t num);
  void (*scale)(float* to, const float* from, const float* factors, std::int64_t num);  // 16 in turn
  void (*add_up)(float* sums, const float* from, std::int64_t num);                     // 16 in turn
  // Copies rows of `width` floats, of which the source has every `stride`-th, 1 or 2.
  void (*rows)(float* to, std::int64_t to_pitch, const float* from, std::int64_t from_pitch,
               std::int64_t num, std::int64_t width, std::int64_t stride);
  // The largest of `num` rows, at each of `width` places.
  void (*tallest)(float* to, const float* from, std::int64_t pitch, std::int64_t num,
                  std::int64_t width);
  // The largest of `window` neighbours, at each of `width` places that are `stride` apart; a place
  // has one number, or 16.
  using Widest = void (*)(float* to, const float* from, std::int64_t window, std::int64_t stride,
                          std::int64_t width);
  Widest widest, widest_of_16;
  // The largest number in each window of an image.
  void (*windows)(const Windows&, float* to, const float* from);
  // Puts images among each other: float i of image k to arena[16 * place[i] + k], unless its place
  // is -1. Images are `apart` floats apart, and have `size`; those that 16 lack are zeros.
  void (*interleave)(float* arena, const std::int32_t* place, const float* images,
                     std::int64_t apart, std::int64_t size, int num);
  // The other way; every float has a place.
  void (*separate)(float* images, std::int64_t apart, std::int64_t size, int num,
                   const float* arena, const std::int32_t* place);
};

}  // namespace jaxsparse::engine
