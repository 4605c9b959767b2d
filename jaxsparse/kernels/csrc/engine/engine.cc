// The library without Python and XLA: the functions of jaxsparse_engine.h.
#include "jaxsparse_engine.h"

#include <cstdio>
#include <cstdlib>
#include <new>
#include <string_view>

#include "container.h"
#include "describe.h"
#include "session.h"

using jaxsparse::engine::Kernels;

extern "C" {
#if defined(__x86_64__)
const Kernels& jaxsparse_kernels_v2();
const Kernels& jaxsparse_kernels_v3();
const Kernels& jaxsparse_kernels_v4();
#else
const Kernels& jaxsparse_kernels_a();
#endif
}

struct jaxsparse_engine {
  jaxsparse::engine::Session session;
};

namespace {

thread_local std::string last_error;

// Returns those of the best level that this machine has, or of a lower one that the environment
// variable JAXSPARSE_KERNELS names.
const Kernels& kernels() {
#if defined(__x86_64__)
  const char* named = std::getenv("JAXSPARSE_KERNELS");
  const std::string_view wanted = named ? named : "";
  const bool is_v2 = wanted == "x86-64-v2", is_lower = is_v2 || wanted == "x86-64-v3";
  __builtin_cpu_init();
  if (!is_lower && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return jaxsparse_kernels_v4();
  }
  if (!is_v2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return jaxsparse_kernels_v3();
  }
  return jaxsparse_kernels_v2();
#else
  return jaxsparse_kernels_a();
#endif
}

// Returns what `make()` makes, or `otherwise` with the reason in `last_error`.
template <class Make, class Result>
Result guarded(const Make& make, Result otherwise) {
  try {
    last_error.clear();
    return make();
  } catch (const std::bad_alloc&) {
    last_error = "no memory";
  } catch (const std::exception& error) {
    last_error = error.what();
  }
  return otherwise;
}

std::vector<unsigned char> read_file(const char* path) {
  std::FILE* file = std::fopen(path, "rb");
  if (file == nullptr) throw std::runtime_error(std::string(path) + " cannot be opened");
  std::vector<unsigned char> bytes;
  unsigned char part[1 << 16];
  for (std::size_t num; (num = std::fread(part, 1, sizeof part, file)) > 0;) {
    bytes.insert(bytes.end(), part, part + num);
  }
  const bool failed = std::ferror(file) != 0;
  std::fclose(file);
  if (failed) throw std::runtime_error(std::string(path) + " cannot be read");
  return bytes;
}

jaxsparse_engine* opened(const void* bytes, std::uint64_t size,
                         std::shared_ptr<jaxsparse::engine::Workers> workers) {
  const auto* start = static_cast<const unsigned char*>(bytes);
  const auto body = jaxsparse::engine::unpacked(start, size);
  return new jaxsparse_engine{{body.bytes, body.size, std::move(workers), kernels()}};
}

jaxsparse_engine* opened(const void* bytes, std::uint64_t size, int threads) {
  if (threads < 1 || threads > 256) {
    throw std::runtime_error("threads are " + std::to_string(threads) + ", not in [1, 256]");
  }
  return opened(bytes, size, jaxsparse::engine::Workers::shared(threads));
}

int shape_of(const std::vector<jaxsparse::engine::Array>& arrays, int number,
             const std::int32_t** lengths) {
  if (number < 0 || number >= static_cast<int>(arrays.size())) return -1;
  *lengths = arrays[number].shape.data();
  return static_cast<int>(arrays[number].shape.size());
}

std::int64_t size_of(const std::vector<jaxsparse::engine::Array>& arrays, int number) {
  return number >= 0 && number < static_cast<int>(arrays.size()) ? arrays[number].size : -1;
}

}  // namespace

jaxsparse_engine* jaxsparse_engine_open(const char* path, int threads) {
  return guarded(
      [&] {
        const auto bytes = read_file(path);
        return opened(bytes.data(), bytes.size(), threads);
      },
      static_cast<jaxsparse_engine*>(nullptr));
}

jaxsparse_engine* jaxsparse_engine_open_bytes(const void* bytes, std::uint64_t size, int threads) {
  return guarded([&] { return opened(bytes, size, threads); },
                 static_cast<jaxsparse_engine*>(nullptr));
}

jaxsparse_engine* jaxsparse_engine_open_beside(const void* bytes, std::uint64_t size,
                                               const jaxsparse_engine* other) {
  return guarded([&] { return opened(bytes, size, other->session.workers()); },
                 static_cast<jaxsparse_engine*>(nullptr));
}

int jaxsparse_engine_num_inputs(const jaxsparse_engine* engine) {
  return static_cast<int>(engine->session.program().inputs.size());
}

int jaxsparse_engine_num_outputs(const jaxsparse_engine* engine) {
  return static_cast<int>(engine->session.program().outputs.size());
}

int64_t jaxsparse_engine_input_size(const jaxsparse_engine* engine, int input) {
  return size_of(engine->session.program().inputs, input);
}

int64_t jaxsparse_engine_output_size(const jaxsparse_engine* engine, int output) {
  return size_of(engine->session.program().outputs, output);
}

int jaxsparse_engine_input_shape(const jaxsparse_engine* engine, int input,
                                 const int32_t** lengths) {
  return shape_of(engine->session.program().inputs, input, lengths);
}

int jaxsparse_engine_output_shape(const jaxsparse_engine* engine, int output,
                                  const int32_t** lengths) {
  return shape_of(engine->session.program().outputs, output, lengths);
}

int jaxsparse_engine_run(jaxsparse_engine* engine, const float* const* inputs,
                         float* const* outputs, int64_t batch) {
  return guarded(
      [&] {
        if (batch < 0) throw std::runtime_error("a batch has 0 images or more");
        engine->session.run(inputs, outputs, batch);
        return 0;
      },
      1);
}

int jaxsparse_engine_tune(jaxsparse_engine* engine, const float* const* inputs,
                          float* const* outputs, int64_t batch) {
  return guarded(
      [&] {
        if (batch < 0) throw std::runtime_error("a batch has 0 images or more");
        engine->session.tune(inputs, outputs, batch);
        return 0;
      },
      1);
}

int jaxsparse_engine_num_steps(const jaxsparse_engine* engine) {
  return static_cast<int>(engine->session.num_steps());
}

int jaxsparse_engine_describe(const jaxsparse_engine* engine, int step,
                              jaxsparse_engine_step* description) {
  return guarded(
      [&] {
        if (step < 0 || step >= engine->session.num_steps()) {
          throw std::runtime_error("there is no step " + std::to_string(step));
        }
        *description = jaxsparse::engine::described(engine->session.program(), step);
        return 0;
      },
      1);
}

int jaxsparse_engine_profile(jaxsparse_engine* engine, const float* const* inputs,
                             float* const* outputs, int64_t batch, int repeats, double* seconds) {
  return guarded(
      [&] {
        if (batch < 0) throw std::runtime_error("a batch has 0 images or more");
        if (repeats < 1) throw std::runtime_error("a profile has 1 repeat or more");
        engine->session.profile(inputs, outputs, batch, repeats, seconds);
        return 0;
      },
      1);
}

uint64_t jaxsparse_engine_memory(const jaxsparse_engine* engine) {
  return engine->session.memory();
}

void jaxsparse_engine_close(jaxsparse_engine* engine) { delete engine; }

const char* jaxsparse_engine_error(void) { return last_error.c_str(); }
