// Runs the selection on random leaves and compares it with a sort.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "random.h"
#include "select.h"

namespace selection {

using namespace jaxsparse;

// What select.h reads of one leaf, and the numbers that it stands for.
struct Scores {
  Floats values;
  std::vector<u16> halves;
  std::vector<u8> eligible, given, mask;
  bool half, absolute;
};

inline Scores random_scores(Random& random, bool half) {
  const i64 size = random.of({i64{0}, i64{1}, random.in(2, 600), random.in(1000, 200000)});
  const int kind = random.of({0, 1, 2}), share = random.of({0, 10, 60, 100});
  Scores to{random.floats(size),   std::vector<u16>(size),   std::vector<u8>(size),
            std::vector<u8>(size), std::vector<u8>(size, 7), half,
            random.chance(50)};
  const float special[] = {0.0f,
                           -0.0f,
                           1e-40f,
                           -1e-40f,
                           std::numeric_limits<float>::infinity(),
                           -std::numeric_limits<float>::infinity(),
                           std::numeric_limits<float>::quiet_NaN()};
  for (i64 i = 0; i < size; i++) {
    float& x = to.values[i];
    if (kind == 1) x = std::round(x);
    if (kind == 2 && random.chance(50)) x = random.of(special);
    u32 bits;
    std::memcpy(&bits, &x, 4);
    if (half) bits &= 0xFFFF0000u;
    to.halves[i] = static_cast<u16>(bits >> 16);
    std::memcpy(&x, &bits, 4);
    to.eligible[i] = random.chance(share);
    to.given[i] = random.chance(20);
  }
  return to;
}

inline std::vector<std::int32_t> run(int threads, std::vector<Scores>& all, bool eligible,
                                     bool given, bool together,
                                     const std::vector<std::int32_t>& wanted) {
  xla::ffi::ThreadPool pool(threads);
  std::vector<SelectLeaf> leaves;
  u32 start = 0;
  for (Scores& x : all) {
    const void* data = x.half ? static_cast<const void*>(x.halves.data()) : x.values.data();
    leaves.push_back({data, x.half, x.absolute, eligible ? x.eligible.data() : nullptr,
                      given ? x.given.data() : nullptr, x.mask.data(),
                      static_cast<i64>(x.values.size()), together ? start : 0,
                      together ? 0 : static_cast<i64>(leaves.size())});
    start += static_cast<u32>(x.values.size());
  }
  std::vector<std::int32_t> num_nan(all.size(), -1);
  select_largest(pool, leaves, wanted, num_nan.data());
  return num_nan;
}

// Sorts the candidates of a group by score, and those that tie by hash.
inline void compare(const std::vector<Scores>& all, i64 first, i64 last, bool eligible, bool given,
                    std::int32_t wanted, const std::vector<std::int32_t>& num_nan) {
  struct Candidate {
    double score;
    u32 hash;
    i64 leaf, at;
  };
  std::vector<Candidate> candidates;
  std::vector<std::vector<u8>> expected;
  u32 start = 0;
  for (i64 leaf = first; leaf < last; leaf++) {
    const Scores& x = all[leaf];
    const i64 size = static_cast<i64>(x.values.size());
    expected.push_back(given ? x.given : std::vector<u8>(size));
    std::int32_t nan = 0;
    for (i64 i = 0; i < size; i++, start++) {
      if ((eligible && !x.eligible[i]) || (given && x.given[i])) continue;
      double score = x.absolute ? std::abs(x.values[i]) : x.values[i];
      if (std::abs(score) < std::numeric_limits<float>::min()) score = 0;
      nan += score != score;
      candidates.push_back({score, select::index_hash(start), leaf - first, i});
    }
    if (nan != num_nan[leaf]) fail("numbers of NaN");
  }
  std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
    const bool a_nan = a.score != a.score, b_nan = b.score != b.score;
    if (a_nan != b_nan) return b_nan;
    if (!a_nan && a.score != b.score) return a.score > b.score;
    return a.hash > b.hash;
  });
  const i64 num = static_cast<i64>(candidates.size());
  for (i64 i = 0; i < std::min<i64>(wanted, num); i++) {
    expected[candidates[i].leaf][candidates[i].at] = 1;
  }
  for (i64 leaf = first; leaf < last; leaf++) {
    if (all[leaf].mask != expected[leaf - first]) fail("masks of the largest");
  }
}

inline void run_both(Random& random) {
  std::vector<Scores> all;
  const bool half = random.chance(30);
  const i64 num = random.in(1, 4);
  for (i64 leaf = 0; leaf < num; leaf++) all.push_back(random_scores(random, half));
  const bool eligible = random.chance(50), given = random.chance(50), together = random.chance(50);
  i64 sum = 0;
  std::vector<std::int32_t> wanted;
  for (const Scores& x : all) {
    const i64 size = static_cast<i64>(x.values.size());
    sum += size;
    wanted.push_back(static_cast<std::int32_t>(random.in(-1, size / random.of({1, 10}) + 1)));
  }
  if (together) wanted = {static_cast<std::int32_t>(random.in(-1, sum + 1))};
  std::vector<Scores> again = all;
  const auto num_nan = run(1, all, eligible, given, together, wanted);
  if (together) compare(all, 0, num, eligible, given, wanted[0], num_nan);
  for (i64 leaf = 0; leaf < num && !together; leaf++) {
    compare(all, leaf, leaf + 1, eligible, given, wanted[leaf], num_nan);
  }
  if (run(3, again, eligible, given, together, wanted) != num_nan) fail("NaN depends on threads");
  for (i64 leaf = 0; leaf < num; leaf++) {
    if (all[leaf].mask != again[leaf].mask) fail("masks depend on threads");
  }
}

}  // namespace selection
