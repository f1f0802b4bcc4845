/* Rows of features of the memories of a pool, at the places where the ranking wants them; and their last step. */

#include <stdlib.h>

#include "portable.h"

/* Where each row lies; the order is that of features.py. */
enum {
    BM25, COVERAGE, WINDOW, WINDOW_RANK, LATE, LATE_FIRST, COSINE, PASSAGE,
    TIME_WORDS, NUMBER, LENGTH, ABOUT_SELF, ASKS, SELF_ASKED, ASSISTANT,
    WINDOW_TURNS, WINDOW_WIDE, COSINE_LEAD, COVER_TURN, COVER_NEXT, COVER_NEAR, COVER_TALK, SESSION,
    SPEAKER, COSINE_APART, WINDOW_MET, WINDOW_WIDE_MET, LATE_LONG, COVER_SAID,
};

static int trait_rows(const pool_memories *pool, const trait_columns *traits, const asked_traits *asked, const int64_t *places,
                      double *values) {
    long count = pool->count;
    double *time_words = values + places[TIME_WORDS] * count, *number = values + places[NUMBER] * count;
    double *length = values + places[LENGTH] * count, *about_self = values + places[ABOUT_SELF] * count;
    double *asks = values + places[ASKS] * count, *self_asked = values + places[SELF_ASKED] * count;
    double *assistant = values + places[ASSISTANT] * count;
    for (long place = 0; place < count; place++) {
        int64_t slot = pool->slots[place];
        if (slot < 0 || slot >= traits->size) return 0;
        long words = traits->words[slot];
        time_words[place] = asked->asks_when && traits->has_time[slot];
        number[place] = asked->asks_how_much && traits->has_number[slot];
        length[place] = asked->lengths[words < asked->longest ? words : asked->longest];
        about_self[place] = traits->about_self[slot];
        asks[place] = traits->asks[slot] != 0;
        self_asked[place] = asked->of_self ? traits->about_self[slot] : 0;
        assistant[place] = asked->of_self && traits->roles[slot] == asked->assistant;
    }
    return 1;
}

static void copy_row(double *values, const int64_t *places, int row, const double *from, long count) {
    memcpy(values + places[row] * count, from, count * sizeof *values);
}

/* What every pool has: values is [features, count] of zeros. Returns 0, -1 without memory, -2 when a slot lies beyond the
   traits. */
long common_features(const pool_memories *pool, const trait_columns *traits, const asked_traits *asked, double rank_scale,
                     const int64_t *places, double *values) {
    long count = pool->count;
    int64_t *ahead = malloc((count + 1) * sizeof *ahead);
    if (!ahead) return -1;
    copy_row(values, places, BM25, pool->bm25, count);
    copy_row(values, places, COVERAGE, pool->coverage, count);
    copy_row(values, places, WINDOW, pool->window, count);
    copy_row(values, places, LATE, pool->late, count);
    copy_row(values, places, LATE_FIRST, pool->late_first, count);
    copy_row(values, places, COSINE, pool->cosine, count);
    copy_row(values, places, PASSAGE, pool->cosine, count);
    ranks(pool->window, count, ahead);
    for (long at = 0; at < count; at++) values[places[WINDOW_RANK] * count + at] = rank_scale / (rank_scale + ahead[at]);
    free(ahead);
    return trait_rows(pool, traits, asked, places, values) ? 0 : -2;
}

/* What stands around a memory where none has a session: itself. Nobody lends less than nothing. Returns 0, -1 without memory. */
long lone_features(const pool_memories *pool, const word_scores *words, double k1, double b, const late_query *query,
                   const int64_t *places, double *values) {
    long count = pool->count, cells = query->tokens * count;
    float *best = malloc((cells + 1) * sizeof *best);
    double *turns = values + places[WINDOW_TURNS] * count, *cover = values + places[COVER_TURN] * count;
    if (!best) return -1;
    for (long at = 0; at < cells; at++) best[at] = pool->best[at] > 0 ? pool->best[at] : 0;
    window_bm25(pool->slots, count, NULL, NULL, 0, words->lengths, words->frequencies, words->size, words->idf, words->terms, k1, b,
                turns);
    weighted_sums(best, query->weights, query->tokens, count, cover);
    copy_row(values, places, WINDOW_WIDE, turns, count);
    copy_row(values, places, COSINE_LEAD, pool->cosine, count);
    copy_row(values, places, COVER_NEXT, cover, count);
    copy_row(values, places, COVER_NEAR, cover, count);
    copy_row(values, places, COVER_TALK, cover, count);
    for (long at = 0; at < count; at++) values[places[SESSION] * count + at] = pool->late[at] > 0 ? pool->late[at] : 0;
    free(best);
    return 0;
}

/* The rows that are shares of others, and the scaling of the graded ones (features: how many rows; graded: [features]).
   talk_lengths: [count], NULL where there is no talk. */
void close_features(const pool_memories *pool, const double *talk_lengths, long features, const uint8_t *graded,
                    const int64_t *places, double *values) {
    static const int shares[][2] = {
        {COSINE_APART, COSINE}, {WINDOW_MET, WINDOW}, {WINDOW_WIDE_MET, WINDOW_WIDE}, {LATE_LONG, LATE}, {COVER_SAID, COVER_TURN},
    };
    long count = pool->count;
    for (unsigned long at = 0; at < sizeof shares / sizeof *shares; at++)
        copy_row(values, places, shares[at][0], values + places[shares[at][1]] * count, count);
    scale_rows(values, graded, features, count);
    double met = 0;
    for (long at = 0; at < count; at++)
        if (pool->coverage[at] > met) met = pool->coverage[at];
    for (long at = 0; at < count; at++) {
        values[places[COSINE_APART] * count + at] *= 1 - met;
        values[places[WINDOW_MET] * count + at] *= met;
        values[places[WINDOW_WIDE_MET] * count + at] *= met;
        values[places[LATE_LONG] * count + at] *= talk_lengths ? talk_lengths[at] : 0;
        values[places[COVER_SAID] * count + at] *= values[places[SPEAKER] * count + at];
    }
}
