// When the images of a batch go through a network alone, and when 16 of them together.
//
// Planes of few pixels do not fill a vector, unless 16 images lie interleaved; large planes of 16
// images do not stay in the cache. So a batch may begin image by image, and go on together. Where
// that pays, fewer than 16 go together too: other lanes of the vectors are then computed in vain.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <type_traits>
#include <utility>

#include "form.h"

namespace jaxsparse::engine {

// Vectors that are multiplied in the time that a float takes to its place among 16 images.
constexpr double kInterleaving = 3;
// Floats of an operation's planes, of 16 images, that stay in the cache.
constexpr double kCached = 1 << 19;
// Vectors that are multiplied in the time that one takes from or to memory behind the cache.
constexpr double kTraffic = 4.3;
// Vectors that are multiplied in the time that a tap costs in a tile, beside its multiplications.
constexpr double kTap = 1.5;

struct Schedule {
  i64 cut;           // operations before it run image by image, the others together
  Ints interleaved;  // planes that are made before and read behind it
};

// Calls each(planes, is_made) for the planes that an operation reads and makes.
template <class Each>
void for_planes(const Operation& operation, const Each& each) {
  std::visit(
      [&](const auto& found) {
        using Kind = std::decay_t<decltype(found)>;
        each(found.outs, true);
        if constexpr (std::is_same_v<Kind, Product>) {
          each(found.left, false);
          each(found.right, false);
        } else if constexpr (std::is_same_v<Kind, Select>) {
          each(found.condition, false);
          each(found.above, false);
          each(found.otherwise, false);
        } else {
          each(found.sources, false);
        }
      },
      operation);
}

// The time of an image, in multiplications of vectors, of one image alone or of one among 16.
inline double cost(const Program& program, const Operation& operation, i64 images) {
  double floats = 0, made = 0;
  for_planes(operation, [&](const Ints& planes, bool is_made) {
    for (const i64 plane : planes) {
      const double extent = static_cast<double>(in_lines(program.geometry(plane).extent() * images));
      floats += extent;
      if (is_made) made += extent;
    }
  });
  const double traffic = images > 1 && floats > kCached ? kTraffic * floats / kLine / images : 0;
  const auto* linear = std::get_if<Linear>(&operation);
  if (linear == nullptr) return (floats + 4 * static_cast<double>(images)) / kLine / images + traffic;
  if (linear->outs.empty()) return 0;
  const double extent = made / linear->outs.size();
  const double vectors = extent == 1 ? 1 : extent / kLine;
  const double taps = static_cast<double>(linear->taps.size() + 4 * linear->outs.size());
  return taps * (vectors + kTap * std::ceil(vectors / kMostVectors)) / images + traffic;
}

// Planes that operations before `cut` or the caller make, and later ones or the caller read.
inline Ints planes_over(const Program& program, i64 cut) {
  std::vector<char> is_made(program.planes.size(), 0), is_read(program.planes.size(), 0);
  for (const Array& array : program.inputs) {
    for (const i64 plane : array.planes) is_made[plane] = 1;
  }
  for (const Array& array : program.outputs) {
    for (const i64 plane : array.planes) is_read[plane] = 1;
  }
  for (i64 i = 0; i < static_cast<i64>(program.operations.size()); i++) {
    for_planes(program.operations[i], [&](const Ints& planes, bool makes) {
      for (const i64 plane : planes) {
        if (makes && i < cut) is_made[plane] = 1;
        if (!makes && i >= cut) is_read[plane] = 1;
      }
    });
  }
  Ints found;
  for (std::size_t plane = 0; plane < is_made.size(); plane++) {
    if (is_made[plane] && is_read[plane]) found.push_back(static_cast<std::int32_t>(plane));
  }
  return found;
}

// Fewer than 16 images must gain so much by going together: threads share single ones out better.
constexpr double kWorthJoining = 0.7;

// The cuts for up to 16 images, by the time that they take; at most `num`. One behind the last
// operation is none.
inline std::vector<Schedule> schedules_of(const Program& program, i64 images, std::size_t most) {
  const double num_lanes = static_cast<double>(kLine) / static_cast<double>(images);
  const i64 num = static_cast<i64>(program.operations.size());
  std::vector<double> alone{0}, together{0};
  for (const Operation& operation : program.operations) {
    alone.push_back(alone.back() + cost(program, operation, 1));
    together.push_back(together.back() + num_lanes * cost(program, operation, kLine));
  }
  const double limit = images < kLine ? kWorthJoining * alone.back() : alone.back();
  std::vector<std::pair<double, Schedule>> found{{limit, {num, {}}}};
  for (i64 cut = 0; cut < num; cut++) {
    double time = alone[cut] + together.back() - together[cut];
    if (found.size() >= most && time >= found.back().first) continue;
    Ints planes = cut > 0 ? planes_over(program, cut) : Ints{};
    for (const i64 plane : planes) time += kInterleaving * program.geometry(plane).extent();
    const auto later = std::upper_bound(
        found.begin(), found.end(), time,
        [](double mine, const auto& other) { return mine < other.first; });
    found.insert(later, {time, {cut, std::move(planes)}});
    if (found.size() > most) found.pop_back();
  }
  std::vector<Schedule> sorted;
  for (auto& [time, schedule] : found) sorted.push_back(std::move(schedule));
  return sorted;
}

// Images of a batch: `num` times some that go through the network in the same way.
struct Stretch {
  i64 first, images, num;
};

// The schedules of a program, each found when it is needed.
class Schedules {
 public:
  explicit Schedules(const Program& program)
      : program_(program), interleaves_(program.arena * kLine <= kMostInterleaved) {}

  // That of up to 16 images.
  const Schedule& of(i64 images) {
    std::optional<Schedule>& found = found_[images];
    if (!found) found = candidates(images, 1)[0];
    return *found;
  }

  // Schedules that may be the fastest one, by the time that they should take.
  std::vector<Schedule> candidates(i64 images, std::size_t most = 6) const {
    if (images < 2 || !interleaves_) return {alone()};
    auto found = schedules_of(program_, images, most);
    const auto is_alone = [&](const Schedule& x) { return x.cut == num_operations(); };
    if (most > 1 && std::none_of(found.begin(), found.end(), is_alone)) found.push_back(alone());
    return found;
  }

  void set(i64 images, const Schedule& schedule) { found_[images] = schedule; }

  bool is_together(i64 images) { return of(images).cut < num_operations(); }

  // Groups of 16, then a smaller one, then single images; a stretch may be empty. The number of
  // threads has no say: one image and 16 are added up in another order.
  std::array<Stretch, 3> stretches(i64 batch) {
    const i64 groups = is_together(kLine) ? batch / kLine : 0, rest = batch - groups * kLine;
    const bool is_group = rest < kLine && is_together(rest);
    return {{{0, kLine, groups},
             {groups * kLine, rest, is_group ? 1 : 0},
             {groups * kLine, 1, is_group ? 0 : rest}}};
  }

 private:
  static constexpr i64 kMostInterleaved = 1 << 26;  // floats

  i64 num_operations() const { return static_cast<i64>(program_.operations.size()); }
  Schedule alone() const { return {num_operations(), {}}; }

  const Program& program_;
  const bool interleaves_;
  std::array<std::optional<Schedule>, kLine + 1> found_;
};

}  // namespace jaxsparse::engine
