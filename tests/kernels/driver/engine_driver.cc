// Runs networks from files through the engine, and damaged copies of them, without Python or XLA.
//
//     engine_driver first num file...
//
// runs every file on 1, 2 and 3 threads, for several batches, and compares the results bit by bit.
// Then it makes `num` damaged copies, by random numbers from the seed `first` on, whose length and
// checksum are right, and opens them; those that open are run. A sanitizer says what goes wrong.

#include <sys/resource.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "engine/level.h"
// The library's functions, with the kernels of the level that this file is compiled for.
#include "engine/engine.cc"
#include "random.h"

extern "C" {
#if defined(__x86_64__)
const Kernels& jaxsparse_kernels_v2() { return jaxsparse::engine::kKernels; }
const Kernels& jaxsparse_kernels_v3() { return jaxsparse::engine::kKernels; }
const Kernels& jaxsparse_kernels_v4() { return jaxsparse::engine::kKernels; }
#else
const Kernels& jaxsparse_kernels_a() { return jaxsparse::engine::kKernels; }
#endif
}

namespace {

using Bytes = std::vector<unsigned char>;
constexpr std::size_t kHead = 20;         // magic, version, checksum, length
constexpr i64 kMostNumbers = 1 << 22;     // of the arrays of a damaged network that is run
constexpr i64 kBatches[] = {1, 3, 17, 40};

Bytes bytes_of(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(std::string(path) + " cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

// The floats of an image in all arrays, inputs first.
std::vector<i64> sizes_of(const jaxsparse_engine* engine, bool is_output) {
  std::vector<i64> sizes;
  const int num =
      is_output ? jaxsparse_engine_num_outputs(engine) : jaxsparse_engine_num_inputs(engine);
  for (int i = 0; i < num; i++) {
    sizes.push_back(is_output ? jaxsparse_engine_output_size(engine, i)
                              : jaxsparse_engine_input_size(engine, i));
  }
  return sizes;
}

// The outputs of a batch, in buffers that end where the arrays end.
std::vector<Floats> outputs_of(jaxsparse_engine* engine, i64 batch, std::uint64_t seed) {
  Random random{std::mt19937_64(seed)};
  std::vector<Floats> inputs, outputs;
  for (const i64 size : sizes_of(engine, false)) inputs.push_back(random.floats(size * batch));
  for (const i64 size : sizes_of(engine, true)) outputs.emplace_back(size * batch, 0.0f);
  std::vector<const float*> from;
  std::vector<float*> to;
  for (const Floats& input : inputs) from.push_back(input.data());
  for (Floats& output : outputs) to.push_back(output.data());
  if (jaxsparse_engine_run(engine, from.data(), to.data(), batch)) fail(jaxsparse_engine_error());
  return outputs;
}

bool are_same_bits(const std::vector<Floats>& a, const std::vector<Floats>& b) {
  for (std::size_t i = 0; i < a.size(); i++) {
    if (std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float)) != 0) return false;
  }
  return a.size() == b.size();
}

void run_on_threads(const char* path) {
  std::vector<std::vector<Floats>> first;
  for (const int threads : {1, 2, 3}) {
    jaxsparse_engine* engine = jaxsparse_engine_open(path, threads);
    if (engine == nullptr) fail(std::string(path) + ": " + jaxsparse_engine_error());
    for (const bool again : {false, true}) {
      std::size_t at = 0;
      for (const i64 batch : kBatches) {
        auto found = outputs_of(engine, batch, batch);
        if (threads == 1 && !again) {
          first.push_back(std::move(found));
        } else if (!are_same_bits(first[at], found)) {
          fail(std::string(path) + ": other bits on " + std::to_string(threads) + " threads");
        }
        at++;
      }
    }
    jaxsparse_engine_close(engine);
  }
}

std::uint32_t word(const Bytes& bytes, i64 at) {
  std::uint32_t found;
  std::memcpy(&found, bytes.data() + at, sizeof found);
  return found;
}

void set_word(Bytes& bytes, i64 at, std::uint32_t to) {
  std::memcpy(bytes.data() + at, &to, sizeof to);
}

// The place of a number of 4 bytes; most are among the first ones, which say how planes lie.
i64 some_place(const Bytes& bytes, Random& random) {
  const i64 words = (static_cast<i64>(bytes.size()) - static_cast<i64>(kHead)) / 4;
  const i64 most = random.chance(30) ? std::min<i64>(words, 64) : words;
  return static_cast<i64>(kHead) + 4 * random.in(0, most - 1);
}

void damage(Bytes& bytes, Random& random) {
  constexpr std::uint32_t kNumbers[] = {0,       1,          2,          3,           0xFFFFFFFF,
                                        1 << 16, 1u << 20,   1u << 26,   1u << 27,    1u << 28,
                                        1u << 30, 0x7FFFFFFF, 0x80000000, 0x7FC00000, 0x7F800000};
  if (bytes.size() < kHead + 4) return;
  const i64 at = some_place(bytes, random);
  const i64 length = static_cast<i64>(bytes.size());
  switch (random.in(0, 9)) {
    case 0: bytes[at + random.in(0, 3)] ^= static_cast<unsigned char>(1 << random.in(0, 7)); break;
    case 1: bytes[at + random.in(0, 3)] = random.chance(50) ? 0 : 255; break;
    case 2: set_word(bytes, at, random.of(kNumbers)); break;
    case 3: set_word(bytes, at, word(bytes, at) + static_cast<std::uint32_t>(random.in(-3, 3))); break;
    case 4: set_word(bytes, at, word(bytes, at) * static_cast<std::uint32_t>(random.in(2, 20))); break;
    case 5: set_word(bytes, at, word(bytes, some_place(bytes, random))); break;
    case 6: {  // swaps two numbers
      const i64 other = some_place(bytes, random);
      const std::uint32_t here = word(bytes, at);
      set_word(bytes, at, word(bytes, other));
      set_word(bytes, other, here);
      break;
    }
    case 7: bytes.resize(static_cast<std::size_t>(random.in(kHead, length))); break;
    case 8: {
      const unsigned char filler = random.chance(50) ? 0 : 255;
      bytes.insert(bytes.begin() + at, static_cast<std::size_t>(random.in(1, 12)), filler);
      break;
    }
    default: {  // takes numbers out
      const i64 end = std::min(length, at + 4 * random.in(1, 4));
      bytes.erase(bytes.begin() + at, bytes.begin() + end);
    }
  }
}

void set_head(Bytes& bytes) {
  const std::uint64_t length = bytes.size() - kHead;
  set_word(bytes, 12, jaxsparse::engine::checksum(bytes.data() + kHead, length));
  set_word(bytes, 16, static_cast<std::uint32_t>(length));
}

// Runs a damaged network, and returns whether it opens. Its bytes end where a buffer ends.
bool run_damaged(const Bytes& bytes, Random& random) {
  const int threads = random.chance(90) ? 1 : 2;
  jaxsparse_engine* engine = jaxsparse_engine_open_bytes(bytes.data(), bytes.size(), threads);
  if (engine == nullptr) return false;
  i64 numbers = 0;
  for (const bool is_output : {false, true}) {
    for (const i64 size : sizes_of(engine, is_output)) numbers += size;
  }
  for (const i64 batch : {1, 17}) {
    if (numbers * batch <= kMostNumbers) outputs_of(engine, batch, 1);
  }
  jaxsparse_engine_close(engine);
  return true;
}

void run_damaged_copies(const std::vector<Bytes>& files, std::uint64_t first, i64 num) {
  i64 num_opened = 0;
  double slowest = 0;
  std::uint64_t seed_of_slowest = first;
  for (std::uint64_t seed = first; seed < first + static_cast<std::uint64_t>(num); seed++) {
    Random random{std::mt19937_64(seed)};
    Bytes bytes = files[static_cast<std::size_t>(random.in(0, static_cast<i64>(files.size()) - 1))];
    for (i64 times = random.chance(60) ? 1 : random.in(2, 5); times > 0; times--) {
      damage(bytes, random);
    }
    bytes.shrink_to_fit();
    set_head(bytes);
    const auto begin = std::chrono::steady_clock::now();
    num_opened += run_damaged(bytes, random);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    if (took.count() > slowest) {
      slowest = took.count();
      seed_of_slowest = seed;
    }
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::printf("%lld damaged: %lld opened and ran, the slowest in %.2f s (seed %llu), at most %ld MB\n",
              static_cast<long long>(num), static_cast<long long>(num_opened), slowest,
              static_cast<unsigned long long>(seed_of_slowest), usage.ru_maxrss / 1024);
}

}  // namespace

int main(int num_arguments, char** arguments) {
  if (num_arguments < 4) fail("engine_driver first num file...");
  std::vector<Bytes> files;
  for (int i = 3; i < num_arguments; i++) {
    run_on_threads(arguments[i]);
    files.push_back(bytes_of(arguments[i]));
  }
  std::printf("%zu networks\n", files.size());
  const i64 num = std::atoll(arguments[2]);
  if (num > 0) run_damaged_copies(files, std::strtoull(arguments[1], nullptr, 10), num);
  return 0;
}
