/* The forward pass, compiled once for every instruction set that includes this file. Plain C with GCC's vector types.
 *
 * Includers define FORWARD (the function's name), LANES (floats of a vector) and ACCUMULATORS (vectors that fit the
 * registers beside their operands).
 *
 * Every number is the same whatever the batch, the cut into calls and the kernel that the number of rows chose: each
 * output is one sum in ascending order, and pages of the recurrence begin at multiples of PAGE positions.
 */
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

enum { AHEAD = 4096 };   /* bytes that the next weights are asked for in advance */
enum { FEW_ROWS = 16 }; /* up to here int8 weights are made floats on the way, beyond it once for all rows */

/* y[m][n] = y[m][n] or 0, plus the sum over k of x[m][k] * w[k][n], for M rows and N vectors of columns. */
INLINE void block(const int M, const int N, int add, const float *x, int64_t ldx, const float *w, int64_t ldw,
                  int64_t k_size, float *y, int64_t ldy) {
    vf acc[6][10];
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) acc[m][n] = add ? load(y + m * ldy + n * L) : (vf){0};
    for (int64_t k = 0; k < k_size; k++) {
        vf row[10];
        for (int n = 0; n < N; n++) {
            row[n] = load(w + k * ldw + n * L);
            if (M <= 4) __builtin_prefetch((const char *)(w + k * ldw + n * L) + AHEAD);
        }
        for (int m = 0; m < M; m++) {
            vf factor = splat(x[m * ldx + k]);
            for (int n = 0; n < N; n++) acc[m][n] += row[n] * factor;
        }
    }
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) store(y + m * ldy + n * L, acc[m][n]);
}

INLINE void block_rows(const int M, int add, const float *x, int64_t ldx, const float *w, int64_t ldw, int64_t k_size,
                       float *y, int64_t ldy, int64_t columns) {
    int64_t n = 0;
    if (M * 10 <= ACCUMULATORS)
        for (; n + 10 * L <= columns; n += 10 * L) block(M, 10, add, x, ldx, w + n, ldw, k_size, y + n, ldy);
    if (M * 8 <= ACCUMULATORS)
        for (; n + 8 * L <= columns; n += 8 * L) block(M, 8, add, x, ldx, w + n, ldw, k_size, y + n, ldy);
    if (M * 5 <= ACCUMULATORS)
        for (; n + 5 * L <= columns; n += 5 * L) block(M, 5, add, x, ldx, w + n, ldw, k_size, y + n, ldy);
    if (M * 4 <= ACCUMULATORS)
        for (; n + 4 * L <= columns; n += 4 * L) block(M, 4, add, x, ldx, w + n, ldw, k_size, y + n, ldy);
    for (; n + 2 * L <= columns; n += 2 * L) block(M, 2, add, x, ldx, w + n, ldw, k_size, y + n, ldy);
    for (; n + L <= columns; n += L) block(M, 1, add, x, ldx, w + n, ldw, k_size, y + n, ldy);
    if (n == columns) return;
    vf rest[6]; /* A part of a vector: the same sums again, for compilers may not add scalars in the same way. */
    for (int m = 0; m < M; m++) rest[m] = add ? load_part(y + m * ldy + n, columns - n) : (vf){0};
    for (int64_t k = 0; k < k_size; k++) {
        vf row = load_part(w + k * ldw + n, columns - n);
        for (int m = 0; m < M; m++) rest[m] += row * x[m * ldx + k];
    }
    for (int m = 0; m < M; m++) store_part(y + m * ldy + n, rest[m], columns - n);
}

static void add_product(int add, int64_t rows, const float *x, int64_t ldx, const float *w, int64_t ldw,
                        int64_t k_size, float *y, int64_t ldy, int64_t columns) {
    for (; rows >= 6; rows -= 6, x += 6 * ldx, y += 6 * ldy)
        block_rows(6, add, x, ldx, w, ldw, k_size, y, ldy, columns);
    switch (rows) {
        case 5: block_rows(5, add, x, ldx, w, ldw, k_size, y, ldy, columns); break;
        case 4: block_rows(4, add, x, ldx, w, ldw, k_size, y, ldy, columns); break;
        case 3: block_rows(3, add, x, ldx, w, ldw, k_size, y, ldy, columns); break;
        case 2: block_rows(2, add, x, ldx, w, ldw, k_size, y, ldy, columns); break;
        case 1: block_rows(1, add, x, ldx, w, ldw, k_size, y, ldy, columns); break;
        default: break;
    }
}

static void product(int64_t rows, const float *x, int64_t ldx, const float *w, int64_t ldw, int64_t k_size, float *y,
                    int64_t ldy, int64_t columns) {
    add_product(0, rows, x, ldx, w, ldw, k_size, y, ldy, columns);
}

/* Packed int8: a 32-bit word holds one output's next four inputs. A byte in the word's highest place is the value
 * times 2^24, exactly; the outputs' scales make up for it. */
INLINE void widen(const uint8_t *w, vf wide[4]) {
    vu word;
    memcpy(&word, w, sizeof word);
    IN_REGISTER(word); /* or each of the four lines reads it again */
    wide[0] = __builtin_convertvector((vi)(word << 24), vf);
    wide[1] = __builtin_convertvector((vi)((word << 16) & 0xff000000u), vf);
    wide[2] = __builtin_convertvector((vi)((word << 8) & 0xff000000u), vf);
    wide[3] = __builtin_convertvector((vi)(word & 0xff000000u), vf);
}

/* M rows times `panels` panels of a group, straight from int8. */
INLINE void block_int8(const int M, const int panels, const float *x, int64_t ldx, const uint8_t *w, int64_t step,
                       int64_t k_size, const float *scale, float *y, int64_t ldy) {
    enum { N = PANEL / L };
    vf acc[4][GROUP * N];
    for (int m = 0; m < M; m++)
        for (int n = 0; n < panels * N; n++) acc[m][n] = (vf){0};
    for (int64_t k = 0; k < k_size; k += 4, w += step) {
        for (int p = 0; p < panels; p++) __builtin_prefetch(w + AHEAD + 64 * p);
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

/* `depth` inputs of a group as floats [depth, columns]. */
static void widen_part(const uint8_t *w, int64_t depth, int64_t columns, float *wide) {
    for (int64_t k = 0; k < depth; k += 4, w += 4 * columns, wide += 4 * columns)
        for (int64_t n = 0; n < columns; n += L) {
            vf four[4];
            __builtin_prefetch(w + 4 * n + AHEAD);
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

/* y = x times the matrix's rows. y's rows have room for a whole number of panels. `wide` [DEPTH, GROUP * PANEL]. */
static void multiply(const uint8_t *weights, const Matrix *matrix, int64_t rows, const float *x, int64_t ldx, float *y,
                     int64_t ldy, float *wide) {
    const int64_t panels = round_up(matrix->rows, PANEL) / PANEL, k_size = matrix->cols;
    const uint8_t *w = weights + matrix->data;
    for (int64_t done = 0; done < panels; done += GROUP) {
        const int64_t some = panels - done < GROUP ? panels - done : GROUP, columns = some * PANEL;
        float *target = y + done * PANEL;
        if (matrix->scale < 0) {
            product(rows, x, ldx, (const float *)w, columns, k_size, target, ldy, columns);
            w += 4 * k_size * columns;
            continue;
        }
        const float *scale = (const float *)(weights + matrix->scale) + done * PANEL;
        if (rows <= FEW_ROWS) {
            few_rows(rows, some, x, ldx, w, k_size, scale, target, ldy);
        } else {
            for (int64_t k = 0; k < k_size; k += DEPTH) {
                const int64_t depth = k_size - k < DEPTH ? k_size - k : DEPTH;
                widen_part(w + k * columns, depth, columns, wide);
                add_product(k > 0, rows, x + k, ldx, wide, columns, depth, target, ldy, columns);
            }
            for (int64_t m = 0; m < rows; m++)
                for (int64_t n = 0; n < columns; n += L)
                    store(target + m * ldy + n, load(target + m * ldy + n) * load(scale + n));
        }
        w += k_size * columns;
    }
}

/* ------------------------------------------------------------------------------------------- small functions */

static float sum_of_squares(const float *x, int64_t n, float centre) {
    vf s = {0};
    int64_t i = 0;
    for (; i + L <= n; i += L) {
        vf d = load(x + i) - centre;
        s += d * d;
    }
    float rest = 0;
    for (; i < n; i++) rest += (x[i] - centre) * (x[i] - centre);
    return sum_of(s) + rest;
}

INLINE float dot(const float *a, const float *b, int64_t n) {
    vf s = {0};
    for (int64_t i = 0; i < n; i += L) s += load_part(a + i, n - i) * load_part(b + i, n - i);
    return sum_of(s);
}

static void layer_norm(const float *x, const float *weight, const float *bias, int64_t n, float eps, float *y) {
    vf s = {0};
    int64_t i = 0;
    for (; i + L <= n; i += L) s += load(x + i);
    float mean = sum_of(s);
    for (; i < n; i++) mean += x[i];
    mean /= (float)n;
    const float factor = 1.0f / sqrtf(sum_of_squares(x, n, mean) / (float)n + eps);
    for (i = 0; i < n; i++) y[i] = (x[i] - mean) * factor * weight[i] + bias[i];
}

static float sigmoid(float x) {
    float small = expf(-fabsf(x));
    return (x >= 0 ? 1.0f : small) / (1.0f + small);
}

static float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }

/* ------------------------------------------------------------------------------------------- Gated DeltaNet */

typedef struct {
    float *inputs, *keys, *errors, *decays;
} Page;

static Page page_at(const Model *m, float *rows, int64_t index) {
    Page page;
    page.inputs = rows + index * page_floats(m);
    page.keys = page.inputs + (m->conv - 1 + PAGE) * channels(m);
    page.errors = page.keys + m->heads * m->key * PAGE;
    page.decays = page.errors + m->heads * PAGE * m->value;
    return page;
}

/* exp(since - decays[i]) for i < n, into shares[i]. */
static void decay_shares(const float *decays, float since, int64_t n, float *shares) {
    for (int64_t i = 0; i < n; i += L) {
        store_part(shares + i, exp_of(since - load_part(decays + i, n - i)), n - i);
    }
}

/* One head's tokens of one page, `first` to `first + count` within it. arXiv 2412.06464, the memory rewritten at the
 * end of a page only: until then the tokens' errors u are what is remembered, and forward substitution gives
 *   u_t = beta_t (v_t - exp(G_t) S'k_t - sum over i < t of exp(G_t - G_i) (k_t . k_i) u_i).
 * values [count] rows of `ldv`, likewise out; betas and the page's decays of these tokens are known. */
static void delta_rule(const Model *m, const Scratch *s, const float *memory, Page page, int64_t head, int64_t first,
                       int64_t count, const float *values, int64_t ldv, const float *betas, float *out, int64_t ldo) {
    const int64_t K = m->key, V = m->value;
    float *keys = page.keys + head * PAGE * K, *errors = page.errors + head * PAGE * V;
    const float *decays = page.decays + head * PAGE;
    memcpy(keys + first * K, s->queries, (size_t)(count * K) * sizeof(float));
    product(2 * count, s->queries, K, memory, V, K, s->recalled, V, V);
    for (int64_t t = 0; t < count; t++) {
        const int64_t now = first + t;
        const float *key = s->queries + t * K, *query = s->queries + (count + t) * K;
        decay_shares(decays, decays[now], now, s->shares);
        for (int64_t i = 0; i < now; i++) {
            const float share = s->shares[i];
            s->shares[i] = share * dot(key, keys + i * K, K);
            s->shares[PAGE + i] = share * dot(query, keys + i * K, K);
        }
        product(2, s->shares, PAGE, errors, V, now, s->gained, V, V);
        const float since = expf(decays[now]), beta = betas[t * m->heads], same = dot(query, key, K);
        const float *restrict by_key = s->recalled + t * V, *restrict by_query = s->recalled + (count + t) * V;
        const float *restrict gained = s->gained, *restrict value = values + t * ldv;
        float *restrict error = errors + now * V, *restrict o = out + t * ldo;
        for (int64_t v = 0; v < V; v++) error[v] = beta * (value[v] - (since * by_key[v] + gained[v]));
        for (int64_t v = 0; v < V; v++) o[v] = (since * by_query[v] + gained[V + v]) + same * error[v];
    }
}

/* The memory after a whole page: exp(G) S + sum over i of exp(G - G_i) k_i u_i'. target may be memory. */
static void rewrite(const Model *m, const Scratch *s, const float *memory, Page page, int64_t head, float *target) {
    const int64_t K = m->key, V = m->value;
    const float *keys = page.keys + head * PAGE * K, *decays = page.decays + head * PAGE;
    float share[PAGE];
    decay_shares(decays, decays[PAGE - 1], PAGE, share);
    for (int64_t i = 0; i < PAGE; i++)
        for (int64_t k = 0; k < K; k++) s->shares[k * PAGE + i] = keys[i * K + k] * share[i];
    product(K, s->shares, PAGE, page.errors + head * PAGE * V, V, PAGE, s->gained, V, V);
    const float since = expf(decays[PAGE - 1]);
    for (int64_t i = 0; i < K * V; i++) target[i] = since * memory[i] + s->gained[i];
}

/* The convolution's inputs of the new page, where the call doesn't stay in the old one. */
static void turn_inputs(const Model *m, const Call *call, const float *old_inputs, const float *core, float *inputs) {
    const int64_t C = channels(m), W = m->conv - 1, ldc = core_floats(m);
    const int64_t stop = call->position + call->tokens;
    const int64_t before = call->position / PAGE * PAGE - W; /* position of the old page's first input */
    for (int64_t position = stop / PAGE * PAGE - W, i = 0; position < stop; position++, i++) {
        const float *from = position < call->position ? old_inputs + (position - before) * C
                                                      : core + (position - call->position) * ldc;
        memcpy(inputs + i * C, from, (size_t)C * sizeof(float));
    }
}

/* core_floats rows of one sequence, convolved and normalised, through the recurrence into `mixed`. */
static void gdn_core(const Model *m, const uint8_t *weights, const Mixer *mixer, const Call *call, int64_t gdn,
                     int64_t b, const Scratch *s) {
    const int64_t H = m->heads, K = m->key, V = m->value, C = channels(m), W = m->conv - 1, ldc = core_floats(m);
    const int64_t T = call->tokens, index = gdn * call->batch + b;
    const float *taps = (const float *)(weights + mixer->conv), *decay = (const float *)(weights + mixer->decay);
    const float *dt = (const float *)(weights + mixer->dt), *o_norm = (const float *)(weights + mixer->o_norm);
    const float eps = *(const float *)(weights + m->reals), scale = 1.0f / sqrtf((float)K);
    const int stays = call->position / PAGE == (call->position + T) / PAGE;
    const float *old = call->old_rows + index * page_floats(m), *core = s->core + b * T * ldc;
    const Page page = page_at(m, call->rows, index);
    const float *memory = call->old_memory + index * H * K * V;
    float *target = call->memory + index * H * K * V, *mixed = s->mixed + b * T * H * V;

    if (!stays) memcpy(page.keys, old + (page.keys - page.inputs),
                       (size_t)(page_floats(m) - (page.keys - page.inputs)) * sizeof(float));
    else
        for (int64_t t = 0; t < T; t++)
            memcpy(page.inputs + (call->position % PAGE + W + t) * C, core + t * ldc, (size_t)C * sizeof(float));

    for (int64_t start = 0; start < T;) {
        const int64_t first = (call->position + start) % PAGE;
        const int64_t count = T - start < PAGE - first ? T - start : PAGE - first;
        float betas[PAGE * LARGEST_HEADS];
        for (int64_t t = 0; t < count; t++) {
            const float *row = core + (start + t) * ldc;
            float *mix = s->conv + t * C;
            const float *input[LARGEST_CONV];
            for (int64_t j = 0; j <= W; j++) {
                const int64_t back = start + t + j - W;
                input[j] = back >= 0 ? core + back * ldc : old + (call->position % PAGE + W + back) * C;
            }
            for (int64_t c = 0; c < C; c += L) {
                vf sum = {0};
                for (int64_t j = 0; j <= W; j++)
                    sum += load_part(input[j] + c, C - c) * load_part(taps + j * C + c, C - c);
                store_part(mix + c, silu_of(sum), C - c);
            }
            for (int64_t h = 0; h < 2 * H; h++) {
                float *part = mix + h * K;
                const float factor = (h < H ? scale : 1.0f) / sqrtf(sum_of_squares(part, K, 0) + 1e-6f);
                for (int64_t k = 0; k < K; k++) part[k] *= factor;
            }
            const float *a = row + C + H * V, *step = a + H;
            for (int64_t h = 0; h < H; h++) {
                float *since = page.decays + h * PAGE + first + t;
                *since = (first + t ? since[-1] : 0.0f) + decay[h] * softplus(a[h] + dt[h]);
                betas[t * H + h] = sigmoid(step[h]);
            }
        }
        for (int64_t h = 0; h < H; h++) {
            for (int64_t t = 0; t < count; t++) {
                memcpy(s->queries + t * K, s->conv + t * C + (H + h) * K, (size_t)K * sizeof(float));
                memcpy(s->queries + (count + t) * K, s->conv + t * C + h * K, (size_t)K * sizeof(float));
            }
            delta_rule(m, s, memory + h * K * V, page, h, first, count, s->conv + 2 * H * K + h * V, C, betas + h,
                       mixed + start * H * V + h * V, H * V);
            if (first + count == PAGE) rewrite(m, s, memory + h * K * V, page, h, target + h * K * V);
        }
        if (first + count == PAGE) memory = target;
        start += count;
    }
    if (!stays) turn_inputs(m, call, old, core, page.inputs);

    for (int64_t t = 0; t < T; t++)
        for (int64_t h = 0; h < H; h++) {
            float *o = mixed + t * H * V + h * V;
            const float *gate = core + t * ldc + C + h * V;
            const float factor = 1.0f / sqrtf(sum_of_squares(o, V, 0) / (float)V + eps);
            for (int64_t v = 0; v < V; v += L) {
                vf normed = load_part(o + v, V - v) * factor * load_part(o_norm + v, V - v);
                store_part(o + v, normed * silu_of(load_part(gate + v, V - v)), V - v);
            }
        }
}

/* ------------------------------------------------------------------------------------------- attention */

static void rotate(const Model *m, const float *angles, float *head) {
    const int64_t half = m->head_dim / 2;
    for (int64_t i = 0; i < half; i++) {
        const float a = head[i], b = head[half + i];
        head[i] = a * angles[i] - b * angles[half + i];
        head[half + i] = b * angles[i] + a * angles[half + i];
    }
}

static void softmax(float *x, int64_t n) {
    float top = x[0];
    if (n >= L) {
        vf tops = load(x);
        for (int64_t i = L; i + L <= n; i += L) tops = max_of(tops, load(x + i));
        for (int i = 0; i < L; i++) top = tops[i] > top ? tops[i] : top;
    }
    for (int64_t i = n / L * L; i < n; i++) top = x[i] > top ? x[i] : top;
    vf sum = {0};
    for (int64_t i = 0; i < n; i += L) {
        store_part(x + i, exp_of(load_part(x + i, n - i) - top), n - i);
        sum += load_part(x + i, n - i);
    }
    const float factor = 1.0f / sum_of(sum);
    for (int64_t i = 0; i < n; i++) x[i] *= factor;
}

/* qkv_floats rows of one sequence through causal attention into `mixed`; their keys and values join the cache. */
static void attend(const Model *m, const uint8_t *weights, const Call *call, int64_t gqa, int64_t b, const Scratch *s) {
    const int64_t E = m->head_dim, shared = m->q_heads / m->kv_heads, ldq = qkv_floats(m), T = call->tokens;
    const int64_t lds = scores_floats(m);
    const float *rotary = (const float *)(weights + m->rotary);
    const float scale = 1.0f / sqrtf((float)E);
    float *qkv = s->core + b * T * ldq, *mixed = s->mixed + b * T * m->width;
    for (int64_t t = 0; t < T; t++) {
        const float *angles = rotary + (call->position + t) * E;
        float *row = qkv + t * ldq;
        for (int64_t h = 0; h < m->q_heads + m->kv_heads; h++) rotate(m, angles, row + h * E);
        for (int64_t i = 0; i < m->width; i++) row[i] *= scale;
    }
    for (int64_t g = 0; g < m->kv_heads; g++) {
        const int64_t cache = ((gqa * call->batch + b) * m->kv_heads + g) * call->capacity * E;
        float *keys = call->keys + cache, *values = call->values + cache;
        for (int64_t t = 0; t < T; t++) {
            const int64_t position = call->position + t;
            const float *k = qkv + t * ldq + m->width + g * E, *v = k + m->kv_heads * E;
            float *column = keys + position / KEYS * KEYS * E + position % KEYS;
            for (int64_t e = 0; e < E; e++) column[e * KEYS] = k[e];
            memcpy(values + position * E, v, (size_t)E * sizeof(float));
        }
        for (int64_t start = 0; start < T; start += TILE) {
            const int64_t tile = T - start < TILE ? T - start : TILE, rows = tile * shared;
            const int64_t seen = call->position + start + tile;
            for (int64_t t = 0; t < tile; t++)
                memcpy(s->tile_in + t * shared * E, qkv + (start + t) * ldq + g * shared * E,
                       (size_t)(shared * E) * sizeof(float));
            for (int64_t key = 0; key < seen; key += KEYS)
                product(rows, s->tile_in, E, keys + key * E, KEYS, E, s->scores + key, lds, KEYS);
            for (int64_t r = 0; r < rows; r++) {
                const int64_t own = seen - tile + r / shared + 1;
                softmax(s->scores + r * lds, own);
                for (int64_t i = own; i < seen; i++) s->scores[r * lds + i] = 0;
            }
            product(rows, s->scores, lds, values, E, seen, s->tile_out, E, E);
            for (int64_t t = 0; t < tile; t++)
                memcpy(mixed + (start + t) * m->width + g * shared * E, s->tile_out + t * shared * E,
                       (size_t)(shared * E) * sizeof(float));
        }
    }
}

/* ------------------------------------------------------------------------------------------- the model */

static void norm_rows(const Model *m, const uint8_t *weights, int64_t weight, int64_t bias, int64_t rows,
                      const float *x, float *y) {
    const float eps = *(const float *)(weights + m->reals);
    for (int64_t r = 0; r < rows; r++)
        layer_norm(x + r * m->width, (const float *)(weights + weight), (const float *)(weights + bias), m->width, eps,
                   y + r * m->width);
}

static void add_rows(int64_t n, const float *restrict added, float *restrict x) {
    for (int64_t i = 0; i < n; i++) x[i] += added[i];
}

void FORWARD(const Model *m, const uint8_t *weights, const Call *call) {
    const int64_t T = call->tokens, M = call->batch * T, D = m->width;
    const float *tokens = (const float *)(weights + m->tokens_table);
    const float *positions = (const float *)(weights + m->positions_table);
    const float logit_scale = ((const float *)(weights + m->reals))[1];
    Scratch scratch;
    carve(m, M, call->scratch, &scratch);
    const Scratch *s = &scratch;

    for (int64_t r = 0; r < M; r++) {
        const float *token = tokens + call->ids[r] * D, *position = positions + (call->position + r % T) * D;
        for (int64_t i = 0; i < D; i++) s->x[r * D + i] = token[i] + position[i];
    }
    int64_t gdn = 0, gqa = 0;
    for (const Mixer *mixer = m->mixer; mixer < m->mixer + m->mixers; mixer++) {
        norm_rows(m, weights, mixer->norm_weight, mixer->norm_bias, M, s->x, s->normed);
        if (mixer->kind == GDN) {
            const int64_t ldi = round_up(m->inner, PANEL), width = m->heads * m->value;
            multiply(weights, &mixer->in, M, s->normed, D, s->inner, ldi, s->wide);
            multiply(weights, &mixer->core, M, s->inner, ldi, s->core, core_floats(m), s->wide);
            for (int64_t b = 0; b < call->batch; b++) gdn_core(m, weights, mixer, call, gdn, b, s);
            multiply(weights, &mixer->merge, M, s->mixed, width, s->inner, ldi, s->wide);
            multiply(weights, &mixer->out, M, s->inner, ldi, s->added, added_floats(m), s->wide);
            gdn++;
        } else {
            multiply(weights, &mixer->in, M, s->normed, D, s->core, qkv_floats(m), s->wide);
            for (int64_t b = 0; b < call->batch; b++) attend(m, weights, call, gqa, b, s);
            multiply(weights, &mixer->out, M, s->mixed, D, s->added, added_floats(m), s->wide);
            gqa++;
        }
        for (int64_t r = 0; r < M; r++) add_rows(D, s->added + r * added_floats(m), s->x + r * D);
    }
    if (call->logit_rows == 0) return;
    const int64_t each = call->logit_rows == 1 ? 1 : T, room = round_up(m->vocabulary, PANEL);
    for (int64_t r = 0; r < call->batch * each; r++)
        norm_rows(m, weights, m->final_weight, m->final_bias, 1, s->x + (each == 1 ? (r + 1) * T - 1 : r) * D,
                  s->normed + r * D);
    float *logits = s->logits;
    multiply(weights, &m->head, call->batch * each, s->normed, D, logits, room, s->wide);
    for (int64_t r = 0; r < call->batch * each; r++)
        for (int64_t i = 0; i < m->vocabulary; i++)
            call->logits[r * m->vocabulary + i] = logits[r * room + i] * logit_scale;
}
