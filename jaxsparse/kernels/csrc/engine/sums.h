// Planes as sums over taps, for one level of instructions; part of level.h.
#pragma once

#include "vectors.h"

namespace jaxsparse::engine {
namespace {

inline void finish(const Tile& tile, Vec sum, float* out, int at) {
  store(out + at, masked(clamped(sum, tile.low, tile.high), tile.mask + at));
}

// Sums over taps for `num` vectors. Short tiles take several taps at a time, as an addition waits
// for the one before it.
template <int num>
inline void strip(const Tile& tile, const Block& block, int at) {
  constexpr int ways = num == 1 ? 8 : num == 2 ? 4 : num <= 5 ? 2 : 1;
  const float* const arena = tile.arena + at;
  const std::int32_t* const offset = block.offset;
  const float* const weight = block.weight;
  Vec sums[ways][num];
  float* const out = tile.arena + *block.out + at;
  for (int v = 0; v < num; v++) {
    sums[0][v] = block.is_first ? all(*block.bias) : load(out + v * kLanes);
    for (int w = 1; w < ways; w++) sums[w][v] = Vec{};
  }
  std::int64_t i = 0;
  for (; i + ways <= block.num; i += ways) {
    for (int w = 0; w < ways; w++) {
      const float* p = arena + offset[i + w];
      const Vec a = all(weight[i + w]);
      for (int v = 0; v < num; v++) sums[w][v] += a * load(p + v * kLanes);
    }
  }
  for (; ways > 1 && i < block.num; i++) {
    const float* p = arena + offset[i];
    const Vec a = all(weight[i]);
    for (int v = 0; v < num; v++) sums[0][v] += a * load(p + v * kLanes);
  }
  for (int width = ways / 2; width > 0; width /= 2) {
    for (int w = 0; w < width; w++) {
      for (int v = 0; v < num; v++) sums[w][v] += sums[w + width][v];
    }
  }
  if (!block.is_last) {
    for (int v = 0; v < num; v++) store(out + v * kLanes, sums[0][v]);
    return;
  }
  for (int v = 0; v < num; v++) finish(tile, sums[0][v], out - at, at + v * kLanes);
}

template <int num>
void linear(const Tile& given, const Block* blocks, std::int64_t count) {
  constexpr int vectors = num * kWidth, left = vectors % kStrip;
  const Tile tile = given;
  for (const Block* block = blocks; block < blocks + count; block++) {
    int v = 0;
    for (; v + kStrip <= vectors; v += kStrip) strip<kStrip>(tile, *block, v * kLanes);
    if constexpr (left > 0) strip<left>(tile, *block, v * kLanes);
  }
}

// The same for kBlock planes with the same taps: what is loaded serves them all.
template <int num>
inline void block_strip(const Tile& tile, const Block& block, int at) {
  Vec sums[kBlock][num];
  for (int b = 0; b < kBlock; b++) {
    for (int v = 0; v < num; v++) sums[b][v] = all(block.bias[b]);
  }
  for (std::int64_t i = 0; i < block.num; i++) {
    const float* p = tile.arena + block.offset[i] + at;
    const float* weights = block.weight + i * kBlock;
    Vec x[num];
    for (int v = 0; v < num; v++) x[v] = load(p + v * kLanes);
    for (int b = 0; b < kBlock; b++) {
      const Vec a = all(weights[b]);
      for (int v = 0; v < num; v++) sums[b][v] += a * x[v];
    }
  }
  for (int b = 0; b < kBlock; b++) {
    float* const out = tile.arena + block.out[b];
    for (int v = 0; v < num; v++) finish(tile, sums[b][v], out, at + v * kLanes);
  }
}

template <int num>
void block(const Tile& given, const Block* blocks, std::int64_t count) {
  constexpr int strips = kLanes == 16 ? kBlockVectors : 2, vectors = num * kWidth;
  constexpr int left = vectors % strips;
  const Tile tile = given;
  for (const Block* block = blocks; block < blocks + count; block++) {
    int v = 0;
    for (; v + strips <= vectors; v += strips) block_strip<strips>(tile, *block, v * kLanes);
    if constexpr (left > 0) block_strip<left>(tile, *block, v * kLanes);
  }
}

inline float total(Vec a) {
  float lanes[kLanes];
  store(lanes, a);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// A plane of one pixel, from planes of one pixel. Where these lie in a row, they are read so.
float single(const float* arena, const Block& block) {
  const std::int32_t* offset = block.offset;
  const std::int64_t num = block.num;
  std::int64_t i = 0;
  float sums[4] = {*block.bias, 0, 0, 0};
  const bool in_a_row =
      num >= kLanes && offset[num - 1] - offset[0] == num - 1 && offset[1] - offset[0] == 1;
  if (in_a_row) {
    const float* p = arena + offset[0];
    // Infinity times a weight of 0, which may fill a gap, is 0.
    const auto term = [&](std::int64_t at) {
      const Vec weight = load(block.weight + at);
      return reinterpret_cast<Vec>(reinterpret_cast<Bits>(weight * load(p + at)) &
                                   (weight != Vec{}));
    };
    Vec parts[4] = {};
    for (; i + 4 * kLanes <= num; i += 4 * kLanes) {
      for (int k = 0; k < 4; k++) parts[k] += term(i + k * kLanes);
    }
    for (; i + kLanes <= num; i += kLanes) parts[0] += term(i);
    sums[1] = total((parts[0] + parts[1]) + (parts[2] + parts[3]));
  }
#if defined(__AVX512F__)
  else if (num >= 3 * kLanes) {  // looking up 16 at a time pays for adding up 16 sums
    Vec even{}, odd{};
    const auto looked_up = [&](std::int64_t at) -> Vec {
      return _mm512_i32gather_ps(_mm512_loadu_si512(offset + at), arena, sizeof(float));
    };
    for (; i + 2 * kLanes <= num; i += 2 * kLanes) {
      even += load(block.weight + i) * looked_up(i);
      odd += load(block.weight + i + kLanes) * looked_up(i + kLanes);
    }
    sums[1] = total(even + odd);
  }
#endif
  const auto one = [&](std::int64_t at) {
    return block.weight[at] == 0 ? 0.0f : block.weight[at] * arena[offset[at]];
  };
  for (; i + 4 <= num; i += 4) {
    for (int s = 0; s < 4; s++) sums[s] += one(i + s);
  }
  for (; i < num; i++) sums[0] += one(i);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

}  // namespace
}  // namespace jaxsparse::engine
