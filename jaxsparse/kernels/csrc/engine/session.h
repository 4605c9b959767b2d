// A network that is ready to run: its program, its memory, its threads.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <limits>
#include <optional>

#include "parser.h"
#include "passes.h"

namespace jaxsparse::engine {

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
  // Sessions may share workers; their runs then wait for each other.
  Session(const unsigned char* bytes, std::uint64_t size, std::shared_ptr<Workers> workers,
          const Kernels& kernels)
      : program_(Parser(bytes, size).parse()),
        schedules_(program_),
        workers_(std::move(workers)),
        passes_(program_, kernels, *workers_) {}

  const Program& program() const { return program_; }
  const std::shared_ptr<Workers>& workers() const { return workers_; }

  // Bytes of the program, of its forms and of the working memory, so far.
  std::uint64_t memory() const {
    const std::lock_guard<std::mutex> lock(mutex_);
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
      for (const auto* places : {&(*form)->input_places, &(*form)->output_places}) {
        for (const Ints& of_array : *places) bytes += of_array.size() * sizeof(std::int32_t);
      }
    }
    for (const auto* arenas : {&arenas_one_, &arenas_many_}) {
      for (const Arena& arena : *arenas) bytes += arena.size() * sizeof(float);
    }
    return bytes;
  }

  // One call at a time; others wait.
  void run(const float* const* inputs, float* const* outputs, i64 batch) {
    const std::scoped_lock lock(mutex_, workers_->mutex());
    run_batch(inputs, outputs, batch);
  }

  // Measures which ways of a batch through the network are fastest here, and keeps them.
  void tune(const float* const* inputs, float* const* outputs, i64 batch) {
    const std::scoped_lock lock(mutex_, workers_->mutex());
    for (const i64 images : {batch < kLine ? 0 : kLine, batch % kLine}) {
      if (images < 2) continue;
      const std::vector<Schedule> candidates = schedules_.candidates(images);
      const std::size_t best = fastest(candidates.size(), [&](std::size_t i) {
        schedules_.set(images, candidates[i]);
        run_batch(inputs, outputs, batch);
      });
      schedules_.set(images, candidates[best]);
    }
    if (workers_->num() == 1) return;
    const i64 candidates[] = {kWorthMeeting, kWorthMeeting / 8, kWorthMeeting * 8, kMostWork};
    const std::size_t best = fastest(std::size(candidates), [&](std::size_t i) {
      passes_.worth_meeting = candidates[i];
      run_batch(inputs, outputs, batch);
    });
    passes_.worth_meeting = candidates[best];
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
  // How some images go through the network: one by one before the cut, in `early`, then together.
  // One image alone is in `late` from the start.
  struct Group {
    i64 images;
    const Schedule& schedule;
    const Form *early, *late;
    std::vector<Arena>&early_arenas, &late_arenas;

    // The operations that the images go through together.
    i64 begin() const { return images > 1 ? schedule.cut : 0; }
  };

  // Work that no operation has.
  static constexpr i64 kMostWork = std::numeric_limits<i64>::max();

  i64 num_operations() const { return static_cast<i64>(program_.operations.size()); }

  void run_batch(const float* const* inputs, float* const* outputs, i64 batch) {
    for (const Stretch& stretch : schedules_.stretches(batch)) {
      if (stretch.num == 0) continue;
      const Group group = group_of(stretch, stretch.num);
      run_groups(stretch.num, *group.late, [&](i64 i, int thread, Part part) {
        run_group(group, inputs, outputs, stretch.first + i * stretch.images, thread, part);
      });
    }
  }

  // Which of some ways is fastest: they run in turn, and the best time of each counts. The first one
  // is preferred, as what is left to chance shall not decide.
  template <class Run>
  static std::size_t fastest(std::size_t num, const Run& run) {
    constexpr int kRounds = 7;
    constexpr double kMargin = 0.97, kLongest = 2;  // seconds, if a run is not so long
    std::vector<double> least(num, std::numeric_limits<double>::infinity());
    double whole = 0;
    for (int round = 0; round <= kRounds && (round < 2 || whole < kLongest); round++) {
      for (std::size_t i = 0; i < num; i++) {
        double seconds = 0;
        timed(seconds, [&] { run(i); });
        whole += seconds;
        if (round > 0) least[i] = std::min(least[i], seconds);  // the first one makes forms
      }
    }
    const auto best = std::min_element(least.begin(), least.end());
    return *best < kMargin * least[0] ? best - least.begin() : 0;
  }

  // Makes the forms and arenas of a stretch, of which `num` groups run at the same time.
  Group group_of(const Stretch& stretch, i64 num) {
    const Schedule& schedule = schedules_.of(stretch.images);
    const bool is_one = stretch.images == 1;
    if (is_one || schedule.cut > 0) prepare(one_, arenas_one_, 1, num);
    if (!is_one) prepare(many_, arenas_many_, kLine, num);
    const auto pointer = [](const std::optional<Form>& form) { return form ? &*form : nullptr; };
    const Form* late = pointer(is_one ? one_ : many_);
    return {stretch.images, schedule,     pointer(one_),
            late,           arenas_one_, is_one ? arenas_one_ : arenas_many_};
  }

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
    if (threads > 1 && passes_.is_worth_waking(form)) {
      workers_->run([&](int thread) { all({thread, threads}); });
    } else {
      all({0, 1});
    }
  }

  void run_group(const Group& group, const float* const* inputs, float* const* outputs, i64 image,
                 int thread, Part part) {
    const Range late{group.late, group.late_arenas[thread].data(), group.begin(), num_operations()};
    if (late.begin == 0) passes_.load(late, inputs, image, group.images, part);
    for (i64 k = 0; late.begin > 0 && k < group.images; k++) {
      const Range early{group.early, group.early_arenas[thread].data(), 0, late.begin};
      passes_.load(early, inputs, image + k, 1, part);
      passes_.run_range(early, part);
      if (part.number == 0) passes_.interleave(group.schedule, early.arena, late.arena, k);
    }
    passes_.run_range(late, part);
    passes_.save(late, outputs, image, group.images, part);
  }

  // Adds the seconds of a step.
  template <class Step>
  static void timed(double& seconds, const Step& step) {
    const auto begin = std::chrono::steady_clock::now();
    step();
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  void time_run(const float* const* inputs, float* const* outputs, i64 batch, double* seconds) {
    for (const Stretch& stretch : schedules_.stretches(batch)) {
      if (stretch.num == 0) continue;
      const Group group = group_of(stretch, 1);
      for (i64 i = 0; i < stretch.num; i++) {
        time_group(group, inputs, outputs, stretch.first + i * stretch.images, seconds);
      }
    }
  }

  void time_group(const Group& group, const float* const* inputs, float* const* outputs, i64 image,
                  double* seconds) {
    const Part whole{0, 1};
    double &reading = seconds[0], &interleaving = seconds[1], &writing = seconds[num_steps() - 1];
    const Range late{group.late, group.late_arenas[0].data(), group.begin(), num_operations()};
    if (late.begin == 0) timed(reading, [&] { passes_.load(late, inputs, image, group.images, whole); });
    for (i64 k = 0; late.begin > 0 && k < group.images; k++) {
      const Range early{group.early, group.early_arenas[0].data(), 0, late.begin};
      timed(reading, [&] { passes_.load(early, inputs, image + k, 1, whole); });
      time_range(early, seconds);
      timed(interleaving, [&] { passes_.interleave(group.schedule, early.arena, late.arena, k); });
    }
    time_range(late, seconds);
    timed(writing, [&] { passes_.save(late, outputs, image, group.images, whole); });
  }

  void time_range(const Range& range, double* seconds) {
    for (i64 i = range.begin; i < range.end; i++) {
      const Range one{range.form, range.arena, i, i + 1};
      timed(seconds[i + 2], [&] { passes_.run_range(one, {0, 1}); });
    }
  }

  Program program_;
  Schedules schedules_;
  std::shared_ptr<Workers> workers_;
  Passes passes_;
  std::optional<Form> one_, many_;
  std::vector<Arena> arenas_one_, arenas_many_;
  mutable std::mutex mutex_;
};

}  // namespace jaxsparse::engine
