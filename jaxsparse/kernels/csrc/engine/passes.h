// The way of images through operations: on an arena, by one thread or by several together.
#pragma once

#include "run.h"
#include "schedule.h"
#include "workers.h"

namespace jaxsparse::engine {

// Vectors that are multiplied, or moved, below which an operation is faster on one thread: results
// of another core come slowly, and meeting takes time.
constexpr i64 kWorthMeeting = 30000;

// Operations on an arena.
struct Range {
  const Form* form;
  float* arena;
  i64 begin, end;
};

class Passes {
 public:
  Passes(const Program& program, const Kernels& kernels, Workers& workers)
      : program_(program), kernels_(kernels), workers_(workers) {}

  // Work that an operation must have to be shared by threads.
  i64 worth_meeting = kWorthMeeting;

  bool is_worth_waking(const Form& form) const {
    return std::any_of(form.layers.begin(), form.layers.end(),
                       [&](const Layer& layer) { return layer.work() >= worth_meeting; });
  }

  void load(const Range& range, const float* const* inputs, i64 image, i64 num, Part part) {
    if (part.number > 0) return;
    const Runner runner(*range.form, kernels_, range.arena);
    for (std::size_t i = 0; i < program_.inputs.size(); i++) {
      runner.load(i, inputs[i] + image * program_.inputs[i].size, num);
    }
  }

  void save(const Range& range, float* const* outputs, i64 image, i64 num, Part part) {
    if (part.number == 0) {
      const Runner runner(*range.form, kernels_, range.arena);
      for (std::size_t i = 0; i < program_.outputs.size(); i++) {
        runner.save(i, outputs[i] + image * program_.outputs[i].size, num);
      }
    }
    if (part.of > 1) workers_.meet();  // nobody begins the next image
  }

  void run_range(const Range& range, Part part) {
    const Runner runner(*range.form, kernels_, range.arena);
    bool are_apart = true;  // the first thread has loaded the image
    std::size_t layer = 0;
    for (i64 i = 0; i < range.end; i++) {
      const Operation& operation = program_.operations[i];
      const bool is_linear = std::holds_alternative<Linear>(operation);
      layer += is_linear;
      if (i < range.begin) continue;
      if (is_linear) {
        const Layer& linear = range.form->layers[layer - 1];
        run_step(linear.work(), part, are_apart, [&](Part mine) { runner.run(linear, mine); });
      } else {
        std::visit(
            [&](const auto& other) {
              run_step(work_of(*range.form, other), part, are_apart,
                       [&](Part mine) { run_other(runner, other, mine); });
            },
            operation);
      }
    }
    if (are_apart && part.of > 1) workers_.meet();
  }

  // Puts the planes of an image among those of 16.
  void interleave(const Schedule& schedule, const float* from, float* to, i64 image) const {
    for (const i64 plane : schedule.interleaved) {
      const i64 first = program_.first(plane), extent = program_.geometry(plane).extent();
      for (i64 i = first; i < first + extent; i++) to[i * kLine + image] = from[i];
    }
  }

 private:
  // Runs a step on all threads or, if it is small, on the first. Threads meet before and behind
  // what they share.
  template <class Step>
  void run_step(i64 work, Part part, bool& are_apart, const Step& step) {
    const bool is_shared = part.of > 1 && work >= worth_meeting;
    if (is_shared && are_apart) workers_.meet();
    if (is_shared || part.number == 0) step(is_shared ? part : Part{0, 1});
    if (is_shared) workers_.meet();
    are_apart = !is_shared;
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

  const Program& program_;
  const Kernels& kernels_;
  Workers& workers_;
};

}  // namespace jaxsparse::engine
