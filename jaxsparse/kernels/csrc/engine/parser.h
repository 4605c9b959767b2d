// Reads a program from bytes, and checks each part: whatever they are, no operation leaves the arena.
//
// The order of the parts is that of jaxsparse/engine/program.py, which writes them.
#pragma once

#include <algorithm>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "program.h"
#include "reader.h"

namespace jaxsparse::engine {

inline void require(bool holds, const char* what) {
  if (!holds) throw BadProgram(what);
}

// Reads and checks a program's parts one after the other.
class Parser {
 public:
  Parser(const unsigned char* bytes, std::uint64_t size) : in_(bytes, size) {}

  Program parse() {
    read_planes();
    for (i64 n = count("constants"); n > 0; n--) p_.constants.push_back(read_constant());
    for (i64 n = count("inputs"); n > 0; n--) p_.inputs.push_back(read_array());
    for (i64 n = count("outputs"); n > 0; n--) p_.outputs.push_back(read_array());
    for (i64 n = count("operations"); n > 0; n--) {
      p_.operations.push_back(read_operation());
      std::visit([&](const auto& operation) { add_work(operation); }, p_.operations.back());
    }
    require(in_.left() == 0, "it has more bytes than its parts");
    return std::move(p_);
  }

 private:
  static constexpr i64 kMostAxes = 32;
  // Numbers that an image may touch: bytes that were made up shall not keep a machine busy.
  static constexpr double kMostWork = 1e13;

  // Adds what an operation takes for an image.
  template <class Operation>
  void add_work(const Operation& operation) {
    if (operation.outs.empty()) return;
    double pixels = 0, window = 1;
    for (const i64 plane : operation.outs) {
      pixels += static_cast<double>(p_.geometry(plane).extent());
    }
    if constexpr (std::is_same_v<Operation, Linear>) {
      window += static_cast<double>(operation.taps.size()) / operation.outs.size();
    } else if constexpr (std::is_same_v<Operation, Pool>) {
      double width = 0;  // rows of the windows are as wide as the image
      for (const i64 plane : operation.sources) {
        width = std::max(width, static_cast<double>(p_.geometry(plane).width));
      }
      window += static_cast<double>(operation.window_x + operation.window_y) +
                static_cast<double>(operation.window_y) * width /
                    p_.geometry(operation.outs[0]).width;
    } else if constexpr (std::is_same_v<Operation, Largest>) {
      window += static_cast<double>(operation.sources.size()) / operation.outs.size();
    }
    work_ += pixels * window;
    require(work_ <= kMostWork, "it would take too long");
  }

  i64 count(const char* what) { return in_.number(0, kMost, what); }

  void read_planes() {
    for (i64 n = count("families"); n > 0; n--) {
      Family f{};
      f.pitch = in_.number(1, kMost, "a pitch");
      f.lead = in_.number(0, kMost, "a lead");
      f.size = in_.number(1, kMost, "a plane's size");
      p_.families.push_back(f);
    }
    for (i64 n = count("geometries"); n > 0; n--) {
      Geometry g{};
      g.family = in_.number(0, static_cast<i64>(p_.families.size()) - 1, "a family");
      g.height = in_.number(1, kMost, "a height");
      g.width = in_.number(1, kMost, "a width");
      const Family& f = p_.families[g.family];
      g.pitch = f.pitch;
      require(g.width <= f.pitch, "an image is wider than its pitch");
      require(f.lead + in_lines(g.extent()) <= f.size, "an image is larger than its plane");
      p_.geometries.push_back(g);
    }
    p_.arena = in_.number(0, kMostFloats, "the arena");
    const i64 num = count("planes");
    std::vector<char> is_used(p_.geometries.size(), 0);
    i64 floats = 0;
    const Ints geometry = in_.array<std::int32_t>(num), place = in_.array<std::int32_t>(num);
    for (i64 i = 0; i < num; i++) {
      require(0 <= geometry[i] && geometry[i] < static_cast<i64>(p_.geometries.size()),
              "a plane has no geometry");
      p_.planes.push_back({geometry[i], place[i]});
      require(0 <= place[i] && place[i] + p_.family(i).size <= p_.arena,
              "a plane is outside of the arena");
      if (is_used[geometry[i]]) continue;
      is_used[geometry[i]] = 1;  // a form has a mask of this size
      floats += p_.geometries[geometry[i]].extent();
      require(floats <= kMostFloats, "planes have too many sizes");
    }
  }

  Ints read_planes_of(i64 num) {
    Ints found = in_.array<std::int32_t>(num);
    for (const i64 plane : found) {
      require(0 <= plane && plane < static_cast<i64>(p_.planes.size()), "there is no such plane");
    }
    return found;
  }

  // Requires that all planes have the geometry of the first.
  void require_alike(const Ints& planes) {
    for (const i64 plane : planes) {
      require(p_.planes[plane].geometry == p_.planes[planes[0]].geometry,
              "planes of one operation have several sizes");
    }
  }

  Constant read_constant() {
    Constant c;
    c.outs = read_planes_of(count("planes"));
    require_alike(c.outs);
    if (c.outs.empty()) return c;
    const Geometry& g = p_.geometry(c.outs[0]);
    c.pixels = in_.array<float>(c.outs.size() * g.height * g.width);
    return c;
  }

  Array read_array() {
    Array a{};
    a.shape = in_.array<std::int32_t>(in_.number(0, kMostAxes, "an array's axes"));
    a.size = 1;
    for (const i64 length : a.shape) {
      require(0 <= length && length * a.size <= kMost, "an array's shape is negative or too large");
      a.size *= length;
    }
    a.row = in_.number(0, kMost, "a stride");
    a.column = in_.number(0, kMost, "a stride");
    const i64 num = count("planes");
    a.planes = read_planes_of(num);
    a.first = in_.array<std::int32_t>(num);
    for (i64 i = 0; i < num; i++) {
      const Geometry& g = p_.geometry(a.planes[i]);
      const i64 last = a.first[i] + (g.height - 1) * a.row + (g.width - 1) * a.column;
      require(0 <= a.first[i] && last < a.size, "a plane is outside of its array");
      work_ += static_cast<double>(g.height) * g.width;
    }
    require(work_ <= kMostWork, "it would take too long");
    const bool are_single = std::all_of(a.planes.begin(), a.planes.end(), [&](std::int32_t plane) {
      return p_.geometry(plane).extent() == 1;
    });
    for (i64 i = 0; are_single && i < num; i++) {
      const auto at = static_cast<std::int32_t>(p_.first(a.planes[i]));
      Neighbours* last = a.neighbours.empty() ? nullptr : &a.neighbours.back();
      if (last && a.first[i] == last->in_array + last->num && at == last->in_arena + last->num) {
        last->num++;
      } else {
        a.neighbours.push_back({a.first[i], at, 1});
      }
    }
    return a;
  }

  Operation read_operation() {
    switch (in_.number()) {
      case 0: return read_linear();
      case 1: return read_copy();
      case 2: return read_pool();
      case 3: return read_sum();
      case 4: return read_product();
      case 5: return read_largest();
      case 6: return read_select();
      case 7: return read_reflow();
      default: throw BadProgram("it has an operation that this version does not know");
    }
  }

  float real() {
    const std::uint32_t bits = in_.number();
    float found;
    std::memcpy(&found, &bits, sizeof found);
    return found;
  }

  Activation read_activation() {
    Activation a{};
    a.function = static_cast<Function>(
        in_.number(0, static_cast<i64>(Function::count) - 1, "a function"));
    a.low = real();
    a.high = real();
    return a;
  }

  Linear read_linear() {
    Linear l;
    l.geometry = in_.number(0, static_cast<i64>(p_.geometries.size()) - 1, "a geometry");
    l.activation = read_activation();
    const i64 num_shifts = count("shifts"), num_sources = count("sources");
    const i64 num_outs = count("planes"), num_taps = count("taps");
    const i64 weight_bits = in_.number(8, 32, "a weight's bits");
    l.shifts = in_.array<std::int32_t>(2 * num_shifts);
    l.sources = read_planes_of(num_sources);
    l.outs = read_planes_of(num_outs);
    l.bias = in_.array<float>(num_outs);
    l.counts = in_.array<std::int32_t>(num_outs);
    check_counts(l.counts, num_taps);
    read_taps(l, num_sources * num_shifts, num_taps);
    read_weights(l, weight_bits, num_taps);
    check_linear(l);
    return l;
  }

  void check_counts(const Ints& counts, i64 total) {
    i64 sum = 0;
    for (const i64 num : counts) {
      require(num >= 0, "a number of taps is negative");
      sum += num;
    }
    require(sum == total, "numbers of taps do not add up");
  }

  void read_taps(Linear& l, i64 end, i64 num) {
    if (end <= 1 << 16) {
      const auto narrow = in_.array<std::uint16_t>(num);
      l.taps.assign(narrow.begin(), narrow.end());
    } else {
      l.taps = in_.array<std::int32_t>(num);
    }
    for (const i64 tap : l.taps) require(0 <= tap && tap < end, "there is no such tap");
  }

  void read_weights(Linear& l, i64 bits, i64 num) {
    if (bits == 32) {
      l.weights = in_.array<float>(num);
    } else if (bits == 16) {  // bfloat16: the upper half of a float
      l.weights.resize(num);
      const auto halves = in_.array<std::uint16_t>(num);
      for (i64 i = 0; i < num; i++) {
        const std::uint32_t whole = static_cast<std::uint32_t>(halves[i]) << 16;
        std::memcpy(&l.weights[i], &whole, sizeof whole);
      }
    } else {  // whole numbers times a scale of the plane that they make
      require(bits == 8, "weights have 8, 16 or 32 bits");
      const Floats scales = in_.array<float>(l.outs.size());
      const auto whole = in_.array<std::int8_t>(num);
      for (std::size_t out = 0, i = 0; out < l.outs.size(); out++) {
        for (i64 n = l.counts[out]; n > 0; n--, i++) {
          l.weights.push_back(scales[out] * static_cast<float>(whole[i]));
        }
      }
      const i64 num_large = count("large weights");
      const Ints place = in_.array<std::int32_t>(num_large);
      const Floats large = in_.array<float>(num_large);
      for (i64 i = 0; i < num_large; i++) {
        require(0 <= place[i] && place[i] < num, "there is no such weight");
        l.weights[place[i]] = large[i];
      }
    }
  }

  // No tap may read outside of the arena, wherever in the image it is taken.
  void check_linear(const Linear& l) {
    const Geometry& g = p_.geometries[l.geometry];
    for (const i64 plane : l.outs) {
      require(p_.planes[plane].geometry == l.geometry, "a plane has another size than its layer");
    }
    i64 least = 0, most = 0;
    for (std::size_t i = 0; i < l.shifts.size(); i += 2) {
      require(std::abs(static_cast<i64>(l.shifts[i])) <= kMost &&
                  std::abs(static_cast<i64>(l.shifts[i + 1])) <= kMost,
              "a shift is too large");
      const i64 shift = l.shifts[i] * g.pitch + l.shifts[i + 1];
      least = std::min(least, shift);
      most = std::max(most, shift);
    }
    for (const i64 plane : l.sources) {
      require(p_.geometry(plane).family == g.family, "a tap reads planes of another pitch");
      require(p_.first(plane) + least >= 0 &&
                  p_.first(plane) + in_lines(g.extent()) + most <= p_.arena,
              "a tap reads outside of the arena");
    }
  }

  Copy read_copy() {
    Copy c{};
    c.stride_y = in_.number(0, kMost, "a stride");
    c.stride_x = in_.number(0, kMost, "a stride");
    const i64 num = count("planes");
    c.outs = read_planes_of(num);
    c.sources = read_planes_of(num);
    c.first_y = in_.array<std::int32_t>(num);
    c.first_x = in_.array<std::int32_t>(num);
    for (i64 i = 0; i < num; i++) {
      const i64 to = p_.planes[c.outs[i]].place, from = p_.planes[c.sources[i]].place;
      require(to + p_.family(c.outs[i]).size <= from || from + p_.family(c.sources[i]).size <= to,
              "a copy overlaps its source");
    }
    return c;
  }

  Pool read_pool() {
    Pool p{};
    p.window_y = in_.number(1, kMost, "a window");
    p.window_x = in_.number(1, kMost, "a window");
    p.stride_y = in_.number(1, kMost, "a stride");
    p.stride_x = in_.number(1, kMost, "a stride");
    p.first_y = in_.number(-kMost, kMost, "a window's beginning");
    p.first_x = in_.number(-kMost, kMost, "a window's beginning");
    const i64 num = count("planes");
    p.outs = read_planes_of(num);
    p.sources = read_planes_of(num);
    for (const i64 plane : p.sources) {
      const Geometry& g = p_.geometry(plane);
      require(p.window_y <= most_window(g.height) && p.window_x <= most_window(g.width),
              "a window is much larger than the image");
    }
    for (const i64 plane : p.outs) {
      require(pool_span(p, p_.geometry(plane)) <= kMostSpan, "windows see too many pixels");
    }
    return p;
  }

  // A window that overhangs an image on both sides finds nothing new there, but takes time.
  static i64 most_window(i64 length) { return 2 * length + 64; }

  Sum read_sum() {
    Sum s{};
    const i64 num = count("planes");
    s.outs = read_planes_of(num);
    s.sources = read_planes_of(num);
    for (const i64 plane : s.outs) {
      require(p_.geometry(plane).height == 1 && p_.geometry(plane).width == 1,
              "a sum has one pixel");
    }
    return s;
  }

  Product read_product() {
    Product p;
    const i64 num = count("planes");
    p.outs = read_planes_of(num);
    p.left = read_planes_of(num);
    p.right = read_planes_of(num);
    for (i64 i = 0; i < num; i++) {
      const Geometry& right = p_.geometry(p.right[i]);
      require(p_.planes[p.left[i]].geometry == p_.planes[p.outs[i]].geometry &&
                  (p_.planes[p.right[i]].geometry == p_.planes[p.outs[i]].geometry ||
                   (right.height == 1 && right.width == 1)),
              "factors have other sizes than their product");
    }
    return p;
  }

  Largest read_largest() {
    Largest l;
    const i64 num = count("planes"), num_sources = count("planes");
    l.outs = read_planes_of(num);
    l.counts = in_.array<std::int32_t>(num);
    l.sources = read_planes_of(num_sources);
    check_counts(l.counts, num_sources);
    std::size_t at = 0;
    for (i64 i = 0; i < num; i++) {
      require(l.counts[i] > 0, "the largest of no planes");
      for (i64 n = l.counts[i]; n > 0; n--, at++) {
        require(p_.planes[l.sources[at]].geometry == p_.planes[l.outs[i]].geometry,
                "planes that are compared have several sizes");
      }
    }
    return l;
  }

  Select read_select() {
    Select s;
    s.or_zero = in_.number(0, 1, "whether 0 counts") == 1;
    const i64 num = count("planes");
    for (Ints* planes : {&s.outs, &s.condition, &s.above, &s.otherwise}) {
      *planes = read_planes_of(num);
      for (i64 i = 0; i < num; i++) {
        require(p_.planes[(*planes)[i]].geometry == p_.planes[s.outs[i]].geometry,
                "planes that are selected from have several sizes");
      }
    }
    return s;
  }

  Reflow read_reflow() {
    Reflow r;
    const i64 num = count("planes");
    r.outs = read_planes_of(num);
    r.sources = read_planes_of(num);
    for (i64 i = 0; i < num; i++) {
      const Geometry &to = p_.geometry(r.outs[i]), &from = p_.geometry(r.sources[i]);
      require(to.height * to.width == from.height * from.width, "planes have other pixels");
    }
    return r;
  }

  Reader in_;
  Program p_;
  double work_ = 0;
};

}  // namespace jaxsparse::engine
