/* Orders, and the scaling of features. */

#include <math.h>
#include <stdlib.h>

#include "portable.h"

typedef struct {
    double score;
    uint64_t key;
    int64_t place;
} ranked;

/* By score descending, then key, then place. */
INLINED int comes_after(ranked left, ranked right) {
    if (left.score != right.score) return left.score < right.score;
    if (left.key != right.key) return left.key > right.key;
    return left.place > right.place;
}

static void sift(ranked *heap, long size, long at) {
    ranked moved = heap[at];
    for (long child; (child = 2 * at + 1) < size; at = child) {
        if (child + 1 < size && comes_after(heap[child + 1], heap[child])) child++;
        if (!comes_after(heap[child], moved)) break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

/* Merge sort, from runs of one upwards; the result may lie in either array. */
static ranked *sorted(ranked *from, ranked *to, long size) {
    for (long run = 1; run < size; run *= 2) {
        for (long start = 0; start < size; start += 2 * run) {
            long left = start, middle = start + run < size ? start + run : size;
            long right = middle, end = start + 2 * run < size ? start + 2 * run : size;
            for (long at = start; at < end; at++) {
                int takes_right = left == middle || (right < end && comes_after(from[left], from[right]));
                to[at] = from[takes_right ? right++ : left++];
            }
        }
        ranked *other = from;
        from = to;
        to = other;
    }
    return from;
}

/* The places of the best, in order; returns how many, -1 without memory. What is no number comes last. */
long order_best(const double *scores, const uint64_t *keys, long count, long wanted, int64_t *order) {
    long size = wanted < count ? wanted : count;
    if (size <= 0) return 0;
    ranked *heap = malloc(2 * size * sizeof(ranked));
    if (!heap) return -1;
    for (long at = 0; at < count; at++) {
        ranked one = {isnan(scores[at]) ? -INFINITY : scores[at], keys[at], at};
        if (at < size) {
            heap[at] = one;
            continue;
        }
        /* The root is the last of those kept so far. */
        if (at == size)
            for (long parent = size / 2 - 1; parent >= 0; parent--) sift(heap, size, parent);
        if (comes_after(heap[0], one)) {
            heap[0] = one;
            sift(heap, size, 0);
        }
    }
    const ranked *best = sorted(heap, heap + size, size);
    for (long at = 0; at < size; at++) order[at] = best[at].place;
    free(heap);
    return size;
}

/* Min-max to 0..1 of the wanted rows of [rows, count], in place; all 0 where nothing differs. NaN counts as the minimum. */
void scale_rows(double *values, const uint8_t *wanted, long rows, long count) {
    for (long row = 0; row < rows; row++) {
        if (!wanted[row]) continue;
        double *own = values + row * count, low = INFINITY, high = -INFINITY;
        for (long at = 0; at < count; at++) {
            if (own[at] < low) low = own[at];
            if (own[at] > high) high = own[at];
        }
        double range = high - low;
        for (long at = 0; at < count; at++) own[at] = high > low && !isnan(own[at]) ? (own[at] - low) / range : 0;
    }
}

void weighted_sums(const float *values, const double *weights, long tokens, long columns, double *sums) {
    for (long column = 0; column < columns; column++) sums[column] = 0;
    for (long token = 0; token < tokens; token++)
        for (long column = 0; column < columns; column++)
            sums[column] += weights[token] * values[token * columns + column];
}

FOR_EVERY_PROCESSOR
void weighted_rows(const double *values, const double *weights, long rows, long count, double *sums) {
    for (long at = 0; at < count; at++) sums[at] = 0;
    for (long row = 0; row < rows; row++) {
        if (weights[row] == 0) continue;
        for (long at = 0; at < count; at++) sums[at] += weights[row] * values[row * count + at];
    }
}

FOR_EVERY_PROCESSOR
void ranks(const double *values, long count, int64_t *ahead) {
    for (long place = 0; place < count; place++) {
        int64_t greater = 0;
        for (long other = 0; other < count; other++) greater += values[other] > values[place];
        ahead[place] = greater;
    }
}
