// A network that is ready to run: its program, its memory, its threads.
#pragma once

#include <cstddef>
#include <optional>

#include "run.h"
#include "workers.h"

namespace jaxsparse::engine {

// Vectors that are multiplied, or moved, below which an operation is faster on one thread: results
// of another core come slowly, and meeting takes time.
constexpr i64 kWorthMeeting = 30000;

// Working memory that begins at a cache line.
class Arena {
 public:
  explicit Arena(const Form& form) : floats_(form.arena()) {
    const std::size_t size = floats_.size();
    floats_.resize(size + kLine, 0.0f);
    const auto address = reinterpret_cast<std::uintptr_t>(floats_.data()) / sizeof(float);
    shift_ = (kLine - address % kLine) % kLine;
    std::move_backward(floats_.begin(), floats_.begin() + size, floats_.begin() + size + shift_);
    std::fill_n(floats_.begin(), shift_, 0.0f);
  }
  float* data() { return floats_.data() + shift_; }
  i64 size() const { return static_cast<i64>(floats_.size()); }

 private:
  Floats floats_;
  std::size_t shift_;
};

class Session {
 public:
  Session(const unsigned char* bytes, std::uint64_t size, int threads, const Kernels& kernels)
      : program_(Parser(bytes, size).parse()), kernels_(kernels), workers_(threads) {}

  const Program& program() const { return program_; }

  // Bytes of the program, of its forms and of the working memory, so far.
  std::uint64_t memory() const {
    std::uint64_t bytes = program_.planes.size() * sizeof(Plane);
    for (const Operation& operation : program_.operations) {
      if (const auto* linear = std::get_if<Linear>(&operation)) {
        bytes += linear->taps.size() * (sizeof(std::int32_t) + sizeof(float));
      }
    }
    for (const auto* form : {&one_, &many_}) {
      if (!*form) continue;
      for (const Layer& layer : (*form)->layers) {
        bytes += layer.offsets.size() * sizeof(std::int32_t) + layer.weights.size() * sizeof(float);
      }
    }
    for (const auto* arenas : {&arenas_one_, &arenas_many_}) {
      for (const Arena& arena : *arenas) bytes += arena.size() * sizeof(float);
    }
    return bytes;
  }

  // One call at a time; others wait.
  void run(const float* const* inputs, float* const* outputs, i64 batch) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const i64 many = batch >= kLine && interleaves() ? batch / kLine * kLine : 0;
    run_images(form(many_, kLine, many > 0), arenas_many_, inputs, outputs, 0, many);
    run_images(form(one_, 1, batch > many), arenas_one_, inputs, outputs, many, batch);
  }

 private:
  // Whether images go through the network faster 16 at a time, by the vectors that are multiplied
  // for an image. Planes of few pixels fill a vector with zeros between the rows if there is one
  // image; large ones do not stay in the cache if there are 16.
  bool interleaves() const {
    double alone = 0, together = 0;
    for (const Operation& operation : program_.operations) {
      const auto* linear = std::get_if<Linear>(&operation);
      if (linear == nullptr) continue;
      const Geometry& g = program_.geometries[linear->geometry];
      const double taps = static_cast<double>(linear->taps.size() + 4 * linear->outs.size());
      const i64 extent = g.extent();
      alone += taps * static_cast<double>(extent == 1 ? 1 : in_lines(extent) / kLine);
      together += taps * static_cast<double>(extent) / kLine;
    }
    return together * (program_.arena > kFewFloats ? 1.5 : 1.0) < alone;
  }

  const Form* form(std::optional<Form>& form, i64 images, bool is_needed) {
    if (is_needed && !form) form.emplace(program_, images);
    return form ? &*form : nullptr;
  }

  void run_images(const Form* form, std::vector<Arena>& arenas, const float* const* inputs,
                  float* const* outputs, i64 begin, i64 end) {
    if (begin == end) return;
    const i64 groups = (end - begin) / form->images;
    const int threads = workers_.num();
    const bool apart = groups >= threads && threads > 1;  // every thread has images of its own
    const bool together = !apart && is_worth_waking(*form);
    while (arenas.size() < static_cast<std::size_t>(apart ? threads : 1)) {
      arenas.emplace_back(*form);
    }
    if (apart) {
      std::atomic<i64> next{0};
      workers_.run([&](int thread) {
        for (i64 i; (i = next.fetch_add(1)) < groups;) {
          run_group(*form, arenas[thread], inputs, outputs, begin + i * form->images, {0, 1});
        }
      });
      return;
    }
    const auto all = [&](Part part) {
      for (i64 i = 0; i < groups; i++) {
        run_group(*form, arenas[0], inputs, outputs, begin + i * form->images, part);
      }
    };
    if (together) {
      workers_.run([&](int thread) { all({thread, threads}); });
    } else {
      all({0, 1});
    }
  }

  bool is_worth_waking(const Form& form) const {
    return workers_.num() > 1 &&
           std::any_of(form.layers.begin(), form.layers.end(),
                       [](const Layer& layer) { return layer.work() >= kWorthMeeting; });
  }

  void run_group(const Form& form, Arena& arena, const float* const* inputs,
                 float* const* outputs, i64 image, Part part) {
    const Runner runner(form, kernels_, arena.data());
    bool are_apart = false;  // others may have seen less than what is done
    const auto step = [&](i64 work, const auto& run) {
      const bool is_shared = part.of > 1 && work >= kWorthMeeting;
      if (is_shared && are_apart) workers_.meet();
      if (is_shared || part.number == 0) run(is_shared ? part : Part{0, 1});
      if (is_shared) workers_.meet();
      are_apart = !is_shared;
    };
    for (std::size_t i = 0; i < program_.inputs.size(); i++) {
      const Array& array = program_.inputs[i];
      step(array.size * form.images / 4, [&](Part mine) {
        runner.load(array, inputs[i] + image * array.size, form.images, mine);
      });
    }
    std::size_t layer = 0;
    for (const Operation& operation : program_.operations) {
      if (std::holds_alternative<Linear>(operation)) {
        const Layer& linear = form.layers[layer++];
        step(linear.work(), [&](Part mine) { runner.run(linear, mine); });
      } else {
        std::visit(
            [&](const auto& other) {
              step(work_of(form, other), [&](Part mine) { run_other(runner, other, mine); });
            },
            operation);
      }
    }
    for (std::size_t i = 0; i < program_.outputs.size(); i++) {
      const Array& array = program_.outputs[i];
      step(array.size * form.images / 4, [&](Part mine) {
        runner.save(array, outputs[i] + image * array.size, form.images, mine);
      });
    }
    if (are_apart && part.of > 1) workers_.meet();
  }

  template <class Other>
  static i64 work_of(const Form& form, const Other& other) {
    const i64 planes = static_cast<i64>(other.outs.size());
    return planes == 0 ? 0 : planes * (4 + form.length(other.outs[0]) / 4);
  }

  static void run_other(const Runner&, const Linear&, Part) {}
  template <class Other>
  static void run_other(const Runner& runner, const Other& other, Part part) {
    runner.run(other, part);
  }

  static constexpr i64 kFewFloats = 1 << 14;

  Program program_;
  const Kernels& kernels_;
  Workers workers_;
  std::optional<Form> one_, many_;
  std::vector<Arena> arenas_one_, arenas_many_;
  std::mutex mutex_;
};

}  // namespace jaxsparse::engine
