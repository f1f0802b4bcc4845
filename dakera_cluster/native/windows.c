/* The windows around memories (who stands within a budget of words on each side), BM25 of all of them as one text, and the
   fusion of that with the other scores of candidates. */

#include <stdlib.h>

#include "portable.h"

#define NOBODY (-1)
#define NO_SPEAKER (-1)
#define MAX_REACH 16

INLINED int is_said(const talk_links *in, int64_t slot) {
    return slot >= 0 && slot < in->known && in->speakers[slot] != NO_SPEAKER;
}

/* The neighbours on one side of a slot that fit the budget, up to reach of them; returns how many. What nobody said is no
   turn of a talk: it ends a window. */
INLINED long side_of(const talk_links *in, const int32_t *links, int64_t slot, long reach, int64_t budget, int32_t *found) {
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
INLINED long window_of(const talk_links *in, int64_t slot, long reach, int64_t budget, int32_t *found) {
    if (!is_said(in, slot)) return 0;
    long before = side_of(in, in->previous, slot, reach, budget, found);
    return before + side_of(in, in->next, slot, reach, budget, found + before);
}

INLINED int has_text(int64_t slot, long size) { return slot >= 0 && slot < size; }

/* The wanted best of the allowed slots, in order (best_hits), and those of them that are allowed who stand in the windows of the
   first around of them, one window after another, repeats included. found: room for wanted and 2 * reach * around. Returns
   how many, or what best_hits does. */
long spread(const talk_links *talk, const int64_t *slots, const double *scores, long count, const uint8_t *allowed,
            long allowed_count, long wanted, long around, long reach, long budget, int64_t *found) {
    long best = best_hits(slots, scores, count, allowed, allowed_count, talk->keys, talk->key_count, wanted, found);
    if (best < 0) return best;
    for (long at = 0; at < best; at++) found[at] = slots[found[at]];
    long total = best;
    for (long place = 0; place < best && place < around; place++) {
        int32_t own[2 * MAX_REACH];
        long held = window_of(talk, found[place], reach, budget, own);
        for (long at = 0; at < held; at++)
            if (!allowed || (own[at] < allowed_count && allowed[own[at]])) found[total++] = own[at];
    }
    return total;
}

/* BM25 of each slot and its window as one text. Lengths are compared with the mean over the windows. */
static void window_scores(const talk_links *talk, const word_scores *words, const int64_t *slots, long count, long reach,
                          long budget, double k1, double b, double *scores) {
    double mean = 0;
    for (long place = 0; place < count; place++) {
        int32_t own[2 * MAX_REACH];
        long held = window_of(talk, slots[place], reach, budget, own);
        double length = has_text(slots[place], words->size) ? words->lengths[slots[place]] : 0;
        for (long at = 0; at < held; at++)
            if (own[at] < words->size) length += words->lengths[own[at]];
        scores[place] = length;
        mean += length;
    }
    mean = count ? mean / count : 0;
    if (mean < 1) mean = 1;
    for (long place = 0; place < count; place++) {
        int32_t own[2 * MAX_REACH];
        long held = window_of(talk, slots[place], reach, budget, own);
        double norm = k1 * (1 - b + b * scores[place] / mean), score = 0;
        for (long term = 0; term < words->terms; term++) {
            const uint8_t *counts = words->frequencies + term * words->size;
            long often = has_text(slots[place], words->size) ? counts[slots[place]] : 0;
            for (long at = 0; at < held; at++)
                if (own[at] < words->size) often += counts[own[at]];
            if (often) score += words->idf[term] * (k1 + 1) * often / (often + norm);
        }
        scores[place] = score;
    }
}

/* What the words say of each slot: 0 for one without text. Returns 0 where a place lies beyond what was found. */
static int word_scores_at(const word_scores *words, const int64_t *slots, long count, double *bm25, double *coverage) {
    for (long at = 0; at < count; at++) {
        long place = has_text(slots[at], words->size) ? words->places[slots[at]] : 0;
        if (place < 0 || place > words->found) return 0;
        bm25[at] = words->bm25[place];
        coverage[at] = words->coverage[place];
    }
    return 1;
}

/* The share of the rare terms that a slot holds. */
INLINED double share_of(const word_scores *words, int64_t slot) {
    long held = 0;
    for (long at = 0; at < words->rare_count && has_text(slot, words->size); at++)
        held += words->frequencies[words->rare[at] * words->size + slot] != 0;
    return (double)held / (double)words->rare_count;
}

static void fuse_scores(const word_scores *words, const fusion *how, const int64_t *slots, const double *cosines,
                        const double *bm25, const double *window, long count, double *scaled, double *fused) {
    static const uint8_t all[3] = {1, 1, 1};
    memcpy(scaled, cosines, count * sizeof *scaled);
    memcpy(scaled + count, bm25, count * sizeof *scaled);
    memcpy(scaled + 2 * count, window, count * sizeof *scaled);
    scale_rows(scaled, all, 3, count);
    for (long at = 0; at < count; at++) {
        double sum = how->given ? how->given[at] : how->by_vector * scaled[at] + how->by_words * scaled[count + at];
        sum += how->by_window * scaled[2 * count + at];
        if (how->boost > 0 && words->rare_count) sum += how->boost * share_of(words, slots[at]);
        fused[at] = how->factors ? sum * how->factors[at] : sum;
    }
}

/* The candidates in the order of their fused scores. columns: [5, count], in that order: fused, cosine, BM25, coverage, window.
   Returns 0, -1 without memory, -2 when a slot has no key or the words do not fit together. */
long fuse(const talk_links *talk, const word_scores *words, const fusion *how, const outlook *far, const int64_t *slots,
          const double *cosines, long count, int64_t *ordered, double *columns) {
    if (count <= 0) return 0;
    double *room = malloc(7 * count * sizeof *room + count * sizeof(int64_t));
    if (!room) return -1;
    double *fused = room, *bm25 = room + count, *coverage = bm25 + count, *window = coverage + count, *scaled = window + count;
    int64_t *order = (int64_t *)(scaled + 3 * count);
    long status = -2;
    if (word_scores_at(words, slots, count, bm25, coverage)) {
        window_scores(talk, words, slots, count, far->window_reach, far->window_budget, far->window_k1, far->window_b, window);
        fuse_scores(words, how, slots, cosines, bm25, window, count, scaled, fused);
        status = best_hits(slots, fused, count, NULL, 0, talk->keys, talk->key_count, count, order);
    }
    const double *from[] = {fused, cosines, bm25, coverage, window};
    for (long at = 0; at < status; at++) ordered[at] = slots[order[at]];
    for (long row = 0; row < 5 && status > 0; row++)
        for (long at = 0; at < count; at++) columns[row * count + at] = from[row][order[at]];
    free(room);
    return status < 0 ? status : 0;
}
