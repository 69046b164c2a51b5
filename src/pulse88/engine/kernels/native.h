/* What the kernels and their caller share: the plan of a model, and one call.
 *
 * A plan is nothing but int64 values, so that Python can write it as an array. All offsets are bytes into one block of
 * weights. Every field is checked by p88_check before any forward pass uses it.
 *
 * Letters: B batch, T tokens, M = B * T rows, D model width, I inner width of a GDN block, H heads, K key width,
 * V value width, C convolved channels (q|k|v), W = conv - 1 kept inputs, P tokens of a page, L lanes of a vector.
 */
#ifndef PULSE88_NATIVE_H
#define PULSE88_NATIVE_H

#include <stddef.h>
#include <stdint.h>

#include "crew.h"

enum { PAGE = 16 };    /* tokens between two rewritings of a GDN memory; pages begin at multiples of it */
enum { PANEL = 16 };   /* outputs side by side in packed weights */
enum { GROUP = 4 };    /* panels that are packed together */
enum { KEYS = 64 };    /* keys side by side in the key cache */
enum { LARGEST_CONV = 16, LARGEST_HEADS = 64 };
enum { GDN, GQA };

/* int8 if scale >= 0, which is then the offset of one float an output; float32 otherwise. See p88_pack. */
typedef struct {
    int64_t data, scale, rows, cols;
} Matrix;

typedef struct {
    int64_t kind, norm_weight, norm_bias;
    Matrix in;     /* GDN [I, D]; GQA [(heads + 2 * kv_heads) * head_dim, D], q|k|v */
    Matrix core;   /* GDN [2 * H * K + 2 * H * V + 2 * H, I], q|k|v|gate|a|b */
    Matrix merge;  /* GDN [I, H * V], or no rows: then `out` is [D, H * V] */
    Matrix out;    /* GDN [D, I]; GQA [D, D] */
    int64_t conv;  /* [conv, C] */
    int64_t decay; /* [H], -exp(A_log) */
    int64_t dt;    /* [H] */
    int64_t o_norm; /* [V] */
} Mixer;

typedef struct {
    int64_t vocabulary, width, positions, inner, heads, key, value, conv;
    int64_t q_heads, kv_heads, head_dim;
    int64_t kept_bytes; /* of one key or value in the cache: 4, or 2 for half precision */
    int64_t mixers;
    int64_t reals;           /* floats: norm eps, logit scale */
    int64_t tokens_table;    /* [vocabulary, D] */
    int64_t positions_table; /* [positions, D] */
    int64_t rotary;          /* [positions, 2, head_dim / 2]: cosines, sines */
    int64_t final_weight, final_bias;
    Matrix head;
    Mixer mixer[];
} Model;

/* One sequence: its state before a call, which is only read, and where the state after it goes.
 *
 * The state of the GDN mixers g is `tails` [g, W, C], the last inputs of the convolution, oldest first, and a page:
 * `memory` [g, H, K, V] as it was at the page's first position, beside int8 weights followed by the same in half
 * precision, which is what tokens read, and `rows` [g, page_floats] with what the page's tokens
 * have added since. Rows of tokens yet to come are free to be written: a call that stays within the page appends to
 * `rows`, which then holds the old rows already. A call that reaches the next page's first position writes a new memory
 * and new rows.
 *
 * The state of the GQA mixers a is `keys` [a, kv_heads, capacity / KEYS, head_dim, KEYS] and `values` [a, kv_heads,
 * capacity, head_dim], float or half, of which the rows from `position` on are written. The first `prefix` rows, a multiple of KEYS,
 * may be another's: they stand in `prefix_keys` and `prefix_values`, and `keys` and `values` begin after them.
 */
typedef struct {
    int64_t position; /* tokens seen */
    int64_t capacity, prefix, prefix_capacity; /* rows */
    const float *old_memory, *old_rows, *old_tails;
    float *memory, *rows, *tails;
    const uint8_t *prefix_keys, *prefix_values;
    uint8_t *keys, *values;
} Sequence;

/* One forward pass of M rows: T tokens of each of B sequences, which may stand at different positions. */
typedef struct {
    int64_t batch, tokens;
    int64_t logit_rows; /* 0 none, 1 the last token's, 2 all */
    int64_t scratch_floats;
    const int64_t *ids; /* [B, T] */
    const Sequence *sequences; /* [B] */
    float *logits;  /* [B, 1 or T, vocabulary] */
    float *scratch; /* p88_scratch_floats, aligned to 64 bytes like everything else */
    int64_t threads; /* that the scratch has room for, 1 to LARGEST_CREW */
    Crew *crew; /* as many, or NULL */
} Call;

/* Bytes that the next weights are asked for in advance; 0 where the hardware does that better by itself. */
extern int64_t p88_ahead;

typedef void Forward(const Model *model, const uint8_t *weights, const Call *call, Crew *crew);
extern Forward p88_forward_baseline, p88_forward_avx2, p88_forward_avx512, p88_forward_avx512vnni;

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* Floats of one row of each intermediate result; rows begin on a cache line. */
static inline int64_t core_floats(const Model *m) {
    return round_up(2 * m->heads * (m->key + m->value) + 2 * m->heads, PANEL);
}
static inline int64_t qkv_floats(const Model *m) {
    return round_up((m->q_heads + 2 * m->kv_heads) * m->head_dim, PANEL);
}
static inline int64_t channels(const Model *m) { return m->heads * (2 * m->key + m->value); }

/* Floats of one page of one GDN mixer and sequence: keys [H, PAGE, K], errors u [H, PAGE, V] and log decays
 * [H, PAGE]. */
static inline int64_t page_floats(const Model *m) { return m->heads * PAGE * (m->key + m->value + 1); }

enum { DEPTH = 64 }; /* inputs of int8 weights that are made floats at a time: they stay in the nearest cache */
enum { TILE = 6 }; /* tokens whose attention is computed together */

static inline int64_t added_floats(const Model *m) { return round_up(m->width, PANEL); }
static inline int64_t scores_floats(const Model *m) { return round_up(m->positions, KEYS); }

/* Intermediate results of one call; from `wide` on of one thread. */
typedef struct {
    float *x, *normed; /* [M, D] */
    float *inner;      /* [M, I] */
    float *core;       /* [M, core_floats or qkv_floats] */
    float *mixed;      /* [M, H * V or D]: what a mixer gives to its output projection */
    float *added;      /* [M, D]: what comes from there */
    float *logits;     /* [M, vocabulary] */
    float *unmixed;    /* [M, largest cols and 48]: see unmix, halve */
    float *wide;       /* [DEPTH, GROUP * PANEL]: int8 weights as floats */
    float *conv;       /* [PAGE, 2 * K + V]: one head's q, k and v */
    float *queries;    /* [2 * PAGE, K]: one head's keys, then its queries */
    float *recalled;   /* [2 * PAGE, V]: the same times the memory */
    float *shares;     /* [2 or K, PAGE] */
    float *gained;     /* [2 or K, V]: the shares times the page's errors */
    float *tile_in, *tile_out; /* [TILE * q_heads / kv_heads, head_dim] */
    float *scores;     /* [TILE * q_heads / kv_heads, positions] */
} Scratch;

static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

#define TAKE(field, floats) (s->field = base ? base + used : base, used += round_up(floats, 16))

/* Lays out what each thread has for itself; returns how many floats that takes. */
static inline int64_t carve_own(const Model *m, float *base, Scratch *s) {
    const int64_t tile = TILE * (m->q_heads / m->kv_heads);
    int64_t used = 0;
    TAKE(wide, DEPTH * GROUP * PANEL);
    TAKE(conv, PAGE * (2 * m->key + m->value));
    TAKE(queries, 2 * PAGE * m->key);
    TAKE(recalled, 2 * PAGE * m->value);
    TAKE(shares, larger(2, m->key) * PAGE);
    TAKE(gained, larger(2, m->key) * m->value);
    TAKE(tile_in, tile * m->head_dim);
    TAKE(tile_out, tile * m->head_dim);
    TAKE(scores, tile * scores_floats(m));
    return used;
}

/* Lays the intermediate results of M rows out from `base` on, as one of some threads has them; returns how many floats
 * they take together with those of the threads before it. */
static inline int64_t carve(const Model *m, int64_t rows, float *base, int64_t thread, Scratch *s) {
    int64_t used = 0;
    TAKE(x, rows * m->width);
    TAKE(normed, rows * m->width);
    TAKE(inner, rows * round_up(m->inner, PANEL));
    TAKE(core, rows * larger(core_floats(m), qkv_floats(m)));
    TAKE(mixed, rows * larger(m->heads * m->value, m->width));
    TAKE(added, rows * added_floats(m));
    TAKE(logits, rows * round_up(m->vocabulary, PANEL));
    TAKE(unmixed, rows * (larger(larger(m->width, m->inner), m->heads * m->value) + 48));
    used += thread * carve_own(m, NULL, s);
    return used + carve_own(m, base ? base + used : base, s);
}
#undef TAKE

#endif
