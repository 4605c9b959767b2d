/* Runs sparse networks that jaxsparse has written to a file. Needs neither Python nor JAX.
 *
 *     jaxsparse_engine* engine = jaxsparse_engine_open("network.jse", 2);
 *     if (engine == NULL) { puts(jaxsparse_engine_error()); return 1; }
 *     const float* inputs[] = {image};
 *     float* outputs[] = {logits};
 *     if (jaxsparse_engine_run(engine, inputs, outputs, 1)) puts(jaxsparse_engine_error());
 *     jaxsparse_engine_close(engine);
 *
 * Arrays are float, row by row, the images of a batch one after the other, in the layout that the
 * network had in JAX. Results are the same to the bit for any number of threads.
 */
#ifndef JAXSPARSE_ENGINE_H
#define JAXSPARSE_ENGINE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define JAXSPARSE_ENGINE_PUBLIC __attribute__((visibility("default")))
#else
#define JAXSPARSE_ENGINE_PUBLIC
#endif

typedef struct jaxsparse_engine jaxsparse_engine;

/* Opens a file, to be run by 1 to 256 threads. Returns NULL if it cannot be read or is no network. */
JAXSPARSE_ENGINE_PUBLIC jaxsparse_engine* jaxsparse_engine_open(const char* path, int threads);

/* The same for bytes in memory, which are not needed any longer afterwards. */
JAXSPARSE_ENGINE_PUBLIC jaxsparse_engine* jaxsparse_engine_open_bytes(const void* bytes, uint64_t size, int threads);

/* The same, run by the threads of another engine: their calls wait for each other. That one may be
 * closed before this one. */
JAXSPARSE_ENGINE_PUBLIC jaxsparse_engine* jaxsparse_engine_open_beside(const void* bytes, uint64_t size,
                                                                       const jaxsparse_engine* other);

/* Numbers of input and output arrays, which are in the order of the function that was compiled. */
JAXSPARSE_ENGINE_PUBLIC int jaxsparse_engine_num_inputs(const jaxsparse_engine* engine);
JAXSPARSE_ENGINE_PUBLIC int jaxsparse_engine_num_outputs(const jaxsparse_engine* engine);

/* Floats of one image in an input or an output, which is counted from 0; -1 if there is none. */
JAXSPARSE_ENGINE_PUBLIC int64_t jaxsparse_engine_input_size(const jaxsparse_engine* engine, int input);
JAXSPARSE_ENGINE_PUBLIC int64_t jaxsparse_engine_output_size(const jaxsparse_engine* engine, int output);

/* The shape of an image in an input or an output: its number of axes, -1 if there is no such array, and
 * the lengths of these axes, which live as long as the engine. */
JAXSPARSE_ENGINE_PUBLIC int jaxsparse_engine_input_shape(const jaxsparse_engine* engine, int input,
                                                         const int32_t** lengths);
JAXSPARSE_ENGINE_PUBLIC int jaxsparse_engine_output_shape(const jaxsparse_engine* engine, int output,
                                                          const int32_t** lengths);

/* Runs a batch of `batch` images, 0 or more. Returns 0, or 1 if memory is short. Several threads may
 * call it for one engine; they then wait for each other. A process that forks while a call runs must
 * not call the engine in the child. */
JAXSPARSE_ENGINE_PUBLIC int jaxsparse_engine_run(jaxsparse_engine* engine, const float* const* inputs,
                         float* const* outputs, int64_t batch);

/* Runs a batch several times in several ways, and keeps what is fastest on this machine for batches of
 * this size: how many images go side by side from which step on, and which steps several threads share.
 * Without it a model of the costs decides. Results may then differ from those before in their last
 * digits. Returns 0, or 1 if memory is short. */
JAXSPARSE_ENGINE_PUBLIC int jaxsparse_engine_tune(jaxsparse_engine* engine, const float* const* inputs,
                                                  float* const* outputs, int64_t batch);

/* A step of a run: reading the inputs, putting images side by side, an operation, or writing the
 * outputs. All numbers are of one image. */
typedef struct {
  const char* kind;      /* such as "linear", which is a convolution or a dense layer */
  const char* function;  /* the activation at its end, such as "relu"; "" if there is none */
  int64_t planes;        /* channels that it makes; 0 if it is no operation */
  int64_t height, width; /* of a channel */
  int64_t weights;       /* active weights */
  int64_t multiply_adds;
} jaxsparse_engine_step;

/* Number of steps; and one of them, counted from 0, whose texts live as long as the library. Returns
 * 0, or 1 if there is no such step. */
JAXSPARSE_ENGINE_PUBLIC int jaxsparse_engine_num_steps(const jaxsparse_engine* engine);
JAXSPARSE_ENGINE_PUBLIC int jaxsparse_engine_describe(const jaxsparse_engine* engine, int step,
                                                      jaxsparse_engine_step* description);

/* Runs a batch `repeats` times (1 or more) on the calling thread alone, as an engine of one thread
 * does. Writes the seconds that the batch spent in each step, as medians over the repeats. */
JAXSPARSE_ENGINE_PUBLIC int jaxsparse_engine_profile(jaxsparse_engine* engine,
                                                     const float* const* inputs,
                                                     float* const* outputs, int64_t batch,
                                                     int repeats, double* seconds);

/* Bytes of memory that the engine holds, so far. */
JAXSPARSE_ENGINE_PUBLIC uint64_t jaxsparse_engine_memory(const jaxsparse_engine* engine);

JAXSPARSE_ENGINE_PUBLIC void jaxsparse_engine_close(jaxsparse_engine* engine);

/* What was wrong with the last call of this thread that failed; "" if none did. */
JAXSPARSE_ENGINE_PUBLIC const char* jaxsparse_engine_error(void);

#ifdef __cplusplus
}
#endif

#endif
