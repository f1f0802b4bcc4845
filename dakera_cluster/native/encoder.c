/* A BERT encoder (post-layer-norm, exact GELU) over 8-bit integers: rows of activations are quantised one by one, weights
   came quantised by column. The same arithmetic as the graph that inference/build.py writes, in one pass over the weights
   and without a node of a graph between two loops.

   Texts lie behind one another, unpadded, and every row of every step is computed in one order of its own: a text's vectors
   are the same bit for bit whatever it is encoded with. The inner products need the 8-bit dot products of AVX-512 (VNNI);
   where a processor lacks them, encoder_runs says no and nothing here may be called.

   Work is laid out for the caches: weights are kept in panels of PANEL columns in the order they are used, each read from
   memory once a pass and from the nearest cache by all blocks of rows; a block of rows stays in registers. */

#include <math.h>

#include "portable.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#define FAST __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")))
#define FAST_INLINED FAST INLINED
/* Floats of a vector, and columns of a panel: four vectors. */
#define LANES 16
#define VECTORS 4
#define PANEL (LANES * VECTORS)
/* Rows whose sums stay in registers: 6 x 4 sums, 4 vectors of weights, one of activations. */
#define ROWS 6
/* Rows that go through the wide inner layer together: its activations must stay in the cache of a core. */
#define INNER_ROWS 64
/* Rows of a text whose attention is computed together. */
#define QUERIES 4
#define INT8_MAX_F 127.0f
#define UINT8_ZERO 128
#define SCALE_FLOOR 1e-9f
#define ALIGNED 64

int encoder_runs(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

/* -- functions of a vector ------------------------------------------------------------------------------------------- */

/* 2^y for y <= 0: a power of two times the Taylor series of 2^r, |r| <= 1/2 (relative error 2e-7). */
FAST_INLINED __m512 power_of_two(__m512 y) {
    y = _mm512_max_ps(y, _mm512_set1_ps(-126.0f));
    __m512 whole = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 rest = _mm512_sub_ps(y, whole);
    __m512 sum = _mm512_set1_ps(1.5403530e-4f);
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.3333558e-3f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(9.6181291e-3f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(5.5504109e-2f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(2.4022651e-1f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(6.9314718e-1f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(sum, whole);
}

/* x times the normal distribution function of x, by Abramowitz and Stegun 7.1.26 (absolute error of erf 1.5e-7): beyond is
   half of erfc(|x| / sqrt 2), so their factors are halved here, and p is theirs over sqrt 2. */
FAST_INLINED __m512 gelu_of(__m512 x) {
    __m512 below = _mm512_fmadd_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.23164189f), _mm512_set1_ps(1.0f));
    /* 1 / below: fourteen bits and a step of Newton's, a third of a division's time. */
    __m512 t = _mm512_rcp14_ps(below);
    t = _mm512_mul_ps(t, _mm512_fnmadd_ps(below, t, _mm512_set1_ps(2.0f)));
    __m512 sum = _mm512_set1_ps(0.5307027145f);
    sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(-0.7265760135f));
    sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(0.7107068705f));
    sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(-0.142248368f));
    sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(0.127414796f));
    __m512 decay = power_of_two(_mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.72134752f)));
    __m512 beyond = _mm512_mul_ps(_mm512_mul_ps(sum, t), decay), part = _mm512_mul_ps(x, beyond);
    __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_mask_sub_ps(part, positive, x, part);
}

/* -- rows ------------------------------------------------------------------------------------------------------------ */

/* A row of floats as bytes around UINT8_ZERO; what one step is worth goes to scale. */
FAST static void quantise(const float *values, long width, uint8_t *bytes, float *scale) {
    __m512 peaks = _mm512_setzero_ps();
    for (long at = 0; at < width; at += LANES) peaks = _mm512_max_ps(peaks, _mm512_abs_ps(_mm512_loadu_ps(values + at)));
    float peak = _mm512_reduce_max_ps(peaks);
    if (!(peak > SCALE_FLOOR)) peak = SCALE_FLOOR;
    *scale = peak / INT8_MAX_F;
    __m512 steps = _mm512_set1_ps(INT8_MAX_F / peak);
    for (long at = 0; at < width; at += LANES) {
        __m512i step = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(values + at), steps));
        step = _mm512_add_epi32(step, _mm512_set1_epi32(UINT8_ZERO));
        _mm_storeu_si128((__m128i *)(bytes + at), _mm512_cvtepi32_epi8(step));
    }
}

FAST static void normalise(const float *values, const float *weight, const float *bias, float epsilon, long width,
                           float *to) {
    __m512 sums = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    for (long at = 0; at < width; at += LANES) sums = _mm512_add_ps(sums, _mm512_loadu_ps(values + at));
    __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sums) / width);
    for (long at = 0; at < width; at += LANES) {
        __m512 gap = _mm512_sub_ps(_mm512_loadu_ps(values + at), mean);
        squares = _mm512_fmadd_ps(gap, gap, squares);
    }
    __m512 shrink = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / width + epsilon));
    for (long at = 0; at < width; at += LANES) {
        __m512 gap = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(values + at), mean), shrink);
        _mm512_storeu_ps(to + at, _mm512_fmadd_ps(gap, _mm512_loadu_ps(weight + at), _mm512_loadu_ps(bias + at)));
    }
}

/* -- products -------------------------------------------------------------------------------------------------------- */

typedef enum { PLAIN, GELU, ADDED } finish;

/* The sums of `rows` (a constant to the compiler) rows and one panel, int32[rows, PANEL]. Meanwhile the vectors from `fetched` to
   `fetch_to` of every step of the next panel are called to the cache: the blocks of rows share that out, because memory that is
   asked for all at once keeps the sums waiting. What becomes of the sums is another function's work: this loop needs every
   register. */
FAST_INLINED void sum_block(const int rows, const dense_weights *dense, long panel, const uint8_t *bytes, int32_t *to,
                            int fetched, int fetch_to) {
    long inner = dense->inner;
    const int8_t *weights = dense->panels + panel * inner * PANEL, *ahead = weights + inner * PANEL;
    __m512i sums[ROWS][VECTORS];
    for (int row = 0; row < rows; row++)
        for (int vector = 0; vector < VECTORS; vector++)
            sums[row][vector] = _mm512_loadu_si512(dense->starts + panel * PANEL + vector * LANES);
    for (long at = 0; at < inner; at += 4) {
        __m512i own[VECTORS];
        for (int vector = 0; vector < VECTORS; vector++) {
            own[vector] = _mm512_loadu_si512(weights + at * PANEL + vector * 64);
            if (vector >= fetched && vector < fetch_to)
                _mm_prefetch((const char *)(ahead + at * PANEL + vector * 64), _MM_HINT_T1);
        }
        for (int row = 0; row < rows; row++) {
            int32_t four;
            memcpy(&four, bytes + row * inner + at, 4);
            __m512i activations = _mm512_set1_epi32(four);
            for (int vector = 0; vector < VECTORS; vector++)
                sums[row][vector] = _mm512_dpbusd_epi32(sums[row][vector], activations, own[vector]);
        }
    }
    for (int row = 0; row < rows; row++)
        for (int vector = 0; vector < VECTORS; vector++)
            _mm512_storeu_si512(to + row * PANEL + vector * LANES, sums[row][vector]);
}

/* Sums as floats, finished. `added` and `to` have the shape float[rows, outer]. */
FAST_INLINED void finish_block(const finish how, long rows, const dense_weights *dense, long panel, const int32_t *sums,
                               const float *row_scales, const float *added, float *to) {
    long outer = dense->outer, stop = outer < (panel + 1) * PANEL ? outer : (panel + 1) * PANEL;
    for (long row = 0; row < rows; row++) {
        __m512 row_scale = _mm512_set1_ps(row_scales[row]);
        for (long column = panel * PANEL; column < stop; column += LANES) {
            __m512 sum = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + row * PANEL + column - panel * PANEL));
            __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(dense->scales + column), row_scale);
            __m512 value = _mm512_fmadd_ps(sum, scale, _mm512_loadu_ps(dense->bias + column));
            if (how == GELU) value = gelu_of(value);
            if (how == ADDED) value = _mm512_add_ps(value, _mm512_loadu_ps(added + row * outer + column));
            _mm512_storeu_ps(to + row * outer + column, value);
        }
    }
}

/* `count` quantised rows times a matrix, finished: float[count, outer]. `added` has the same shape. */
FAST_INLINED void multiply(const finish how, const dense_weights *dense, const uint8_t *bytes, const float *row_scales,
                           long count, const float *added, float *to) {
    long inner = dense->inner, outer = dense->outer;
    long blocks = (count + ROWS - 1) / ROWS, fetching = blocks < VECTORS ? blocks : VECTORS;
    int32_t sums[ROWS * PANEL];
    for (long panel = 0; panel * PANEL < outer; panel++) {
        for (long block = 0; block < blocks; block++) {
            long row = block * count / blocks, rows = (block + 1) * count / blocks - row;
            const uint8_t *from = bytes + row * inner;
            int fetched = block * VECTORS / fetching, fetch_to = (block + 1) * VECTORS / fetching;
            switch (rows) {
                case 1: sum_block(1, dense, panel, from, sums, fetched, fetch_to); break;
                case 2: sum_block(2, dense, panel, from, sums, fetched, fetch_to); break;
                case 3: sum_block(3, dense, panel, from, sums, fetched, fetch_to); break;
                case 4: sum_block(4, dense, panel, from, sums, fetched, fetch_to); break;
                case 5: sum_block(5, dense, panel, from, sums, fetched, fetch_to); break;
                default: sum_block(ROWS, dense, panel, from, sums, fetched, fetch_to); break;
            }
            finish_block(how, rows, dense, panel, sums, row_scales + row, how == ADDED ? added + row * outer : NULL,
                         to + row * outer);
        }
    }
}

FAST static void project(const dense_weights *dense, const uint8_t *bytes, const float *row_scales, long count, float *to) {
    multiply(PLAIN, dense, bytes, row_scales, count, NULL, to);
}

FAST static void activate(const dense_weights *dense, const uint8_t *bytes, const float *row_scales, long count, float *to) {
    multiply(GELU, dense, bytes, row_scales, count, NULL, to);
}

FAST static void add(const dense_weights *dense, const uint8_t *bytes, const float *row_scales, long count,
                     const float *added, float *to) {
    multiply(ADDED, dense, bytes, row_scales, count, added, to);
}

/* -- attention ------------------------------------------------------------------------------------------------------- */

/* The context of `rows` (a constant to the compiler) rows of one head. `keys`: float[head width, padded], turned; `values`: rows
   of the text, `stride` floats apart; `shares`: room for rows x padded floats. */
FAST_INLINED void attend(const int rows, const float *queries, const float *keys, const float *values, long stride,
                         long length, long padded, long head_width, float *shares, float *context, long width) {
    /* Scores in powers of two: e^s = 2^(s log2 e). */
    __m512 factor = _mm512_set1_ps(1.44269504f / sqrtf((float)head_width));
    float totals[QUERIES];
    for (long column = 0; column < padded; column += LANES) {
        __m512 sums[QUERIES];
        for (int row = 0; row < rows; row++) sums[row] = _mm512_setzero_ps();
        for (long at = 0; at < head_width; at++) {
            __m512 key = _mm512_loadu_ps(keys + at * padded + column);
            for (int row = 0; row < rows; row++)
                sums[row] = _mm512_fmadd_ps(_mm512_set1_ps(queries[row * stride + at]), key, sums[row]);
        }
        for (int row = 0; row < rows; row++)
            _mm512_storeu_ps(shares + row * padded + column, _mm512_mul_ps(sums[row], factor));
    }
    __mmask16 last = (__mmask16)(0xffff >> (padded - length));
    for (int row = 0; row < rows; row++) {
        float *own = shares + row * padded;
        __m512 peaks = _mm512_set1_ps(-INFINITY), sums = _mm512_setzero_ps();
        for (long column = 0; column < padded; column += LANES) {
            __mmask16 inside = column + LANES < padded ? 0xffff : last;
            peaks = _mm512_mask_max_ps(peaks, inside, peaks, _mm512_loadu_ps(own + column));
        }
        __m512 peak = _mm512_set1_ps(_mm512_reduce_max_ps(peaks));
        for (long column = 0; column < padded; column += LANES) {
            __mmask16 inside = column + LANES < padded ? 0xffff : last;
            __m512 share = _mm512_maskz_mov_ps(inside, power_of_two(_mm512_sub_ps(_mm512_loadu_ps(own + column), peak)));
            _mm512_storeu_ps(own + column, share);
            sums = _mm512_add_ps(sums, share);
        }
        totals[row] = 1.0f / _mm512_reduce_add_ps(sums);
    }
    /* Two vectors of the values at a time: what is broadcast serves both. A narrow head has one. */
    for (long part = 0; part < head_width; part += 2 * LANES) {
        int pair = part + LANES < head_width;
        __m512 sums[QUERIES][2];
        for (int row = 0; row < rows; row++) sums[row][0] = sums[row][1] = _mm512_setzero_ps();
        for (long at = 0; at < length; at++) {
            const float *value = values + at * stride + part;
            __m512 left = _mm512_loadu_ps(value), right = _mm512_loadu_ps(value + (pair ? LANES : 0));
            for (int row = 0; row < rows; row++) {
                __m512 share = _mm512_set1_ps(shares[row * padded + at]);
                sums[row][0] = _mm512_fmadd_ps(share, left, sums[row][0]);
                sums[row][1] = _mm512_fmadd_ps(share, right, sums[row][1]);
            }
        }
        for (int row = 0; row < rows; row++) {
            float *to = context + row * width + part;
            __m512 total = _mm512_set1_ps(totals[row]);
            _mm512_storeu_ps(to, _mm512_mul_ps(sums[row][0], total));
            if (pair) _mm512_storeu_ps(to + LANES, _mm512_mul_ps(sums[row][1], total));
        }
    }
}

/* The keys of a head, float[length, head_width] `stride` floats apart, as float[head_width, padded]. What lies past `length` in a
   row of the result is never looked at. */
FAST static void turn(const float *keys, long length, long stride, long head_width, long padded, float *to) {
    for (long at = 0; at < head_width; at += 4) {
        long row = 0;
        for (; row + 4 <= length; row += 4) {
            const float *from = keys + row * stride + at;
            __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + stride);
            __m128 c = _mm_loadu_ps(from + 2 * stride), d = _mm_loadu_ps(from + 3 * stride);
            _MM_TRANSPOSE4_PS(a, b, c, d);
            _mm_storeu_ps(to + at * padded + row, a);
            _mm_storeu_ps(to + (at + 1) * padded + row, b);
            _mm_storeu_ps(to + (at + 2) * padded + row, c);
            _mm_storeu_ps(to + (at + 3) * padded + row, d);
        }
        for (; row < length; row++)
            for (long step = 0; step < 4; step++) to[(at + step) * padded + row] = keys[row * stride + at + step];
    }
}

/* All heads of one text. `projected`: float[length, 3 width], queries, keys and values beside one another. */
FAST static void attention(const float *projected, long length, long width, long heads, float *room, float *context) {
    long head_width = width / heads, stride = 3 * width, padded = (length + LANES - 1) / LANES * LANES;
    float *keys = room, *shares = room + head_width * padded;
    long blocks = (length + QUERIES - 1) / QUERIES;
    for (long head = 0; head < heads; head++) {
        const float *queries = projected + head * head_width, *values = queries + 2 * width;
        float *to = context + head * head_width;
        turn(queries + width, length, stride, head_width, padded, keys);
        for (long block = 0; block < blocks; block++) {
            long row = block * length / blocks;
            const float *own = queries + row * stride;
            float *place = to + row * width;
            switch ((block + 1) * length / blocks - row) {
                case 1: attend(1, own, keys, values, stride, length, padded, head_width, shares, place, width); break;
                case 2: attend(2, own, keys, values, stride, length, padded, head_width, shares, place, width); break;
                case 3: attend(3, own, keys, values, stride, length, padded, head_width, shares, place, width); break;
                default: attend(QUERIES, own, keys, values, stride, length, padded, head_width, shares, place, width); break;
            }
        }
    }
}

/* -- the encoder ----------------------------------------------------------------------------------------------------- */

typedef struct {
    float *projected, *context, *scales, *room, *inner, *inner_scales;
    uint8_t *bytes, *inner_bytes;
} scratch;

static long rounded(long bytes) { return (bytes + ALIGNED - 1) / ALIGNED * ALIGNED; }

/* Lays the parts out behind `base` and returns how many bytes they take. */
static long lay_out(const encoder_weights *model, long rows, long longest, uint8_t *base, scratch *parts) {
    long width = model->width, wide = model->layers[0].up.outer, padded = (longest + LANES - 1) / LANES * LANES;
    long at = 0;
#define TAKE(part, count) (parts->part = (void *)(base + at), at += rounded((count) * (long)sizeof *parts->part))
    TAKE(projected, rows * 3 * width);
    TAKE(context, rows * width);
    TAKE(scales, rows);
    TAKE(bytes, rows * width);
    TAKE(room, (width / model->heads + QUERIES) * padded);
    TAKE(inner, INNER_ROWS * wide);
    TAKE(inner_scales, INNER_ROWS);
    TAKE(inner_bytes, INNER_ROWS * wide);
#undef TAKE
    return at;
}

long encoder_scratch(const encoder_weights *model, long rows, long longest) {
    scratch parts;
    return lay_out(model, rows, longest, NULL, &parts) + ALIGNED;
}

FAST static void one_layer(const encoder_weights *model, const layer_weights *layer, const int64_t *lengths, long texts,
                           long rows, const scratch *parts, float *state) {
    long width = model->width, wide = layer->up.outer;
    project(&layer->attended, parts->bytes, parts->scales, rows, parts->projected);
    for (long text = 0, row = 0; text < texts; row += lengths[text++])
        attention(parts->projected + row * 3 * width, lengths[text], width, model->heads, parts->room,
                  parts->context + row * width);
    for (long row = 0; row < rows; row++)
        quantise(parts->context + row * width, width, parts->bytes + row * width, parts->scales + row);
    add(&layer->merged, parts->bytes, parts->scales, rows, state, parts->context);
    for (long row = 0; row < rows; row++) {
        float *own = state + row * width;
        normalise(parts->context + row * width, layer->merged_weight, layer->merged_bias, model->epsilon, width, own);
        quantise(own, width, parts->bytes + row * width, parts->scales + row);
    }
    for (long first = 0; first < rows; first += INNER_ROWS) {
        long count = rows - first < INNER_ROWS ? rows - first : INNER_ROWS;
        uint8_t *bytes = parts->bytes + first * width;
        float *summed = parts->context + first * width, *own = state + first * width;
        activate(&layer->up, bytes, parts->scales + first, count, parts->inner);
        for (long row = 0; row < count; row++)
            quantise(parts->inner + row * wide, wide, parts->inner_bytes + row * wide, parts->inner_scales + row);
        add(&layer->down, parts->inner_bytes, parts->inner_scales, count, own, summed);
        for (long row = 0; row < count; row++) {
            normalise(summed + row * width, layer->down_weight, layer->down_bias, model->epsilon, width, own + row * width);
            quantise(own + row * width, width, bytes + row * width, parts->scales + first + row);
        }
    }
}

FAST static void embed(const encoder_weights *model, int32_t id, long place, float *to) {
    const int8_t *word = model->words + (long)id * model->width;
    const float *position = model->positions + place * model->width;
    __m512 scale = _mm512_set1_ps(model->word_scales[id]);
    for (long at = 0; at < model->width; at += LANES) {
        __m512 value = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(word + at))));
        _mm512_storeu_ps(to + at, _mm512_fmadd_ps(value, scale, _mm512_loadu_ps(position + at)));
    }
}

/* The mean of the rows of a text, or its first row, at length 1. */
FAST static void pool(const float *state, long length, long width, int by_first, float *to) {
    __m512 squares = _mm512_setzero_ps();
    for (long at = 0; at < width; at += LANES) {
        __m512 sum = _mm512_loadu_ps(state + at);
        for (long row = 1; !by_first && row < length; row++) sum = _mm512_add_ps(sum, _mm512_loadu_ps(state + row * width + at));
        sum = _mm512_mul_ps(sum, _mm512_set1_ps(by_first ? 1.0f : 1.0f / length));
        squares = _mm512_fmadd_ps(sum, sum, squares);
        _mm512_storeu_ps(to + at, sum);
    }
    float norm = sqrtf(_mm512_reduce_add_ps(squares));
    __m512 shrink = _mm512_set1_ps(1.0f / (norm > SCALE_FLOOR ? norm : SCALE_FLOOR));
    for (long at = 0; at < width; at += LANES) _mm512_storeu_ps(to + at, _mm512_mul_ps(_mm512_loadu_ps(to + at), shrink));
}

FAST
void encoder_run(const encoder_weights *model, const int32_t *ids, const int64_t *lengths, long texts, int by_first,
                 uint8_t *room, float *state, float *pooled) {
    long width = model->width, rows = 0, longest = 0;
    for (long text = 0; text < texts; text++) {
        rows += lengths[text];
        if (lengths[text] > longest) longest = lengths[text];
    }
    scratch parts;
    lay_out(model, rows, longest, (uint8_t *)rounded((long)room), &parts);
    for (long text = 0, row = 0; text < texts; text++)
        for (long place = 0; place < lengths[text]; place++, row++) {
            float *own = state + row * width;
            embed(model, ids[row], place, parts.context + row * width);
            normalise(parts.context + row * width, model->norm_weight, model->norm_bias, model->epsilon, width, own);
            quantise(own, width, parts.bytes + row * width, parts.scales + row);
        }
    for (long layer = 0; layer < model->depth; layer++)
        one_layer(model, model->layers + layer, lengths, texts, rows, &parts, state);
    for (long text = 0, row = 0; text < texts; row += lengths[text++])
        pool(state + row * width, lengths[text], width, by_first, pooled + text * width);
}

/* int8[inner, outer] as panels; `starts` are the sums that make up for activations lying around UINT8_ZERO. Columns past
   the last one count as zeros: panels has room for whole ones. */
void encoder_pack(const int8_t *weights, long inner, long outer, int8_t *panels, int32_t *starts) {
    long columns = (outer + PANEL - 1) / PANEL * PANEL;
    for (long column = 0; column < columns; column++) {
        int8_t *to = panels + column / PANEL * inner * PANEL + column % PANEL * 4;
        int32_t sum = 0;
        for (long at = 0; at < inner; at++) {
            int8_t weight = column < outer ? weights[at * outer + column] : 0;
            to[at / 4 * 4 * PANEL + at % 4] = weight;
            sum += weight;
        }
        starts[column] = -UINT8_ZERO * sum;
    }
}

#else

int encoder_runs(void) { return 0; }
void encoder_pack(const int8_t *weights, long inner, long outer, int8_t *panels, int32_t *starts) {}
long encoder_scratch(const encoder_weights *model, long rows, long longest) { return 0; }
void encoder_run(const encoder_weights *model, const int32_t *ids, const int64_t *lengths, long texts, int by_first,
                 uint8_t *room, float *state, float *pooled) {}

#endif
