/* A first look at a question: the memories that hold its words and those beside them, the ones near in meaning, and what all of
   that makes of each. */

#include <math.h>
#include <stdlib.h>

#include "portable.h"

#define NO_MEMORY (-1)
#define NO_FIT (-2)
/* Postings there is room for before they are counted: what the words of most questions have. */
#define FIRST_ROOM 8192
/* Counts of a term are kept in a byte: beyond this they count as this many. */
#define MAX_FREQUENCY 255
/* Sums of more values than this are made of halves. */
#define SUMMED_AT_ONCE 128
#define LANES 8
/* Of candidates, as fuse writes them. */
#define COLUMNS 5

/* The postings of a question's terms, one term after another up to its end; found: room for a slot each. */
typedef struct {
    int64_t *found, *ends;
    int32_t *slots;
    uint16_t *counts;
} postings;

/* 0 without memory; found is what must be freed. */
static int take_postings(const posting_lists *lists, const asked_terms *asked, postings *taken) {
    for (long room = FIRST_ROOM;;) {
        taken->found = malloc((room + asked->terms) * sizeof(int64_t) + room * (sizeof(int32_t) + sizeof(uint16_t)));
        if (!taken->found) return 0;
        taken->ends = taken->found + room;
        taken->slots = (int32_t *)(taken->ends + asked->terms);
        taken->counts = (uint16_t *)(taken->slots + room);
        long count = postings_of(lists, asked->keys, asked->terms, taken->ends, taken->slots, taken->counts, room);
        if (count <= room) return 1;
        free(taken->found);
        room = count;
    }
}

INLINED long start_of(const postings *taken, long term) { return term ? taken->ends[term - 1] : 0; }

/* The idf of each term, and the rare ones of those that are named; returns how many. */
static long weigh_terms(const posting_lists *lists, const asked_terms *asked, const postings *taken, double *idf, int64_t *rare) {
    long size = 0;
    for (long term = 0; term < asked->terms; term++) {
        long holders = taken->ends[term] - start_of(taken, term);
        idf[term] = log(1 + (lists->documents - holders + 0.5) / (holders + 0.5));
        if (asked->keys[asked->terms + term] && holders > 0 && holders <= asked->rare_holders) rare[size++] = term;
    }
    return size;
}

/* Added in eight lanes: in the order in which numpy adds. */
static double sum_of(const double *values, long count) {
    if (count > SUMMED_AT_ONCE) {
        long half = count / 2 / LANES * LANES;
        return sum_of(values, half) + sum_of(values + half, count - half);
    }
    double lanes[LANES], sum = 0;
    long at = 0;
    if (count >= LANES) {
        memcpy(lanes, values, sizeof lanes);
        for (at = LANES; at + LANES <= count; at += LANES)
            for (long lane = 0; lane < LANES; lane++) lanes[lane] += values[at + lane];
        sum = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
    }
    for (; at < count; at++) sum += values[at];
    return sum;
}

/* BM25 and coverage of the memories that hold any of the terms. places and frequencies: zeros; found: their slots. Returns how many,
   NO_FIT when a posting lies beyond the lengths. */
static long score_words(const posting_lists *lists, const asked_terms *asked, const postings *taken, const double *idf,
                        int32_t *places, double *bm25, double *coverage, uint8_t *frequencies) {
    long held = 0, at = 0;
    bm25[0] = coverage[0] = 0;
    for (long term = 0; term < asked->terms; term++, frequencies += lists->size)
        for (; at < taken->ends[term]; at++) {
            int32_t slot = taken->slots[at];
            if (slot < 0 || slot >= lists->size) return NO_FIT;
            int32_t place = places[slot];
            if (!place) {
                taken->found[held++] = slot;
                place = places[slot] = held;
                bm25[place] = coverage[place] = 0;
            }
            double often = taken->counts[at];
            double norm = asked->norm + asked->norm_a_term * lists->lengths[slot];
            bm25[place] += idf[term] * (asked->k1 + 1) * often / (often + norm);
            coverage[place] += idf[term];
            frequencies[slot] = taken->counts[at] < MAX_FREQUENCY ? taken->counts[at] : MAX_FREQUENCY;
        }
    double total = sum_of(idf, asked->terms);
    for (long place = 1; place <= held && total > 0; place++) coverage[place] /= total;
    return held;
}

/* Fill words, whose arrays lie in room (Found in terms.py knows how much that is). Returns how many memories were found, NO_FIT
   as score_words does. */
static long find_words(const posting_lists *lists, const asked_terms *asked, const postings *taken, uint8_t *room,
                       word_scores *words) {
    long size = lists->size, terms = asked->terms;
    double *idf = (double *)room, *bm25 = idf + terms, *coverage = bm25 + 1 + size;
    int64_t *rare = (int64_t *)(coverage + 1 + size);
    int32_t *places = (int32_t *)(rare + terms);
    uint8_t *frequencies = (uint8_t *)(places + size);
    memset(places, 0, size * sizeof *places + terms * size);
    long rare_count = weigh_terms(lists, asked, taken, idf, rare);
    long found = score_words(lists, asked, taken, idf, places, bm25, coverage, frequencies);
    *words = (word_scores){places, bm25, coverage, lists->lengths, idf, frequencies, rare, size, found, terms, rare_count};
    return found;
}

/* The memories that hold a rare term, as often as they hold one; returns how many. */
static long take_named(const word_scores *words, const postings *taken, int64_t *named) {
    long size = 0;
    for (long place = 0; place < words->rare_count; place++)
        for (long at = start_of(taken, words->rare[place]); at < taken->ends[words->rare[place]]; at++)
            named[size++] = taken->slots[at];
    return size;
}

/* The memories that hold a question's words, and those beside them, at most. */
INLINED long beside_words(const outlook *far) {
    return far->by_words + 2 * far->reach * (far->around < far->by_words ? far->around : far->by_words);
}

/* What look does once the words are found; slots and columns as there. */
static long look_around(const talk_links *talk, const vector_rows *rows, const outlook *far, const postings *taken,
                        const float *vector, const uint8_t *allowed, long allowed_count, const int64_t *others,
                        long other_count, const fusion *how, const word_scores *words, int64_t *slots, double *columns) {
    long wanted = far->by_words < words->found ? far->by_words : words->found;
    long most = beside_words(far) + other_count, all = most + far->by_vector + far->by_name;
    long held = words->terms ? taken->ends[words->terms - 1] : 0;
    int64_t *near = malloc((most + held + all + 1) * sizeof *near + all * sizeof(double));
    if (!near) return NO_MEMORY;
    int64_t *named = near + most, *seen = named + held;
    double *cosines = (double *)(seen + all + 1);
    long size = spread(talk, taken->found, words->bm25 + 1, words->found, allowed, allowed_count, wanted, far->around, far->reach,
                       far->budget, near);
    if (size >= 0) {
        if (other_count) memcpy(near + size, others, other_count * sizeof *near);
        size += other_count;
        if (!rows) memcpy(slots, near, size * sizeof *slots);
    }
    if (size >= 0 && rows) {
        long of_names = far->by_name ? take_named(words, taken, named) : 0;
        int64_t *to = how ? seen : slots;
        double *scores = how ? cosines : columns;
        size = survey(rows, allowed, allowed_count, vector, talk->keys, talk->key_count, far->by_vector, named, of_names,
                      far->by_name < of_names ? far->by_name : of_names, near, size, to, scores);
        long status = size > 0 && how ? fuse(talk, words, how, far, seen, cosines, size, slots, columns) : 0;
        if (status < 0) size = status;
    }
    free(near);
    return size;
}

/* The candidates of a question: the allowed memories by_words that hold its words best (BM25) and those beside them (spread), others,
   and, with rows, the ones by_vector nearest to its vector, and the ones by_name nearest among those that hold a rare
   name. Returns how many, -1 without memory, -2 when a memory lies beyond the lengths or the keys.

   room: 48 bytes a candidate, at most, then what Found asks for. It begins with the slots; without rows as found, repeats
   included. With rows each stands once, in ascending order, and behind the room for slots lie their cosines; with how in the
   order of their fused scores, and there lie their columns, as of fuse; then they are looked at a second time, unless that is NULL.
   words: what the words say of each memory. */
long look(const posting_lists *lists, const talk_links *talk, const vector_rows *rows, const outlook *far,
          const asked_terms *asked, const float *vector, const uint8_t *allowed, long allowed_count, const int64_t *others,
          long other_count, const fusion *how, uint8_t *room, word_scores *words, second_look *second) {
    postings taken;
    if (!take_postings(lists, asked, &taken)) return NO_MEMORY;
    long most = beside_words(far) + far->by_vector + far->by_name + other_count;
    int64_t *slots = (int64_t *)room;
    double *columns = (double *)(slots + most);
    long size = find_words(lists, asked, &taken, (uint8_t *)(columns + COLUMNS * most), words);
    if (size >= 0)
        size = look_around(talk, rows, far, &taken, vector, allowed, allowed_count, others, other_count, how, words, slots,
                           columns);
    free(taken.found);
    if (size > 0 && rows && how && second) review(second, slots, columns, size, words);
    return size;
}
