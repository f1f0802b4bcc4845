/* Rows of 8 bits times a matrix, for encoder.c: by the 8-bit dot products of AVX-512 (VNNI), or sixteen times as wide by the
   tiles of AMX where a processor has them and the system grants them. Sums of integers: both give the same. */

#include <math.h>

#include "portable.h"

#include <immintrin.h>

#include "tiles.h"

#define FAST __attribute__((target(AVX512 ",avx512vnni,avx2,fma")))
#define FAST_INLINED FAST INLINED
/* Floats of a vector, and columns of a panel: four vectors. */
#define LANES 16
#define VECTORS 4
#define PANEL (LANES * VECTORS)
/* Rows whose sums stay in registers: 6 x 4 sums, 4 vectors of weights, one of activations. When WHOLE_ROWS hold all there are, they
   go through half a panel together, 14 x 2 sums, and every weight is loaded once. */
#define ROWS 6
#define WHOLE_ROWS 14
#define HALF (VECTORS / 2)
/* Bytes of a vector, and of a line of the cache. */
#define LINE 64
#define ALIGNED LINE

/* 2^y for y <= 0, in place: a power of two times the Taylor series of 2^r, |r| <= 1/2 (relative error 2e-7). `count` (a constant
   to the compiler) vectors go side by side: each step waits for the one before it, and a processor looks ahead less far than
   the end of one vector. */
FAST_INLINED void powers_of_two(const int count, __m512 *y) {
    static const float series[] = {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f};
    __m512 whole[VECTORS], sum[VECTORS];
    for (int i = 0; i < count; i++) y[i] = _mm512_max_ps(y[i], _mm512_set1_ps(-126.0f));
    for (int i = 0; i < count; i++)
        whole[i] = _mm512_roundscale_ps(y[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    for (int i = 0; i < count; i++) y[i] = _mm512_sub_ps(y[i], whole[i]);
    for (int i = 0; i < count; i++) sum[i] = _mm512_set1_ps(1.5403530e-4f);
    for (int term = 0; term < 6; term++)
        for (int i = 0; i < count; i++) sum[i] = _mm512_fmadd_ps(sum[i], y[i], _mm512_set1_ps(series[term]));
    for (int i = 0; i < count; i++) y[i] = _mm512_scalef_ps(sum[i], whole[i]);
}

FAST_INLINED __m512 power_of_two(__m512 y) {
    powers_of_two(1, &y);
    return y;
}

/* x times the normal distribution function of x, in place, by Abramowitz and Stegun 7.1.26 (absolute error of erf 1.5e-7): beyond
   is half of erfc(|x| / sqrt 2), so their factors are halved here, and p is theirs over sqrt 2. */
FAST_INLINED void gelu(const int count, __m512 *x) {
    static const float series[] = {-0.7265760135f, 0.7107068705f, -0.142248368f, 0.127414796f};
    __m512 t[VECTORS], rest[VECTORS];
    for (int i = 0; i < count; i++) rest[i] = _mm512_mul_ps(_mm512_mul_ps(x[i], x[i]), _mm512_set1_ps(-0.72134752f));
    powers_of_two(count, rest);
    for (int i = 0; i < count; i++) {
        __m512 below = _mm512_fmadd_ps(_mm512_abs_ps(x[i]), _mm512_set1_ps(0.23164189f), _mm512_set1_ps(1.0f));
        /* 1 / below: fourteen bits and a step of Newton's, a third of a division's time. */
        __m512 near = _mm512_rcp14_ps(below);
        t[i] = _mm512_mul_ps(near, _mm512_fnmadd_ps(below, near, _mm512_set1_ps(2.0f)));
    }
    __m512 sum[VECTORS];
    for (int i = 0; i < count; i++) sum[i] = _mm512_set1_ps(0.5307027145f);
    for (int term = 0; term < 4; term++)
        for (int i = 0; i < count; i++) sum[i] = _mm512_fmadd_ps(sum[i], t[i], _mm512_set1_ps(series[term]));
    for (int i = 0; i < count; i++) {
        __m512 beyond = _mm512_mul_ps(_mm512_mul_ps(sum[i], t[i]), rest[i]), part = _mm512_mul_ps(x[i], beyond);
        __mmask16 positive = _mm512_cmp_ps_mask(x[i], _mm512_setzero_ps(), _CMP_GT_OQ);
        x[i] = _mm512_mask_sub_ps(part, positive, x[i], part);
    }
}

/* -- products -------------------------------------------------------------------------------------------------------- */

typedef enum { PLAIN, GELU, ADDED } finish;

/* The sums of `rows` rows and `vectors` vectors (constants to the compiler) of a panel's columns, in int32[rows, PANEL]; `weights`,
   `starts` and `to` begin at the first of those columns. Meanwhile memory from `ahead` on is called to the cache, a line for every
   vector of a step and then `stride` bytes on. What becomes of the sums is another function's work: this loop needs every
   register, and its inner loops are unrolled by hand, because sums whose place is counted at run time lie in memory. */
FAST_INLINED void sum_block(const int rows, const int vectors, long inner, const int8_t *weights, const int32_t *starts,
                            const uint8_t *bytes, int32_t *to, const int8_t *ahead, long stride) {
    __m512i sums[WHOLE_ROWS][VECTORS];
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
        for (int vector = 0; vector < vectors; vector++)
            sums[row][vector] = _mm512_loadu_si512(starts + vector * LANES);
    for (long at = 0; at < inner; at += 4, ahead += stride) {
        __m512i own[VECTORS];
#pragma GCC unroll 4
        for (int vector = 0; vector < vectors; vector++) {
            own[vector] = _mm512_loadu_si512(weights + at * PANEL + vector * LINE);
            _mm_prefetch((const char *)(ahead + vector * LINE), _MM_HINT_T1);
        }
#pragma GCC unroll 16
        for (int row = 0; row < rows; row++) {
            int32_t four;
            memcpy(&four, bytes + row * inner + at, 4);
            __m512i activations = _mm512_set1_epi32(four);
#pragma GCC unroll 4
            for (int vector = 0; vector < vectors; vector++)
                sums[row][vector] = _mm512_dpbusd_epi32(sums[row][vector], activations, own[vector]);
        }
    }
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
        for (int vector = 0; vector < vectors; vector++)
            _mm512_storeu_si512(to + row * PANEL + vector * LANES, sums[row][vector]);
}

typedef void summing(long inner, const int8_t *weights, const int32_t *starts, const uint8_t *bytes, int32_t *to,
                     const int8_t *ahead, long stride);

#define SUMMING(rows, vectors)                                                                                             \
    FAST static void sum_##rows(long inner, const int8_t *weights, const int32_t *starts, const uint8_t *bytes, int32_t *to, \
                                const int8_t *ahead, long stride) {                                                        \
        sum_block(rows, vectors, inner, weights, starts, bytes, to, ahead, stride);                                        \
    }
SUMMING(1, VECTORS)
SUMMING(2, VECTORS)
SUMMING(3, VECTORS)
SUMMING(4, VECTORS)
SUMMING(5, VECTORS)
SUMMING(6, VECTORS)
SUMMING(7, HALF)
SUMMING(8, HALF)
SUMMING(9, HALF)
SUMMING(10, HALF)
SUMMING(11, HALF)
SUMMING(12, HALF)
SUMMING(13, HALF)
SUMMING(14, HALF)
#undef SUMMING

/* By rows. */
static summing *const summings[WHOLE_ROWS + 1] = {NULL,  sum_1, sum_2, sum_3,  sum_4,  sum_5,  sum_6, sum_7,
                                                  sum_8, sum_9, sum_10, sum_11, sum_12, sum_13, sum_14};

/* The sums of a block of rows, the `block`th of `blocks`, and one panel, int32[rows, PANEL]. The next panel is called to the cache
   meanwhile: the first four runs over the panel share that out, because memory that is asked for all at once keeps the sums
   waiting. */
static inline void sum_panel(const dense_weights *dense, long panel, long rows, const uint8_t *bytes, long block, long blocks,
                             int32_t *to) {
    long inner = dense->inner, size = inner * PANEL, vectors = rows > ROWS ? HALF : VECTORS, parts = VECTORS / vectors;
    const int8_t *weights = dense->panels + panel * size;
    const int32_t *starts = dense->starts + panel * PANEL;
    long fetching = blocks * parts < VECTORS ? blocks * parts : VECTORS;
    for (long part = 0; part < parts; part++) {
        long run = block * parts + part, first = part * vectors;
        int fetches = run < fetching;
        summings[rows](inner, weights + first * LINE, starts + first * LANES, bytes, to + first * LANES,
                       fetches ? weights + size + run * size / fetching : weights, fetches ? VECTORS * LINE / fetching : 0);
    }
}

#ifdef HAS_TILES

/* What sum_block does, for up to TILE_ROWS rows; the bytes of that many are read, the sums of that many written. */
TILED static void sum_tile(const dense_weights *dense, long panel, const uint8_t *bytes, int32_t *to) {
    long inner = dense->inner;
    const int8_t *weights = dense->panels + panel * inner * PANEL;
    const int32_t *starts = dense->starts + panel * PANEL;
    WRITTEN_OUT;
    _tile_loadd(0, starts, 0);
    _tile_loadd(1, starts + LANES, 0);
    _tile_loadd(2, starts + 2 * LANES, 0);
    _tile_loadd(3, starts + 3 * LANES, 0);
    for (long at = 0; at < inner; at += TILE_BYTES) {
        const int8_t *own = weights + at * PANEL;
        _tile_loadd(4, bytes + at, inner);
        _tile_loadd(5, own, 4 * PANEL);
        _tile_dpbusd(0, 4, 5);
        _tile_loadd(6, own + 64, 4 * PANEL);
        _tile_dpbusd(1, 4, 6);
        _tile_loadd(7, own + 128, 4 * PANEL);
        _tile_dpbusd(2, 4, 7);
        _tile_loadd(5, own + 192, 4 * PANEL);
        _tile_dpbusd(3, 4, 5);
    }
    _tile_stored(0, to, sizeof *to * PANEL);
    _tile_stored(1, to + LANES, sizeof *to * PANEL);
    _tile_stored(2, to + 2 * LANES, sizeof *to * PANEL);
    _tile_stored(3, to + 3 * LANES, sizeof *to * PANEL);
}

#else

static void sum_tile(const dense_weights *dense, long panel, const uint8_t *bytes, int32_t *to) {}

#endif

/* The sums of a row in `vectors` (a constant to the compiler) vectors from `column` on as floats, finished. */
FAST_INLINED void finish_row(const finish how, const int vectors, const dense_weights *dense, long column, const int32_t *sums,
                             float row_scale, const float *added, float *to) {
    __m512 values[VECTORS];
    for (int vector = 0; vector < vectors; vector++) {
        __m512 sum = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + vector * LANES));
        __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(dense->scales + column + vector * LANES), _mm512_set1_ps(row_scale));
        values[vector] = _mm512_fmadd_ps(sum, scale, _mm512_loadu_ps(dense->bias + column + vector * LANES));
    }
    if (how == GELU) gelu(vectors, values);
    for (int vector = 0; vector < vectors; vector++) {
        long at = column + vector * LANES;
        if (how == ADDED) values[vector] = _mm512_add_ps(values[vector], _mm512_loadu_ps(added + at));
        _mm512_storeu_ps(to + at, values[vector]);
    }
}

/* A panel's sums as floats, finished. `added` and `to` have the shape float[rows, outer]. */
FAST_INLINED void finish_block(const finish how, long rows, const dense_weights *dense, long panel, const int32_t *sums,
                               const float *row_scales, const float *added, float *to) {
    long outer = dense->outer, first = panel * PANEL;
    for (long row = 0; row < rows; row++, sums += PANEL, added += outer, to += outer) {
        if (outer - first >= PANEL) {
            finish_row(how, VECTORS, dense, first, sums, row_scales[row], added, to);
            continue;
        }
        for (long column = first; column < outer; column += LANES)
            finish_row(how, 1, dense, column, sums + column - first, row_scales[row], added, to);
    }
}

/* `count` quantised rows times a matrix, finished: float[count, outer]. `added` has the same shape. */
FAST_INLINED void multiply(const finish how, const dense_weights *dense, const uint8_t *bytes, const float *row_scales,
                           long count, const float *added, float *to) {
    long inner = dense->inner, outer = dense->outer;
    long blocks = count > WHOLE_ROWS ? (count + ROWS - 1) / ROWS : count > 0;
    int32_t sums[TILE_ROWS * PANEL] __attribute__((aligned(ALIGNED)));
    for (long panel = 0; panel * PANEL < outer; panel++) {
        for (long row = 0; dense->tiled && row < count; row += TILE_ROWS) {
            sum_tile(dense, panel, bytes + row * inner, sums);
            finish_block(how, count - row < TILE_ROWS ? count - row : TILE_ROWS, dense, panel, sums, row_scales + row,
                         added + row * outer, to + row * outer);
        }
        if (dense->tiled) continue;
        for (long block = 0; block < blocks; block++) {
            long row = block * count / blocks, rows = (block + 1) * count / blocks - row;
            sum_panel(dense, panel, rows, bytes + row * inner, block, blocks, sums);
            finish_block(how, rows, dense, panel, sums, row_scales + row, added + row * outer, to + row * outer);
        }
    }
}

FAST static void project(const dense_weights *dense, const uint8_t *bytes, const float *row_scales, long count, float *to) {
    multiply(PLAIN, dense, bytes, row_scales, count, to, to);
}

FAST static void activate(const dense_weights *dense, const uint8_t *bytes, const float *row_scales, long count, float *to) {
    multiply(GELU, dense, bytes, row_scales, count, to, to);
}

FAST static void add(const dense_weights *dense, const uint8_t *bytes, const float *row_scales, long count,
                     const float *added, float *to) {
    multiply(ADDED, dense, bytes, row_scales, count, added, to);
}
