/* Vectors of LANES floats, and products of matrices with rows of activations. See forward.h.
 *
 * Every output is one sum in the order of the inputs, so it is the same however many rows there are.
 */
#if defined(F16C)
#include <immintrin.h>
#endif
#include <math.h>
#include <string.h>

#include "native.h"

#define L LANES
typedef float vf __attribute__((vector_size(4 * L)));
typedef int32_t vi __attribute__((vector_size(4 * L)));
typedef uint32_t vu __attribute__((vector_size(4 * L)));
#if defined(__x86_64__)
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#elif defined(__aarch64__)
#define IN_REGISTER(v) __asm__("" : "+w"(v))
#else
#define IN_REGISTER(v) ((void)0)
#endif
#define UNROLL _Pragma("GCC unroll 16") /* or arrays of vectors stay in memory */
#define INLINE static inline __attribute__((always_inline))

INLINE vf load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void store(float *p, vf v) { memcpy(p, &v, sizeof v); }
/* At most L floats, the rest 0. */
INLINE vf load_part(const float *p, int64_t n) {
    if (n >= L) return load(p);
    vf v = {0};
    for (int i = 0; i < L; i++)
        if (i < n) v[i] = p[i];
    return v;
}
INLINE void store_part(float *p, vf v, int64_t n) {
    if (n >= L) store(p, v);
    else
        for (int i = 0; i < L; i++)
            if (i < n) p[i] = v[i];
}
INLINE vf splat(float x) { return x - (vf){0}; }
INLINE vf choose(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
INLINE vf max_of(vf a, vf b) { return choose(a > b, a, b); }
INLINE vf min_of(vf a, vf b) { return choose(a < b, a, b); }
INLINE float sum_of(vf v) {
    float part[L];
    store(part, v);
    for (int width = L / 2; width; width /= 2)
        for (int i = 0; i < width; i++) part[i] += part[i + width];
    return part[0];
}

/* exp, to 1e-7 of the result; below -87 it stays at exp(-87). */
INLINE vf exp_of(vf x) {
    x = min_of(max_of(x, splat(-87.0f)), splat(88.0f));
    const vf magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to the nearest whole number */
    vf n = (x * 1.44269504f + magic) - magic;
    vf r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vf p = r * (1.0f / 5040) + (1.0f / 720);
    p = p * r + (1.0f / 120);
    p = p * r + (1.0f / 24);
    p = p * r + (1.0f / 6);
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * (vf)((__builtin_convertvector(n, vi) + 127) << 23);
}
INLINE vf silu_of(vf x) { return x / (exp_of(-x) + 1.0f); }

/* ------------------------------------------------------------------------------------------- matrix products */

enum { FEW_ROWS = 16 }; /* up to here int8 weights are made floats on the way, beyond it once for all rows */

/* A float rounded to half precision; what is too large becomes infinite, which the logits will show. */
static inline uint16_t to_half(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000;
    if (!(fabsf(x) < 65520.0f)) return (uint16_t)(sign | (x == x ? 0x7c00 : 0x7e00));
    const float size = fabsf(x) * 0x1p-112f; /* now its exponent is that of a half */
    memcpy(&bits, &size, sizeof bits);
    return (uint16_t)(sign | (bits + 0xfff + (bits >> 13 & 1)) >> 13);
}
/* Whole vectors of floats rounded to half precision, the rest by one. */
static void to_halves(const float *x, int64_t n, uint16_t *halves) {
    int64_t i = 0;
#if defined(F16C) && LANES == 16
    for (; i + L <= n; i += L) {
        const __m256i half = _mm512_cvtps_ph((__m512)load(x + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm256_storeu_si256((__m256i *)(halves + i), half);
    }
#elif defined(F16C)
    for (; i + L <= n; i += L)
        _mm_storeu_si128((__m128i *)(halves + i), _mm256_cvtps_ph((__m256)load(x + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < n; i++) halves[i] = to_half(x[i]);
}
INLINE vf load_half(const uint16_t *p) {
#if defined(F16C) && LANES == 16
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(F16C)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    typedef uint16_t vh __attribute__((vector_size(2 * L)));
    vh half;
    memcpy(&half, p, sizeof half);
    const vu bits = __builtin_convertvector(half, vu);
    const vu special = (vu)((bits & 0x7c00) == 0x7c00) & 0x7f800000; /* infinite, or no number */
    return (vf)((vu)((vf)((bits & 0x7fff) << 13) * 0x1p112f) | special | (bits & 0x8000) << 16);
#endif
}

/* L weights, floats or halves, from the index on. */
INLINE vf load_kind(const int half, const void *w, int64_t index) {
    return half ? load_half((const uint16_t *)w + index) : load((const float *)w + index);
}
INLINE vf load_part_kind(const int half, const void *w, int64_t index, int64_t n) {
    if (n >= L || !half) return half ? load_kind(half, w, index) : load_part((const float *)w + index, n);
    uint16_t part[L] = {0};
    memcpy(part, (const uint16_t *)w + index, (size_t)n * 2);
    return load_half(part);
}

/* y[m][n] = y[m][n] or 0, plus the sum over k of x[m][k] * w[k][n], for M rows and N vectors of columns. */
INLINE void block(const int half, const int M, const int N, int add, const float *x, int64_t ldx, const void *w,
                  int64_t ldw, int64_t k_size, float *y, int64_t ldy) {
    const int64_t ahead = p88_ahead;
    vf acc[6][10];
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) acc[m][n] = add ? load(y + m * ldy + n * L) : (vf){0};
    for (int64_t k = 0; k < k_size; k++) {
        vf row[10];
        for (int n = 0; n < N; n++) {
            row[n] = load_kind(half, w, k * ldw + n * L);
            if (M <= 4) __builtin_prefetch((const char *)w + (k * ldw + n * L) * (half ? 2 : 4) + ahead);
        }
        for (int m = 0; m < M; m++) {
            vf factor = splat(x[m * ldx + k]);
            for (int n = 0; n < N; n++) acc[m][n] += row[n] * factor;
        }
    }
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) store(y + m * ldy + n * L, acc[m][n]);
}

INLINE void block_rows(const int half, const int M, int add, const float *x, int64_t ldx, const void *w, int64_t ldw,
                       int64_t k_size, float *y, int64_t ldy, int64_t columns) {
    const int64_t size = half ? 2 : 4;
#define AT(n) ((const char *)w + (n) * size)
    int64_t n = 0;
    if (M * 10 <= ACCUMULATORS)
        for (; n + 10 * L <= columns; n += 10 * L) block(half, M, 10, add, x, ldx, AT(n), ldw, k_size, y + n, ldy);
    if (M * 8 <= ACCUMULATORS)
        for (; n + 8 * L <= columns; n += 8 * L) block(half, M, 8, add, x, ldx, AT(n), ldw, k_size, y + n, ldy);
    if (M * 5 <= ACCUMULATORS)
        for (; n + 5 * L <= columns; n += 5 * L) block(half, M, 5, add, x, ldx, AT(n), ldw, k_size, y + n, ldy);
    if (M * 4 <= ACCUMULATORS)
        for (; n + 4 * L <= columns; n += 4 * L) block(half, M, 4, add, x, ldx, AT(n), ldw, k_size, y + n, ldy);
    for (; n + 2 * L <= columns; n += 2 * L) block(half, M, 2, add, x, ldx, AT(n), ldw, k_size, y + n, ldy);
    for (; n + L <= columns; n += L) block(half, M, 1, add, x, ldx, AT(n), ldw, k_size, y + n, ldy);
    if (n == columns) return;
    vf rest[6]; /* A part of a vector: the same sums again, for compilers may not add scalars in the same way. */
    for (int m = 0; m < M; m++) rest[m] = add ? load_part(y + m * ldy + n, columns - n) : (vf){0};
    for (int64_t k = 0; k < k_size; k++) {
        vf row = load_part_kind(half, w, k * ldw + n, columns - n);
        for (int m = 0; m < M; m++) rest[m] += row * x[m * ldx + k];
    }
    for (int m = 0; m < M; m++) store_part(y + m * ldy + n, rest[m], columns - n);
#undef AT
}

INLINE void any_product(const int half, int add, int64_t rows, const float *x, int64_t ldx, const void *w, int64_t ldw,
                        int64_t k_size, float *y, int64_t ldy, int64_t columns) {
    for (; rows >= 6; rows -= 6, x += 6 * ldx, y += 6 * ldy)
        block_rows(half, 6, add, x, ldx, w, ldw, k_size, y, ldy, columns);
    switch (rows) {
        case 5: block_rows(half, 5, add, x, ldx, w, ldw, k_size, y, ldy, columns); break;
        case 4: block_rows(half, 4, add, x, ldx, w, ldw, k_size, y, ldy, columns); break;
        case 3: block_rows(half, 3, add, x, ldx, w, ldw, k_size, y, ldy, columns); break;
        case 2: block_rows(half, 2, add, x, ldx, w, ldw, k_size, y, ldy, columns); break;
        case 1: block_rows(half, 1, add, x, ldx, w, ldw, k_size, y, ldy, columns); break;
        default: break;
    }
}

static void add_product(int add, int64_t rows, const float *x, int64_t ldx, const float *w, int64_t ldw,
                        int64_t k_size, float *y, int64_t ldy, int64_t columns) {
    any_product(0, add, rows, x, ldx, w, ldw, k_size, y, ldy, columns);
}

static void product(int64_t rows, const float *x, int64_t ldx, const float *w, int64_t ldw, int64_t k_size, float *y,
                    int64_t ldy, int64_t columns) {
    add_product(0, rows, x, ldx, w, ldw, k_size, y, ldy, columns);
}

/* The same with what the cache keeps, `bytes` each: floats or halves. */
static void kept_product(int64_t bytes, int add, int64_t rows, const float *x, int64_t ldx, const uint8_t *w,
                         int64_t ldw, int64_t k_size, float *y, int64_t ldy, int64_t columns) {
    if (bytes == 2) any_product(1, add, rows, x, ldx, w, ldw, k_size, y, ldy, columns);
    else add_product(add, rows, x, ldx, (const float *)w, ldw, k_size, y, ldy, columns);
}
static inline void keep(int64_t bytes, uint8_t *kept, int64_t index, float value) {
    if (bytes == 2) ((uint16_t *)kept)[index] = to_half(value);
    else ((float *)kept)[index] = value;
}

#if !defined(VNNI)
/* Packed int8: a 32-bit word is the sum of an output's next four inputs q0 + 2^8 q1 + 2^16 q2 + 2^24 q3. Shifted left
 * it is, as a float and in units of 2^24: q0, q1 + q0/2^8, q2 + q1/2^8 + q0/2^16, and q3 + q2/2^8 and so on. No bits are
 * masked out: the activations make up for the lower terms (see unmix), and the outputs' scales for the unit. */
INLINE void widen(const uint8_t *w, vf wide[4]) {
    vu word;
    memcpy(&word, w, sizeof word);
    IN_REGISTER(word); /* or each of the four lines reads it again */
    wide[0] = __builtin_convertvector((vi)(word << 24), vf);
    wide[1] = __builtin_convertvector((vi)(word << 16), vf);
    wide[2] = __builtin_convertvector((vi)(word << 8), vf);
    wide[3] = __builtin_convertvector((vi)word, vf);
}

/* M rows times `panels` panels of a group, straight from int8. */
INLINE void block_int8(const int M, const int panels, const float *x, int64_t ldx, const uint8_t *w, int64_t step,
                       int64_t k_size, const float *scale, float *y, int64_t ldy) {
    enum { N = PANEL / L };
    const int64_t ahead = p88_ahead;
    vf acc[4][GROUP * N];
    for (int m = 0; m < M; m++)
        for (int n = 0; n < panels * N; n++) acc[m][n] = (vf){0};
    for (int64_t k = 0; k < k_size; k += 4, w += step) {
        for (int p = 0; p < panels; p++) __builtin_prefetch(w + ahead + 64 * p);
        for (int n = 0; n < panels * N; n++) {
            vf wide[4];
            widen(w + 4 * L * n, wide);
            for (int i = 0; i < 4; i++)
                for (int m = 0; m < M; m++) acc[m][n] += wide[i] * x[m * ldx + k + i];
        }
    }
    for (int m = 0; m < M; m++)
        for (int n = 0; n < panels * N; n++) store(y + m * ldy + n * L, acc[m][n] * load(scale + n * L));
}

/* What widened words are multiplied with instead of x: each input less 1/2^8 of the next one in its word. */
static void unmix(const float *x, int64_t n, float *y) {
    float share[L];
    for (int i = 0; i < L; i++) share[i] = i % 4 == 3 ? 0 : 1.0f / 256;
    for (int64_t i = 0; i < n; i += L)
        store_part(y + i, load_part(x + i, n - i) - load_part(x + i + 1, n - i - 1) * load(share), n - i);
}

/* `depth` inputs of a group as floats [depth, columns]. */
static void widen_part(const uint8_t *w, int64_t depth, int64_t columns, float *wide) {
    const int64_t ahead = p88_ahead;
    for (int64_t k = 0; k < depth; k += 4, w += 4 * columns, wide += 4 * columns)
        for (int64_t n = 0; n < columns; n += L) {
            vf four[4];
            __builtin_prefetch(w + 4 * n + ahead);
            widen(w + 4 * n, four);
            for (int i = 0; i < 4; i++) store(wide + i * columns + n, four[i]);
        }
}

/* As many panels at once as the registers hold accumulators of. */
INLINE void group_int8(const int M, int64_t panels, const float *x, int64_t ldx, const uint8_t *w, int64_t k_size,
                       const float *scale, float *y, int64_t ldy) {
    enum { N = PANEL / L };
    const int64_t step = panels * 64;
    int64_t p = 0;
    if (M * 4 * N <= ACCUMULATORS)
        for (; p + 4 <= panels; p += 4)
            block_int8(M, 4, x, ldx, w + 64 * p, step, k_size, scale + PANEL * p, y + PANEL * p, ldy);
    if (M * 2 * N <= ACCUMULATORS)
        for (; p + 2 <= panels; p += 2)
            block_int8(M, 2, x, ldx, w + 64 * p, step, k_size, scale + PANEL * p, y + PANEL * p, ldy);
    for (; p < panels; p++)
        block_int8(M, 1, x, ldx, w + 64 * p, step, k_size, scale + PANEL * p, y + PANEL * p, ldy);
}

static void few_rows(int64_t rows, int64_t panels, const float *x, int64_t ldx, const uint8_t *w, int64_t k_size,
                     const float *scale, float *y, int64_t ldy) {
    for (; rows >= 4; rows -= 4, x += 4 * ldx, y += 4 * ldy) group_int8(4, panels, x, ldx, w, k_size, scale, y, ldy);
    switch (rows) {
        case 3: group_int8(3, panels, x, ldx, w, k_size, scale, y, ldy); break;
        case 2: group_int8(2, panels, x, ldx, w, k_size, scale, y, ldy); break;
        case 1: group_int8(1, panels, x, ldx, w, k_size, scale, y, ldy); break;
        default: break;
    }
}

#else
/* ------------------------------------------------------------------------------- products of bytes, summed exactly */

enum { AT_ONCE = 3 }; /* rows whose sums fit the registers */

/* A row of activations in 16 bits, each as two signed bytes: x is nearly (256 high + low) * scale. */
typedef struct {
    float scale;
    int32_t high, low; /* sums of the bytes, times 128 */
    int32_t unused[13];
} Halves; /* the high bytes follow, then the low ones, each filled up to a cache line */

static inline int64_t halves_bytes(int64_t n) { return (int64_t)sizeof(Halves) + 2 * round_up(n, 64); }

static void halve(const float *x, int64_t n, uint8_t *row) {
    uint8_t *high = row + sizeof(Halves), *low = high + round_up(n, 64);
    __m512i tops = _mm512_setzero_si512(), highs = tops, lows = tops;
    for (int64_t i = 0; i < n; i += L) { /* As whole numbers NaNs are the largest: they are not lost. */
        const __m512i bits = (__m512i)load_part(x + i, n - i);
        tops = _mm512_max_epi32(tops, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
    }
    const int32_t top_bits = _mm512_reduce_max_epi32(tops);
    float top;
    memcpy(&top, &top_bits, sizeof top);
    const float most = 127 * 256 + 127, factor = top > 1e-30f ? most / top : 0;
    for (int64_t i = 0; i < n; i += L) {
        __m512i q = _mm512_cvtps_epi32((__m512)(load_part(x + i, n - i) * factor));
        q = _mm512_max_epi32(q, _mm512_set1_epi32(-(127 * 256 + 127))); /* what is no number became the smallest one */
        const __m512i h = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
        const __m512i l = _mm512_sub_epi32(q, _mm512_slli_epi32(h, 8));
        _mm_storeu_si128((__m128i *)(high + i), _mm512_cvtepi32_epi8(h));
        _mm_storeu_si128((__m128i *)(low + i), _mm512_cvtepi32_epi8(l));
        highs = _mm512_add_epi32(highs, h);
        lows = _mm512_add_epi32(lows, l);
    }
    const Halves head = {top / most, 128 * _mm512_reduce_add_epi32(highs), 128 * _mm512_reduce_add_epi32(lows), {0}};
    memcpy(row, &head, sizeof head);
}

/* Adds sums of four products of unsigned bytes w and signed bytes x. _mm512_dpbusd_epi32 is the same, but GCC 12 copies
 * its sums from register to register. */
INLINE __m512i plus_fours(__m512i sum, __m512i w, __m512i x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
}

INLINE __m512i four(const uint8_t *p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return _mm512_set1_epi32(word);
}

/* M rows times `panels` panels of a group. Weights are stored 128 too large, which the sums make up for from the
 * beginning. `next` is read into the cache on the way, a line for each line of the weights. */
INLINE void block_halves(const int M, const int panels, const uint8_t *x, int64_t ldx, const uint8_t *w, int64_t k_size,
                         const float *scale, const uint8_t *next, float *y, int64_t ldy) {
    __m512i high[AT_ONCE][GROUP], low[AT_ONCE][GROUP];
    const int64_t part = round_up(k_size, 64);
    const uint8_t *bytes = x + sizeof(Halves);
    UNROLL for (int m = 0; m < M; m++) {
        const Halves *head = (const Halves *)(x + m * ldx);
        UNROLL for (int n = 0; n < panels; n++) {
            high[m][n] = _mm512_set1_epi32(-head->high);
            low[m][n] = _mm512_set1_epi32(-head->low);
        }
    }
    for (int64_t k = 0; k < k_size; k += 4, w += 64 * panels, next += 64 * panels) {
        __m512i weights[GROUP];
        UNROLL for (int n = 0; n < panels; n++) {
            weights[n] = _mm512_loadu_si512(w + 64 * n);
            __builtin_prefetch(next + 64 * n);
        }
        UNROLL for (int m = 0; m < M; m++) {
            const __m512i h = four(bytes + m * ldx + k), l = four(bytes + m * ldx + part + k);
            UNROLL for (int n = 0; n < panels; n++) {
                high[m][n] = plus_fours(high[m][n], weights[n], h);
                low[m][n] = plus_fours(low[m][n], weights[n], l);
            }
        }
    }
    UNROLL for (int m = 0; m < M; m++) {
        const float factor = ((const Halves *)(x + m * ldx))->scale;
        UNROLL for (int n = 0; n < panels; n++) {
            const vf sum = (vf)_mm512_cvtepi32_ps(high[m][n]) * 256.0f + (vf)_mm512_cvtepi32_ps(low[m][n]);
            store(y + m * ldy + n * L, sum * (load(scale + n * L) * factor));
        }
    }
}

INLINE void group_halves(const int M, int64_t panels, const uint8_t *x, int64_t ldx, const uint8_t *w, int64_t k_size,
                         const float *scale, const uint8_t *next, float *y, int64_t ldy) {
    switch (panels) {
        case 4: block_halves(M, 4, x, ldx, w, k_size, scale, next, y, ldy); break;
        case 3: block_halves(M, 3, x, ldx, w, k_size, scale, next, y, ldy); break;
        case 2: block_halves(M, 2, x, ldx, w, k_size, scale, next, y, ldy); break;
        default: block_halves(M, 1, x, ldx, w, k_size, scale, next, y, ldy); break;
    }
}

/* Of one group of panels. */
static void multiply_halves(int64_t rows, int64_t some, const uint8_t *halves, int64_t each, const uint8_t *w,
                            int64_t k_size, const float *scale, float *y, int64_t ldy) {
    const uint8_t *next = w + p88_ahead;
    for (; rows > 0; rows -= AT_ONCE, halves += AT_ONCE * each, y += AT_ONCE * ldy) {
        if (rows >= 3) group_halves(3, some, halves, each, w, k_size, scale, next, y, ldy);
        else if (rows == 2) group_halves(2, some, halves, each, w, k_size, scale, next, y, ldy);
        else group_halves(1, some, halves, each, w, k_size, scale, next, y, ldy);
    }
}
#endif

/* What is read after a product, asked for while the product waits for its weights: a share with each of its groups. */
typedef struct {
    void (*ask)(const void *job, int64_t share, int64_t shares);
    const void *job;
} Soon;

typedef struct {
    const uint8_t *weights;
    const Matrix *matrix;
    int64_t rows, ldx, ldy;
    const float *x; /* or what the kernel made of it for int8 weights */
    float *y;
    const Scratch *s; /* [threads] */
    const Soon *soon; /* or NULL */
    int64_t groups;
} Product;

/* One group of panels of a product. */
static void multiply_group(const void *job, int64_t group, int64_t member) {
    const Product *p = job;
    const Matrix *matrix = p->matrix;
    const int64_t panels = round_up(matrix->rows, PANEL) / PANEL, k_size = matrix->cols, done = group * GROUP;
    const int64_t some = panels - done < GROUP ? panels - done : GROUP, columns = some * PANEL;
    const int64_t rows = p->rows, ldx = p->ldx, ldy = p->ldy, size = matrix->scale < 0 ? 4 : 1;
    const uint8_t *w = p->weights + matrix->data + size * k_size * done * PANEL;
    const float *x = p->x, *scale = (const float *)(p->weights + matrix->scale) + done * PANEL;
    float *target = p->y + done * PANEL, *wide = p->s[member].wide;
    if (p->soon) p->soon->ask(p->soon->job, group, p->groups);
    if (matrix->scale < 0) {
        product(rows, x, ldx, (const float *)w, columns, k_size, target, ldy, columns);
        return;
    }
#if defined(VNNI)
    (void)wide;
    multiply_halves(rows, some, (const uint8_t *)x, ldx, w, k_size, scale, target, ldy);
#else
    if (rows <= FEW_ROWS) {
        few_rows(rows, some, x, ldx, w, k_size, scale, target, ldy);
        return;
    }
    for (int64_t k = 0; k < k_size; k += DEPTH) {
        const int64_t depth = k_size - k < DEPTH ? k_size - k : DEPTH;
        widen_part(w + k * columns, depth, columns, wide);
        add_product(k > 0, rows, x + k, ldx, wide, columns, depth, target, ldy, columns);
    }
    for (int64_t m = 0; m < rows; m++)
        for (int64_t n = 0; n < columns; n += L)
            store(target + m * ldy + n, load(target + m * ldy + n) * load(scale + n));
#endif
}

/* y = x times the matrix's rows. y's rows have room for a whole number of panels. */
static void multiply_asking(const uint8_t *weights, const Matrix *matrix, int64_t rows, const float *x, int64_t ldx,
                            float *y, int64_t ldy, const Scratch *s, const Soon *soon, Crew *crew) {
    const int64_t k_size = matrix->cols;
    if (matrix->scale >= 0) {
#if defined(VNNI)
        uint8_t *halves = (uint8_t *)s->unmixed;
        const int64_t each = halves_bytes(k_size);
        for (int64_t m = 0; m < rows; m++) halve(x + m * ldx, k_size, halves + m * each);
        ldx = each;
#else
        for (int64_t m = 0; m < rows; m++) unmix(x + m * ldx, k_size, s->unmixed + m * k_size);
        ldx = k_size;
#endif
        x = s->unmixed;
    }
    const int64_t groups = round_up(matrix->rows, GROUP * PANEL) / (GROUP * PANEL);
    const Product job = {weights, matrix, rows, ldx, ldy, x, y, s, soon, groups};
    p88_crew_share(crew, multiply_group, &job, groups);
}

static void multiply(const uint8_t *weights, const Matrix *matrix, int64_t rows, const float *x, int64_t ldx, float *y,
                     int64_t ldy, const Scratch *s, Crew *crew) {
    multiply_asking(weights, matrix, rows, x, ldx, y, ldy, s, NULL, crew);
}
