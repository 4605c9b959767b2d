// What a program's operations are, in words and numbers, for a table of where the time goes.
#pragma once

#include <limits>

#include "jaxsparse_engine.h"
#include "program.h"

namespace jaxsparse::engine {

inline const char* name_of(const Linear&) { return "linear"; }
inline const char* name_of(const Copy&) { return "copy"; }
inline const char* name_of(const Pool&) { return "max pool"; }
inline const char* name_of(const Sum&) { return "sum"; }
inline const char* name_of(const Product&) { return "product"; }
inline const char* name_of(const Largest&) { return "maximum"; }
inline const char* name_of(const Select&) { return "select"; }
inline const char* name_of(const Reflow&) { return "reshape"; }

inline const char* name_of(const Activation& activation) {
  static const char* const names[] = {
      "clip",       "exp", "expm1", "log",  "tanh",      "logistic", "erf",  "erfc",      "sqrt", "rsqrt",
      "reciprocal", "abs", "silu",  "gelu", "gelu_tanh", "softplus", "mish", "hard_silu",
      "leaky_relu", "elu"};
  static_assert(sizeof names / sizeof *names == static_cast<std::size_t>(Function::count));
  const float infinity = std::numeric_limits<float>::infinity();
  if (activation.function == Function::clamp && activation.high == infinity) {
    if (activation.low == -infinity) return "";
    if (activation.low == 0) return "relu";
  }
  return names[static_cast<std::size_t>(activation.function)];
}

inline jaxsparse_engine_step described(const Program& program, const Operation& operation) {
  jaxsparse_engine_step step{};
  std::visit(
      [&](const auto& found) {
        step.kind = name_of(found);
        step.planes = static_cast<i64>(found.outs.size());
        if (found.outs.empty()) return;
        const Geometry& g = program.geometry(found.outs[0]);
        step.height = g.height;
        step.width = g.width;
      },
      operation);
  step.function = "";
  if (const auto* linear = std::get_if<Linear>(&operation)) {
    step.function = name_of(linear->activation);
    step.weights = static_cast<i64>(linear->taps.size());
    step.multiply_adds = step.weights * step.height * step.width;
  }
  return step;
}

// The steps of `Session::profile`.
inline jaxsparse_engine_step described(const Program& program, i64 number) {
  const i64 num = static_cast<i64>(program.operations.size());
  const auto other = [](const char* kind) { return jaxsparse_engine_step{kind, "", 0, 0, 0, 0, 0}; };
  if (number == 0) return other("read inputs");
  if (number == 1) return other("interleave");
  if (number == num + 2) return other("write outputs");
  return described(program, program.operations[number - 2]);
}

}  // namespace jaxsparse::engine
