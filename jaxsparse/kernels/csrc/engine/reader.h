// Reads numbers from bytes that may be damaged or hostile: what is not there is never read.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace jaxsparse::engine {

// What is wrong with a program.
class BadProgram : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Bytes are little-endian, as all machines are that the kernels are compiled for.
class Reader {
 public:
  Reader(const unsigned char* bytes, std::uint64_t size) : bytes_(bytes), left_(size) {}

  std::uint32_t number() {
    std::uint32_t found;
    take(&found, sizeof found);
    return found;
  }

  // A number in [least, most].
  std::int64_t number(std::int64_t least, std::int64_t most, const char* what) {
    const std::int64_t found = static_cast<std::int32_t>(number());
    if (found < least || found > most) {
      throw BadProgram(std::string(what) + " is " + std::to_string(found) + ", not in [" +
                       std::to_string(least) + ", " + std::to_string(most) + "]");
    }
    return found;
  }

  // An array. Its size is checked against the bytes that are left before memory is taken.
  template <class T>
  std::vector<T> array(std::uint64_t num) {
    if (num > left_ / sizeof(T)) throw BadProgram("it ends too early");
    std::vector<T> found(num);
    take(found.data(), num * sizeof(T));
    skip((4 - num * sizeof(T) % 4) % 4);  // arrays begin at multiples of 4
    return found;
  }

  std::uint64_t left() const { return left_; }

 private:
  void take(void* to, std::uint64_t size) {
    if (size > left_) throw BadProgram("it ends too early");
    if (size > 0) std::memcpy(to, bytes_, size);
    skip(size);
  }
  void skip(std::uint64_t size) {
    if (size > left_) throw BadProgram("it ends too early");
    bytes_ += size;
    left_ -= size;
  }

  const unsigned char* bytes_;
  std::uint64_t left_;
};

}  // namespace jaxsparse::engine
