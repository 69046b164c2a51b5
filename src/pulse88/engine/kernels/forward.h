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

#include "products.h"

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
    float *keys, *errors, *decays;
} Page;

/* Of the numbers of the memory that tokens read. Without instructions for half precision it would cost more than it
 * saves. */
static inline int64_t memory_bytes(const Model *m) {
#if defined(F16C)
    return m->kept_bytes;
#else
    (void)m;
    return 4;
#endif
}

static Page page_at(const Model *m, float *rows, int64_t index) {
    Page page;
    page.keys = rows + index * page_floats(m);
    page.errors = page.keys + m->heads * m->key * PAGE;
    page.decays = page.errors + m->heads * PAGE * m->value;
    return page;
}

/* What is left at token `now` of what each earlier token of the page added, into shares [now]; returns what is left of
 * the memory. The log decays are summed backwards: a sum from the page's beginning may reach thousands, and its small
 * differences would be lost. */
static float decay_shares(const float *decays, int64_t now, float *shares) {
    float sum = 0;
    for (int64_t i = now; i > 0; i--) shares[i - 1] = sum += decays[i];
    for (int64_t i = 0; i < now; i += L) store_part(shares + i, exp_of(load_part(shares + i, now - i)), now - i);
    return expf(sum + decays[0]);
}

/* One head's tokens of one page, `first` to `first + count` within it. arXiv 2412.06464, the memory rewritten at the
 * end of a page only: until then the tokens' errors u are what is remembered, and forward substitution gives
 *   u_t = beta_t (v_t - exp(G_t) S'k_t - sum over i < t of exp(G_t - G_i) (k_t . k_i) u_i)
 * with G the sum of log decays since the page's beginning.
 * values [count] rows of `ldv`, likewise out; betas and the page's decays of these tokens are known. The memory is of
 * numbers of `bytes`. */
static void delta_rule(const Model *m, const Scratch *s, int64_t bytes, const uint8_t *memory, Page page, int64_t head, int64_t first,
                       int64_t count, const float *values, int64_t ldv, const float *betas, float *out, int64_t ldo) {
    const int64_t K = m->key, V = m->value;
    float *keys = page.keys + head * PAGE * K, *errors = page.errors + head * PAGE * V;
    const float *decays = page.decays + head * PAGE;
    memcpy(keys + first * K, s->queries, (size_t)(count * K) * sizeof(float));
    kept_product(bytes, 0, 2 * count, s->queries, K, memory, V, K, s->recalled, V, V);
    for (int64_t t = 0; t < count; t++) {
        const int64_t now = first + t;
        const float *key = s->queries + t * K, *query = s->queries + (count + t) * K;
        const float since = decay_shares(decays, now, s->shares);
        for (int64_t i = 0; i < now; i++) {
            const float share = s->shares[i];
            s->shares[i] = share * dot(key, keys + i * K, K);
            s->shares[PAGE + i] = share * dot(query, keys + i * K, K);
        }
        product(2, s->shares, PAGE, errors, V, now, s->gained, V, V);
        const float beta = betas[t], same = dot(query, key, K);
        const float *restrict by_key = s->recalled + t * V, *restrict by_query = s->recalled + (count + t) * V;
        const float *restrict gained = s->gained, *restrict value = values + t * ldv;
        float *restrict error = errors + now * V, *restrict o = out + t * ldo;
        for (int64_t v = 0; v < V; v++) error[v] = beta * (value[v] - (since * by_key[v] + gained[v]));
        for (int64_t v = 0; v < V; v++) o[v] = (since * by_query[v] + gained[V + v]) + same * error[v];
    }
}

/* The memory after a whole page: exp(G) S + sum over i of exp(G - G_i) k_i u_i'. target may be memory;
 * halves are written if there is room for them. */
static void rewrite(const Model *m, const Scratch *s, const float *memory, Page page, int64_t head, float *target,
                    uint16_t *halves) {
    const int64_t K = m->key, V = m->value;
    const float *keys = page.keys + head * PAGE * K;
    float share[PAGE];
    const float since = decay_shares(page.decays + head * PAGE, PAGE - 1, share);
    share[PAGE - 1] = 1;
    for (int64_t i = 0; i < PAGE; i++)
        for (int64_t k = 0; k < K; k++) s->shares[k * PAGE + i] = keys[i * K + k] * share[i];
    product(K, s->shares, PAGE, page.errors + head * PAGE * V, V, PAGE, s->gained, V, V);
    for (int64_t i = 0; i < K * V; i++) target[i] = since * memory[i] + s->gained[i];
    if (halves) to_halves(target, K * V, halves);
}

/* A job of one mixer: tasks are the heads of every sequence. */
typedef struct {
    const Model *m;
    const uint8_t *weights;
    const Mixer *mixer;
    const Call *call;
    int64_t index, count; /* of this mixer among those of its kind, and how many there are */
    const Scratch *s;     /* [threads] */
} Mixing;

/* `n` channels of one token's short convolution and its SiLU; input [conv] rows, the latest last. */
static void convolve(const float *const *input, int64_t conv, const float *taps, int64_t channels, int64_t from,
                     int64_t n, float *out) {
    for (int64_t c = 0; c < n; c += L) {
        vf sum = {0};
        for (int64_t j = 0; j < conv; j++)
            sum += load_part(input[j] + from + c, n - c) * load_part(taps + j * channels + from + c, n - c);
        store_part(out + c, silu_of(sum), n - c);
    }
}

/* What core_floats rows of every sequence leave for later calls: the convolution's tails, and of a page that goes on in
 * new rows the old ones. */
static void keep_rows(const Model *m, const Call *call, int64_t gdn, const Scratch *s) {
    const int64_t C = channels(m), W = m->conv - 1, ldc = core_floats(m), T = call->tokens;
    for (int64_t b = 0; b < call->batch; b++) {
        const Sequence *q = call->sequences + b;
        const float *tail = q->old_tails + gdn * W * C, *core = s->core + b * T * ldc;
        if (q->position / PAGE != (q->position + T) / PAGE)
            memcpy(q->rows + gdn * page_floats(m), q->old_rows + gdn * page_floats(m),
                   (size_t)page_floats(m) * sizeof(float));
        for (int64_t i = 0; i < W; i++) {
            const int64_t t = T - W + i;
            memcpy(q->tails + (gdn * W + i) * C, t >= 0 ? core + t * ldc : tail + (W + t) * C,
                   (size_t)C * sizeof(float));
        }
    }
}

/* Inlined, because GCC drops calls of functions that do nothing but ask. */
INLINE void ask_for(const void *from, int64_t bytes, int64_t share, int64_t shares) {
    const int64_t lines = (bytes + 63) / 64;
    for (int64_t i = lines * share / shares; i < lines * (share + 1) / shares; i++)
        __builtin_prefetch((const char *)from + 64 * i);
}

/* Asks for a share of what gdn_head will read of a sequence in pieces: the tails, and the keys and errors of the page.
 * The memory is read in one sweep, which the product asks for itself. */
INLINE void ask_for_sequence(const Mixing *w, int64_t b, int64_t share, int64_t shares) {
    const Model *m = w->m;
    const Sequence *q = w->call->sequences + b;
    const int64_t H = m->heads, K = m->key, V = m->value, tail = (m->conv - 1) * channels(m), seen = q->position % PAGE;
    ask_for(q->old_tails + w->index * tail, tail * (int64_t)sizeof(float), share, shares);
    const float *keys = q->old_rows + w->index * page_floats(m), *errors = keys + H * PAGE * K;
    for (int64_t h = H * share / shares; h < H * (share + 1) / shares; h++) {
        ask_for(keys + h * PAGE * K, seen * K * (int64_t)sizeof(float), 0, 1);
        ask_for(errors + h * PAGE * V, seen * V * (int64_t)sizeof(float), 0, 1);
    }
}

/* The same of the first sequence, and of the convolution's taps. */
static void ask_for_first(const void *job, int64_t share, int64_t shares) {
    const Mixing *w = job;
    ask_for(w->weights + w->mixer->conv, w->m->conv * channels(w->m) * (int64_t)sizeof(float), share, shares);
    ask_for_sequence(w, 0, share, shares);
}

/* One head's core_floats rows of one sequence, convolved and normalised, through the recurrence into `mixed`. */
static void gdn_head(const void *job, int64_t task, int64_t member) {
    const Mixing *w = job;
    const Model *m = w->m;
    const Mixer *mixer = w->mixer;
    const Scratch *s = w->s + member;
    const int64_t H = m->heads, K = m->key, V = m->value, C = channels(m), W = m->conv - 1, ldc = core_floats(m);
    const int64_t T = w->call->tokens, b = task / H, h = task % H, gdn = w->index, ldv = 2 * K + V;
    const Sequence *q = w->call->sequences + b;
    const float *taps = (const float *)(w->weights + mixer->conv);
    const float decay = ((const float *)(w->weights + mixer->decay))[h];
    const float dt = ((const float *)(w->weights + mixer->dt))[h];
    const float *o_norm = (const float *)(w->weights + mixer->o_norm);
    const float eps = *(const float *)(w->weights + m->reals), scale = 1.0f / sqrtf((float)K);
    const float *tail = q->old_tails + gdn * W * C, *core = s->core + b * T * ldc;
    const Page page = page_at(m, q->rows, gdn);
    const float *memory = q->old_memory + (gdn * H + h) * K * V;
    float *target = q->memory + (gdn * H + h) * K * V, *mixed = s->mixed + b * T * H * V + h * V;
    const int64_t bytes = memory_bytes(m), floats = w->count * H * K * V; /* of all memories, before the halves */
    uint16_t *halves = bytes == 2 ? (uint16_t *)(q->memory + floats) + (gdn * H + h) * K * V : NULL;
    const uint8_t *read = bytes == 2 ? (const uint8_t *)((const uint16_t *)(q->old_memory + floats) + (gdn * H + h) * K * V)
                                     : (const uint8_t *)memory;

    if (T == 1 && p88_ahead && b + 1 < w->call->batch) ask_for_sequence(w, b + 1, h, H);
    for (int64_t start = 0; start < T;) {
        const int64_t first = (q->position + start) % PAGE;
        const int64_t count = T - start < PAGE - first ? T - start : PAGE - first;
        float betas[PAGE];
        for (int64_t t = 0; t < count; t++) {
            const float *row = core + (start + t) * ldc;
            float *mix = s->conv + t * ldv;
            const float *input[LARGEST_CONV];
            for (int64_t j = 0; j <= W; j++) {
                const int64_t back = start + t + j - W;
                input[j] = back >= 0 ? core + back * ldc : tail + (W + back) * C;
            }
            convolve(input, m->conv, taps, C, h * K, K, mix);
            convolve(input, m->conv, taps, C, (H + h) * K, K, mix + K);
            convolve(input, m->conv, taps, C, 2 * H * K + h * V, V, mix + 2 * K);
            for (int64_t i = 0; i < 2; i++) {
                float *part = mix + i * K;
                const float factor = (i == 0 ? scale : 1.0f) / sqrtf(sum_of_squares(part, K, 0) + 1e-6f);
                for (int64_t k = 0; k < K; k++) part[k] *= factor;
            }
            memcpy(s->queries + t * K, mix + K, (size_t)K * sizeof(float));
            memcpy(s->queries + (count + t) * K, mix, (size_t)K * sizeof(float));
            const float *a = row + C + H * V, *step = a + H;
            page.decays[h * PAGE + first + t] = decay * softplus(a[h] + dt);
            betas[t] = sigmoid(step[h]);
        }
        delta_rule(m, s, bytes, read, page, h, first, count, s->conv + 2 * K, ldv, betas, mixed + start * H * V, H * V);
        if (first + count == PAGE) {
            rewrite(m, s, memory, page, h, target, halves);
            memory = target;
            read = halves ? (const uint8_t *)halves : (const uint8_t *)target;
        }
        start += count;
    }

    for (int64_t t = 0; t < T; t++) {
        float *o = mixed + t * H * V;
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

/* Queries and keys of all rows turned to their positions, the queries scaled. */
static void turn(const Model *m, const uint8_t *weights, const Call *call, const Scratch *s) {
    const float *rotary = (const float *)(weights + m->rotary);
    const float scale = 1.0f / sqrtf((float)m->head_dim);
    for (int64_t r = 0; r < call->batch * call->tokens; r++) {
        const int64_t position = call->sequences[r / call->tokens].position + r % call->tokens;
        const float *angles = rotary + position * m->head_dim;
        float *row = s->core + r * qkv_floats(m);
        for (int64_t h = 0; h < m->q_heads + m->kv_heads; h++) rotate(m, angles, row + h * m->head_dim);
        for (int64_t i = 0; i < m->width; i++) row[i] *= scale;
    }
}

/* qkv_floats rows of one sequence through causal attention of one key/value head into `mixed`; keys and values join the
 * cache. The sequences' common prefix stays in the nearer caches if they take their turns head by head. */
static void attend(const void *job, int64_t task, int64_t member) {
    const Mixing *w = job;
    const Model *m = w->m;
    const Call *call = w->call;
    const Scratch *s = w->s + member;
    const int64_t g = task / call->batch, b = task % call->batch, gqa = w->index;
    const int64_t E = m->head_dim, shared = m->q_heads / m->kv_heads, ldq = qkv_floats(m), T = call->tokens;
    const Sequence *q = call->sequences + b;
    const int64_t lds = scores_floats(m), prefix = q->prefix;
    const int64_t bytes = m->kept_bytes, each = E * bytes;
    const uint8_t *prefix_keys = q->prefix_keys + (gqa * m->kv_heads + g) * q->prefix_capacity * each;
    const uint8_t *prefix_values = q->prefix_values + (gqa * m->kv_heads + g) * q->prefix_capacity * each;
    uint8_t *keys = q->keys + (gqa * m->kv_heads + g) * q->capacity * each;
    uint8_t *values = q->values + (gqa * m->kv_heads + g) * q->capacity * each;
    float *qkv = s->core + b * T * ldq, *mixed = s->mixed + b * T * m->width;
    for (int64_t t = 0; t < T; t++) {
        const int64_t at = q->position + t - prefix;
        const float *k = qkv + t * ldq + m->width + g * E, *v = k + m->kv_heads * E;
        for (int64_t e = 0; e < E; e++) {
            keep(bytes, keys, at / KEYS * KEYS * E + e * KEYS + at % KEYS, k[e]);
            keep(bytes, values, at * E + e, v[e]);
        }
    }
    for (int64_t start = 0; start < T; start += TILE) {
        const int64_t tile = T - start < TILE ? T - start : TILE, rows = tile * shared;
        const int64_t seen = q->position + start + tile;
        for (int64_t t = 0; t < tile; t++)
            memcpy(s->tile_in + t * shared * E, qkv + (start + t) * ldq + g * shared * E,
                   (size_t)(shared * E) * sizeof(float));
        for (int64_t key = 0; key < seen; key += KEYS)
            kept_product(bytes, 0, rows, s->tile_in, E,
                         key < prefix ? prefix_keys + key * each : keys + (key - prefix) * each, KEYS, E,
                         s->scores + key, lds, KEYS);
        for (int64_t r = 0; r < rows; r++) {
            const int64_t visible = seen - tile + r / shared + 1;
            softmax(s->scores + r * lds, visible);
            for (int64_t i = visible; i < seen; i++) s->scores[r * lds + i] = 0;
        }
        if (prefix) kept_product(bytes, 0, rows, s->scores, lds, prefix_values, E, prefix, s->tile_out, E, E);
        kept_product(bytes, prefix > 0, rows, s->scores + prefix, lds, values, E, seen - prefix, s->tile_out, E, E);
        for (int64_t t = 0; t < tile; t++)
            memcpy(mixed + (start + t) * m->width + g * shared * E, s->tile_out + t * shared * E,
                   (size_t)(shared * E) * sizeof(float));
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

void FORWARD(const Model *m, const uint8_t *weights, const Call *call, Crew *crew) {
    const int64_t T = call->tokens, M = call->batch * T, D = m->width;
    const float *tokens = (const float *)(weights + m->tokens_table);
    const float *positions = (const float *)(weights + m->positions_table);
    const float logit_scale = ((const float *)(weights + m->reals))[1];
    Scratch s[LARGEST_CREW];
    for (int64_t i = 0; i < call->threads; i++) carve(m, M, call->scratch, i, s + i);

    for (int64_t r = 0; r < M; r++) {
        const float *token = tokens + call->ids[r] * D;
        const float *position = positions + (call->sequences[r / T].position + r % T) * D;
        for (int64_t i = 0; i < D; i++) s->x[r * D + i] = token[i] + position[i];
    }
    int64_t gdn = 0, gqa = 0, gdns = 0;
    for (int64_t i = 0; i < m->mixers; i++) gdns += m->mixer[i].kind == GDN;
    for (const Mixer *mixer = m->mixer; mixer < m->mixer + m->mixers; mixer++) {
        norm_rows(m, weights, mixer->norm_weight, mixer->norm_bias, M, s->x, s->normed);
        if (mixer->kind == GDN) {
            const int64_t ldi = round_up(m->inner, PANEL), width = m->heads * m->value;
            multiply(weights, &mixer->in, M, s->normed, D, s->inner, ldi, s, crew);
            const Mixing job = {m, weights, mixer, call, gdn, gdns, s};
            const Soon soon = {ask_for_first, &job};
            multiply_asking(weights, &mixer->core, M, s->inner, ldi, s->core, core_floats(m), s,
                            T == 1 && p88_ahead ? &soon : NULL, crew);
            keep_rows(m, call, gdn, s);
            p88_crew_share(crew, gdn_head, &job, call->batch * m->heads);
            if (mixer->merge.rows) multiply(weights, &mixer->merge, M, s->mixed, width, s->inner, ldi, s, crew);
            const float *given = mixer->merge.rows ? s->inner : s->mixed;
            multiply(weights, &mixer->out, M, given, mixer->merge.rows ? ldi : width, s->added, added_floats(m), s, crew);
            gdn++;
        } else {
            multiply(weights, &mixer->in, M, s->normed, D, s->core, qkv_floats(m), s, crew);
            turn(m, weights, call, s);
            const Mixing job = {m, weights, mixer, call, gqa, m->mixers - gdns, s};
            p88_crew_share(crew, attend, &job, call->batch * m->kv_heads);
            multiply(weights, &mixer->out, M, s->mixed, D, s->added, added_floats(m), s, crew);
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
    multiply(weights, &m->head, call->batch * each, s->normed, D, logits, room, s, crew);
    for (int64_t r = 0; r < call->batch * each; r++)
        for (int64_t i = 0; i < m->vocabulary; i++)
            call->logits[r * m->vocabulary + i] = logits[r * room + i] * logit_scale;
}
