// Selects the k largest scores exactly, in a few passes over them. The masks are those of
// selection/bisection.py, to the bit.
//
// Scores become unsigned integers (keys) of the same order. The search for the k-th largest key
// keeps a window of keys, [low, last], that holds it. A pass counts the keys above the window and,
// inside it, the keys in each of at most 2,048 bins; the bin of the k-th largest is the next
// window. For example, let k be 5, the window [0, 7] with 2 keys to a bin, and no key above it:
//
//   keys of the bin    0 1   2 3   4 5   6 7
//   counted in it        4     3     4     2
//   from the top on     13     9     6     2
//
// The 5th largest is in the bin `4 5`, so the next window is [4, 5], with 2 keys above it.
//
// The first window is guessed from a sample. It is narrow, so most keys lie outside of it and are
// only compared with its ends. A bad guess costs one more pass and never changes the result.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "threads.h"

namespace jaxsparse {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;

// One leaf. Its candidates are eligible and not given. Its mask becomes the given entries and the
// chosen ones.
struct SelectLeaf {
  const void* scores;  // float32, or bfloat16 if `half`
  bool half, absolute;
  const u8 *eligible, *given;  // null: all are eligible, none is given
  u8* mask;
  i64 size;
  u32 start;  // index of the first entry; ties are cut by hashes of the indices
  i64 group;  // leaves of one group compete
};

namespace select {

constexpr i64 kChunk = 1 << 17;  // entries of a task
constexpr int kBlock = 256;      // entries whose keys are made at a time
constexpr i64 kBins = 2048;
constexpr u32 kNone = 0, kNan = 1;  // keys of no candidate, of NaN; that of -inf is 0x007FFFFF
constexpr u32 kNever = std::numeric_limits<u32>::max();

// The key of a float. Numbers below 2^-126 and both zeros have the same key: XLA takes them for 0.
inline u32 key_of(u32 bits, u32 sign) {
  bits &= sign | 0x7FFFFFFFu;
  const u32 magnitude = bits & 0x7FFFFFFFu;
  bits = magnitude < 0x00800000u ? 0 : bits;
  const u32 key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return magnitude > 0x7F800000u ? kNan : key;
}

// The hash of selection/ties.py, a bijection of 31-bit integers.
inline u32 index_hash(u32 x) {
  x = ((x ^ (x >> 16)) * 0x7FEB352Du) & 0x7FFFFFFFu;
  x = ((x ^ (x >> 15)) * 0x846CA68Bu) & 0x7FFFFFFFu;
  return x ^ (x >> 16);
}

// Writes the keys of entries [begin, begin + n) of a leaf; kNone if an entry is no candidate.
inline void score_keys(const SelectLeaf& leaf, i64 begin, i64 n, u32* keys) {
  const u32 sign = leaf.absolute ? 0 : 0x80000000u;
  if (leaf.half) {
    const u16* bits = static_cast<const u16*>(leaf.scores) + begin;
    for (i64 i = 0; i < n; i++) keys[i] = key_of(u32{bits[i]} << 16, sign);
  } else {
    u32 bits[kBlock];
    std::memcpy(bits, static_cast<const float*>(leaf.scores) + begin, n * sizeof(float));
    for (i64 i = 0; i < n; i++) keys[i] = key_of(bits[i], sign);
  }
  if (leaf.eligible) {
    for (i64 i = 0; i < n; i++) keys[i] = leaf.eligible[begin + i] ? keys[i] : kNone;
  }
  if (leaf.given) {
    for (i64 i = 0; i < n; i++) keys[i] = leaf.given[begin + i] ? kNone : keys[i];
  }
}

// Writes the keys for the search among ties: hash + 1 for candidates whose key is `level`, else
// kNone.
inline void tie_keys(const SelectLeaf& leaf, u32 level, i64 begin, i64 n, u32* keys) {
  score_keys(leaf, begin, n, keys);
  const u32 first = leaf.start + static_cast<u32>(begin);
  for (i64 i = 0; i < n; i++) {
    keys[i] = keys[i] == level ? index_hash(first + static_cast<u32>(i)) + 1 : kNone;
  }
}

// The search for the k-th largest key of a group. When it is done, the keys above `level` are
// chosen, and wanted_tied of those that equal it. These are never all: if all were wanted, the
// level is lower and wanted_tied is 0.
struct Search {
  i64 k;
  bool done;
  u32 low, last;  // the window, both ends included
  int shift;      // a bin holds 2^shift keys
  u32 level;
  i64 wanted_tied;

  void look_at(u32 from, u32 to) {
    low = from;
    last = to;
    for (shift = 0; ((last - low) >> shift) >= kBins;) shift++;
  }

  void end(u32 at, i64 tied) {
    done = true;
    level = at;
    wanted_tied = tied;
  }
};

// Entries of a leaf that are one task.
struct Chunk {
  i64 leaf, begin, size;
};

// The counts of a pass over a chunk, or over all chunks of a group.
struct Counts {
  i64 candidates, nan, above;
  u32 bins[kBins];
};

typedef u32 keyvec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline bool any(keyvec flags) {
  std::uint64_t words[kLanes / 2], all = 0;
  std::memcpy(words, &flags, sizeof(words));
  for (std::uint64_t word : words) all |= word;
  return all;
}

// Counts a block of keys, kBlock of them.
inline void count_block(const u32* keys, const Search& search, Counts& counts) {
  const u32 low = search.low, last = search.last, width = last - low;
  u32 candidates = 0, nan = 0, above = 0;
  for (int i = 0; i < kBlock; i++) {
    candidates += keys[i] != kNone;
    nan += keys[i] == kNan;
    above += keys[i] > last;
  }
  counts.candidates += candidates;
  counts.nan += nan;
  counts.above += above;
  for (int begin = 0; begin < kBlock; begin += kLanes) {
    const keyvec offsets = *reinterpret_cast<const keyvec*>(keys + begin) - low;
    if (!any((keyvec)(offsets <= width))) continue;  // none is in the window
    for (int i = begin; i < begin + kLanes; i++) {
      const u32 offset = keys[i] - low;
      if (offset <= width) counts.bins[offset >> search.shift]++;
    }
  }
}

// Makes the bin of the k-th largest key the next window, or ends the search. If the k-th largest is
// outside of the window, the next window is all keys above it or all keys below it.
inline void narrow(Search& search, const Counts& counts) {
  search.k = std::min(search.k, counts.candidates);
  if (search.k <= 0) return search.end(kNever, 0);
  if (search.k == counts.candidates) return search.end(kNone, 0);
  if (search.k <= counts.above) return search.look_at(search.last + 1, kNever);
  i64 reached = counts.above;
  for (i64 bin = (search.last - search.low) >> search.shift; bin >= 0; bin--) {
    const i64 above = reached;
    reached += counts.bins[bin];
    if (reached < search.k) continue;
    const u32 low = search.low + (static_cast<u32>(bin) << search.shift);
    if (reached == search.k) return search.end(low - 1, 0);
    if (search.shift == 0) return search.end(low, search.k - above);
    return search.look_at(low, std::min(search.last, low + ((1u << search.shift) - 1)));
  }
  search.look_at(1, search.low - 1);
}

// Searches all groups at once.
//
// Args:
//   searches: by group, with its k and first window.
//   keys: keys(leaf, begin, n, to) writes the keys of entries [begin, begin + n).
//   first: first(leaf, counts) is called with the counts of the first pass, chunk by chunk.
template <class Keys, class First>
void search_all(xla::ffi::ThreadPool& pool, const std::vector<SelectLeaf>& leaves,
                std::vector<Search>& searches, const Keys& keys, const First& first) {
  std::vector<Chunk> chunks;
  std::vector<Counts> found;
  Counts sum;
  for (bool begins = true;; begins = false) {
    chunks.clear();
    for (std::size_t leaf = 0; leaf < leaves.size(); leaf++) {
      if (searches[leaves[leaf].group].done) continue;
      for (i64 begin = 0; begin < leaves[leaf].size; begin += kChunk) {
        const i64 size = std::min(kChunk, leaves[leaf].size - begin);
        chunks.push_back({static_cast<i64>(leaf), begin, size});
      }
    }
    found.resize(chunks.size());
    parallel_for(pool, static_cast<i64>(chunks.size()), [&](i64 at) {
      const Chunk& chunk = chunks[at];
      const SelectLeaf& leaf = leaves[chunk.leaf];
      u32 block[kBlock];
      std::memset(&found[at], 0, sizeof(Counts));
      for (i64 i = 0; i < chunk.size; i += kBlock) {
        const i64 n = std::min<i64>(kBlock, chunk.size - i);
        keys(leaf, chunk.begin + i, n, block);
        std::fill(block + n, block + kBlock, kNone);
        count_block(block, searches[leaf.group], found[at]);
      }
    });
    if (begins) {
      for (std::size_t at = 0; at < chunks.size(); at++) first(chunks[at].leaf, found[at]);
    }
    bool all_done = true;
    for (std::size_t group = 0; group < searches.size(); group++) {
      if (searches[group].done) continue;
      std::memset(&sum, 0, sizeof(Counts));
      for (std::size_t at = 0; at < chunks.size(); at++) {
        if (leaves[chunks[at].leaf].group != static_cast<i64>(group)) continue;
        sum.candidates += found[at].candidates;
        sum.above += found[at].above;
        for (i64 bin = 0; bin < kBins; bin++) sum.bins[bin] += found[at].bins[bin];
      }
      narrow(searches[group], sum);
      all_done &= searches[group].done;
    }
    if (all_done) return;
  }
}

// Sets a window that very likely holds the k-th largest key, from a sample of the group.
inline void guess(const std::vector<SelectLeaf>& leaves, i64 group, Search& search) {
  constexpr i64 kDense = 256, kMost = 1 << 16;
  i64 size = 0;
  for (const SelectLeaf& leaf : leaves) size += leaf.group == group ? leaf.size : 0;
  const i64 stride = std::max(kDense, size / kMost) | 1;  // odd, as channels come in powers of 2
  std::vector<u32> sample;
  for (const SelectLeaf& leaf : leaves) {
    if (leaf.group != group) continue;
    for (i64 i = stride / 2; i < leaf.size; i += stride) {
      u32 key;
      score_keys(leaf, i, 1, &key);
      if (key != kNone) sample.push_back(key);
    }
  }
  // About `rank` keys of the sample are above the k-th largest, within three standard deviations.
  const i64 rank = search.k / stride, num = static_cast<i64>(sample.size());
  const i64 around = 2 + static_cast<i64>(3 * std::sqrt(static_cast<double>(rank)));
  const auto at = [&](i64 place) {
    std::nth_element(sample.begin(), sample.begin() + place, sample.end(), std::greater<u32>());
    return sample[place];
  };
  const u32 last = rank - around < 0 || rank - around >= num ? kNever : at(rank - around);
  const u32 low = rank + around >= num ? 1 : at(rank + around);
  search.look_at(std::min(low, last), last);
}

// Writes the masks: keys above the level of their group, and ties whose hash is above the tie
// level.
inline void write_masks(xla::ffi::ThreadPool& pool, const std::vector<SelectLeaf>& leaves,
                        const std::vector<Search>& searches, const std::vector<Search>& ties) {
  std::vector<Chunk> chunks;
  for (std::size_t leaf = 0; leaf < leaves.size(); leaf++) {
    for (i64 begin = 0; begin < leaves[leaf].size; begin += kChunk) {
      const i64 size = std::min(kChunk, leaves[leaf].size - begin);
      chunks.push_back({static_cast<i64>(leaf), begin, size});
    }
  }
  parallel_for(pool, static_cast<i64>(chunks.size()), [&](i64 at) {
    const SelectLeaf& leaf = leaves[chunks[at].leaf];
    const Search& search = searches[leaf.group];
    const u32 level = search.level, tie_level = ties[leaf.group].level;
    u32 keys[kBlock];
    const i64 end = chunks[at].begin + chunks[at].size;
    for (i64 begin = chunks[at].begin; begin < end; begin += kBlock) {
      const i64 n = std::min<i64>(kBlock, end - begin);
      u8* mask = leaf.mask + begin;
      score_keys(leaf, begin, n, keys);
      if (leaf.given) {
        for (i64 i = 0; i < n; i++) mask[i] = leaf.given[begin + i] | (keys[i] > level);
      } else {
        for (i64 i = 0; i < n; i++) mask[i] = keys[i] > level;
      }
      if (search.wanted_tied == 0) continue;
      const u32 first = leaf.start + static_cast<u32>(begin);
      for (i64 i = 0; i < n; i++) {
        mask[i] |= (keys[i] == level) & (index_hash(first + static_cast<u32>(i)) + 1 > tie_level);
      }
    }
  });
}

}  // namespace select

// Chooses the wanted[group] largest candidates of every group, or all if it has fewer. NaN comes
// last, and ties go to the largest hashes of the indices. Writes the masks, and for every leaf the
// number of its candidates that are NaN.
inline void select_largest(xla::ffi::ThreadPool& pool, const std::vector<SelectLeaf>& leaves,
                           const std::vector<std::int32_t>& wanted, std::int32_t* num_nan) {
  const i64 num = static_cast<i64>(wanted.size());
  std::vector<select::Search> searches(num), ties(num);
  parallel_for(pool, num, [&](i64 group) {
    searches[group].k = std::max(wanted[group], 0);
    searches[group].done = false;
    select::guess(leaves, group, searches[group]);
  });
  std::fill(num_nan, num_nan + leaves.size(), 0);
  select::search_all(pool, leaves, searches, select::score_keys,
                     [&](i64 leaf, const select::Counts& counts) {
                       num_nan[leaf] += static_cast<std::int32_t>(counts.nan);
                     });
  for (i64 group = 0; group < num; group++) {
    ties[group].k = searches[group].wanted_tied;
    ties[group].done = searches[group].wanted_tied == 0;
    ties[group].look_at(1, 1u << 31);
  }
  const auto tied = [&](const SelectLeaf& leaf, i64 begin, i64 n, u32* keys) {
    select::tie_keys(leaf, searches[leaf.group].level, begin, n, keys);
  };
  select::search_all(pool, leaves, ties, tied, [](i64, const select::Counts&) {});
  select::write_masks(pool, leaves, searches, ties);
}

}  // namespace jaxsparse
