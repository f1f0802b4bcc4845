/* Memories in company: the talk around each, which memories that are, and what their words and cosines say together. */

#include <stdlib.h>

#include "portable.h"

#define NOBODY (-1)
#define NO_SPEAKER (-1)

/* found, words_to: [count, 2 * reach] as of `neighbours`, but a side ends at the first turn that nobody said or that lies more
   than pause from the one nearer. turns: [count], how many were found. */
void stretches(const int32_t *previous, const int32_t *next, long linked, const uint16_t *words, const int32_t *speakers,
               const double *when, long known, const int64_t *slots, long count, long reach, double pause,
               int32_t *found, int64_t *words_to, int64_t *turns) {
    for (long place = 0; place < count; place++) {
        int64_t slot = slots[place];
        int said = slot >= 0 && slot < known && slot < linked && speakers[slot] != NO_SPEAKER;
        turns[place] = 0;
        for (int side = 0; side < 2; side++) {
            const int32_t *links = side ? next : previous;
            int32_t *own = found + (2 * place + side) * reach;
            int64_t *totals = words_to + (2 * place + side) * reach, total = 0, at = slot;
            long step = 0;
            for (; said && step < reach; step++) {
                int64_t beside = links[at];
                if (beside < 0 || beside >= linked || beside >= known || speakers[beside] == NO_SPEAKER) break;
                double gap = when[beside] - when[at];
                if (gap > pause || gap < -pause) break;
                total += words[beside];
                own[step] = (int32_t)beside;
                totals[step] = total;
                at = beside;
            }
            turns[place] += step;
            for (; step < reach; step++) {
                own[step] = NOBODY;
                totals[step] = INT32_MAX;
            }
        }
    }
}

/* A set of slots, each with a place: open addressing over a power of two of at least twice as many cells. */
typedef struct {
    int64_t slot;
    int64_t place;
} held;

INLINED held *cell_of(held *cells, uint64_t mask, int64_t slot) {
    uint64_t at = (uint64_t)slot * 0x9E3779B97F4A7C15u >> 20 & mask;
    while (cells[at].slot != NOBODY && cells[at].slot != slot) at = (at + 1) & mask;
    return cells + at;
}

static int by_slot(const void *left, const void *right) {
    int64_t one = *(const int64_t *)left, other = *(const int64_t *)right;
    return (one > other) - (one < other);
}

/* places: [count], of each wanted cell: its place in known, or, where that is given, known_count and its place in others, which
   are ascending and each there once; NOBODY for the rest. others may be NULL: what is not known has no place. Returns how many
   others there are, -1 without memory. */
long places_of(const int64_t *known, long known_count, const int32_t *around, const uint8_t *wanted, long count,
               int64_t *others, int64_t *places) {
    long size = 16, found = 0;
    while (size < 2 * (known_count + (others ? count : 0))) size *= 2;
    held *cells = malloc(size * sizeof(held));
    if (!cells) return -1;
    for (long at = 0; at < size; at++) cells[at].slot = NOBODY;
    for (long at = 0; at < known_count; at++)
        if (known[at] >= 0) *cell_of(cells, size - 1, known[at]) = (held){known[at], at};
    for (long at = 0; others && at < count; at++) {
        if (!wanted[at] || around[at] < 0) continue;
        held *own = cell_of(cells, size - 1, around[at]);
        if (own->slot != NOBODY) continue;
        own->slot = others[found++] = around[at];
    }
    if (found) qsort(others, found, sizeof(int64_t), by_slot);
    for (long at = 0; at < found; at++) cell_of(cells, size - 1, others[at])->place = known_count + at;
    for (long at = 0; at < count; at++) {
        places[at] = NOBODY;
        if (!wanted[at] || around[at] < 0) continue;
        held *own = cell_of(cells, size - 1, around[at]);
        if (own->slot != NOBODY) places[at] = own->place;
    }
    free(cells);
    return found;
}

/* means: [count], of own and the values at places ([count, width], NOBODY for none), each weighing its words; added in order. */
void means_of(const double *own, const int64_t *own_words, const double *values, const int64_t *words, const int64_t *places,
              long count, long width, double *means) {
    for (long place = 0; place < count; place++) {
        double weight = (double)own_words[place], total = weight * own[place];
        for (long cell = place * width; cell < (place + 1) * width; cell++) {
            int64_t at = places[cell];
            weight += at >= 0 ? (double)words[at] : 0;
            total += at >= 0 ? (double)words[at] * values[at] : 0;
        }
        means[place] = total / weight;
    }
}

/* best: [count], the greatest of the values whose code is the same; one's own where the code is NOBODY. */
void best_alike(const double *values, const int32_t *codes, long count, double *best) {
    for (long place = 0; place < count; place++) {
        best[place] = values[place];
        if (codes[place] == NOBODY) continue;
        for (long other = 0; other < count; other++)
            if (codes[other] == codes[place] && values[other] > best[place]) best[place] = values[other];
    }
}

/* order: [count], a permutation: next comes whose value, and weights of what it adds to the greatest so far, are the greatest in
   sum; of equals the first. found: [count, tokens], not below 0. */
void covering_order(const double *values, const double *found, const double *weights, long count, long tokens,
                    double *covered, int64_t *order) {
    for (long token = 0; token < tokens; token++) covered[token] = 0;
    for (long at = 0; at < count; at++) order[at] = at;
    for (long chosen = 0; chosen < count; chosen++) {
        long pick = chosen;
        double most = 0;
        for (long at = chosen; at < count; at++) {
            const double *own = found + order[at] * tokens;
            double gain = 0;
            for (long token = 0; token < tokens; token++) {
                double more = own[token] - covered[token];
                gain += (more > 0 ? more : 0) * weights[token];
            }
            gain += values[order[at]];
            if (at == chosen || gain > most) {
                pick = at;
                most = gain;
            }
        }
        int64_t next = order[pick];
        for (; pick > chosen; pick--) order[pick] = order[pick - 1];
        order[chosen] = next;
        for (long token = 0; token < tokens; token++)
            if (found[next * tokens + token] > covered[token]) covered[token] = found[next * tokens + token];
    }
}
