/* AVX-512 with products of bytes. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512dq,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avx512f,avx512dq,avx512vl,avx512vnni")
#endif
#define FORWARD p88_forward_avx512vnni
#define VNNI
#define F16C
#define LANES 16
#define ACCUMULATORS 24
#include "forward.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int p88_no_avx512vnni;
#endif
