// Working memory of a task.
#pragma once

#include <cstdint>
#include <vector>

#include "vec.h"

namespace jaxsparse {

// Floats that begin at the start of a cache line. A vector across two lines would take two reads.
class Scratch {
 public:
  // The old floats are lost.
  void resize(i64 size) {
    if (static_cast<i64>(floats_.size()) < size + kLine) floats_.assign(size + kLine, 0.0f);
  }
  float* data() {
    const auto address = reinterpret_cast<std::uintptr_t>(floats_.data());
    return floats_.data() + (kLine - address / sizeof(float) % kLine) % kLine;
  }

 private:
  static constexpr i64 kLine = 64 / sizeof(float);
  std::vector<float> floats_;
};

}  // namespace jaxsparse
