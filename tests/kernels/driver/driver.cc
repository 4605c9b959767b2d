// Runs the kernels on random shapes, in buffers that end where the tensors end, and compares them
// with loops too simple to be wrong. Compiled with sanitizers by sanitize.py.
//
//   driver <first seed> <how many>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "layer.h"
#include "lines.h"
#include "norm.h"
#include "planes.h"
#include "random.h"
#include "rows.h"
#include "selection.h"
#include "slabs.h"

using namespace jaxsparse;

namespace {

// Floats that a kernel must overwrite, all of them.
Floats unwritten(i64 size) { return Floats(size, std::numeric_limits<float>::quiet_NaN()); }

// Args:
//   largest: how large they may well be, where few or none of them are.
void close(const std::string& what, const Floats& ours, const std::vector<double>& theirs,
           double largest = 1) {
  for (double x : theirs) largest = std::max(largest, std::abs(x));
  for (std::size_t i = 0; i < ours.size(); i++) {
    if (!(std::abs(ours[i] - theirs[i]) <= 1e-5 * largest)) {
      fail(what + ": " + std::to_string(ours[i]) + " in place of " + std::to_string(theirs[i]));
    }
  }
}

void same(const std::string& what, const Floats& a, const Floats& b) {
  if (a.empty()) return;
  if (std::memcmp(a.data(), b.data(), a.size() * sizeof(float))) fail(what + " depends on threads");
}

Axis random_axis(Random& random, i64 least = 1, i64 most = 12) {
  for (;;) {
    const i64 in = random.in(least, most), taps = random.in(1, 5), dilation = random.in(1, 2);
    const i64 pad = random.in(0, 4), after = random.in(0, 4), stride = random.in(1, 3);
    const i64 space = in + pad + after - (taps - 1) * dilation - 1;
    if (space >= 0) return {in, space / stride + 1, taps, stride, dilation, pad};
  }
}

Layer random_layer(Random& random) {
  const i64 groups = random.chance(25) ? random.in(2, 4) : 1;
  const i64 batch = random.of({i64{1}, i64{2}, random.in(1, 20), random.in(16, 130)});
  const i64 inputs = random.chance(25) ? 4 * random.in(1, 8) : random.in(1, 37);
  const i64 outputs = random.chance(25) ? 4 * random.in(1, 8) : random.in(1, 37);
  const bool tall = random.chance(15);  // so many rows that some are done together
  const Axis y = tall ? random_axis(random, 30, 40) : random_axis(random);
  return {batch,
          groups * ((inputs + groups - 1) / groups),
          groups * ((outputs + groups - 1) / groups),
          groups,
          y,
          random_axis(random)};
}

// Any order; some come twice.
std::vector<std::int32_t> random_positions(Random& random, const Layer& layer) {
  const int percent = random.of({0, 1, 5, 20, 100});
  std::vector<std::int32_t> found;
  for (i64 at = 0; at < layer.size(); at++) {
    if (random.chance(percent)) found.push_back(static_cast<std::int32_t>(at));
  }
  if (random.chance(30)) std::shuffle(found.begin(), found.end(), random.bits);
  if (random.chance(30) && !found.empty()) found.push_back(found[found.size() / 2]);
  return found;
}

// [channel, y, x, image] or [image, y, x, channel].
Strides strides_of(bool channel_major, i64 batch, i64 channels, i64 y, i64 x) {
  if (channel_major) return {1, y * x * batch, x * batch, batch};
  return {y * x * channels, 1, x * channels, channels};
}

// In planes. If the positions rise, both ways to make the taps must agree.
Floats planes(xla::ffi::ThreadPool& pool, const Layer& layer, const Nonzeros& nonzeros,
              const std::vector<std::int32_t>& positions, const Floats& in, const Strides& si,
              const Strides& so, i64 size, const Epilogue* epilogue = nullptr) {
  const Packing packing(layer);
  const auto by = [&](const PlaneTaps& taps) {
    Floats out = unwritten(size);
    planes_forward(pool, layer, packing, taps, in.data(), si, out.data(), so, epilogue);
    return out;
  };
  const Floats out = by(forward_taps(layer, packing, nonzeros));
  const i64 num = static_cast<i64>(positions.size());
  if (rise(layer, positions.data(), num)) {
    same("outputs by positions that rise", out,
         by(rising_forward_taps(pool, layer, packing, positions.data(), num, nonzeros.values)));
  }
  return out;
}

struct Results {
  Floats out, grad_in, grad_values;
};

enum class By { planes, rows, slabs };

By random_way(Random& random, const Layer& layer, bool channel_major) {
  if (!channel_major || layer.batch < 16) return By::planes;
  return random.of({By::planes, By::rows, By::rows, By::slabs, By::slabs});
}

Results run(int threads, const Layer& layer, const Nonzeros& nonzeros,
            const std::vector<std::int32_t>& positions, By way, const Floats& in,
            const Strides& in_strides, const Floats& grad, const Strides& out_strides) {
  xla::ffi::ThreadPool pool(threads);
  Results to{unwritten(grad.size()), unwritten(in.size()), unwritten(nonzeros.count())};
  if (way != By::planes) {
    const bool slabs = way == By::slabs;
    (slabs ? slabs_forward : rows_forward)(pool, layer, nonzeros, in.data(), to.out.data(),
                                           nullptr);
    (slabs ? slabs_backward : rows_backward)(pool, layer, nonzeros, in.data(), grad.data(),
                                             to.grad_in.data(), to.grad_values.data());
  } else {
    to.out = planes(pool, layer, nonzeros, positions, in, in_strides, out_strides, grad.size());
    planes_backward(pool, layer, nonzeros, in.data(), in_strides, grad.data(), out_strides,
                    to.grad_in.data(), to.grad_values.data());
  }
  return to;
}

void compare(const Results& ours, const Layer& layer, const Nonzeros& nonzeros, const Floats& in,
             const Strides& si, const Floats& grad, const Strides& so) {
  std::vector<double> out(grad.size()), grad_in(in.size()), grad_values(nonzeros.count());
  for (int i = 0; i < nonzeros.count(); i++) {
    for (i64 oy = 0; oy < layer.y.out; oy++) {
      for (i64 ox = 0; ox < layer.x.out; ox++) {
        const i64 y = oy * layer.y.stride + nonzeros.y[i] * layer.y.dilation - layer.y.pad;
        const i64 x = ox * layer.x.stride + nonzeros.x[i] * layer.x.dilation - layer.x.pad;
        if (y < 0 || y >= layer.y.in || x < 0 || x >= layer.x.in) continue;
        for (i64 image = 0; image < layer.batch; image++) {
          const i64 from =
              image * si.image + nonzeros.in_channel[i] * si.channel + y * si.y + x * si.x;
          const i64 to =
              image * so.image + nonzeros.out_channel[i] * so.channel + oy * so.y + ox * so.x;
          out[to] += double{nonzeros.values[i]} * in[from];
          grad_in[from] += double{nonzeros.values[i]} * grad[to];
          grad_values[i] += double{in[from]} * grad[to];
        }
      }
    }
  }
  close("outputs", ours.out, out);
  close("gradient of the inputs", ours.grad_in, grad_in);
  const double num_terms = static_cast<double>(layer.batch * layer.y.out * layer.x.out);
  close("gradient of the values", ours.grad_values, grad_values, std::sqrt(num_terms));
}

void convolution(Random& random) {
  const Layer layer = random_layer(random);
  const std::vector<std::int32_t> positions = random_positions(random, layer);
  const Floats values = random.floats(positions.size());
  Nonzeros nonzeros;
  const std::string problem =
      decode(layer, positions.data(), positions.size(), values.data(), nonzeros);
  if (!problem.empty()) fail(problem);
  const bool channel_major = random.chance(60);
  const By way = random_way(random, layer, channel_major);
  const Strides si =
      strides_of(channel_major, layer.batch, layer.in_channels, layer.y.in, layer.x.in);
  const Strides so =
      strides_of(channel_major, layer.batch, layer.out_channels, layer.y.out, layer.x.out);
  const Floats in = random.floats(layer.batch * layer.in_channels * layer.y.in * layer.x.in);
  const Floats grad = random.floats(layer.batch * layer.out_channels * layer.y.out * layer.x.out);
  const Results alone = run(1, layer, nonzeros, positions, way, in, si, grad, so);
  compare(alone, layer, nonzeros, in, si, grad, so);
  const Results together = run(3, layer, nonzeros, positions, way, in, si, grad, so);
  same("outputs", alone.out, together.out);
  same("gradient of the inputs", alone.grad_in, together.grad_in);
  same("gradient of the values", alone.grad_values, together.grad_values);
}

// Positions that are none are named, wherever they stand.
void wrong_positions(Random& random) {
  const Layer layer = random_layer(random);
  std::vector<std::int32_t> positions = random_positions(random, layer);
  const std::int32_t size = static_cast<std::int32_t>(layer.size());
  const std::int32_t none = random.of({-1, size, std::numeric_limits<std::int32_t>::min(),
                                       std::numeric_limits<std::int32_t>::max()});
  positions.insert(positions.begin() + random.in(0, positions.size()), none);
  const Floats values = random.floats(positions.size());
  Nonzeros nonzeros;
  const std::string problem =
      decode(layer, positions.data(), positions.size(), values.data(), nonzeros);
  if (problem.find("position " + std::to_string(none) + " ") != 0) fail("not seen: " + problem);
}

// With an epilogue a convolution gives what its steps give one after the other.
void epilogue(Random& random) {
  const Layer layer = random_layer(random);
  const std::vector<std::int32_t> positions = random_positions(random, layer);
  const Floats values = random.floats(positions.size());
  Nonzeros nonzeros;
  decode(layer, positions.data(), positions.size(), values.data(), nonzeros);
  const bool channel_major = random.chance(60);
  const By way = random_way(random, layer, channel_major);
  const Strides si =
      strides_of(channel_major, layer.batch, layer.in_channels, layer.y.in, layer.x.in);
  const Strides so =
      strides_of(channel_major, layer.batch, layer.out_channels, layer.y.out, layer.x.out);
  const Floats in = random.floats(layer.batch * layer.in_channels * layer.y.in * layer.x.in);
  const i64 place = layer.y.out * layer.x.out, size = layer.batch * layer.out_channels * place;
  const Floats mean = random.floats(layer.out_channels), factor = random.floats(mean.size());
  const Floats bias = random.floats(mean.size()), shortcut = random.floats(size);
  const bool relu = random.chance(50), has_shortcut = random.chance(50);
  const Epilogue end{mean.data(), factor.data(), bias.data(),
                     has_shortcut ? shortcut.data() : nullptr, relu};
  const auto run = [&](int threads, const Epilogue* with) {
    xla::ffi::ThreadPool pool(threads);
    if (way == By::planes) return planes(pool, layer, nonzeros, positions, in, si, so, size, with);
    Floats out = unwritten(size);
    (way == By::slabs ? slabs_forward : rows_forward)(pool, layer, nonzeros, in.data(), out.data(),
                                                      with);
    return out;
  };
  const Floats plain = run(1, nullptr), found = run(1, &end);
  std::vector<double> expected(size);
  for (i64 i = 0; i < size; i++) {
    const i64 c = i / so.channel % layer.out_channels;
    double out = (double{plain[i]} - mean[c]) * factor[c] + bias[c];
    if (has_shortcut) out += shortcut[i];
    expected[i] = relu ? std::max(out, 0.0) : out;
  }
  close("outputs of an epilogue", found, expected);
  same("outputs of an epilogue", found, run(3, &end));
}

struct NormResults {
  Floats y, means, variances, grad_x, grad_scale, grad_bias, grad_shortcut;
};

NormResults run(int threads, const Norm& norm, const Floats& x, const Floats& scale,
                const Floats& bias, const Floats* shortcut, const Floats& grad) {
  xla::ffi::ThreadPool pool(threads);
  const i64 size = norm.channels * norm.size;
  NormResults to{unwritten(size),
                 unwritten(norm.channels),
                 unwritten(norm.channels),
                 unwritten(size),
                 unwritten(norm.channels),
                 unwritten(norm.channels),
                 unwritten(shortcut ? size : 0)};
  norm_forward(pool, norm, x.data(), scale.data(), bias.data(),
               shortcut ? shortcut->data() : nullptr, to.y.data(), to.means.data(),
               to.variances.data());
  norm_backward(pool, norm, x.data(), to.y.data(), grad.data(), scale.data(), to.means.data(),
                to.variances.data(), to.grad_x.data(), to.grad_scale.data(), to.grad_bias.data(),
                shortcut ? to.grad_shortcut.data() : nullptr);
  return to;
}

void compare(const NormResults& ours, const Norm& norm, const Floats& x, const Floats& scale,
             const Floats& bias, const Floats* shortcut, const Floats& grad) {
  std::vector<double> y(x.size()), g(x.size()), grad_x(x.size());
  for (i64 c = 0; c < norm.channels; c++) {
    const i64 begin = c * norm.size, end = begin + norm.size;
    const double n = static_cast<double>(norm.size);
    double mean = 0, variance = 0, sum = 0, product = 0;
    for (i64 i = begin; i < end; i++) mean += x[i] / n;
    for (i64 i = begin; i < end; i++) variance += (x[i] - mean) * (x[i] - mean) / n;
    const double inverse = 1 / std::sqrt(variance + norm.epsilon);
    for (i64 i = begin; i < end; i++) {
      y[i] = (x[i] - mean) * inverse * scale[c] + bias[c] + (shortcut ? (*shortcut)[i] : 0);
      if (norm.relu) y[i] = std::max(y[i], 0.0);
      // Whether the ReLU lets it through is as the kernel found: a sign can hang on one digit.
      g[i] = norm.relu && ours.y[i] <= 0 ? 0 : grad[i];
      sum += g[i];
      product += g[i] * (x[i] - mean) * inverse;
    }
    for (i64 i = begin; i < end; i++) {
      const double normal = (x[i] - mean) * inverse;
      grad_x[i] = (g[i] - sum / n - normal * product / n) * scale[c] * inverse;
    }
    close("means", {ours.means[c]}, {mean});
    close("variances", {ours.variances[c]}, {variance});
    close("gradient of the bias", {ours.grad_bias[c] / static_cast<float>(n)}, {sum / n});
    close("gradient of the scale", {ours.grad_scale[c] / static_cast<float>(n)}, {product / n});
  }
  close("normalised", ours.y, y);
  close("gradient of what is normalised", ours.grad_x, grad_x);
  if (shortcut) close("gradient of the shortcut", ours.grad_shortcut, g);
}

void normalisation(Random& random) {
  const i64 size = random.of({i64{2}, random.in(2, 40), random.in(2, 700), random.in(2000, 5000)});
  const Norm norm{random.in(1, 9), size, 0.1f, random.chance(50)};
  const Floats x = random.floats(norm.channels * size), grad = random.floats(x.size());
  const Floats scale = random.floats(norm.channels), bias = random.floats(norm.channels);
  const Floats more = random.floats(x.size());
  const Floats* shortcut = random.chance(50) ? &more : nullptr;
  const NormResults alone = run(1, norm, x, scale, bias, shortcut, grad);
  compare(alone, norm, x, scale, bias, shortcut, grad);
  const NormResults together = run(3, norm, x, scale, bias, shortcut, grad);
  same("normalised", alone.y, together.y);
  same("gradient of what is normalised", alone.grad_x, together.grad_x);
  same("gradient of the scale", alone.grad_scale, together.grad_scale);
}

struct LinesResults {
  Floats y, grad_x, grad_coefficients;
};

LinesResults run(int threads, const Lines& lines, const Floats& x, const Floats& coefficients,
                 const Floats& grad) {
  xla::ffi::ThreadPool pool(threads);
  const i64 size = static_cast<i64>(x.size());
  LinesResults to{unwritten(size), unwritten(size), unwritten(4 * lines.channels * lines.images)};
  lines_forward(pool, lines, x.data(), coefficients.data(), to.y.data());
  lines_backward(pool, lines, x.data(), coefficients.data(), grad.data(), to.grad_x.data(),
                 to.grad_coefficients.data());
  return to;
}

void larger_line(Random& random) {
  const Lines lines{random.in(1, 5), random.in(1, 30), random.of({i64{1}, random.in(1, 70)})};
  const i64 n = lines.images;
  const Floats x = random.floats(lines.channels * lines.pixels * n);
  const Floats coefficients = random.floats(4 * lines.channels * n);
  Floats grad = random.floats(x.size());
  std::vector<double> y(x.size()), grad_x(x.size()), grad_coefficients(coefficients.size());
  for (i64 i = 0; i < static_cast<i64>(x.size()); i++) {
    const i64 first_line = i / (lines.pixels * n) * 4 * n + i % n;
    const auto of = [&](int which) { return first_line + which * n; };
    const double first = double{coefficients[of(0)]} * x[i] + coefficients[of(2)];
    const double second = double{coefficients[of(1)]} * x[i] + coefficients[of(3)];
    const bool is_first = first > second;
    // Which of two lines is the larger one, rounding decides where they cross.
    if (std::abs(first - second) < 1e-5) grad[i] = 0;
    y[i] = is_first ? first : second;
    grad_x[i] = double{grad[i]} * coefficients[of(is_first ? 0 : 1)];
    grad_coefficients[of(is_first ? 0 : 1)] += double{grad[i]} * x[i];
    grad_coefficients[of(is_first ? 2 : 3)] += grad[i];
  }
  const LinesResults alone = run(1, lines, x, coefficients, grad);
  close("larger lines", alone.y, y);
  close("gradient of what goes into the lines", alone.grad_x, grad_x);
  close("gradient of the lines", alone.grad_coefficients, grad_coefficients);
  const LinesResults together = run(3, lines, x, coefficients, grad);
  same("larger lines", alone.y, together.y);
  same("gradient of what goes into the lines", alone.grad_x, together.grad_x);
  same("gradient of the lines", alone.grad_coefficients, together.grad_coefficients);
}

}  // namespace

int main(int, char** args) {
  const int first = std::atoi(args[1]), num = std::atoi(args[2]);
  for (int seed = first; seed < first + num; seed++) {
    std::fprintf(stderr, "seed %d\n", seed);
    Random random{std::mt19937_64(seed)};
    convolution(random);
    wrong_positions(random);
    epilogue(random);
    normalisation(random);
    larger_line(random);
    selection::run_both(random);
  }
  std::printf("%d seeds from %d on, %d lanes\n", num, first, kLanes);
}
