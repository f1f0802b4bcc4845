/* Rows in 16-bit fixed point, and their product with a query, summed in one fixed order: a row scores the same wherever it
   lies and whatever lies beside it.

   A row lies in two planes, its high bytes (signed) and its low bytes: value = 256 * high + low. A plane lies in chunks of
   chunk_rows rows. */

#pragma once
#include "portable.h"

#define LANES 16
#define LINE_BYTES 64
/* Rows asked for ahead of the one that is multiplied: scattered rows come one by one otherwise. */
#define ROWS_AHEAD 4

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef float half_floats __attribute__((vector_size(2 * LANES)));
typedef float quarter_floats __attribute__((vector_size(LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef int16_t shorts __attribute__((vector_size(2 * LANES)));
typedef int8_t signed_bytes __attribute__((vector_size(LANES)));
typedef uint8_t bytes __attribute__((vector_size(LANES)));

typedef struct {
    const uint64_t *high, *low;
    long chunk_rows, width;
} planes;

INLINED planes planes_of(const vector_rows *rows) {
    return (planes){rows->high, rows->low, rows->chunk_rows, rows->width};
}

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

INLINED const void *row_of(const uint64_t *chunks, const planes *rows, int64_t slot) {
    return (const char *)(uintptr_t)chunks[slot / rows->chunk_rows] + (slot % rows->chunk_rows) * rows->width;
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
