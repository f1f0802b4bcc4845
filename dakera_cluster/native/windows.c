/* The windows around memories: who stands within a budget of words on each side, and BM25 of all of them as one text. */

#include "portable.h"

#define NOBODY (-1)
#define NO_SPEAKER (-1)
#define MAX_REACH 16

/* Who stands beside whom, by slot: links (NOBODY at the end of a session) below linked, words and speakers below known. */
typedef struct {
    const int32_t *previous, *next;
    long linked;
    const uint16_t *words;
    const int32_t *speakers;
    long known;
} talk;

INLINED int is_said(const talk *in, int64_t slot) {
    return slot >= 0 && slot < in->known && in->speakers[slot] != NO_SPEAKER;
}

/* The neighbours on one side of a slot that fit the budget, up to reach of them; returns how many. What nobody said is no
   turn of a talk: it ends a window. */
INLINED long side_of(const talk *in, const int32_t *links, int64_t slot, long reach, int64_t budget, int32_t *found) {
    long count = 0;
    int64_t words = 0;
    while (count < reach && slot < in->linked) {
        slot = links[slot];
        if (!is_said(in, slot) || (words += in->words[slot]) > budget) break;
        found[count++] = slot;
    }
    return count;
}

/* found: room for 2 * reach. */
INLINED long window_of(const talk *in, int64_t slot, long reach, int64_t budget, int32_t *found) {
    if (!is_said(in, slot)) return 0;
    long before = side_of(in, in->previous, slot, reach, budget, found);
    return before + side_of(in, in->next, slot, reach, budget, found + before);
}

INLINED int has_text(int64_t slot, long size) { return slot >= 0 && slot < size; }

/* Those in the windows around slots, one window after another; returns how many. found: room for 2 * reach a slot. */
long windows_around(const int32_t *previous, const int32_t *next, long linked, const uint16_t *words, const int32_t *speakers,
                    long known, const int64_t *slots, long count, long reach, long budget, int64_t *found) {
    talk in = {previous, next, linked, words, speakers, known};
    long total = 0;
    for (long place = 0; place < count; place++) {
        int32_t own[2 * MAX_REACH];
        long held = window_of(&in, slots[place], reach, budget, own);
        for (long at = 0; at < held; at++) found[total++] = own[at];
    }
    return total;
}

/* lengths: [size]; frequencies: [terms, size]; scores: [count]. Lengths are compared with the mean over the windows. */
void windows_bm25(const int32_t *previous, const int32_t *next, long linked, const uint16_t *words, const int32_t *speakers,
                  long known, const int64_t *slots, long count, long reach, long budget, const double *lengths,
                  const uint8_t *frequencies, long size, const double *idf, long terms, double k1, double b, double *scores) {
    talk in = {previous, next, linked, words, speakers, known};
    double mean = 0;
    for (long place = 0; place < count; place++) {
        int32_t own[2 * MAX_REACH];
        long held = window_of(&in, slots[place], reach, budget, own);
        double length = has_text(slots[place], size) ? lengths[slots[place]] : 0;
        for (long at = 0; at < held; at++)
            if (own[at] < size) length += lengths[own[at]];
        scores[place] = length;
        mean += length;
    }
    mean = count ? mean / count : 0;
    if (mean < 1) mean = 1;
    for (long place = 0; place < count; place++) {
        int32_t own[2 * MAX_REACH];
        long held = window_of(&in, slots[place], reach, budget, own);
        double norm = k1 * (1 - b + b * scores[place] / mean), score = 0;
        for (long term = 0; term < terms; term++) {
            const uint8_t *counts = frequencies + term * size;
            long often = has_text(slots[place], size) ? counts[slots[place]] : 0;
            for (long at = 0; at < held; at++)
                if (own[at] < size) often += counts[own[at]];
            if (often) score += idf[term] * (k1 + 1) * often / (often + norm);
        }
        scores[place] = score;
    }
}
