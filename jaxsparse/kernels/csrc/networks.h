// Networks that programs of XLA run by the engine's library, each opened once.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <iterator>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "engine/jaxsparse_engine.h"
#include "vec.h"

namespace jaxsparse {

class Networks {
 public:
  // What a network is, and the number of its threads.
  using Key = std::pair<i64, i64>;

  explicit Networks(const std::string& library) {
    void* const loaded = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (loaded == nullptr) {
      problem_ = "the engine cannot be loaded: " + std::string(dlerror());
      return;
    }
    find(loaded, "open_bytes", open_);
    find(loaded, "open_beside", open_beside_);
    find(loaded, "memory", memory_of_);
    find(loaded, "close", close_);
    find(loaded, "run", run_);
    find(loaded, "error", error_);
    find(loaded, "num_inputs", num_inputs_);
    find(loaded, "num_outputs", num_outputs_);
    find(loaded, "input_size", input_size_);
    find(loaded, "output_size", output_size_);
  }

  // Runs a batch, and returns what is wrong, or "". `sizes` are floats of the inputs, then of the
  // outputs.
  std::string run(const Key& key, const unsigned char* bytes, std::size_t size,
                  const std::vector<const float*>& inputs, const std::vector<float*>& outputs,
                  const std::vector<i64>& sizes, i64 batch) {
    if (!problem_.empty()) return problem_;
    const std::shared_ptr<jaxsparse_engine> engine = opened(key, bytes, size);
    if (engine == nullptr) return error_();
    if (sizes != expected(engine.get(), batch)) return "arrays of other sizes than the network's";
    if (run_(engine.get(), inputs.data(), outputs.data(), batch) != 0) return error_();
    note(key, *engine, batch);
    return "";
  }

 private:
  // Bytes of the networks that stay open, beside the one that ran last.
  static constexpr std::uint64_t kMost = 1ULL << 30;

  struct Open {
    std::shared_ptr<jaxsparse_engine> engine;
    std::list<Key>::iterator place;  // in `by_use_`
    std::uint64_t memory;
    i64 batch;  // of its last run
  };

  template <class Function>
  void find(void* library, const std::string& name, Function& to) {
    to = reinterpret_cast<Function>(dlsym(library, ("jaxsparse_engine_" + name).c_str()));
    if (to == nullptr) problem_ = "the engine lacks " + name;
  }

  std::shared_ptr<jaxsparse_engine> opened(const Key& key, const unsigned char* bytes,
                                           std::size_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = open_networks_.find(key);
    if (found != open_networks_.end()) {
      by_use_.splice(by_use_.end(), by_use_, found->second.place);
      return found->second.engine;
    }
    const int threads = static_cast<int>(key.second);
    jaxsparse_engine* made = nullptr;
    for (const auto& [other, network] : open_networks_) {  // the parts of a network share threads
      if (other.second != key.second) continue;
      made = open_beside_(bytes, size, network.engine.get());
      break;
    }
    if (open_networks_.empty() || made == nullptr) made = open_(bytes, size, threads);
    if (made == nullptr) return nullptr;
    const std::shared_ptr<jaxsparse_engine> engine(
        made, [this](jaxsparse_engine* closed) { close_(closed); });
    by_use_.push_back(key);
    open_networks_[key] = {engine, std::prev(by_use_.end()), 0, -1};
    return engine;
  }

  // Counts the memory of a network that has run, and closes those that were not used for longest if
  // there is too much. One that runs is closed when it is done.
  void note(const Key& key, const jaxsparse_engine& engine, i64 batch) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = open_networks_.find(key);
    if (found == open_networks_.end() || found->second.batch == batch) return;
    found->second.batch = batch;
    memory_ -= found->second.memory;
    found->second.memory = memory_of_(&engine);
    memory_ += found->second.memory;
    while (memory_ > kMost && by_use_.size() > 1) {
      const auto oldest = open_networks_.find(by_use_.front());
      memory_ -= oldest->second.memory;
      open_networks_.erase(oldest);
      by_use_.pop_front();
    }
  }

  std::vector<i64> expected(const jaxsparse_engine* engine, i64 batch) const {
    std::vector<i64> sizes;
    for (int i = 0; i < num_inputs_(engine); i++) sizes.push_back(batch * input_size_(engine, i));
    for (int i = 0; i < num_outputs_(engine); i++) sizes.push_back(batch * output_size_(engine, i));
    return sizes;
  }

  std::string problem_;
  decltype(&jaxsparse_engine_open_bytes) open_;
  decltype(&jaxsparse_engine_open_beside) open_beside_;
  decltype(&jaxsparse_engine_memory) memory_of_;
  decltype(&jaxsparse_engine_close) close_;
  decltype(&jaxsparse_engine_run) run_;
  decltype(&jaxsparse_engine_error) error_;
  decltype(&jaxsparse_engine_num_inputs) num_inputs_;
  decltype(&jaxsparse_engine_num_outputs) num_outputs_;
  decltype(&jaxsparse_engine_input_size) input_size_;
  decltype(&jaxsparse_engine_output_size) output_size_;
  std::mutex mutex_;
  std::map<Key, Open> open_networks_;
  std::list<Key> by_use_;  // the last one was used last
  std::uint64_t memory_ = 0;
};

// The networks of a library. They stay until the process ends: threads may still run them.
inline Networks& networks(const std::string& library) {
  static std::mutex mutex;
  static auto* const all = new std::map<std::string, std::unique_ptr<Networks>>;
  const std::lock_guard<std::mutex> lock(mutex);
  auto& found = (*all)[library];
  if (found == nullptr) found = std::make_unique<Networks>(library);
  return *found;
}

}  // namespace jaxsparse
