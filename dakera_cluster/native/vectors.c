/* Dot products of one float query with chosen rows (planes.h), summed in one fixed order: a row scores the same wherever it
   lies and whatever lies beside it. */

#include "planes.h"

#define LANES 16
#define LINE_BYTES 64
/* Rows asked for ahead of the one that is multiplied: scattered rows come one by one otherwise. */
#define ROWS_AHEAD 4
/* Of rows that are multiplied by words. */
#define MAX_WIDTH 4096

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef float half_floats __attribute__((vector_size(2 * LANES)));
typedef float quarter_floats __attribute__((vector_size(LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef int16_t shorts __attribute__((vector_size(2 * LANES)));
typedef int8_t signed_bytes __attribute__((vector_size(LANES)));
typedef uint8_t bytes __attribute__((vector_size(LANES)));

INLINED floats product(const int8_t *high, const uint8_t *low, const float *query) {
    signed_bytes upper;
    bytes lower;
    floats factors;
    memcpy(&upper, high, sizeof upper);
    memcpy(&lower, low, sizeof lower);
    memcpy(&factors, query, sizeof factors);
    /* From bytes to words to double words: in one step the compiler would widen them one by one. */
    shorts fixed = __builtin_convertvector(upper, shorts) * 256 + __builtin_convertvector(lower, shorts);
    return __builtin_convertvector(__builtin_convertvector(fixed, ints), floats) * factors;
}

INLINED float across(floats values) {
    half_floats halves[2];
    quarter_floats quarters[2];
    memcpy(halves, &values, sizeof values);
    halves[0] += halves[1];
    memcpy(quarters, halves, sizeof halves[0]);
    quarters[0] += quarters[1];
    return (quarters[0][0] + quarters[0][2]) + (quarters[0][1] + quarters[0][3]);
}

INLINED float dot(const planes *rows, int64_t slot, const float *query) {
    const int8_t *high = row_of(rows->high, rows, slot);
    const uint8_t *low = row_of(rows->low, rows, slot);
    floats even = {0}, odd = {0};
    long at = 0;
    for (; at + 2 * LANES <= rows->width; at += 2 * LANES) {
        even += product(high + at, low + at, query + at);
        odd += product(high + at + LANES, low + at + LANES, query + at + LANES);
    }
    float rest = 0;
    for (; at < rows->width; at++) rest += (float)(256 * high[at] + low[at]) * query[at];
    return across(even + odd) + rest;
}

/* A row that will be multiplied soon. */
INLINED void ask_for(const planes *rows, int64_t slot) {
    const char *high = row_of(rows->high, rows, slot), *low = row_of(rows->low, rows, slot);
    for (long at = 0; at < rows->width; at += LINE_BYTES) {
        __builtin_prefetch(high + at);
        __builtin_prefetch(low + at);
    }
}

FOR_EVERY_PROCESSOR
static void multiplied(const planes *rows, const int64_t *slots, long count, const float *query, float *dots) {
    for (long place = 0; place < count; place++) {
        if (place + ROWS_AHEAD < count) ask_for(rows, slots[place + ROWS_AHEAD]);
        dots[place] = dot(rows, slots[place], query);
    }
}

#ifdef FOR_THIS_PROCESSOR
#include <immintrin.h>

#define BY_WORDS __attribute__((target(AVX512)))
#define STEP (2 * LANES)

/* The same products, added in the same order: of each sum, one half of the lanes are of the even ones and the other of the odd
   ones, for that is how words come about that the bytes of two planes are woven into, without a further step. A line of the
   next row is asked for with each step: all at once they would wait for each other. turned: [width], the query in the order of
   the lanes. */
BY_WORDS static float woven(const planes *rows, int64_t slot, int64_t next, const float *turned) {
    const char *high = row_of(rows->high, rows, slot), *low = row_of(rows->low, rows, slot);
    const char *lines[2] = {row_of(rows->high, rows, next), (const char *)row_of(rows->low, rows, next) - STEP};
    __m512 first = _mm512_setzero_ps(), second = _mm512_setzero_ps();
    for (long at = 0; at < rows->width; at += STEP) {
        __m256i upper = _mm256_loadu_si256((const __m256i *)(high + at));
        __m256i lower = _mm256_loadu_si256((const __m256i *)(low + at));
        __m512 one = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_unpacklo_epi8(lower, upper)));
        __m512 other = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_unpackhi_epi8(lower, upper)));
        _mm_prefetch(lines[at / STEP % 2] + at, _MM_HINT_T0);
        first = _mm512_add_ps(first, _mm512_mul_ps(one, _mm512_loadu_ps(turned + at)));
        second = _mm512_add_ps(second, _mm512_mul_ps(other, _mm512_loadu_ps(turned + at + LANES)));
    }
    __m256 left = _mm256_add_ps(_mm512_castps512_ps256(first), _mm512_extractf32x8_ps(first, 1));
    __m256 right = _mm256_add_ps(_mm512_castps512_ps256(second), _mm512_extractf32x8_ps(second, 1));
    __m256 half = _mm256_add_ps(left, right);
    __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    /* Plus what lies beyond whole lanes: it is nothing, but of minus zero it makes zero. */
    return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]) + 0.0f;
}

BY_WORDS static void multiplied_by_words(const planes *rows, const int64_t *slots, long count, const float *query,
                                         float *dots) {
    float turned[MAX_WIDTH];
    for (long at = 0; at < rows->width; at++) {
        long lane = at % STEP, half = lane / LANES, turn = lane / (LANES / 2) % 2;
        turned[at - lane + turn * LANES + half * (LANES / 2) + lane % (LANES / 2)] = query[at];
    }
    for (long place = 0; place < count; place++) {
        long ahead = place + ROWS_AHEAD < count ? place + ROWS_AHEAD : place;
        dots[place] = woven(rows, slots[place], slots[ahead], turned);
    }
}
#endif

void dots_gather(const vector_rows *stored, const int64_t *slots, long count, const float *query, float *dots) {
    planes rows = planes_of(stored);
#ifdef FOR_THIS_PROCESSOR
    if (rows.width % STEP == 0 && rows.width <= MAX_WIDTH && has_avx512()) {
        multiplied_by_words(&rows, slots, count, query, dots);
        return;
    }
#endif
    multiplied(&rows, slots, count, query, dots);
}
