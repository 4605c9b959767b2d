// The calls that XLA makes. The shapes and meanings of their arguments are told where Python makes
// them: in jaxsparse/sparse/ and in selection/compiled.py.
#include <string>
#include <string_view>
#include <vector>

#include "channel_major.h"
#include "handler.h"
#include "layer.h"
#include "lines.h"
#include "networks.h"
#include "norm.h"
#include "planes.h"
#include "select.h"

namespace jaxsparse {
namespace {

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;
using FloatsOut = ffi::ResultBuffer<ffi::F32>;
using IntsOut = ffi::ResultBuffer<ffi::S32>;
using Window = ffi::Span<const std::int64_t>;

// Channel-major batches of at least this size are computed in vectors of images. Smaller ones are
// copied into planes.
constexpr i64 kRowsFrom = 16;

struct Images {
  i64 batch, channels, y, x;
  Strides strides;
};

// Layout 0 is [image, y, x, channel], layout 1 is [channel, y, x, image].
Images images_of(const Floats::Dimensions& d, i64 layout) {
  if (layout == 0) return {d[0], d[3], d[1], d[2], {d[1] * d[2] * d[3], 1, d[2] * d[3], d[3]}};
  return {d[3], d[0], d[1], d[2], {1, d[1] * d[2] * d[3], d[2] * d[3], d[3]}};
}

// The window is (taps, strides, padding before, dilation), each for y and x, then the groups.
Layer layer_of(const Images& in, const Images& out, Window window) {
  const auto axis = [&](i64 length, i64 out_length, int i) {
    return Axis{length, out_length, window[i], window[2 + i], window[6 + i], window[4 + i]};
  };
  return {in.batch,  in.channels,          out.channels,
          window[8], axis(in.y, out.y, 0), axis(in.x, out.x, 1)};
}

ffi::Error wrong(const std::string& what) { return ffi::Error::InvalidArgument(what); }

// Sets `count` to the number of nonzeros. They come first in the buffers, whose size is the
// capacity.
ffi::Error count_of(Floats values, Ints positions, Ints num, i64& count) {
  const i64 capacity = static_cast<i64>(values.element_count());
  count = num.typed_data()[0];
  if (count < 0 || count > capacity || capacity != static_cast<i64>(positions.element_count())) {
    return wrong(std::to_string(count) + " nonzeros, capacity for " + std::to_string(capacity) +
                 " values and " + std::to_string(positions.element_count()) + " positions");
  }
  return ffi::Error::Success();
}

float* or_none(float* data, std::size_t size) { return size ? data : nullptr; }

ffi::Error convolve(ffi::ThreadPool pool, Floats in, Floats values, Ints positions, Ints num,
                    FloatsOut out, i64 layout, Window window, const Epilogue* epilogue) {
  const Images from = images_of(in.dimensions(), layout), to = images_of(out->dimensions(), layout);
  const Layer layer = layer_of(from, to, window);
  i64 count = 0;
  if (auto error = count_of(values, positions, num, count); error.failure()) return error;
  const std::int32_t* at = positions.typed_data();
  const bool rows = layout == 1 && layer.batch >= kRowsFrom, rises = rise(layer, at, count);
  Nonzeros nonzeros;
  if (rows || !rises) {
    const std::string problem = decode(layer, at, count, values.typed_data(), nonzeros);
    if (!problem.empty()) return wrong(problem);
  }
  if (rows) {
    channel_major_forward(pool, layer, nonzeros, in.typed_data(), out->typed_data(), epilogue);
    return ffi::Error::Success();
  }
  const Packing packing(layer);
  const PlaneTaps taps =
      rises ? rising_forward_taps(pool, layer, packing, at, count, values.typed_data())
            : forward_taps(layer, packing, nonzeros);
  planes_forward(pool, layer, packing, taps, in.typed_data(), from.strides, out->typed_data(),
                 to.strides, epilogue);
  return ffi::Error::Success();
}

ffi::Error run_conv_forward(ffi::ThreadPool pool, Floats in, Floats values, Ints positions,
                            Ints num, FloatsOut out, i64 layout, Window window) {
  return convolve(pool, in, values, positions, num, out, layout, window, nullptr);
}

// An empty shortcut means that there is none.
ffi::Error run_conv_norm(ffi::ThreadPool pool, Floats in, Floats values, Ints positions, Ints num,
                         Floats mean, Floats factor, Floats bias, Floats shortcut, FloatsOut out,
                         i64 layout, Window window, bool relu) {
  const Epilogue epilogue{mean.typed_data(), factor.typed_data(), bias.typed_data(),
                          or_none(shortcut.typed_data(), shortcut.element_count()), relu};
  return convolve(pool, in, values, positions, num, out, layout, window, &epilogue);
}

ffi::Error run_conv_backward(ffi::ThreadPool pool, Floats in, Floats values, Ints positions,
                             Ints num, Floats grad, FloatsOut grad_in, FloatsOut grad_values,
                             i64 layout, Window window) {
  const Images from = images_of(in.dimensions(), layout), to = images_of(grad.dimensions(), layout);
  const Layer layer = layer_of(from, to, window);
  i64 count = 0;
  if (auto error = count_of(values, positions, num, count); error.failure()) return error;
  Nonzeros nonzeros;
  const std::string problem =
      decode(layer, positions.typed_data(), count, values.typed_data(), nonzeros);
  if (!problem.empty()) return wrong(problem);
  float* to_values = grad_values->typed_data();
  std::fill(to_values + nonzeros.count(), to_values + values.element_count(), 0.0f);
  if (layout == 1 && layer.batch >= kRowsFrom) {
    channel_major_backward(pool, layer, nonzeros, in.typed_data(), grad.typed_data(),
                           grad_in->typed_data(), to_values);
  } else {
    planes_backward(pool, layer, nonzeros, in.typed_data(), from.strides, grad.typed_data(),
                    to.strides, grad_in->typed_data(), to_values);
  }
  return ffi::Error::Success();
}

// x is [channel, ...]. In the two calls below, an empty shortcut means that there is none.
Norm norm_of(const Floats& x, float epsilon, bool relu) {
  const i64 channels = x.dimensions()[0];
  const i64 size = channels ? static_cast<i64>(x.element_count()) / channels : 0;
  return {channels, size, epsilon, relu};
}

ffi::Error run_norm_forward(ffi::ThreadPool pool, Floats x, Floats scale, Floats bias,
                            Floats shortcut, FloatsOut y, FloatsOut means, FloatsOut variances,
                            float epsilon, bool relu) {
  norm_forward(pool, norm_of(x, epsilon, relu), x.typed_data(), scale.typed_data(),
               bias.typed_data(), or_none(shortcut.typed_data(), shortcut.element_count()),
               y->typed_data(), means->typed_data(), variances->typed_data());
  return ffi::Error::Success();
}

ffi::Error run_norm_backward(ffi::ThreadPool pool, Floats x, Floats y, Floats grad, Floats scale,
                             Floats means, Floats variances, FloatsOut grad_x, FloatsOut grad_scale,
                             FloatsOut grad_bias, FloatsOut grad_shortcut, float epsilon,
                             bool relu) {
  norm_backward(pool, norm_of(x, epsilon, relu), x.typed_data(), y.typed_data(), grad.typed_data(),
                scale.typed_data(), means.typed_data(), variances.typed_data(),
                grad_x->typed_data(), grad_scale->typed_data(), grad_bias->typed_data(),
                or_none(grad_shortcut->typed_data(), grad_shortcut->element_count()));
  return ffi::Error::Success();
}

// x is [channel, ..., image].
Lines lines_of(const Floats& x) {
  const i64 channels = x.dimensions()[0], images = x.dimensions().back();
  const i64 each = channels * images;
  return {channels, each ? static_cast<i64>(x.element_count()) / each : 0, images};
}

ffi::Error run_lines_forward(ffi::ThreadPool pool, Floats x, Floats coefficients, FloatsOut y) {
  lines_forward(pool, lines_of(x), x.typed_data(), coefficients.typed_data(), y->typed_data());
  return ffi::Error::Success();
}

ffi::Error run_lines_backward(ffi::ThreadPool pool, Floats x, Floats coefficients, Floats grad,
                              FloatsOut grad_x, FloatsOut grad_coefficients) {
  lines_backward(pool, lines_of(x), x.typed_data(), coefficients.typed_data(), grad.typed_data(),
                 grad_x->typed_data(), grad_coefficients->typed_data());
  return ffi::Error::Success();
}

// `args` has for each leaf its scores, then a mask of the eligible entries if `eligible`, then one
// of the given entries if `given`. `masks` and `num_nan` have the leaves in the same order.
ffi::Error run_select(ffi::ThreadPool pool, Ints wanted, ffi::RemainingArgs args, IntsOut num_nan,
                      ffi::RemainingRets masks, Window absolute, bool eligible, bool given,
                      bool together) {
  const i64 width = 1 + eligible + given, num = static_cast<i64>(masks.size());
  if (static_cast<i64>(args.size()) != num * width || static_cast<i64>(absolute.size()) != num ||
      static_cast<i64>(wanted.element_count()) != (together ? 1 : num)) {
    return wrong("counts, scores and masks of different numbers of leaves");
  }
  std::vector<SelectLeaf> leaves(num);
  u32 start = 0;
  for (i64 i = 0; i < num; i++) {
    const auto scores = args.get<ffi::AnyBuffer>(i * width);
    auto mask = masks.get<ffi::AnyBuffer>(i);
    const bool half = scores->element_type() == ffi::BF16;
    if (!half && scores->element_type() != ffi::F32) return wrong("scores of another type");
    const i64 size = static_cast<i64>(scores->element_count());
    const auto flags = [&](bool there, i64 at) {
      void* data = there ? args.get<ffi::AnyBuffer>(i * width + at)->untyped_data() : nullptr;
      return static_cast<const u8*>(data);
    };
    leaves[i] = {scores->untyped_data(),
                 half,
                 absolute[i] != 0,
                 flags(eligible, 1),
                 flags(given, width - 1),
                 static_cast<u8*>((*mask)->untyped_data()),
                 size,
                 start,
                 together ? 0 : i};
    if (together) start += static_cast<u32>(size);
  }
  const std::int32_t* counts = wanted.typed_data();
  select_largest(pool, leaves, {counts, counts + wanted.element_count()}, num_nan->typed_data());
  return ffi::Error::Success();
}

// Runs a network by the engine's library; jaxsparse/engine/inference.py says with what.
ffi::Error run_network(ffi::Buffer<ffi::U8> program, ffi::RemainingArgs in, ffi::RemainingRets out,
                       std::string_view library, i64 key, i64 threads, i64 batch) {
  std::vector<const float*> inputs;
  std::vector<float*> outputs;
  std::vector<i64> sizes;
  for (std::size_t i = 0; i < in.size(); i++) {
    const auto array = in.get<ffi::AnyBuffer>(i);
    if (array->element_type() != ffi::F32) return wrong("inputs of another type than float32");
    inputs.push_back(static_cast<const float*>(array->untyped_data()));
    sizes.push_back(static_cast<i64>(array->element_count()));
  }
  for (std::size_t i = 0; i < out.size(); i++) {
    auto array = out.get<ffi::AnyBuffer>(i);
    if ((*array)->element_type() != ffi::F32) return wrong("outputs of another type than float32");
    outputs.push_back(static_cast<float*>((*array)->untyped_data()));
    sizes.push_back(static_cast<i64>((*array)->element_count()));
  }
  const std::string problem =
      networks(std::string(library))
          .run({key, threads}, program.typed_data(), program.element_count(), inputs, outputs,
               sizes, batch);
  return problem.empty() ? ffi::Error::Success() : wrong(problem);
}

}  // namespace
}  // namespace jaxsparse

JAXSPARSE_HANDLER(conv_forward, "layout", "window")
JAXSPARSE_HANDLER(conv_norm, "layout", "window", "relu")
JAXSPARSE_HANDLER(conv_backward, "layout", "window")
JAXSPARSE_HANDLER(norm_forward, "epsilon", "relu")
JAXSPARSE_HANDLER(norm_backward, "epsilon", "relu")
JAXSPARSE_HANDLER(lines_forward)
JAXSPARSE_HANDLER(lines_backward)
JAXSPARSE_HANDLER(select, "absolute", "eligible", "given", "together")
JAXSPARSE_HANDLER(network, "library", "key", "threads", "batch")
