/* The best of scored slots. */

#include "hits.h"

/* The places of the wanted best of the allowed slots (all when allowed is NULL), in order: by score, then key, then slot.
   keys: by slot. Returns how many, -1 without memory, -2 when a slot has no key. */
long best_hits(const int64_t *slots, const double *scores, long count, const uint8_t *allowed, long allowed_count,
               const uint64_t *keys, long key_count, long wanted, int64_t *places) {
    if (wanted <= 0 || count <= 0) return 0;
    double floor = floor_of_scores(slots, scores, count, allowed, allowed_count, wanted);
    hit *hits = malloc(2 * count * sizeof *hits);
    if (!hits) return -1;
    long size = 0;
    for (long at = 0; at < count; at++) {
        if (slots[at] < 0 || slots[at] >= key_count) {
            free(hits);
            return -2;
        }
        if (scores[at] < floor || !allows(allowed, allowed_count, slots, at)) continue;
        hits[size++] = (hit){.rank = rank_of(scores[at]), .slot = slots[at], .place = at};
    }
    sort_hits(hits, hits + size, size);
    long settled = settle_ties(hits, size, 0, wanted, keys);
    if (size > wanted) size = wanted;
    for (long at = 0; at < size; at++) places[at] = hits[at].place;
    free(hits);
    return settled ? size : -1;
}
