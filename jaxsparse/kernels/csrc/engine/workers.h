// Threads that work on one task together, and wait for each other inside it.
//
// A network of one image is some twenty steps of a few microseconds. So a thread that waits spins:
// waking it through the system would take longer than a step. It gives way after a while, in case
// the machine has fewer free cores than the engine has threads.
#pragma once

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace jaxsparse::engine {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until `is_done()`; gives way to other threads after a while.
template <class Done>
void spin(const Done& is_done) {
  constexpr int kSpins = 4096;
  for (int i = 0; !is_done(); i++) {
    if (i < kSpins) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
}

class Workers {
 public:
  explicit Workers(int num) : num_(num), process_(getpid()) {
    try {
      for (int i = 1; i < num; i++) threads_.emplace_back([this, i] { wait_for_tasks(i); });
    } catch (...) {  // the system has no thread left
      end();
      throw;
    }
  }

  ~Workers() { end(); }

  // Makes workers that are left as they are if their owner is gone in a process that was forked:
  // their threads stayed behind and cannot be joined, nor can what they wait for be destroyed.
  static std::shared_ptr<Workers> shared(int num) {
    return {new Workers(num), [](Workers* workers) {
              if (!workers->are_elsewhere()) delete workers;
            }};
  }

  // Held by whoever runs tasks.
  std::mutex& mutex() { return running_; }

  // Whether this process was forked, so that the threads stayed behind.
  bool are_elsewhere() const { return num_ > 1 && getpid() != process_; }

  // Threads that work: 1 in a process that was forked, since the others stayed behind.
  int num() const { return are_elsewhere() ? 1 : num_; }

  // Calls task(i) for i in [0, num()) at the same time, 0 on the calling thread. It must not throw.
  void run(const std::function<void(int)>& task) {
    if (num() == 1) return task(0);
    task_ = &task;
    left_.store(num_ - 1);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      task_number_.fetch_add(1);
    }
    if (asleep_.load() > 0) wake_.notify_all();
    task(0);
    spin([this] { return left_.load(std::memory_order_acquire) == 0; });
  }

  // Waits inside a task of several threads until all are here.
  void meet() {
    const int turn = turn_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == num_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
    } else {
      spin([&] { return turn_.load(std::memory_order_acquire) != turn; });
    }
  }

 private:
  void end() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ends_ = true;
      task_number_.fetch_add(1);
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void wait_for_tasks(int number) {
    for (unsigned seen = 0;;) {
      constexpr int kSpins = 20000;  // some 100 microseconds, in which the next call often comes
      for (int i = 0; i < kSpins && task_number_.load(std::memory_order_acquire) == seen; i++) {
        relax();
      }
      if (task_number_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        asleep_.fetch_add(1);
        wake_.wait(lock, [&] { return task_number_.load() != seen; });
        asleep_.fetch_sub(1);
      }
      seen++;
      if (ends_) return;
      (*task_)(number);
      left_.fetch_sub(1, std::memory_order_release);
    }
  }

  const int num_;
  const pid_t process_;
  std::vector<std::thread> threads_;
  const std::function<void(int)>* task_ = nullptr;
  std::atomic<unsigned> task_number_{0};
  std::atomic<int> left_{0}, arrived_{0}, turn_{0}, asleep_{0};
  std::mutex mutex_, running_;
  std::condition_variable wake_;
  bool ends_ = false;
};

}  // namespace jaxsparse::engine
