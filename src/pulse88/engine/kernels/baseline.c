/* For every machine that the compiler's defaults allow: SSE2 on x86-64, NEON on aarch64. */
#define FORWARD p88_forward_baseline
#define LANES 4
#if defined(__aarch64__)
#define ACCUMULATORS 24
#else
#define ACCUMULATORS 12
#endif
#include "forward.h"
