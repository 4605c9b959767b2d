// A network that is ready to run: its program, its memory, its threads.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>

#include "parser.h"
#include "run.h"
#include "schedule.h"
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
      : program_(Parser(bytes, size).parse()),
        schedule_(schedule_of(program_)),
        kernels_(kernels),
        workers_(std::make_unique<Workers>(threads)) {
    // Constant planes are in no operation, and are in both arenas anyway.
    if (program_.arena * kLine > kMostInterleaved) schedule_ = {num_operations(), {}};
  }

  ~Session() {
    if (workers_->are_elsewhere()) static_cast<void>(workers_.release());
  }

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
    // The number of threads has no say: one image and 16 are added up in another order.
    const i64 groups = schedule_.cut < num_operations() ? batch / kLine : 0;
    if (groups > 0) {
      prepare(many_, arenas_many_, kLine, groups);
      if (schedule_.cut > 0) prepare(one_, arenas_one_, 1, groups);
      run_groups(groups, *many_, [&](i64 group, int thread, Part part) {
        run_together(inputs, outputs, group * kLine, thread, part);
      });
    }
    const i64 done = groups * kLine;
    if (done == batch) return;
    prepare(one_, arenas_one_, 1, batch - done);
    run_groups(batch - done, *one_, [&](i64 image, int thread, Part part) {
      const Range all{&*one_, arenas_one_[thread].data(), 0, num_operations()};
      load(all, inputs, done + image, part);
      run_range(all, part);
      save(all, outputs, done + image, part);
    });
  }

  // Steps of `profile`: reading, interleaving, the operations, writing.
  i64 num_steps() const { return num_operations() + 3; }

  // Runs a batch on the calling thread, as `run` does if there is no other, and writes the seconds
  // of each step: medians over the repeats, behind a run that does not count.
  void profile(const float* const* inputs, float* const* outputs, i64 batch, i64 repeats,
               double* seconds) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const i64 num = num_steps();
    std::vector<double> all((repeats + 1) * num, 0.0), sorted(repeats);
    for (i64 r = 0; r <= repeats; r++) time_run(inputs, outputs, batch, &all[r * num]);
    for (i64 step = 0; step < num; step++) {
      for (i64 r = 0; r < repeats; r++) sorted[r] = all[(r + 1) * num + step];
      std::sort(sorted.begin(), sorted.end());
      seconds[step] = (sorted[(repeats - 1) / 2] + sorted[repeats / 2]) / 2;
    }
  }

 private:
  // Operations on an arena.
  struct Range {
    const Form* form;
    float* arena;
    i64 begin, end;
  };

  i64 num_operations() const { return static_cast<i64>(program_.operations.size()); }

  // Makes a form, and an arena for each thread that has images of its own.
  void prepare(std::optional<Form>& form, std::vector<Arena>& arenas, i64 images, i64 groups) {
    if (!form) form.emplace(program_, images);
    const i64 threads = workers_->num();
    while (static_cast<i64>(arenas.size()) < (groups >= threads ? threads : 1)) {
      arenas.emplace_back(*form);
    }
  }

  // Calls one(group, thread, part) for all groups: on threads of their own, or each on all threads
  // if there are fewer groups than threads.
  template <class One>
  void run_groups(i64 groups, const Form& form, const One& one) {
    const int threads = workers_->num();
    if (threads > 1 && groups >= threads) {
      std::atomic<i64> next{0};
      workers_->run([&](int thread) {
        for (i64 i; (i = next.fetch_add(1)) < groups;) one(i, thread, Part{0, 1});
      });
      return;
    }
    const auto all = [&](Part part) {
      for (i64 i = 0; i < groups; i++) one(i, 0, part);
    };
    if (threads > 1 && is_worth_waking(form)) {
      workers_->run([&](int thread) { all({thread, threads}); });
    } else {
      all({0, 1});
    }
  }

  static bool is_worth_waking(const Form& form) {
    return std::any_of(form.layers.begin(), form.layers.end(),
                       [](const Layer& layer) { return layer.work() >= kWorthMeeting; });
  }

  void run_together(const float* const* inputs, float* const* outputs, i64 image, int thread,
                    Part part) {
    const Range late{&*many_, arenas_many_[thread].data(), schedule_.cut, num_operations()};
    if (schedule_.cut == 0) {
      load(late, inputs, image, part);
    } else {
      const Range early{&*one_, arenas_one_[thread].data(), 0, schedule_.cut};
      for (i64 k = 0; k < kLine; k++) {
        load(early, inputs, image + k, part);
        run_range(early, part);
        if (part.number == 0) interleave(early.arena, late.arena, k);
      }
    }
    run_range(late, part);
    save(late, outputs, image, part);
  }

  // Puts the planes of an image among those of 16.
  void interleave(const float* from, float* to, i64 image) const {
    for (const i64 plane : schedule_.interleaved) {
      const i64 first = program_.first(plane), extent = program_.geometry(plane).extent();
      for (i64 i = first; i < first + extent; i++) to[i * kLine + image] = from[i];
    }
  }

  // Runs a step on all threads or, if it is small, on the first. Threads meet before and behind
  // what they share.
  template <class Step>
  void run_step(i64 work, Part part, bool& are_apart, const Step& step) {
    const bool is_shared = part.of > 1 && work >= kWorthMeeting;
    if (is_shared && are_apart) workers_->meet();
    if (is_shared || part.number == 0) step(is_shared ? part : Part{0, 1});
    if (is_shared) workers_->meet();
    are_apart = !is_shared;
  }

  void load(const Range& range, const float* const* inputs, i64 image, Part part) {
    if (part.number > 0) return;
    const Runner runner(*range.form, kernels_, range.arena);
    for (std::size_t i = 0; i < program_.inputs.size(); i++) {
      const Array& array = program_.inputs[i];
      runner.load(array, inputs[i] + image * array.size);
    }
  }

  void save(const Range& range, float* const* outputs, i64 image, Part part) {
    if (part.number == 0) {
      const Runner runner(*range.form, kernels_, range.arena);
      for (std::size_t i = 0; i < program_.outputs.size(); i++) {
        const Array& array = program_.outputs[i];
        runner.save(array, outputs[i] + image * array.size);
      }
    }
    if (part.of > 1) workers_->meet();  // nobody begins the next image
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
    if (are_apart && part.of > 1) workers_->meet();
  }

  // Adds the seconds of a step.
  template <class Step>
  static void timed(double& seconds, const Step& step) {
    const auto begin = std::chrono::steady_clock::now();
    step();
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  void time_run(const float* const* inputs, float* const* outputs, i64 batch, double* seconds) {
    const Part whole{0, 1};
    double &reading = seconds[0], &interleaving = seconds[1], &writing = seconds[num_steps() - 1];
    const i64 groups = schedule_.cut < num_operations() ? batch / kLine : 0, done = groups * kLine;
    if (groups > 0) prepare(many_, arenas_many_, kLine, 1);
    if (schedule_.cut > 0 || done < batch) prepare(one_, arenas_one_, 1, 1);
    for (i64 image = 0; image < done; image += kLine) {
      const Range late{&*many_, arenas_many_[0].data(), schedule_.cut, num_operations()};
      if (schedule_.cut == 0) {
        timed(reading, [&] { load(late, inputs, image, whole); });
      }
      for (i64 k = 0; schedule_.cut > 0 && k < kLine; k++) {
        const Range early{&*one_, arenas_one_[0].data(), 0, schedule_.cut};
        timed(reading, [&] { load(early, inputs, image + k, whole); });
        time_range(early, seconds);
        timed(interleaving, [&] { interleave(early.arena, late.arena, k); });
      }
      time_range(late, seconds);
      timed(writing, [&] { save(late, outputs, image, whole); });
    }
    for (i64 image = done; image < batch; image++) {
      const Range all{&*one_, arenas_one_[0].data(), 0, num_operations()};
      timed(reading, [&] { load(all, inputs, image, whole); });
      time_range(all, seconds);
      timed(writing, [&] { save(all, outputs, image, whole); });
    }
  }

  void time_range(const Range& range, double* seconds) {
    for (i64 i = range.begin; i < range.end; i++) {
      const Range one{range.form, range.arena, i, i + 1};
      timed(seconds[i + 2], [&] { run_range(one, {0, 1}); });
    }
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

  static constexpr i64 kMostInterleaved = 1 << 26;  // floats

  Program program_;
  Schedule schedule_;
  const Kernels& kernels_;
  std::unique_ptr<Workers> workers_;
  std::optional<Form> one_, many_;
  std::vector<Arena> arenas_one_, arenas_many_;
  std::mutex mutex_;
};

}  // namespace jaxsparse::engine
