/* Runs a sparse network without Python and JAX.
 *
 * A file of `jaxsparse.sparse.save_engine`, the header and the shared library are all it needs.
 * `python -m jaxsparse.engine` prints the line that compiles it on a machine that has jaxsparse:
 *
 *     cc -std=c99 -O2 run_network.c -IINCLUDE LIBRARY -o run_network
 *
 * `python -m jaxsparse.engine --copy=FOLDER` copies the header and the library, to be taken to
 * another machine. There, with this file in the same folder:
 *
 *     cc -std=c99 -O2 run_network.c -I. -L. -ljaxsparse_engine -Wl,-rpath,'$ORIGIN' -o run_network
 *
 * Then
 *
 *     ./run_network network.jse                      one image of numbers made up
 *     ./run_network network.jse --batch=8 --threads=2 --repeats=1000
 *     ./run_network network.jse --input=images.f32   images from a file of floats
 *     ./run_network network.jse --profile            the time of each step as well
 *
 * prints an image's outputs per line, and the time of a call to stderr. images.f32 has floats
 * alone, as `images.astype("<f4").tofile("images.f32")` writes them; their number is the batch. A
 * network of several inputs has them one after the other, each for all images.
 */
#define _POSIX_C_SOURCE 199309L
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "jaxsparse_engine.h"

struct options {
  const char *network, *input;
  long batch, threads, repeats;
  int profile;
};

static double seconds_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int later(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void fail(int status, const char *what, const char *which) {
  fprintf(stderr, "error: %s%s\n", what, which);
  exit(status);
}

static void *memory(size_t num, size_t size) {
  void *found = calloc(num ? num : 1, size);
  if (found == NULL) fail(1, "no memory", "");
  return found;
}

/* Returns whether an argument begins with `name`, and then sets the number behind it. */
static int is_number(const char *argument, const char *name, long most, long *found) {
  const size_t length = strlen(name);
  char range[64], *end;
  if (strncmp(argument, name, length) != 0) return 0;
  *found = strtol(argument + length, &end, 10);
  snprintf(range, sizeof range, " must be a whole number in [1, %ld]", most);
  if (end == argument + length || *end != 0 || *found < 1 || *found > most) {
    fail(2, argument, range);
  }
  return 1;
}

static struct options parsed(int count, char **arguments) {
  struct options o = {NULL, NULL, 0, 1, 100, 0};
  for (int i = 1; i < count; i++) {
    const char *a = arguments[i];
    if (is_number(a, "--batch=", 1000000, &o.batch) || is_number(a, "--threads=", 256, &o.threads) ||
        is_number(a, "--repeats=", 1000000, &o.repeats)) {
      continue;
    } else if (strncmp(a, "--input=", 8) == 0) {
      o.input = a + 8;
    } else if (strcmp(a, "--profile") == 0) {
      o.profile = 1;
    } else if (strncmp(a, "--", 2) == 0 || o.network != NULL) {
      fail(2, "there is no argument of the form ", a);
    } else {
      o.network = a;
    }
  }
  if (o.network == NULL) fail(2, "which network? run_network network.jse [--input=images.f32]", "");
  if (o.input != NULL && o.batch != 0) {
    fail(2, "--batch and --input exclude each other: the batch is as many images as the file has", "");
  }
  return o;
}

/* Returns all floats of a file, and their number. */
static float *read_floats(const char *path, size_t *num) {
  FILE *file = fopen(path, "rb");
  if (file == NULL || fseek(file, 0, SEEK_END) != 0) fail(1, "cannot read ", path);
  const long bytes = ftell(file);
  if (bytes < 0 || bytes % sizeof(float) != 0) fail(1, "not a file of floats: ", path);
  *num = (size_t)bytes / sizeof(float);
  float *floats = memory(*num, sizeof *floats);
  rewind(file);
  if (fread(floats, sizeof *floats, *num, file) != *num) fail(1, "cannot read ", path);
  fclose(file);
  return floats;
}

static void print_profile(jaxsparse_engine *engine, const float **inputs, float **outputs,
                          long batch, long repeats) {
  const int num = jaxsparse_engine_num_steps(engine);
  double *seconds = memory((size_t)num, sizeof *seconds);
  if (jaxsparse_engine_profile(engine, inputs, outputs, batch, (int)repeats, seconds)) {
    fail(1, jaxsparse_engine_error(), "");
  }
  for (int i = 0; i < num; i++) {
    jaxsparse_engine_step step;
    if (jaxsparse_engine_describe(engine, i, &step)) fail(1, jaxsparse_engine_error(), "");
    fprintf(stderr, "%-13s %-10s ", step.kind, step.function);
    fprintf(stderr, "%6" PRId64 " x %3" PRId64 " x %3" PRId64 " %9" PRId64 " %10.1f us\n",
            step.planes, step.height, step.width, step.weights, 1e6 * seconds[i]);
  }
  free(seconds);
}

int main(int count, char **arguments) {
  struct options o = parsed(count, arguments);
  jaxsparse_engine *engine = jaxsparse_engine_open(o.network, (int)o.threads);
  if (engine == NULL) fail(1, jaxsparse_engine_error(), "");

  const int num_inputs = jaxsparse_engine_num_inputs(engine);
  const int num_outputs = jaxsparse_engine_num_outputs(engine);
  int64_t image = 0; /* floats of an image in all inputs */
  for (int i = 0; i < num_inputs; i++) image += jaxsparse_engine_input_size(engine, i);

  float *numbers;
  if (o.input != NULL) {
    size_t num;
    numbers = read_floats(o.input, &num);
    if (image == 0 || num % (size_t)image != 0) fail(1, "no whole number of images in ", o.input);
    o.batch = (long)(num / (size_t)image);
  } else {
    o.batch = o.batch ? o.batch : 1;
    numbers = memory((size_t)(image * o.batch), sizeof *numbers);
    for (int64_t i = 0; i < image * o.batch; i++) numbers[i] = (float)(i % 17) / 8 - 1;
  }

  const float **inputs = memory((size_t)num_inputs, sizeof *inputs);
  float **outputs = memory((size_t)num_outputs, sizeof *outputs);
  const float *at = numbers;
  for (int i = 0; i < num_inputs; i++) {
    inputs[i] = at;
    at += jaxsparse_engine_input_size(engine, i) * o.batch;
  }
  for (int i = 0; i < num_outputs; i++) {
    const int64_t size = jaxsparse_engine_output_size(engine, i);
    outputs[i] = memory((size_t)(size * o.batch), sizeof **outputs);
  }

  double *times = memory((size_t)o.repeats, sizeof *times);
  for (long i = -1; i < o.repeats; i++) { /* the first call also makes the working memory */
    const double start = seconds_now();
    const int failed = jaxsparse_engine_run(engine, inputs, outputs, o.batch);
    if (failed) fail(1, jaxsparse_engine_error(), "");
    if (i >= 0) times[i] = seconds_now() - start;
  }
  qsort(times, (size_t)o.repeats, sizeof *times, later);

  for (long k = 0; k < o.batch; k++) {
    for (int i = 0; i < num_outputs; i++) {
      const int64_t size = jaxsparse_engine_output_size(engine, i);
      for (int64_t j = 0; j < size; j++) printf("%.9g ", outputs[i][k * size + j]);
    }
    printf("\n");
  }
  fprintf(stderr, "batch %ld, threads %ld, median of %ld calls: %.1f us; %" PRIu64 " bytes\n",
          o.batch, o.threads, o.repeats, 1e6 * times[o.repeats / 2],
          jaxsparse_engine_memory(engine));
  if (o.profile) print_profile(engine, inputs, outputs, o.batch, o.repeats);

  for (int i = 0; i < num_outputs; i++) free(outputs[i]);
  free(outputs);
  free(inputs);
  free(numbers);
  free(times);
  jaxsparse_engine_close(engine);
  return 0;
}
