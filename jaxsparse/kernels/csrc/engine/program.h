// A program: a network as planes and taps. parser.h reads it from bytes.
//
// A plane is one channel of one image, with zeros around it. A linear operation makes planes from
// planes: each is a bias and a sum over taps, and a tap is a plane, a shift and a weight. So a
// convolution, a dense layer, a norm at inference and a sum of two branches are one operation.
// jaxsparse/engine/program.py says what every operation is, and writes the bytes.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace jaxsparse::engine {

using i64 = std::int64_t;
using Ints = std::vector<std::int32_t>;
using Floats = std::vector<float>;

constexpr std::uint32_t kVersion = 2;
constexpr i64 kLine = 16;         // floats of a cache line; planes of several pixels begin at one
constexpr i64 kMost = 1LL << 28;  // of every size in a program
// Floats of an arena, and of the pixels of all sizes that planes have.
constexpr i64 kMostFloats = 1LL << 27;

// Planes of one family have the same pitch, so that a shift is the same distance in all of them.
struct Family {
  i64 pitch;  // from a row to the next
  i64 lead;   // from the beginning of a plane to its first pixel; the zeros before it
  i64 size;
};

struct Geometry {
  i64 family, height, width, pitch;
  i64 extent() const { return height * pitch; }
};

struct Plane {
  i64 geometry, place;  // place: where it begins in the arena
};

enum class Function : std::uint32_t {
  clamp, exp, expm1, log, tanh, logistic, erf, erfc, sqrt, rsqrt, reciprocal, abs, silu, gelu, gelu_tanh,
  softplus, mish, hard_silu, leaky_relu, elu, count
};
struct Activation {
  Function function;
  float low, high;  // of `clamp`, `leaky_relu` and `elu`
};

struct Linear {
  i64 geometry;
  Activation activation;
  Ints shifts;   // dy and dx, in turn
  Ints sources;  // planes
  Ints outs;     // planes
  Floats bias;   // by out
  Ints counts;   // taps by out
  Ints taps;     // source * shifts + shift
  Floats weights;
};

// out[y, x] = source[y * stride_y + first_y, x * stride_x + first_x]; 0 outside.
struct Copy {
  i64 stride_y, stride_x;
  Ints outs, sources, first_y, first_x;
};

// The largest pixel in a window; those outside of the image do not count.
struct Pool {
  i64 window_y, window_x, stride_y, stride_x, first_y, first_x;
  Ints outs, sources;
};
constexpr i64 kMostSpan = 1 << 20;

// The sum of all pixels.
struct Sum {
  Ints outs, sources;
};

// The product of two planes; the second may have one pixel.
struct Product {
  Ints outs, left, right;
};

// The largest of several planes, pixel by pixel.
struct Largest {
  Ints outs, counts, sources;
};

// `above` where `condition` is above 0, or 0 if that counts; `otherwise` elsewhere.
struct Select {
  bool or_zero;
  Ints outs, condition, above, otherwise;
};

// The pixels of a plane in the same order, in rows of another length.
struct Reflow {
  Ints outs, sources;
};

using Operation = std::variant<Linear, Copy, Pool, Sum, Product, Largest, Select, Reflow>;

// Planes that never change.
struct Constant {
  Ints outs;
  Floats pixels;  // of all planes, row by row
};

// Planes of one pixel that are neighbours, in the same order, in an array and in the arena.
struct Neighbours {
  std::int32_t in_array, in_arena, num;
};

// How planes lie in an array of the caller, for one image: the pixel (y, x) of plane i is at
// first[i] + y * row + x * column.
struct Array {
  Ints shape;  // of an image
  i64 size;    // floats of an image
  i64 row, column;
  Ints planes, first;
  std::vector<Neighbours> neighbours;  // all planes; none if some have more than one float
};

struct Program {
  std::vector<Family> families;
  std::vector<Geometry> geometries;
  std::vector<Plane> planes;
  i64 arena;  // floats
  std::vector<Constant> constants;
  std::vector<Array> inputs, outputs;
  std::vector<Operation> operations;

  const Geometry& geometry(i64 plane) const { return geometries[planes[plane].geometry]; }
  const Family& family(i64 plane) const { return families[geometry(plane).family]; }
  // Where the first pixel of a plane is.
  i64 first(i64 plane) const { return planes[plane].place + family(plane).lead; }
};

// The pixels of a row that the windows of a pool see, those beside the image too; at most kMostSpan.
inline i64 pool_span(const Pool& pool, const Geometry& out) {
  return (out.width - 1) * pool.stride_x + pool.window_x;
}

// Rounds up to whole cache lines, but leaves one pixel alone.
inline i64 in_lines(i64 floats) {
  return floats == 1 ? 1 : (floats + kLine - 1) / kLine * kLine;
}

}  // namespace jaxsparse::engine
