/* Lists of slots by score: the best first, equals by key, then slot. What is no number comes last. */

#pragma once
#include <math.h>
#include <stdlib.h>

#include "portable.h"

#define RADIX 256
#define PASSES 8
/* Lists up to this long are sorted by insertion. */
#define SHORT_LIST 24

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

/* Sort by rank, descending; equal ranks stay in their order. spare is room for as many. */
static void sort_hits(hit *hits, hit *spare, long count) {
    if (count <= SHORT_LIST) {
        for (long at = 1; at < count; at++) {
            hit moved = hits[at];
            long to = at;
            for (; to && hits[to - 1].rank < moved.rank; to--) hits[to] = hits[to - 1];
            hits[to] = moved;
        }
        return;
    }
    uint32_t counts[PASSES][RADIX] = {0};
    for (long at = 0; at < count; at++)
        for (int pass = 0; pass < PASSES; pass++) counts[pass][hits[at].rank >> 8 * pass & (RADIX - 1)]++;
    hit *from = hits, *to = spare;
    for (int pass = 0; pass < PASSES; pass++) {
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
