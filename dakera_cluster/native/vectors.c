/* Dot products of one float query with rows in 16-bit fixed point, each summed in one fixed order: a row scores the same
   wherever it lies and whatever lies beside it.

   A row lies in two planes, its high bytes (signed) and its low bytes: value = 256 * high + low. The high plane alone bounds
   a row's score within a hundredth at half of the memory traffic, which is what a scan is bound by, and in integers, so
   `nearest` reads the low plane of those rows only that may be among the best. */

#include <math.h>

#include "portable.h"

#define LANES 16
/* Rows chosen before they are multiplied. */
#define BLOCK 64

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

INLINED float dot(const int8_t *high, const uint8_t *low, const float *query, long width) {
    floats even = {0}, odd = {0};
    long at = 0;
    for (; at + 2 * LANES <= width; at += 2 * LANES) {
        even += product(high + at, low + at, query + at);
        odd += product(high + at + LANES, low + at + LANES, query + at + LANES);
    }
    float rest = 0;
    for (; at < width; at++) rest += (float)(256 * high[at] + low[at]) * query[at];
    return across(even + odd) + rest;
}

INLINED const void *row_of(const uint64_t *chunks, long chunk_rows, int64_t slot, long width) {
    return (const char *)(uintptr_t)chunks[slot / chunk_rows] + (slot % chunk_rows) * width;
}

FOR_EVERY_PROCESSOR
void dots_gather(const uint64_t *high, const uint64_t *low, long chunk_rows, const int64_t *slots, long count,
                 long width, const float *query, float *dots) {
    for (long place = 0; place < count; place++)
        dots[place] = dot(row_of(high, chunk_rows, slots[place], width), row_of(low, chunk_rows, slots[place], width),
                          query, width);
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

/* Add to a heap of at most wanted. Returns its size. */
INLINED long offer(float *scores, int64_t *slots, long size, long wanted, float score, int64_t slot) {
    if (size == wanted) {
        if (worse(scores[0], slots[0], score, slot)) settle(scores, slots, size, 0, score, slot);
        return size;
    }
    long at = size;
    for (long parent; at; at = parent) {
        parent = (at - 1) / 2;
        if (!worse(score, slot, scores[parent], slots[parent])) break;
        scores[at] = scores[parent];
        slots[at] = slots[parent];
    }
    scores[at] = score;
    slots[at] = slot;
    return size + 1;
}

INLINED int is_chosen(const uint8_t *present, const uint8_t *allowed, long slot) {
    return present[slot] && (!allowed || allowed[slot]);
}

/* Upper bounds of the cosines of the present (and allowed, unless NULL) slots below count; nothing is said of the others.
   Returns a value that at least wanted of them reach, -inf when they are fewer. slots and scores are room to work in. */
INLINED float bounded(const uint64_t *high, long chunk_rows, const uint8_t *present, const uint8_t *allowed, long count,
                      long width, const float *scales, const int16_t *steps, double step, double offset, double slack,
                      long wanted, float *bounds, int64_t *slots, float *scores) {
    int32_t sums[BLOCK];
    int64_t chosen[BLOCK];
    long size = 0;
    for (long first = 0; first < count;) {
        long chunk = first / chunk_rows, end = (chunk + 1) * chunk_rows, held = 0;
        if (end > count) end = count;
        for (; first < end && held < BLOCK; first++) {
            chosen[held] = first;
            held += is_chosen(present, allowed, first);
        }
        for (long place = 0; place < held; place++) {
            const int8_t *row = row_of(high, chunk_rows, chosen[place], width);
            int32_t sum = 0;
            for (long at = 0; at < width; at++) sum += (int32_t)(int16_t)row[at] * (int32_t)steps[at];
            sums[place] = sum;
        }
        for (long place = 0; place < held; place++) {
            float scale = scales[chosen[place]];
            float near = (float)(sums[place] * step + offset) * scale, doubt = (float)slack * fabsf(scale) + 1e-5f;
            bounds[chosen[place]] = near + doubt;
            size = offer(scores, slots, size, wanted, near - doubt, chosen[place]);
        }
    }
    return size == wanted ? scores[0] : -INFINITY;
}

/* steps * step is the query, nearly; offset what the middle of the low bytes adds; slack bounds all that is neglected. The
   best of the chosen slots by cosine, in order; returns how many. */
FOR_EVERY_PROCESSOR
long nearest(const uint64_t *high, const uint64_t *low, long chunk_rows, const uint8_t *present, const uint8_t *allowed,
             long count, long width, const float *scales, const float *query, const int16_t *steps, double step,
             double offset, double slack, long wanted, float *bounds, int64_t *slots, float *scores) {
    if (wanted <= 0) return 0;
    float floor = bounded(high, chunk_rows, present, allowed, count, width, scales, steps, step, offset, slack, wanted,
                          bounds, slots, scores);
    long size = 0;
    for (long slot = 0; slot < count; slot++) {
        if (!is_chosen(present, allowed, slot) || bounds[slot] < floor) continue;
        float score = dot(row_of(high, chunk_rows, slot, width), row_of(low, chunk_rows, slot, width), query, width);
        score *= scales[slot];
        size = offer(scores, slots, size, wanted, score > 1 ? 1 : score < -1 ? -1 : score, slot);
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
