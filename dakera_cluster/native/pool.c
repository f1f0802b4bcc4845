/* A second look at the candidates of a question: the pool of the best of them, the features of each, and their order. */

#include <math.h>
#include <stdlib.h>

#include "portable.h"

#define NO_MEMORY (-1)
#define WITHOUT_TOKENS (-4)
#define WITHOUT_KEY (-5)
#define BEYOND_COLUMNS (-6)
/* Importance counts in steps of one hundredth: an access a minute ago must not reorder what is equal in every other way. */
#define STEPS_OF_IMPORTANCE 100.0
/* Beyond it a score is as good as 0 or 1. */
#define FARTHEST 60.0

/* The columns of candidates, and behind them their late scores, as a whole and of the first passage. */
enum { FUSED, COSINE, BM25, COVERAGE, WINDOW, FOUND_COLUMNS, LATE = FOUND_COLUMNS, LATE_FIRST, POOL_COLUMNS };
/* Of an answer, behind its slots. */
enum { RELEVANCE, SCORE, ANSWER_COSINE, ANSWER_BM25, ANSWER_COLUMNS };

/* own: [count], the keys of slots. Returns 0 when one has none. */
static int keys_of(const int64_t *slots, long count, const talk_links *talk, uint64_t *own) {
    for (long at = 0; at < count; at++) {
        if (slots[at] < 0 || slots[at] >= talk->key_count) return 0;
        own[at] = talk->keys[slots[at]];
    }
    return 1;
}

/* The pool, the first size of slots[stride], by the sum of what its fused scores (the first of its columns:
   [FOUND_COLUMNS, stride]) and its late ones (the weighted sums of best: [tokens, size], times share) say, both scaled; ties by
   key. room: double[size] and int64[size], the sums and the order; then, of the first kept in that order, what pool shows and
   what is to be filled: Pool in pool.py knows how much that is. Returns 0, NO_MEMORY or WITHOUT_KEY. */
long cut_pool(const late_query *query, const int64_t *slots, const double *columns, long stride, const pool_bounds *bounds,
              const float *best, const double *first, const judging *how, void *room, pool_memories *pool) {
    static const uint8_t both[2] = {1, 1};
    long count = bounds->size < stride ? bounds->size : stride, kept = bounds->kept < count ? bounds->kept : count;
    double *late = malloc((3 * count + 1) * sizeof *late), *scaled = late + count, *level = room;
    uint64_t *own_keys = malloc((count + 1) * sizeof *own_keys);
    int64_t *order = (int64_t *)(level + count);
    double *kept_columns = (double *)(order + count);
    int64_t *kept_slots = (int64_t *)(kept_columns + POOL_COLUMNS * kept), *ranking = kept_slots + kept, *answer = ranking + kept;
    double *sums = (double *)(answer + (1 + ANSWER_COLUMNS) * kept), *values = sums + kept;
    float *kept_best = (float *)(values + how->layout->features * kept);
    long status = !late || !own_keys ? NO_MEMORY : keys_of(slots, count, how->talk, own_keys) ? 0 : WITHOUT_KEY;
    if (!status) {
        weighted_sums(best, query->weights, query->tokens, count, late);
        memcpy(scaled, columns, count * sizeof *scaled);
        memcpy(scaled + count, late, count * sizeof *scaled);
        scale_rows(scaled, both, 2, count);
        for (long at = 0; at < count; at++) level[at] = scaled[at] + bounds->share * scaled[count + at];
        status = order_best(level, own_keys, count, count, order) < 0 ? NO_MEMORY : 0;
    }
    for (long row = 0; !status && row < POOL_COLUMNS; row++) {
        const double *from = row == LATE ? late : row == LATE_FIRST ? first : columns + row * stride;
        for (long at = 0; at < kept; at++) kept_columns[row * kept + at] = from[order[at]];
    }
    for (long token = 0; !status && token < query->tokens; token++)
        for (long at = 0; at < kept; at++) kept_best[token * kept + at] = best[token * count + order[at]];
    for (long at = 0; !status && at < kept; at++) kept_slots[at] = slots[order[at]];
    *pool = (pool_memories){
        .slots = kept_slots,
        .cosine = kept_columns + COSINE * kept,
        .bm25 = kept_columns + BM25 * kept,
        .coverage = kept_columns + COVERAGE * kept,
        .window = kept_columns + WINDOW * kept,
        .late = kept_columns + LATE * kept,
        .late_first = kept_columns + LATE_FIRST * kept,
        .best = kept_best,
        .values = values,
        .sums = sums,
        .ranking = ranking,
        .answer = answer,
        .count = kept,
    };
    free(late);
    free(own_keys);
    return status;
}

/* cut_pool of what late_whole finds. Returns what they do, or WITHOUT_TOKENS when a memory has none: then nothing is matched. */
static long cut_matched(late_query *query, const token_rows *stored, const int64_t *slots, const double *columns, long stride,
                        const pool_bounds *bounds, const judging *how, void *room, pool_memories *pool) {
    long count = bounds->size < stride ? bounds->size : stride, cells = query->tokens * count;
    for (long at = 0; at < count; at++) {
        int64_t slot = slots[at];
        if (slot < 0 || slot >= stored->known || stored->counts[slot] <= 0) return WITHOUT_TOKENS;
    }
    double *first = malloc((count + 1) * sizeof *first + cells * sizeof(float) + count);
    if (!first) return NO_MEMORY;
    float *best = (float *)(first + count);
    uint8_t *seen = (uint8_t *)(best + cells);
    long status = late_whole(query, stored, slots, count, bounds->most_exact, bounds->most, best, first, seen);
    if (!status) status = cut_pool(query, slots, columns, stride, bounds, best, first, how, room, pool);
    free(first);
    return status;
}

/* Add to sums[count] what the importance of slots does. Returns 0, BEYOND_COLUMNS when a slot lies beyond the columns. */
long add_importance(const importance_columns *importance, const valuation *how, const int64_t *slots, long count, double *sums) {
    for (long at = 0; at < count; at++) {
        int64_t slot = slots[at];
        if (slot < 0 || slot >= importance->known) return BEYOND_COLUMNS;
        double left = importance->stored[slot];
        if (how->half_life > 0) {
            double created = importance->created[slot], accessed = importance->accessed_ms[slot] / 1000.0;
            double age = how->now - (created > accessed ? created : accessed);
            left *= exp2(-(age > 0 ? age : 0) / how->half_life);
        }
        sums[at] += how->weight * (rint(left * STEPS_OF_IMPORTANCE) / STEPS_OF_IMPORTANCE - how->ordinary);
    }
    return 0;
}

void scores_of(const ranking_model *model, const double *relevance, long count, double *scores) {
    for (long at = 0; at < count; at++) {
        double below = (model->middle - relevance[at]) / model->spread;
        below = below > -FARTHEST ? below : -FARTHEST;
        scores[at] = 1 / (1 + exp(below < FARTHEST ? below : FARTHEST));
    }
}

/* The first wanted of the ranking. */
static void write_answer(const pool_memories *pool, const ranking_model *model, long wanted) {
    double *columns = (double *)(pool->answer + wanted);
    for (long at = 0; at < wanted; at++) {
        long place = pool->ranking[at];
        pool->answer[at] = pool->slots[place];
        columns[RELEVANCE * wanted + at] = pool->sums[place];
        columns[ANSWER_COSINE * wanted + at] = pool->cosine[place];
        columns[ANSWER_BM25 * wanted + at] = pool->bm25[place];
    }
    scores_of(model, columns + RELEVANCE * wanted, wanted, columns + SCORE * wanted);
}

/* The last step: closes the features (talk_lengths as there) and, with a model, fills what is left of the pool. The order is by
   relevance, the weighted features and what importance adds, then by key. Returns how many of the wanted are as relevant as the
   next one, NO_MEMORY, WITHOUT_KEY or BEYOND_COLUMNS. */
long conclude(const pool_memories *pool, const double *talk_lengths, const judging *how) {
    close_features(pool, talk_lengths, how->layout);
    if (!how->model) return 0;
    long count = pool->count, wanted = how->wanted < count ? how->wanted : count, equal = 0;
    weighted_rows(pool->values, how->model->weights, how->layout->features, count, pool->sums);
    long status = add_importance(how->importance, &how->value, pool->slots, count, pool->sums);
    if (status) return status;
    uint64_t *keys = malloc((count + 1) * sizeof *keys);
    status = !keys ? NO_MEMORY : keys_of(pool->slots, count, how->talk, keys) ? 0 : WITHOUT_KEY;
    if (!status && order_best(pool->sums, keys, count, count, pool->ranking) < 0) status = NO_MEMORY;
    free(keys);
    if (status) return status;
    write_answer(pool, how->model, wanted);
    for (long at = 0; at < wanted && at + 1 < count; at++)
        equal += pool->sums[pool->ranking[at]] == pool->sums[pool->ranking[at + 1]];
    return equal;
}

/* The features of a pool and, where those are whole, what conclude does. Returns what it does, BEYOND_COLUMNS also for a slot
   beyond the traits. */
long judge(const pool_memories *pool, const late_query *query, const judging *how, const word_scores *words) {
    for (long at = 0; at < pool->count; at++)
        if (pool->slots[at] < 0 || pool->slots[at] >= how->traits->size) return BEYOND_COLUMNS;
    int64_t *ahead = malloc((pool->count + 1) * sizeof *ahead + query->tokens * pool->count * sizeof(float));
    if (!ahead) return NO_MEMORY;
    common_features(pool, how->asked, how->traits, how->layout, ahead);
    if (how->are_alone) lone_features(pool, words, query, how->layout, (float *)(ahead + pool->count + 1));
    free(ahead);
    return how->is_whole ? conclude(pool, NULL, how) : 0;
}

/* A pool matched as by late_whole, cut as by cut_pool and judged. The status is what those return, or WITHOUT_TOKENS when a memory
   has none: then there is no pool. */
void review(second_look *second, const int64_t *slots, const double *columns, long stride, const word_scores *words) {
    second->status = cut_matched(second->query, second->stored, slots, columns, stride, second->bounds, second->how, second->room,
                                 second->pool);
    if (!second->status) second->status = judge(second->pool, second->query, second->how, words);
}
