/* Orders, and the scaling of features. */

#include "hits.h"

/* The places of the best, in order: by score, then key, then place; returns how many, -1 without memory. What is no number
   comes last, like the least there is. */
long order_best(const double *scores, const uint64_t *keys, long count, long wanted, int64_t *order) {
    long size = wanted < count ? wanted : count;
    if (size <= 0) return 0;
    hit *hits = malloc(2 * count * sizeof *hits);
    if (!hits) return -1;
    double floor = floor_of_scores(NULL, scores, count, NULL, 0, size);
    long held = 0;
    for (long at = 0; at < count; at++)
        if (!(scores[at] < floor)) hits[held++] = hit_of(at, isnan(scores[at]) ? -INFINITY : scores[at]);
    sort_hits(hits, hits + held, held);
    long settled = settle_ties(hits, held, 0, size, keys);
    for (long at = 0; at < size; at++) order[at] = hits[at].slot;
    free(hits);
    return settled ? size : -1;
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
