/* Dot products of one float query with rows in 16-bit fixed point, each summed in one fixed order: a row scores the same
   wherever it lies and whatever lies beside it. */

#include "portable.h"

#define LANES 16
/* Rows multiplied before their results are looked at. */
#define BLOCK 64

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef float half_floats __attribute__((vector_size(2 * LANES)));
typedef float quarter_floats __attribute__((vector_size(LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef int16_t shorts __attribute__((vector_size(2 * LANES)));

INLINED floats product(const int16_t *row, const float *query) {
    shorts fixed;
    floats factors;
    memcpy(&fixed, row, sizeof fixed);
    memcpy(&factors, query, sizeof factors);
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

INLINED float dot(const int16_t *row, const float *query, long width) {
    floats even = {0}, odd = {0};
    long at = 0;
    for (; at + 2 * LANES <= width; at += 2 * LANES) {
        even += product(row + at, query + at);
        odd += product(row + at + LANES, query + at + LANES);
    }
    float rest = 0;
    for (; at < width; at++) rest += (float)row[at] * query[at];
    return across(even + odd) + rest;
}

FOR_EVERY_PROCESSOR
void dots_scan(const int16_t *rows, long count, long width, const float *query, float *dots) {
    for (long row = 0; row < count; row++) dots[row] = dot(rows + row * width, query, width);
}

FOR_EVERY_PROCESSOR
void dots_gather(const uint64_t *chunks, long chunk_rows, const int64_t *slots, long count, long width,
                 const float *query, float *dots) {
    for (long place = 0; place < count; place++) {
        const int16_t *rows = (const int16_t *)(uintptr_t)chunks[slots[place] / chunk_rows];
        dots[place] = dot(rows + (slots[place] % chunk_rows) * width, query, width);
    }
}

/* The best are kept in a heap whose root is the worst of them: by score, then the greater slot. */
INLINED int worse(float score, int64_t slot, float other, int64_t other_slot) {
    return score != other ? score < other : slot > other_slot;
}

INLINED void settle(float *scores, int64_t *slots, long size, long at, float score, int64_t slot) {
    for (long child; (child = 2 * at + 1) < size; at = child) {
        if (child + 1 < size && worse(scores[child + 1], slots[child + 1], scores[child], slots[child])) child++;
        if (!worse(scores[child], slots[child], score, slot)) break;
        scores[at] = scores[child];
        slots[at] = slots[child];
    }
    scores[at] = score;
    slots[at] = slot;
}

INLINED void rise(float *scores, int64_t *slots, long at, float score, int64_t slot) {
    for (long parent; at; at = parent) {
        parent = (at - 1) / 2;
        if (!worse(score, slot, scores[parent], slots[parent])) break;
        scores[at] = scores[parent];
        slots[at] = slots[parent];
    }
    scores[at] = score;
    slots[at] = slot;
}

/* Cosines of the present (and allowed, unless NULL) slots below count; the best of them, in order. Returns how many. */
FOR_EVERY_PROCESSOR
long nearest(const uint64_t *chunks, long chunk_rows, const uint8_t *present, const uint8_t *allowed, long count,
             long width, const float *scales, const float *query, long wanted, int64_t *slots, float *scores) {
    float cosines[BLOCK];
    int64_t chosen[BLOCK];
    long size = 0;
    for (long first = 0; first < count && wanted > 0;) {
        long chunk = first / chunk_rows, end = (chunk + 1) * chunk_rows, held = 0;
        const int16_t *rows = (const int16_t *)(uintptr_t)chunks[chunk] - chunk * chunk_rows * width;
        if (end > count) end = count;
        for (; first < end && held < BLOCK; first++) {
            chosen[held] = first;
            held += present[first] && (!allowed || allowed[first]);
        }
        for (long place = 0; place < held; place++) cosines[place] = dot(rows + chosen[place] * width, query, width);
        for (long place = 0; place < held; place++) {
            float score = cosines[place] * scales[chosen[place]];
            score = score > 1 ? 1 : score < -1 ? -1 : score;
            if (size < wanted)
                rise(scores, slots, size++, score, chosen[place]);
            else if (worse(scores[0], slots[0], score, chosen[place]))
                settle(scores, slots, size, 0, score, chosen[place]);
        }
    }
    for (long last = size - 1; last > 0; last--) {
        float score = scores[last];
        int64_t slot = slots[last];
        scores[last] = scores[0];
        slots[last] = slots[0];
        settle(scores, slots, last, 0, score, slot);
    }
    return size;
}
