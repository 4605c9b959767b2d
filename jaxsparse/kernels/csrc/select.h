// The k largest scores of many, exactly: what selection.py does in XLA, to the bit, in a few reads.
//
// Scores become integers in the same order. A pass counts the candidates above a window of them and,
// inside it, by bin; the bin that holds the k-th is the next window. The first window is guessed from
// a sample: most scores lie outside of it, and those are compared and nothing else. A bad guess costs
// a pass, never the result.
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

// One leaf. Candidates are eligible and not given; the mask will be what is given and what is chosen.
struct SelectLeaf {
  const void* scores;  // float32, or bfloat16 where `half`
  bool half, absolute;
  const u8 *eligible, *given;  // or null: all, none
  u8* mask;
  i64 size;
  u32 start;  // of its indices, by whose hashes ties are cut
  i64 group;  // leaves of one group compete
};

namespace select {

constexpr i64 kChunk = 1 << 17;  // entries that one call on a thread looks at
constexpr int kBlock = 256;
constexpr i64 kBins = 2048;
constexpr u32 kNone = 0, kNan = 1;  // as keys; -inf is 0x007FFFFF
constexpr u32 kNever = std::numeric_limits<u32>::max();

// A float's place in the order. Both zeros are one, and so are numbers below 2^-126, as XLA has it.
inline u32 key_of(u32 bits, u32 sign) {
  bits &= sign | 0x7FFFFFFFu;
  const u32 magnitude = bits & 0x7FFFFFFFu;
  bits = magnitude < 0x00800000u ? 0 : bits;
  const u32 key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return magnitude > 0x7F800000u ? kNan : key;
}

// ties.py: a bijection of 31-bit integers.
inline u32 index_hash(u32 x) {
  x = ((x ^ (x >> 16)) * 0x7FEB352Du) & 0x7FFFFFFFu;
  x = ((x ^ (x >> 15)) * 0x846CA68Bu) & 0x7FFFFFFFu;
  return x ^ (x >> 16);
}

// The keys of entries [begin, begin + n) of a leaf, kNone where there is no candidate.
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

// Of candidates that tie at `level` the hashes, from 1 on; else kNone.
inline void tie_keys(const SelectLeaf& leaf, u32 level, i64 begin, i64 n, u32* keys) {
  score_keys(leaf, begin, n, keys);
  const u32 first = leaf.start + static_cast<u32>(begin);
  for (i64 i = 0; i < n; i++) {
    keys[i] = keys[i] == level ? index_hash(first + static_cast<u32>(i)) + 1 : kNone;
  }
}

// The search for the k-th largest key of a group. At its end what is above `level` is in; of the
// num_tied keys that equal it, wanted_tied are, which is neither none of them nor all.
struct Search {
  i64 k;
  bool done;
  u32 low, last;  // the window, both ends in it
  int shift;      // 2^shift keys to a bin
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

// Part of a leaf, and what a pass found there.
struct Chunk {
  i64 leaf, begin, size;
};

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
    if (!any((keyvec)(offsets <= width))) continue;  // as most are: a window is narrow
    for (int i = begin; i < begin + kLanes; i++) {
      const u32 offset = keys[i] - low;
      if (offset <= width) counts.bins[offset >> search.shift]++;
    }
  }
}

// The bin that holds the k-th largest is the next window.
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

// Searches all groups at once. keys(leaf, begin, n, to) gives the keys; first(leaf, counts) is told
// what the first pass counted in a chunk of the leaf.
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

// A window that very likely holds the k-th largest, from every so manieth entry of a group.
inline void guess(const std::vector<SelectLeaf>& leaves, i64 group, Search& search) {
  constexpr i64 kDense = 256, kMost = 1 << 16;
  i64 size = 0;
  for (const SelectLeaf& leaf : leaves) size += leaf.group == group ? leaf.size : 0;
  const i64 stride = std::max(kDense, size / kMost) | 1;  // odd: channels come in powers of 2
  std::vector<u32> sample;
  for (const SelectLeaf& leaf : leaves) {
    if (leaf.group != group) continue;
    for (i64 i = stride / 2; i < leaf.size; i += stride) {
      u32 key;
      score_keys(leaf, i, 1, &key);
      if (key != kNone) sample.push_back(key);
    }
  }
  // So many of the sample are above it, give or take three standard deviations.
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

// Writes the masks: what is above a group's level, and of what equals it the largest hashes.
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

// Chooses the wanted[group] largest candidates of every group (at most as many as there are), NaN
// last, ties by the hash of the index, and writes masks and the number of NaN candidates by leaf.
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
  select::search_all(
      pool, leaves, searches, select::score_keys,
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
