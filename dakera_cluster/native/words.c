/* Words and neighbours: BM25 over windows of memories, who stands beside whom, and what neighbours lend. */

#include "portable.h"

#define NOBODY (-1)
#define NO_SPEAKER (-1)
#define BEYOND INT32_MAX

void tally(const uint16_t *ids, long count, int32_t step, int32_t *counts) {
    for (long place = 0; place < count; place++) counts[ids[place]] += step;
}

/* found, words_to: [count, 2 * reach], the ones before (nearest first), then the ones after. */
void neighbours(const int32_t *previous, const int32_t *next, long linked, const uint16_t *words, const int32_t *speakers,
                long known, const int64_t *slots, long count, long reach, int32_t *found, int64_t *words_to) {
    for (long place = 0; place < count; place++) {
        int64_t slot = slots[place];
        int said = slot >= 0 && slot < known && speakers[slot] != NO_SPEAKER;
        for (int side = 0; side < 2; side++) {
            const int32_t *links = side ? next : previous;
            int32_t at = slot >= 0 && slot < linked ? (int32_t)slot : NOBODY;
            int64_t total = 0;
            for (long step = 0; step < reach; step++) {
                if (at != NOBODY) at = links[at];
                int counts = said && at != NOBODY && at < known && speakers[at] != NO_SPEAKER;
                long cell = (2 * place + side) * reach + step;
                total += counts ? words[at] : BEYOND;
                found[cell] = counts ? at : NOBODY;
                words_to[cell] = total;
            }
        }
    }
}

/* lengths: [size]; frequencies: [terms, size]. */
void window_bm25(const int64_t *slots, long count, const int32_t *around, const uint8_t *inside, long width,
                 const double *lengths, const uint8_t *frequencies, long size, const double *idf, long terms, double k1,
                 double b, double *scores) {
    double mean = 0;
    for (long place = 0; place < count; place++) {
        double length = slots[place] < size ? lengths[slots[place]] : 0;
        for (long cell = place * width; cell < (place + 1) * width; cell++)
            if (inside[cell] && around[cell] >= 0 && around[cell] < size) length += lengths[around[cell]];
        scores[place] = length;
        mean += length;
    }
    mean = count ? mean / count : 0;
    if (mean < 1) mean = 1;
    for (long place = 0; place < count; place++) {
        double norm = k1 * (1 - b + b * scores[place] / mean), score = 0;
        for (long term = 0; term < terms; term++) {
            const uint8_t *own = frequencies + term * size;
            long often = slots[place] < size ? own[slots[place]] : 0;
            for (long cell = place * width; cell < (place + 1) * width; cell++)
                if (inside[cell] && around[cell] >= 0 && around[cell] < size) often += own[around[cell]];
            score += idf[term] * (k1 + 1) * often / (often + norm);
        }
        scores[place] = score;
    }
}

/* best: [columns, tokens], the memories themselves in the first count columns; places: [count, width] into the columns, what
   lies beside them is nobody. */
FOR_EVERY_PROCESSOR
void lent_cover(const float *best, long columns, long tokens, const int64_t *places, const uint8_t *inside, long count,
                long width, double share, const double *weights, double *cover) {
    float lent[MAX_TOKENS];
    for (long place = 0; place < count; place++) {
        for (long token = 0; token < tokens; token++) lent[token] = 0;
        for (long cell = place * width; cell < (place + 1) * width; cell++) {
            if (!inside[cell] || places[cell] < 0 || places[cell] >= columns) continue;
            const float *found = best + places[cell] * tokens;
            for (long token = 0; token < tokens; token++) lent[token] = found[token] > lent[token] ? found[token] : lent[token];
        }
        const float *own = best + place * tokens;
        double total = 0;
        for (long token = 0; token < tokens; token++) {
            double given = share * lent[token];
            total += weights[token] * (own[token] > given ? own[token] : given);
        }
        cover[place] = total;
    }
}
