/* Rows of features of the memories of a pool, at the places where the ranking wants them; and their last step. */

#include "portable.h"

/* Where each row lies; the order is that of features.py. */
enum {
    BM25, COVERAGE, WINDOW, WINDOW_RANK, LATE, LATE_FIRST, COSINE, PASSAGE,
    TIME_WORDS, NUMBER, LENGTH, ABOUT_SELF, ASKS, SELF_ASKED, ASSISTANT,
    WINDOW_TURNS, WINDOW_WIDE, COSINE_LEAD, COVER_TURN, COVER_NEXT, COVER_NEAR, COVER_TALK, SESSION,
    SPEAKER, COSINE_APART, WINDOW_MET, WINDOW_WIDE_MET, LATE_LONG, COVER_SAID,
};

/* The row of a feature. */
INLINED double *row_of(const pool_memories *pool, const feature_layout *layout, int feature) {
    return pool->values + layout->places[feature] * pool->count;
}

static void trait_rows(const pool_memories *pool, const asked_traits *asked, const trait_columns *traits,
                       const feature_layout *layout) {
    double *time_words = row_of(pool, layout, TIME_WORDS), *number = row_of(pool, layout, NUMBER);
    double *length = row_of(pool, layout, LENGTH), *about_self = row_of(pool, layout, ABOUT_SELF);
    double *asks = row_of(pool, layout, ASKS), *self_asked = row_of(pool, layout, SELF_ASKED);
    double *assistant = row_of(pool, layout, ASSISTANT);
    for (long place = 0; place < pool->count; place++) {
        int64_t slot = pool->slots[place];
        long words = traits->words[slot];
        time_words[place] = asked->asks_when && traits->has_time[slot];
        number[place] = asked->asks_how_much && traits->has_number[slot];
        length[place] = asked->lengths[words < asked->longest ? words : asked->longest];
        about_self[place] = traits->about_self[slot];
        asks[place] = traits->asks[slot] != 0;
        self_asked[place] = asked->of_self ? traits->about_self[slot] : 0;
        assistant[place] = asked->of_self && traits->roles[slot] == asked->assistant;
    }
}

static void copy_row(const pool_memories *pool, const feature_layout *layout, int feature, const double *from) {
    memcpy(row_of(pool, layout, feature), from, pool->count * sizeof *from);
}

/* What every pool has; all else is 0. Its slots must lie within the traits. ahead: room for a number a memory. */
void common_features(const pool_memories *pool, const asked_traits *asked, const trait_columns *traits,
                     const feature_layout *layout, int64_t *ahead) {
    long count = pool->count;
    memset(pool->values, 0, layout->features * count * sizeof *pool->values);
    copy_row(pool, layout, BM25, pool->bm25);
    copy_row(pool, layout, COVERAGE, pool->coverage);
    copy_row(pool, layout, WINDOW, pool->window);
    copy_row(pool, layout, LATE, pool->late);
    copy_row(pool, layout, LATE_FIRST, pool->late_first);
    copy_row(pool, layout, COSINE, pool->cosine);
    copy_row(pool, layout, PASSAGE, pool->cosine);
    ranks(pool->window, count, ahead);
    double *window_rank = row_of(pool, layout, WINDOW_RANK);
    for (long at = 0; at < count; at++) window_rank[at] = layout->rank_scale / (layout->rank_scale + ahead[at]);
    trait_rows(pool, asked, traits, layout);
}

/* What stands around a memory where none has a session: itself. Nobody lends less than nothing. best: room for as many cells as the
   pool's has. */
void lone_features(const pool_memories *pool, const word_scores *words, const late_query *query, const feature_layout *layout,
                   float *best) {
    long count = pool->count, cells = query->tokens * count;
    double *turns = row_of(pool, layout, WINDOW_TURNS), *cover = row_of(pool, layout, COVER_TURN);
    double *session = row_of(pool, layout, SESSION);
    for (long at = 0; at < cells; at++) best[at] = pool->best[at] > 0 ? pool->best[at] : 0;
    window_bm25(pool->slots, count, NULL, NULL, 0, words->lengths, words->frequencies, words->size, words->idf, words->terms,
                layout->k1, layout->b, turns);
    weighted_sums(best, query->weights, query->tokens, count, cover);
    copy_row(pool, layout, WINDOW_WIDE, turns);
    copy_row(pool, layout, COSINE_LEAD, pool->cosine);
    copy_row(pool, layout, COVER_NEXT, cover);
    copy_row(pool, layout, COVER_NEAR, cover);
    copy_row(pool, layout, COVER_TALK, cover);
    for (long at = 0; at < count; at++) session[at] = pool->late[at] > 0 ? pool->late[at] : 0;
}

/* The rows that are shares of others, and the scaling of the graded ones. talk_lengths: [count], NULL where there is no talk. */
void close_features(const pool_memories *pool, const double *talk_lengths, const feature_layout *layout) {
    static const int shares[][2] = {
        {COSINE_APART, COSINE}, {WINDOW_MET, WINDOW}, {WINDOW_WIDE_MET, WINDOW_WIDE}, {LATE_LONG, LATE}, {COVER_SAID, COVER_TURN},
    };
    long count = pool->count;
    for (unsigned long at = 0; at < sizeof shares / sizeof *shares; at++)
        copy_row(pool, layout, shares[at][0], row_of(pool, layout, shares[at][1]));
    scale_rows(pool->values, layout->graded, layout->features, count);
    double *cosine_apart = row_of(pool, layout, COSINE_APART), *window_met = row_of(pool, layout, WINDOW_MET);
    double *window_wide_met = row_of(pool, layout, WINDOW_WIDE_MET), *late_long = row_of(pool, layout, LATE_LONG);
    double *cover_said = row_of(pool, layout, COVER_SAID), *speaker = row_of(pool, layout, SPEAKER), met = 0;
    for (long at = 0; at < count; at++)
        if (pool->coverage[at] > met) met = pool->coverage[at];
    for (long at = 0; at < count; at++) {
        cosine_apart[at] *= 1 - met;
        window_met[at] *= met;
        window_wide_met[at] *= met;
        late_long[at] *= talk_lengths ? talk_lengths[at] : 0;
        cover_said[at] *= speaker[at];
    }
}
