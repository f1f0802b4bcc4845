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

/* own: [count], the keys of slots. Returns 0 when one has none. */
static int keys_of(const int64_t *slots, long count, const uint64_t *keys, long key_count, uint64_t *own) {
    for (long at = 0; at < count; at++) {
        if (slots[at] < 0 || slots[at] >= key_count) return 0;
        own[at] = keys[slots[at]];
    }
    return 1;
}

/* The columns of candidates, and behind them their late scores, as a whole and of the first passage. */
enum { FUSED, COSINE, BM25, COVERAGE, WINDOW, FOUND_COLUMNS, LATE = FOUND_COLUMNS, LATE_FIRST, POOL_COLUMNS };

/* The pool, slots[count], by the sum of what its fused scores (the first of its columns: [FOUND_COLUMNS, count], stride apart) and
   its late ones (the weighted sums of best: [tokens, count], times share) say, both scaled; ties by key. room: double[count] and
   int64[count], the sums and the order; then of the first kept (at most count) in that order, which pool will show:
   double[POOL_COLUMNS, kept], int64[kept], their slots, and float[tokens, kept]. Returns 0, -1 without memory, -5 when a slot
   has no key. */
long cut_pool(const late_query *query, const int64_t *slots, const double *columns, long stride, long count, const float *best,
              const double *first, double share, const uint64_t *keys, long key_count, long kept, void *room,
              pool_memories *pool) {
    static const uint8_t both[2] = {1, 1};
    double *late = malloc((3 * count + 1) * sizeof *late), *scaled = late + count, *level = room;
    uint64_t *own_keys = malloc((count + 1) * sizeof *own_keys);
    int64_t *order = (int64_t *)(level + count);
    double *kept_columns = (double *)(order + count);
    int64_t *kept_slots = (int64_t *)(kept_columns + POOL_COLUMNS * kept);
    float *kept_best = (float *)(kept_slots + kept);
    long status = !late || !own_keys ? -1 : keys_of(slots, count, keys, key_count, own_keys) ? 0 : -5;
    if (!status) {
        weighted_sums(best, query->weights, query->tokens, count, late);
        memcpy(scaled, columns, count * sizeof *scaled);
        memcpy(scaled + count, late, count * sizeof *scaled);
        scale_rows(scaled, both, 2, count);
        for (long at = 0; at < count; at++) level[at] = scaled[at] + share * scaled[count + at];
        status = order_best(level, own_keys, count, count, order) < 0 ? -1 : 0;
    }
    for (long row = 0; !status && row < POOL_COLUMNS; row++) {
        const double *from = row == LATE ? late : row == LATE_FIRST ? first : columns + row * stride;
        for (long at = 0; at < kept; at++) kept_columns[row * kept + at] = from[order[at]];
    }
    for (long token = 0; !status && token < query->tokens; token++)
        for (long at = 0; at < kept; at++) kept_best[token * kept + at] = best[token * count + order[at]];
    for (long at = 0; !status && at < kept; at++) kept_slots[at] = slots[order[at]];
    *pool = (pool_memories){
        .slots = kept_slots,
        .cosine = kept_columns + COSINE * kept,
        .bm25 = kept_columns + BM25 * kept,
        .coverage = kept_columns + COVERAGE * kept,
        .window = kept_columns + WINDOW * kept,
        .late = kept_columns + LATE * kept,
        .late_first = kept_columns + LATE_FIRST * kept,
        .best = kept_best,
        .count = kept,
    };
    free(late);
    free(own_keys);
    return status;
}

/* cut_pool of what late_whole finds. Returns what they do, or -4 when a memory has no tokens: then nothing is matched. */
long cut_matched(const late_query *query, const token_rows *stored, const int64_t *slots, const double *columns, long stride,
                 long count, long most_exact, long most, double share, const uint64_t *keys, long key_count, long kept,
                 void *room, pool_memories *pool) {
    long cells = query->tokens * count;
    for (long at = 0; at < count; at++) {
        int64_t slot = slots[at];
        if (slot < 0 || slot >= stored->known || stored->counts[slot] <= 0) return -4;
    }
    double *first = malloc((count + 1) * sizeof *first + cells * sizeof(float) + count);
    if (!first) return -1;
    float *best = (float *)(first + count);
    uint8_t *seen = (uint8_t *)(best + cells);
    long status = late_whole(query, stored, slots, count, most_exact, most, best, first, seen);
    if (!status) status = cut_pool(query, slots, columns, stride, count, best, first, share, keys, key_count, kept, room, pool);
    free(first);
    return status;
}

/* The weighted rows (weighted_rows) and what is added to each sum, and their order by key: [count] each. Returns how many
   neighbours in it are equal, -1 without memory, -2 when a slot has no key. */
long ordered_sums(const double *values, const double *weights, long rows, long count, const double *added, const int64_t *slots,
                  const uint64_t *keys, long key_count, double *sums, int64_t *order) {
    uint64_t *own = malloc((count + 1) * sizeof *own);
    long status = !own ? -1 : keys_of(slots, count, keys, key_count, own) ? 0 : -2, equal = 0;
    if (!status) {
        weighted_rows(values, weights, rows, count, sums);
        for (long at = 0; at < count; at++) sums[at] += added[at];
        status = order_best(sums, own, count, count, order) < 0 ? -1 : 0;
    }
    for (long at = 1; !status && at < count; at++) equal += sums[order[at]] == sums[order[at - 1]];
    free(own);
    return status ? status : equal;
}
