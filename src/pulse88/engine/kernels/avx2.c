/* AVX2 and FMA. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define FORWARD p88_forward_avx2
#define F16C
#define LANES 8
#define ACCUMULATORS 12
#include "forward.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int p88_no_avx2;
#endif
