/* AVX-512. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avx512f,avx512dq,avx512vl")
#endif
#define FORWARD p88_forward_avx512
#define F16C
#define LANES 16
#define ACCUMULATORS 24
#include "forward.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int p88_no_avx512;
#endif
