// A loop on XLA's own threads. No thread is created, and no task waits for another.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <new>
#include <thread>

#include "vec.h"
#include "xla/ffi/api/ffi.h"

namespace jaxsparse {

// Calls body(i) for i in [0, n), on the calling thread and on the free threads of the pool.
//
// The caller takes part, and waits only for calls that have begun. So the loop ends even if all
// other threads of the pool are blocked. Any thread may make any call: a body must not write what
// another one reads or writes. If an allocation fails, the other calls are still made, and
// std::bad_alloc is thrown at the end, on the calling thread.
template <class Body>
void parallel_for(xla::ffi::ThreadPool& pool, i64 n, const Body& body) {
  const i64 num_threads = std::min<i64>(std::max<i64>(pool.num_threads(), 1), n);
  if (num_threads <= 1) {
    for (i64 i = 0; i < n; i++) body(i);
    return;
  }
  // A task may start after this function has returned. It then finds no index left.
  struct Shared {
    std::atomic<i64> next{0};
    std::atomic<i64> done{0};
    std::atomic<bool> failed{false};
  };
  auto shared = std::make_shared<Shared>();
  const Body* calls = &body;
  auto work = [shared, calls, n] {
    for (i64 i; (i = shared->next.fetch_add(1)) < n;) {
      try {
        (*calls)(i);
      } catch (const std::exception&) {  // what vectors throw: bad_alloc, length_error
        shared->failed.store(true, std::memory_order_relaxed);
      }
      shared->done.fetch_add(1, std::memory_order_release);
    }
  };
  for (i64 i = 1; i < num_threads; i++) pool.Schedule([work] { work(); });
  work();
  while (shared->done.load(std::memory_order_acquire) < n) std::this_thread::yield();
  if (shared->failed.load(std::memory_order_relaxed)) throw std::bad_alloc();
}

// Parts that a loop is cut into if each part adds up floats. The number does not depend on the
// number of threads, so that neither does the order of the additions.
constexpr i64 kTasks = 8;

}  // namespace jaxsparse
