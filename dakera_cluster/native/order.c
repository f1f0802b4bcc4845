/* Orders, and the scaling of features. */

#include <math.h>

#include "portable.h"

/* Whether the one at left comes after the one at right: by score descending, then key, then position. */
INLINED int comes_after(const double *scores, const uint64_t *keys, int64_t left, int64_t right) {
    double a = isnan(scores[left]) ? -INFINITY : scores[left], b = isnan(scores[right]) ? -INFINITY : scores[right];
    if (a != b) return a < b;
    if (keys[left] != keys[right]) return keys[left] > keys[right];
    return left > right;
}

static void sift(const double *scores, const uint64_t *keys, int64_t *heap, long size, long at) {
    int64_t moved = heap[at];
    for (long child; (child = 2 * at + 1) < size; at = child) {
        if (child + 1 < size && comes_after(scores, keys, heap[child + 1], heap[child])) child++;
        if (!comes_after(scores, keys, heap[child], moved)) break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

/* The positions of the best, in order; returns how many. The root of the heap is the last of those kept so far. */
long order_best(const double *scores, const uint64_t *keys, long count, long wanted, int64_t *order) {
    long size = wanted < count ? wanted : count;
    if (size <= 0) return 0;
    for (long at = 0; at < size; at++) order[at] = at;
    for (long at = size / 2 - 1; at >= 0; at--) sift(scores, keys, order, size, at);
    for (long at = size; at < count; at++)
        if (comes_after(scores, keys, order[0], at)) {
            order[0] = at;
            sift(scores, keys, order, size, 0);
        }
    for (long last = size - 1; last > 0; last--) {
        int64_t worst = order[0];
        order[0] = order[last];
        order[last] = worst;
        sift(scores, keys, order, last, 0);
    }
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
