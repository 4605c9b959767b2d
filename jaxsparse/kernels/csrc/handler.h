// Makes a C++ function a handler that XLA can call.
//
//   ffi::Error run_scale(ffi::ThreadPool pool, Floats x, FloatsOut y, float factor);
//   JAXSPARSE_HANDLER(scale, "factor")
//
// exports `jaxsparse_scale`. XLA is told what each parameter is by its C++ type. Attributes, here
// the factor, also have names: they are listed in the order of the parameters.
#pragma once

#include <cstddef>
#include <exception>
#include <string>
#include <type_traits>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace jaxsparse {
namespace handler {

namespace ffi = xla::ffi;

// How XLA fills a parameter.
enum class Kind { attribute, context, argument, result, other_arguments, other_results };

template <class T>
struct Parameter {
  static constexpr Kind kind = Kind::attribute;
};
template <>
struct Parameter<ffi::ThreadPool> {
  static constexpr Kind kind = Kind::context;
};
template <ffi::DataType type, std::size_t rank>
struct Parameter<ffi::Buffer<type, rank>> {
  static constexpr Kind kind = Kind::argument;
};
template <class Buffer>
struct Parameter<ffi::Result<Buffer>> {
  static constexpr Kind kind = Kind::result;
  using Of = Buffer;
};
template <>
struct Parameter<ffi::RemainingArgs> {
  static constexpr Kind kind = Kind::other_arguments;
};
template <>
struct Parameter<ffi::RemainingRets> {
  static constexpr Kind kind = Kind::other_results;
};

// Binds the parameters of a call one by one, then the call itself.
template <class... Parameters>
struct Rest {
  template <class Binding, class Call>
  static auto bind(Binding&& binding, Call* call, const char* const*) {
    return std::move(binding).To(call);
  }
};
template <class T, class... Parameters>
struct Rest<T, Parameters...> {
  template <class Binding, class Call>
  static auto bind(Binding&& binding, Call* call, const char* const* names) {
    constexpr Kind kind = Parameter<T>::kind;
    using Next = Rest<Parameters...>;
    if constexpr (kind == Kind::context) {
      return Next::bind(std::move(binding).template Ctx<T>(), call, names);
    } else if constexpr (kind == Kind::argument) {
      return Next::bind(std::move(binding).template Arg<T>(), call, names);
    } else if constexpr (kind == Kind::result) {
      return Next::bind(std::move(binding).template Ret<typename Parameter<T>::Of>(), call, names);
    } else if constexpr (kind == Kind::other_arguments) {
      return Next::bind(std::move(binding).RemainingArgs(), call, names);
    } else if constexpr (kind == Kind::other_results) {
      return Next::bind(std::move(binding).RemainingRets(), call, names);
    } else {
      return Next::bind(std::move(binding).template Attr<T>(*names), call, names + 1);
    }
  }
};

template <auto call>
struct Handler;
template <class... Args, ffi::Error (*call)(Args...)>
struct Handler<call> {
  // Exceptions must not cross the FFI boundary. Only allocation can throw here.
  static ffi::Error guarded(Args... args) {
    try {
      return call(args...);
    } catch (const std::exception& error) {
      return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                        std::string("no memory for what the call works on: ") + error.what());
    }
  }

  template <class... Names>
  static auto named(Names... attributes) {
    constexpr int num = (0 + ... + (Parameter<Args>::kind == Kind::attribute));
    static_assert(sizeof...(attributes) == num, "every attribute has a name");
    const char* names[] = {attributes..., nullptr};
    return Rest<Args...>::bind(ffi::Ffi::Bind(), guarded, names);
  }
};

}  // namespace handler
}  // namespace jaxsparse

// Exports jaxsparse::run_<name>, whose attributes have the names that follow.
#define JAXSPARSE_HANDLER(name, ...)                                     \
  extern "C" __attribute__((visibility("default"))) XLA_FFI_Error*       \
  jaxsparse_##name(XLA_FFI_CallFrame* frame) {                           \
    using Handler = jaxsparse::handler::Handler<jaxsparse::run_##name>;  \
    static auto* handler = Handler::named(__VA_ARGS__).release();        \
    return handler->Call(frame);                                         \
  }
