// Memory that a task works in.
#pragma once

#include <cstdint>
#include <vector>

#include "vec.h"

namespace jaxsparse {

// Floats that start where a cache line does: a vector that lies across two lines is read twice.
class Scratch {
 public:
  // What was there is lost.
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
