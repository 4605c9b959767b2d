// The kernels of one level, under the name that the build gives.
#include "level.h"

extern "C" const jaxsparse::engine::Kernels& JAXSPARSE_LEVEL() {
  return jaxsparse::engine::kKernels;
}
