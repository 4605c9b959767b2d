// A loop over XLA's own threads: no thread is created, and no task waits for another.
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

// Calls body(i) for i in [0, n), on the calling thread and on whatever threads of the pool are free.
//
// The caller takes part and waits only for calls that have begun, so that it comes to its end even
// where all other threads of the pool wait for something. Which thread makes which call is chance:
// a body writes what no other one reads or writes. Where memory is short, the other calls are made
// all the same, and std::bad_alloc is thrown at the end, on the calling thread.
template <class Body>
void parallel_for(xla::ffi::ThreadPool& pool, i64 n, const Body& body) {
  const i64 num_threads = std::min<i64>(std::max<i64>(pool.num_threads(), 1), n);
  if (num_threads <= 1) {
    for (i64 i = 0; i < n; i++) body(i);
    return;
  }
  // A task that starts late outlives this call, and then finds no index left.
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

}  // namespace jaxsparse
