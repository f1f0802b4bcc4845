/* BM25 of the memories that hold a question's terms. Memories that hold none take no room but one place by slot. */

#include "portable.h"

/* slots, counts: the postings of all terms, one term after another, up to ends[term]. places: [size] of zeros; afterwards 1 +
   the place among the found ones, 0 for none. found, and bm25 and coverage behind a first cell that stays 0: room for one a
   posting. frequencies: [terms, size] of zeros. Returns how many were found, -1 when a posting lies beyond size
   or an end out of order. */
long terms_found(const int32_t *slots, const uint16_t *counts, const int64_t *ends, long terms, long postings, const double *idf, double k1,
                 double norm, double norm_a_term, const double *lengths, long size, int32_t *places, int64_t *found,
                 double *bm25, double *coverage, uint8_t *frequencies) {
    long held = 0, at = 0;
    bm25[0] = coverage[0] = 0;
    for (long term = 0; term < terms; term++, frequencies += size) {
        double weight = idf[term];
        if (ends[term] < at || ends[term] > postings) return -1;
        for (; at < ends[term]; at++) {
            int32_t slot = slots[at];
            if (slot < 0 || slot >= size) return -1;
            int32_t place = places[slot];
            if (!place) {
                found[held++] = slot;
                place = places[slot] = held;
                bm25[place] = coverage[place] = 0;
            }
            double often = counts[at];
            bm25[place] += weight * (k1 + 1) * often / (often + (norm + norm_a_term * lengths[slot]));
            coverage[place] += weight;
            frequencies[slot] = counts[at] < 255 ? counts[at] : 255;
        }
    }
    return held;
}
