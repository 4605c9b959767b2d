// The file around a program: what it is, its version, its length, and a checksum.
#pragma once

#include <array>

#include "program.h"
#include "reader.h"

namespace jaxsparse::engine {

struct Bytes {
  const unsigned char* bytes;
  std::uint64_t size;
};

// CRC-32 as in zlib.
inline std::uint32_t checksum(const unsigned char* bytes, std::uint64_t size) {
  static const auto table = [] {
    std::array<std::uint32_t, 256> made{};
    for (std::uint32_t i = 0; i < 256; i++) {
      std::uint32_t c = i;
      for (int bit = 0; bit < 8; bit++) c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
      made[i] = c;
    }
    return made;
  }();
  std::uint32_t c = 0xFFFFFFFFu;
  for (std::uint64_t i = 0; i < size; i++) c = table[(c ^ bytes[i]) & 0xFF] ^ (c >> 8);
  return ~c;
}

// Returns the program inside of a file: 8 bytes of magic, version, checksum, length, program.
inline Bytes unpacked(const unsigned char* bytes, std::uint64_t size) {
  constexpr char kMagic[] = {'J', 'S', 'E', 'N', 'G', 'I', 'N', 'E'};
  if (size < 20 || std::memcmp(bytes, kMagic, sizeof kMagic) != 0) {
    throw BadProgram("this is no network of jaxsparse");
  }
  Reader head(bytes + sizeof kMagic, size - sizeof kMagic);
  const std::uint32_t version = head.number(), sum = head.number(), length = head.number();
  if (version != kVersion) {
    throw BadProgram("the network has version " + std::to_string(version) +
                     " of the format; this library reads version " + std::to_string(kVersion));
  }
  if (head.left() != length) {
    throw BadProgram("the network is cut off or too long: " + std::to_string(head.left()) +
                     " bytes instead of " + std::to_string(length));
  }
  const unsigned char* body = bytes + 20;
  if (checksum(body, length) != sum) throw BadProgram("the network is damaged");
  return {body, length};
}

}  // namespace jaxsparse::engine
