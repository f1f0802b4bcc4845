/* The best of scored slots. */

#include "hits.h"

/* Levels of the score in which slots are counted, and the list from which on that pays. */
#define LEVELS 1024
#define COUNTED_FROM 256

INLINED int allows(const uint8_t *allowed, long count, int64_t slot) { return !allowed || (slot < count && allowed[slot]); }

/* A score that at least wanted of them reach. */
static double floor_of(const int64_t *slots, const double *scores, long count, const uint8_t *allowed, long allowed_count,
                       long wanted) {
    if (count < COUNTED_FROM || count <= wanted) return -INFINITY;
    double low = INFINITY, high = -INFINITY;
    for (long at = 0; at < count; at++) {
        if (scores[at] < low) low = scores[at];
        if (scores[at] > high) high = scores[at];
    }
    if (!(high > low) || isinf(high - low)) return -INFINITY;
    int32_t levels[LEVELS] = {0};
    double per_unit = (LEVELS - 1) / (high - low);
    for (long at = 0; at < count; at++)
        if (scores[at] >= low && allows(allowed, allowed_count, slots[at])) levels[(long)((scores[at] - low) * per_unit)]++;
    long level = LEVELS - 1, held = 0;
    for (; level > 0; level--) {
        held += levels[level];
        if (held >= wanted) break;
    }
    /* A level lower, lest rounding matters. */
    return level > 1 ? low + (level - 1) / per_unit : -INFINITY;
}

/* The places of the wanted best of the allowed slots (all when allowed is NULL), in order: by score, then key, then slot.
   keys: by slot. Returns how many, -1 without memory, -2 when a slot has no key. */
long best_hits(const int64_t *slots, const double *scores, long count, const uint8_t *allowed, long allowed_count,
               const uint64_t *keys, long key_count, long wanted, int64_t *places) {
    if (wanted <= 0 || count <= 0) return 0;
    double floor = floor_of(slots, scores, count, allowed, allowed_count, wanted);
    hit *hits = malloc(2 * count * sizeof *hits);
    if (!hits) return -1;
    long size = 0;
    for (long at = 0; at < count; at++) {
        if (slots[at] < 0 || slots[at] >= key_count) {
            free(hits);
            return -2;
        }
        if (scores[at] < floor || !allows(allowed, allowed_count, slots[at])) continue;
        hits[size++] = (hit){.rank = rank_of(scores[at]), .slot = slots[at], .place = at};
    }
    sort_hits(hits, hits + size, size);
    long settled = settle_ties(hits, size, 0, wanted, keys);
    if (size > wanted) size = wanted;
    for (long at = 0; at < size; at++) places[at] = hits[at].place;
    free(hits);
    return settled ? size : -1;
}
