/* A BERT encoder (post-layer-norm, exact GELU) over 8-bit integers: rows of activations are quantised one by one, weights
   came quantised by column. The same arithmetic as the graph that inference/build.py writes, in one pass over the weights
   and without a node of a graph between two loops.

   Texts lie behind one another, unpadded, and every row of every step is computed in one order of its own: a text's vectors
   are the same bit for bit whatever it is encoded with. The inner products need the 8-bit dot products of AVX-512 (VNNI);
   where a processor lacks them, encoder_runs says no and nothing here may be called.

   Work is laid out for the caches: weights are kept in panels of PANEL columns in the order they are used, each read from
   memory once a pass and from the nearest cache by all blocks of rows; a block of rows stays in registers. */

#include "portable.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <float.h>

#include "encoder_products.h"

/* Rows that go through the wide inner layer together: its activations must stay in the cache of a core. */
#define INNER_ROWS 64
/* Rows of a text whose attention is computed together: each has a sum of its own, and a sum waits four cycles for itself. */
#define QUERIES 8
#define INT8_MAX_F 127.0f
#define UINT8_ZERO 128
#define SCALE_FLOOR 1e-9f
/* Why a pass cannot be. */
#define WRONG_LENGTH -1
#define WRONG_ID -2
/* What is wanted of the tokens. */
enum { NO_TOKENS, SIGNS, SIGNS_AND_HALVES };

int encoder_runs(void) {
    return has_avx512() && __builtin_cpu_supports("avx512vnni");
}

#ifdef HAS_TILES
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define XTILEDATA 18
#define ARCH_REQ_XCOMP_PERM 0x1023

static int tiles_granted(void) {
    unsigned a, b, c, features;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &features)) return 0;
    int has_tiles = features >> 24 & 1, has_bytes = features >> 25 & 1;
    return has_tiles && has_bytes && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
}
#else
static int tiles_granted(void) { return 0; }
#endif

/* Asks the system as well: it has to keep eight KiB more of a thread. */
int encoder_has_tiles(void) { return encoder_runs() && tiles_granted(); }

/* -- rows ------------------------------------------------------------------------------------------------------------ */

/* A row of floats as bytes around UINT8_ZERO; what one step is worth goes to scale. */
FAST static void quantise(const float *values, long width, uint8_t *bytes, float *scale) {
    /* Four at a time: one would wait for the one before it. */
    __m512 peaks[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    long at = 0;
    for (; at + 4 * LANES <= width; at += 4 * LANES)
        for (int part = 0; part < 4; part++)
            peaks[part] = _mm512_max_ps(peaks[part], _mm512_abs_ps(_mm512_loadu_ps(values + at + part * LANES)));
    for (; at < width; at += LANES) peaks[0] = _mm512_max_ps(peaks[0], _mm512_abs_ps(_mm512_loadu_ps(values + at)));
    float peak = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(peaks[0], peaks[1]), _mm512_max_ps(peaks[2], peaks[3])));
    if (!(peak > SCALE_FLOOR)) peak = SCALE_FLOOR;
    *scale = peak / INT8_MAX_F;
    __m512 steps = _mm512_set1_ps(INT8_MAX_F / peak);
    for (at = 0; at < width; at += LANES) {
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

/* -- attention ------------------------------------------------------------------------------------------------------- */

/* The context of `rows` (a constant to the compiler) rows of one head. `keys`: float[head width, padded], turned; `values`: rows
   of the text, `stride` floats apart; `shares`: room for rows x padded floats. */
FAST_INLINED void attend(const int rows, const float *queries, const float *keys, const float *values, long stride,
                         long length, long padded, long head_width, float *shares, float *context, long width) {
    /* Scores in powers of two: e^s = 2^(s log2 e). */
    __m512 factor = _mm512_set1_ps(1.44269504f / sqrtf((float)head_width));
    float totals[QUERIES];
    __mmask16 last = (__mmask16)(0xffff >> (padded - length));
    for (long column = 0; column < padded; column += LANES) {
        __mmask16 inside = column + LANES < padded ? 0xffff : last;
        __m512 sums[QUERIES];
        for (int row = 0; row < rows; row++) sums[row] = _mm512_setzero_ps();
        for (long at = 0; at < head_width; at++) {
            /* Zeros past the end: what lies there may be denormal, and each product with one costs a hundred cycles. */
            __m512 key = _mm512_maskz_loadu_ps(inside, keys + at * padded + column);
            for (int row = 0; row < rows; row++)
                sums[row] = _mm512_fmadd_ps(_mm512_set1_ps(queries[row * stride + at]), key, sums[row]);
        }
        for (int row = 0; row < rows; row++)
            _mm512_storeu_ps(shares + row * padded + column, _mm512_mul_ps(sums[row], factor));
    }
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
#define ATTEND(rows) attend(rows, own, keys, values, stride, length, padded, head_width, shares, place, width)
            switch ((block + 1) * length / blocks - row) {
                case 1: ATTEND(1); break;
                case 2: ATTEND(2); break;
                case 3: ATTEND(3); break;
                case 4: ATTEND(4); break;
                case 5: ATTEND(5); break;
                case 6: ATTEND(6); break;
                case 7: ATTEND(7); break;
                default: ATTEND(QUERIES); break;
            }
#undef ATTEND
        }
    }
}

/* -- the encoder ----------------------------------------------------------------------------------------------------- */

typedef struct {
    float *state, *projected, *context, *scales, *room, *inner, *inner_scales, *pooled;
    uint8_t *bytes, *inner_bytes, *signs;
    uint16_t *halves;
    int32_t *counts;
} scratch;

static long rounded(long bytes) { return (bytes + ALIGNED - 1) / ALIGNED * ALIGNED; }

/* Lays the parts out behind `base` and returns how many bytes they take. */
static long lay_out(const encoder_weights *model, long texts, long rows, long longest, uint8_t *base, scratch *parts) {
    long width = model->width, wide = model->layers[0].up.outer, padded = (longest + LANES - 1) / LANES * LANES;
    long at = 0;
#define TAKE(part, count) (parts->part = (void *)(base + at), at += rounded((count) * (long)sizeof *parts->part))
    TAKE(state, rows * width);
    TAKE(projected, rows * 3 * width);
    TAKE(context, rows * width);
    TAKE(scales, rows);
    TAKE(bytes, (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS * width);
    TAKE(room, (width / model->heads + QUERIES) * padded);
    TAKE(inner, INNER_ROWS * wide);
    TAKE(inner_scales, INNER_ROWS);
    TAKE(inner_bytes, INNER_ROWS * wide);
    TAKE(pooled, texts * width);
    TAKE(counts, texts);
    TAKE(signs, rows * (width / 8));
    TAKE(halves, rows * width);
#undef TAKE
    return at;
}

FAST static void one_layer(const encoder_weights *model, const layer_weights *layer, const int32_t *lengths, long texts,
                           long rows, const scratch *parts) {
    long width = model->width, wide = layer->up.outer;
    float *state = parts->state;
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

/* The signs of a row, packed: the first component in the highest bit of the first byte. */
FAST static void pack_signs(const float *row, long width, uint8_t *signs) {
    __m512i turned = _mm512_setr_epi32(7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8);
    for (long at = 0; at < width; at += LANES, signs += sizeof(__mmask16)) {
        __m512 values = _mm512_permutexvar_ps(turned, _mm512_loadu_ps(row + at));
        __mmask16 positive = _mm512_cmp_ps_mask(values, _mm512_setzero_ps(), _CMP_GT_OQ);
        memcpy(signs, &positive, sizeof positive);
    }
}

/* A row at length 1, in 16 bits. The squares are added in the order of numpy's einsum, and the quotients and the roundings are
   numpy's: onnx_pass.py says the same of the same states. */
FAST static void halve(const float *row, long width, uint16_t *halves) {
    __m128 sums = _mm_setzero_ps();
    for (long at = 0; at < width; at += LANES)
        for (long part = LANES - 4; part >= 0; part -= 4) {
            __m128 four = _mm_loadu_ps(row + at + part);
            sums = _mm_add_ps(_mm_mul_ps(four, four), sums);
        }
    sums = _mm_hadd_ps(sums, sums);
    float norm = sqrtf(_mm_cvtss_f32(_mm_hadd_ps(sums, sums)));
    __m512 length = _mm512_set1_ps(norm > FLT_MIN ? norm : FLT_MIN);
    for (long at = 0; at < width; at += LANES) {
        __m512 values = _mm512_div_ps(_mm512_loadu_ps(row + at), length);
        _mm256_storeu_si256((__m256i *)(halves + at),
                            _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
}

/* What is wanted of the tokens of a text, from the `done`th on of all; how many they are. */
FAST static long leave_tokens(const encoder_weights *model, const int32_t *ids, long length, const float *state, int wanted,
                              long done, const scratch *parts) {
    long width = model->width, count = 0;
    for (long row = 0; row < length; row++) {
        if (model->special[ids[row]]) continue;
        long place = done + count++;
        pack_signs(state + row * width, width, parts->signs + place * (width / 8));
        if (wanted == SIGNS_AND_HALVES) halve(state + row * width, width, parts->halves + place * width);
    }
    return count;
}

/* A pass over texts that lie behind one another: 0, and where its results are in `room`. Nothing is done when a text is empty or
   has more tokens than there are places (WRONG_LENGTH), when an id is no word (WRONG_ID), or when the room is too small: then it
   says how many bytes it takes, as a negative number. `tokens`: what is wanted of them. */
FAST
long encoder_run(const encoder_weights *model, const int32_t *ids, const int32_t *lengths, long texts, int by_first, int tokens,
                 uint8_t *room, long size, encoder_result *result) {
    long width = model->width, rows = 0, longest = 0;
    for (long text = 0; text < texts; text++) {
        if (lengths[text] < 1 || lengths[text] > model->places) return WRONG_LENGTH;
        rows += lengths[text];
        if (lengths[text] > longest) longest = lengths[text];
    }
    for (long row = 0; row < rows; row++)
        if (ids[row] < 0 || ids[row] >= model->vocabulary) return WRONG_ID;
    scratch parts;
    long needed = lay_out(model, texts, rows, longest, (uint8_t *)rounded((long)room), &parts) + ALIGNED;
    if (needed > size) return -needed;
    for (long text = 0, row = 0; text < texts; text++)
        for (long place = 0; place < lengths[text]; place++, row++) {
            float *own = parts.state + row * width;
            embed(model, ids[row], place, parts.context + row * width);
            normalise(parts.context + row * width, model->norm_weight, model->norm_bias, model->epsilon, width, own);
            quantise(own, width, parts.bytes + row * width, parts.scales + row);
        }
    if (model->tiled) tiles_open();
    for (long layer = 0; layer < model->depth; layer++) one_layer(model, model->layers + layer, lengths, texts, rows, &parts);
    if (model->tiled) tiles_close();
    for (long text = 0, row = 0, done = 0; text < texts; row += lengths[text++]) {
        const float *state = parts.state + row * width;
        pool(state, lengths[text], width, by_first, parts.pooled + text * width);
        parts.counts[text] = tokens == NO_TOKENS ? 0 : leave_tokens(model, ids + row, lengths[text], state, tokens, done, &parts);
        done += parts.counts[text];
    }
    *result = (encoder_result){parts.pooled, parts.counts, parts.signs, parts.halves};
    return 0;
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
int encoder_has_tiles(void) { return 0; }
void encoder_pack(const int8_t *weights, long inner, long outer, int8_t *panels, int32_t *starts) {}
long encoder_run(const encoder_weights *model, const int32_t *ids, const int32_t *lengths, long texts, int by_first, int tokens,
                 uint8_t *room, long size, encoder_result *result) {
    return 0;
}

#endif
