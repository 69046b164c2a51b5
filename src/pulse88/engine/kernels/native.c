/* What Python calls: packing of weights, the check of a plan, the choice of a kernel. A plain shared library. */
#include "native.h"

#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

enum { FLOATS, WORDS, BYTES }; /* forms of packed weights */
enum { BASELINE, AVX2, AVX512, AVX512VNNI };
enum { SHARED_ROWS = 4 }; /* from here on waking helpers costs less than they take over */

/* Sizes that Python relies on; they must be what its side says. */
EXPORT int64_t p88_size_of(int64_t what) {
    switch (what) {
        case 0: return sizeof(Call);
        case 1: return sizeof(Model) / sizeof(int64_t);
        case 2: return sizeof(Mixer) / sizeof(int64_t);
        case 3: return PAGE;
        case 4: return KEYS;
        case 5: return sizeof(Sequence);
        case 6: return sizeof(float) + sizeof(uint16_t);
        default: return -1;
    }
}

int64_t p88_ahead = 8192;
static int runs[] = {1, 0, 0, 0}; /* by kernel */

#if defined(__x86_64__)
/* AMD's processors up to Zen 4, whose hardware asks for weights better than software does: a step takes a twelfth less
 * without it. On Zen 5 it takes a fifth less with it, and Intel's need it. */
static int asks_well_itself(void) {
    unsigned a, b, c, d;
    return __builtin_cpu_is("amd") && __get_cpuid(1, &a, &b, &c, &d) && (a >> 8 & 15) + (a >> 20 & 255) < 0x1a;
}

/* Asked once, when the library is opened: in a virtual machine each question takes microseconds. */
__attribute__((constructor)) static void look_at_processor(void) {
    unsigned a, b, c, d;
    __builtin_cpu_init();
    runs[AVX2] = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) &&
                 (c & bit_F16C);
    runs[AVX512] = runs[AVX2] && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vl");
    runs[AVX512VNNI] = runs[AVX512] && __builtin_cpu_supports("avx512vnni");
    if (asks_well_itself()) p88_ahead = 0;
}
#endif

/* Whether this machine runs a kernel. */
EXPORT int p88_runs(int kernel) { return kernel >= 0 && kernel <= AVX512VNNI && runs[kernel]; }

/* How a kernel takes int8 weights: WORDS or BYTES, see p88_pack. */
EXPORT int p88_form(int kernel) { return kernel == AVX512VNNI ? BYTES : WORDS; }

/* Bytes of a packed matrix; -1 for one that can't be packed in this form. */
EXPORT int64_t p88_packed_bytes(int form, int64_t rows, int64_t cols) {
    const int64_t limit = 1 << 16; /* columns whose sum of bytes stays within 32 bits */
    if (rows <= 0 || cols <= 0 || (form != FLOATS && (cols % 4 || cols > limit))) return -1;
    return round_up(rows, PANEL) * cols * (form == FLOATS ? 4 : 1);
}

/* A row-major matrix into groups of panels. Within a group of n panels, float32 is [cols, n * PANEL]; int8 is
 * [cols / 4, n * PANEL] words of four inputs of one output, q0 + 2^8 q1 + 2^16 q2 + 2^24 q3, or four bytes, each 128
 * larger than q. Outputs past the matrix's rows are zeros, or bytes that nobody looks at. */
EXPORT int p88_pack(int form, const void *source, int64_t rows, int64_t cols, uint8_t *packed, int64_t bytes) {
    if (form < FLOATS || form > BYTES || bytes < 0 || p88_packed_bytes(form, rows, cols) != bytes) return 0;
    for (int64_t first = 0; first < rows; first += GROUP * PANEL) {
        const int64_t left = round_up(rows - first, PANEL), width = left < GROUP * PANEL ? left : GROUP * PANEL;
        if (rows - first < width) memset(packed, 0, (size_t)(width * cols * (form == FLOATS ? 4 : 1)));
        const int64_t stop = rows < first + width ? rows : first + width;
        if (form == FLOATS)
            for (int64_t c = 0; c < cols; c++)
                for (int64_t r = first; r < stop; r++)
                    memcpy(packed + (c * width + r - first) * 4, (const float *)source + r * cols + c, 4);
        else
            for (int64_t c = 0; c < cols; c += 4)
                for (int64_t r = first; r < stop; r++) {
                    const int8_t *q = (const int8_t *)source + r * cols + c;
                    uint32_t word;
                    memcpy(&word, q, sizeof word);
                    if (form == BYTES) word ^= 0x80808080u;
                    else word = (uint32_t)(q[0] + q[1] * 256 + q[2] * 65536) + ((uint32_t)(uint8_t)q[3] << 24);
                    memcpy(packed + (c / 4 * width + r - first) * 4, &word, 4);
                }
        packed += width * cols * (form == FLOATS ? 4 : 1);
    }
    return 1;
}

static int within(int64_t offset, int64_t length, int64_t bytes) {
    return offset >= 0 && offset % 4 == 0 && length >= 0 && length <= bytes && offset <= bytes - length;
}

static int floats_within(int64_t offset, int64_t count, int64_t bytes) {
    return count >= 0 && count <= bytes / 4 && within(offset, 4 * count, bytes);
}

static int matrix_within(const Matrix *matrix, int64_t rows, int64_t cols, int64_t bytes) {
    const int is_int8 = matrix->scale >= 0;
    if (matrix->rows != rows || matrix->cols != cols || rows <= 0 || cols <= 0 || rows > bytes || cols > bytes / rows)
        return 0;
    const int64_t length = p88_packed_bytes(is_int8 ? BYTES : FLOATS, rows, cols);
    return length >= 0 && within(matrix->data, length, bytes) &&
           (!is_int8 || floats_within(matrix->scale, round_up(rows, PANEL), bytes));
}

/* Whether every offset and size of a plan of `count` values lies within `bytes` of weights. */
EXPORT int p88_check(const int64_t *plan, int64_t count, int64_t bytes) {
    const int64_t header = sizeof(Model) / sizeof(int64_t), each = sizeof(Mixer) / sizeof(int64_t);
    const Model *m = (const Model *)plan;
    const int64_t limit = 1 << 24; /* of any width, so that no product overflows */
    if (count < header || m->mixers < 0 || m->mixers > (count - header) / each) return 0;
    if (count != header + m->mixers * each) return 0;
    const int64_t sizes[] = {m->vocabulary, m->width, m->positions, m->inner, m->heads, m->key,
                             m->value, m->conv, m->q_heads, m->kv_heads, m->head_dim};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i] <= 0 || sizes[i] > limit) return 0;
    if (m->conv > LARGEST_CONV || m->heads > LARGEST_HEADS) return 0;
    if (m->kept_bytes != 2 && m->kept_bytes != 4) return 0;
    if (m->q_heads % m->kv_heads || m->q_heads * m->head_dim != m->width || m->head_dim % 2) return 0;
    const int64_t keys = m->heads * m->key, values = m->heads * m->value;
    const int64_t shared = m->kv_heads * m->head_dim;
    int ok = floats_within(m->reals, 2, bytes) && floats_within(m->tokens_table, m->vocabulary * m->width, bytes) &&
             floats_within(m->positions_table, m->positions * m->width, bytes) &&
             floats_within(m->rotary, m->positions * m->head_dim, bytes) &&
             floats_within(m->final_weight, m->width, bytes) && floats_within(m->final_bias, m->width, bytes) &&
             matrix_within(&m->head, m->vocabulary, m->width, bytes);
    for (const Mixer *x = m->mixer; ok && x < m->mixer + m->mixers; x++) {
        ok = floats_within(x->norm_weight, m->width, bytes) && floats_within(x->norm_bias, m->width, bytes);
        if (x->kind == GDN)
            ok = ok && matrix_within(&x->in, m->inner, m->width, bytes) &&
                 matrix_within(&x->core, 2 * (keys + values + m->heads), m->inner, bytes) &&
                 (!x->merge.rows || matrix_within(&x->merge, m->inner, values, bytes)) &&
                 matrix_within(&x->out, m->width, x->merge.rows ? m->inner : values, bytes) &&
                 floats_within(x->conv, m->conv * channels(m), bytes) && floats_within(x->decay, m->heads, bytes) &&
                 floats_within(x->dt, m->heads, bytes) && floats_within(x->o_norm, m->value, bytes);
        else
            ok = ok && x->kind == GQA && matrix_within(&x->in, m->width + 2 * shared, m->width, bytes) &&
                 matrix_within(&x->out, m->width, m->width, bytes);
    }
    return ok;
}

EXPORT int64_t p88_page_floats(const int64_t *plan) { return page_floats((const Model *)plan); }

/* For some rows and threads, 1 or more. */
EXPORT int64_t p88_scratch_floats(const int64_t *plan, int64_t rows, int64_t threads) {
    Scratch scratch;
    return carve((const Model *)plan, rows, NULL, threads - 1, &scratch);
}

/* One forward pass of a plan that p88_check has passed. Returns 0 if the call doesn't fit the plan. */
EXPORT int p88_forward(int kernel, const int64_t *plan, const uint8_t *weights, const Call *call) {
    const Model *m = (const Model *)plan;
    if (call->batch < 1 || call->batch > (int64_t)1 << 20 || call->tokens < 1 || call->tokens > m->positions) return 0;
    for (const Sequence *q = call->sequences; q < call->sequences + call->batch; q++) {
        if (q->position < 0 || call->tokens > m->positions - q->position) return 0;
        if (q->prefix < 0 || q->prefix > q->position || q->prefix % KEYS) return 0;
        if (q->prefix_capacity % KEYS || q->prefix_capacity < q->prefix) return 0;
        if (q->capacity % KEYS || q->capacity < q->position + call->tokens - q->prefix) return 0;
    }
    const int64_t rows = call->batch * call->tokens;
    if (call->threads < 1 || call->threads > LARGEST_CREW || (call->crew && call->threads < p88_crew_size(call->crew)))
        return 0;
    if (call->scratch_floats < p88_scratch_floats(plan, rows, call->threads)) return 0;
    for (int64_t i = 0; i < rows; i++)
        if (call->ids[i] < 0 || call->ids[i] >= m->vocabulary) return 0;
    if (!p88_runs(kernel)) return 0;
    Crew *crew = rows >= SHARED_ROWS ? p88_crew_take(call->crew) : NULL;
#if defined(__x86_64__)
    if (kernel == AVX512VNNI) p88_forward_avx512vnni(m, weights, call, crew);
    else if (kernel == AVX512) p88_forward_avx512(m, weights, call, crew);
    else if (kernel == AVX2) p88_forward_avx2(m, weights, call, crew);
    else
#endif
        p88_forward_baseline(m, weights, call, crew);
    p88_crew_give(crew);
    return 1;
}
