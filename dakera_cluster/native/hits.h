/* Lists of slots by score: the best first, equals by key, then slot. What is no number comes last. */

#pragma once
#include <math.h>
#include <stdlib.h>

#include "portable.h"

#define RADIX 256
#define PASSES 8
/* Bytes of a rank, from the first one that differs on, by which a list is sorted. */
#define TELLING 3
/* Lists up to this long are sorted by insertion. */
#define SHORT_LIST 24
/* Levels of the score in which slots are counted, and the list from which on that pays. */
#define SCORE_LEVELS 1024
#define COUNTED_FROM 256

/* rank rises with the score, and is equal where scores are. */
typedef struct {
    uint64_t rank;
    int64_t slot;
    union {
        double score;
        int64_t place;
    };
} hit;

INLINED uint64_t rank_of(double score) {
    if (isnan(score)) return 0;
    uint64_t bits;
    /* Minus zero is zero. */
    score += 0.0;
    memcpy(&bits, &score, sizeof bits);
    return bits >> 63 ? ~bits : bits | (uint64_t)1 << 63;
}

INLINED hit hit_of(int64_t slot, double score) { return (hit){.rank = rank_of(score), .slot = slot, .score = score}; }

INLINED int allows(const uint8_t *allowed, long count, const int64_t *slots, long at) {
    return !allowed || (slots[at] < count && allowed[slots[at]]);
}

/* A score that at least wanted of those of the allowed slots (all when allowed is NULL: then slots may be, too) reach. */
static inline double floor_of_scores(const int64_t *slots, const double *scores, long count, const uint8_t *allowed,
                                     long allowed_count, long wanted) {
    if (count < COUNTED_FROM || count <= wanted) return -INFINITY;
    double low = INFINITY, high = -INFINITY;
    for (long at = 0; at < count; at++) {
        if (scores[at] < low) low = scores[at];
        if (scores[at] > high) high = scores[at];
    }
    if (!(high > low) || isinf(high - low)) return -INFINITY;
    int32_t levels[SCORE_LEVELS] = {0};
    double per_unit = (SCORE_LEVELS - 1) / (high - low);
    for (long at = 0; at < count; at++)
        if (scores[at] >= low && allows(allowed, allowed_count, slots, at)) levels[(long)((scores[at] - low) * per_unit)]++;
    long level = SCORE_LEVELS - 1, held = 0;
    for (; level > 0; level--) {
        held += levels[level];
        if (held >= wanted) break;
    }
    /* A level lower, lest rounding matters. */
    return level > 1 ? low + (level - 1) / per_unit : -INFINITY;
}

/* Sort by rank as far as its bytes from first to last (included), descending; equals stay in their order. */
static void sort_by_bytes(hit *hits, hit *spare, long count, int first, int last) {
    uint32_t counts[PASSES][RADIX];
    memset(counts + first, 0, (last - first + 1) * sizeof *counts);
    for (long at = 0; at < count; at++)
        for (int pass = first; pass <= last; pass++) counts[pass][hits[at].rank >> 8 * pass & (RADIX - 1)]++;
    hit *from = hits, *to = spare;
    for (int pass = first; pass <= last; pass++) {
        uint32_t *own = counts[pass], before = 0;
        if (own[hits[0].rank >> 8 * pass & (RADIX - 1)] == count) continue;
        for (long digit = RADIX - 1; digit >= 0; digit--) {
            uint32_t held = own[digit];
            own[digit] = before;
            before += held;
        }
        for (long at = 0; at < count; at++) to[own[from[at].rank >> 8 * pass & (RADIX - 1)]++] = from[at];
        hit *other = from;
        from = to;
        to = other;
    }
    if (from != hits) memcpy(hits, from, count * sizeof *hits);
}

/* The same by insertion, of the whole rank, in at most so many moves. Returns 0 where they did not do. */
static int sort_by_moves(hit *hits, long count, long moves) {
    for (long at = 1; at < count; at++) {
        if (hits[at - 1].rank >= hits[at].rank) continue;
        hit moved = hits[at];
        long to = at;
        for (; to && hits[to - 1].rank < moved.rank; to--) hits[to] = hits[to - 1];
        hits[to] = moved;
        moves -= at - to;
        if (moves < 0) return 0;
    }
    return 1;
}

/* Sort by rank, descending; equal ranks stay in their order. spare is room for as many. */
static void sort_hits(hit *hits, hit *spare, long count) {
    if (count <= SHORT_LIST) {
        sort_by_moves(hits, count, SHORT_LIST * SHORT_LIST);
        return;
    }
    uint64_t differing = 0;
    for (long at = 1; at < count; at++) differing |= hits[at].rank ^ hits[0].rank;
    if (!differing) return;
    /* The upper bytes tell nearly all apart: few are left to be moved, if scores do not crowd together. */
    int last = (63 - __builtin_clzll(differing)) / 8, first = last < TELLING ? 0 : last + 1 - TELLING;
    sort_by_bytes(hits, spare, count, first, last);
    if (first && !sort_by_moves(hits, count, count)) sort_by_bytes(hits, spare, count, 0, last);
}

typedef struct {
    uint64_t key;
    hit own;
} keyed;

static int by_key(const void *left, const void *right) {
    const keyed *one = left, *other = right;
    if (one->key != other->key) return one->key < other->key ? -1 : 1;
    return (one->own.slot > other->own.slot) - (one->own.slot < other->own.slot);
}

INLINED int comes_before(const uint64_t *keys, const hit *one, const hit *other) {
    uint64_t left = keys[one->slot], right = keys[other->slot];
    return left != right ? left < right : one->slot < other->slot;
}

/* Put those of a sorted list that are equal in the order of their keys, from place first to last (not included) and as far
   as their equals reach. keys: by slot. Returns 0 without memory. */
static int settle_ties(hit *hits, long count, long first, long last, const uint64_t *keys) {
    while (first && first < count && hits[first - 1].rank == hits[first].rank) first--;
    for (long at = first; at < last && at < count;) {
        long end = at + 1;
        while (end < count && hits[end].rank == hits[at].rank) end++;
        if (end - at <= SHORT_LIST) {
            for (long place = at + 1; place < end; place++) {
                hit moved = hits[place];
                long to = place;
                for (; to > at && comes_before(keys, &moved, hits + to - 1); to--) hits[to] = hits[to - 1];
                hits[to] = moved;
            }
        } else {
            keyed *run = malloc((end - at) * sizeof *run);
            if (!run) return 0;
            for (long place = at; place < end; place++) run[place - at] = (keyed){keys[hits[place].slot], hits[place]};
            qsort(run, end - at, sizeof *run, by_key);
            for (long place = at; place < end; place++) hits[place] = run[place - at].own;
            free(run);
        }
        at = end;
    }
    return 1;
}
