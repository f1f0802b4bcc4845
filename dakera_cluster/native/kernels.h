/* What the kernels offer. This file is the whole contract: the C files include it and library.py gives it to cffi.
   Arrays are contiguous; shapes stand beside the arguments; no array is kept. */

/* Rows in 16-bit fixed point in two planes (planes.h), by slot below known: present, which there are; scales. */
typedef struct {
    const uint64_t *high, *low;
    const uint8_t *present;
    const float *scales;
    long chunk_rows, width, known;
} vector_rows;

void dots_gather(const vector_rows *rows, const int64_t *slots, long count, const float *query, float *dots);
long nearest(const vector_rows *rows, const uint8_t *allowed, long allowed_count, const float *query, long wanted,
             int64_t *slots, float *scores);
long survey(const vector_rows *rows, const uint8_t *allowed, long allowed_count, const float *query, const uint64_t *keys,
            long key_count, long wanted, const int64_t *held, long held_count, long wanted_held, const int64_t *others,
            long other_count, int64_t *slots, double *cosines);

/* A question's tokens: vectors[tokens, width], floats of 16 bits where they are halves, else of 32; what each weighs, and the
   similarity by differing signs ([width + 1]). What stands before is for late_ready to fill, from room, and NULL until the first
   kernel that matches the question does so; largest and unit are its measures. */
typedef struct {
    const int16_t *steps;
    const double *sums, *scales;
    const uint8_t *signs;
    const double *weights;
    const float *cosines;
    long tokens, width;
    const void *vectors;
    long are_halves;
    double largest, unit;
    void *room;
} late_query;

/* The tokens of memories: signs[rows, width / 8]; by slot below known, where its tokens start and how many they are. */
typedef struct {
    const uint8_t *signs;
    const int64_t *starts;
    const int32_t *counts;
    long rows, width, known;
} token_rows;

void late_ready(late_query *query);
long late_exact(late_query *query, const token_rows *stored, const int64_t *begins, const int64_t *lengths,
                const int64_t *owners, long units, float *best, double *first, long slots);
long late_estimated(late_query *query, const token_rows *stored, const int64_t *begins, const int64_t *lengths,
                    const int64_t *owners, long units, float *best, double *first, long slots);
long late_whole(late_query *query, const token_rows *stored, const int64_t *slots, long count, long most_exact, long most,
                float *best, double *first, uint8_t *seen);

void occurrences(const uint16_t *ids, long count, const uint16_t *wanted, long wanted_count, int64_t *counts);

void tally(const uint16_t *ids, long count, int32_t step, int32_t *counts);
void neighbours(const int32_t *previous, const int32_t *next, long linked, const uint16_t *words, const int32_t *speakers,
                long known, const int64_t *slots, long count, long reach, int32_t *found, int64_t *words_to);
void window_bm25(const int64_t *slots, long count, const int32_t *around, const uint8_t *inside, long width,
                 const double *lengths, const uint8_t *frequencies, long size, const double *idf, long terms, double k1,
                 double b, double *scores);
void lent_cover(const float *best, long columns, long tokens, const int64_t *places, const uint8_t *inside, long count,
                long width, double share, const double *weights, double *cover);

long order_best(const double *scores, const uint64_t *keys, long count, long wanted, int64_t *order);
void scale_rows(double *values, const uint8_t *wanted, long rows, long count);
void weighted_sums(const float *values, const double *weights, long tokens, long columns, double *sums);

/* A sealed run of postings: keys[terms], ascending; of each, the slots and counts from its start to the next one's (starts:
   [terms + 1]; slots and counts: [postings]), unsigned numbers of so many bytes. home: what its live slots are at home in. */
typedef struct {
    const uint64_t *keys;
    const void *starts, *slots, *counts;
    long terms, postings, start_width, slot_width, count_width, home;
} posting_segment;

/* An inverted file: its sealed segments (count) and its tail; by slot, what a live one is at home in (below homes), and the terms
   of its memory (below size). documents: the live ones. */
typedef struct {
    const posting_segment *segments;
    const uint8_t *home;
    const uint64_t *tail_keys;
    const int32_t *tail_slots;
    const uint16_t *tail_counts;
    const double *lengths;
    long count, homes, tail, size, documents;
} posting_lists;

long postings_of(const posting_lists *lists, const uint64_t *keys, long wanted, int64_t *ends, int32_t *slots, uint16_t *counts,
                 long room);
/* Who stands beside whom, by slot: links (-1 at the end of a session) below linked, words and speakers (-1 for nobody) below
   known; and, below key_count, the keys that tell equals apart. */
typedef struct {
    const int32_t *previous, *next;
    const uint16_t *words;
    const int32_t *speakers;
    const uint64_t *keys;
    long linked, known, key_count;
} talk_links;

/* What a question's words say, by slot below size: its place (0 for none) in bm25 and coverage; frequencies: [terms, size]; lengths;
   idf: [terms]; rare: those of its terms that are rare names. */
typedef struct {
    const int32_t *places;
    const double *bm25, *coverage, *lengths, *idf;
    const uint8_t *frequencies;
    const int64_t *rare;
    long size, found, terms, rare_count;
} word_scores;

/* How the scores of candidates become one: each scaled and times its weight, or given (by candidate, NULL for none) in place of
   cosine and BM25; boost times the share of the rare terms that a candidate holds is added; the sum is multiplied by factors
   (by candidate, NULL for none). */
typedef struct {
    double by_vector, by_words, by_window, boost;
    const double *given, *factors;
} fusion;

/* How far a first look goes: as many memories by_words, by_vector and by_name; of the first, those beside the best around; and
   the windows in which BM25 reads on. Neighbours are within a reach, in memories, and a budget, in words. */
typedef struct {
    long by_words, by_vector, by_name, around, reach, budget, window_reach, window_budget;
    double window_k1, window_b;
} outlook;

/* The terms of a question: their keys, and then which are named (parts of names: rare when at most rare_holders hold them). BM25
   weighs a memory's frequencies against norm + norm_a_term * its length. */
typedef struct {
    const uint64_t *keys;
    long terms;
    double k1, norm, norm_a_term, rare_holders;
} asked_terms;

long spread(const talk_links *talk, const int64_t *slots, const double *scores, long count, const uint8_t *allowed,
            long allowed_count, long wanted, long around, long reach, long budget, int64_t *found);
long fuse(const talk_links *talk, const word_scores *words, const fusion *how, const outlook *far, const int64_t *slots,
          const double *cosines, long count, int64_t *ordered, double *columns);
long best_hits(const int64_t *slots, const double *scores, long count, const uint8_t *allowed, long allowed_count,
               const uint64_t *keys, long key_count, long wanted, int64_t *places);
void weighted_rows(const double *values, const double *weights, long rows, long count, double *sums);
void ranks(const double *values, long count, int64_t *ahead);

/* By slot below size: what the words of a memory say about it. */
typedef struct {
    const uint16_t *words;
    const float *about_self;
    const uint8_t *asks, *has_time, *has_number, *roles;
    long size;
} trait_columns;

/* What a question asks about; lengths: by words, the last (longest) for all that have more; assistant: the role that is one. */
typedef struct {
    int asks_when, asks_how_much, of_self, assistant;
    const double *lengths;
    long longest;
} asked_traits;

/* Where the features known to the kernels lie among all (features.c has their order), and which of all are graded: [features]. A
   window's rank counts half rank_scale places behind the best; BM25 of a memory as a window has k1 and b. */
typedef struct {
    const int64_t *places;
    const uint8_t *graded;
    long features;
    double rank_scale, k1, b;
} feature_layout;

/* By slot below known: how important memories are, and Unix times of their creation (s) and last access (ms). */
typedef struct {
    const float *stored;
    const int64_t *created, *accessed_ms;
    long known;
} importance_columns;

/* What importance adds to a relevance, weight times how far it is from the ordinary one: as it is left at the time now (s) where
   half of it goes in each half_life (s, 0 for no decay). */
typedef struct {
    double now, half_life, weight, ordinary;
} valuation;

/* weights: [features]; the relevance z has the score 1 / (1 + exp(-(z - middle) / spread)). */
typedef struct {
    const double *weights;
    double middle, spread;
} ranking_model;

/* A ranked pool: slots[count], what is known of each, and best: [tokens, count]. To be filled: values: [features, count]; the
   relevance of each in sums and their places by it in ranking; of the first wanted of those their slots, in answer, and behind
   them double[4, wanted], their relevance, score, cosine and BM25. */
typedef struct {
    const int64_t *slots;
    const double *cosine, *bm25, *coverage, *window, *late, *late_first;
    const float *best;
    double *values, *sums;
    int64_t *ranking, *answer;
    long count;
} pool_memories;

/* How a pool is cut: the first size candidates to the kept best, late scores weighing share; matched exactly up to most_exact
   tokens, and not at all beyond most. */
typedef struct {
    long size, kept, most_exact, most;
    double share;
} pool_bounds;

/* How the memories of a pool are ranked. model: NULL for features alone. Of the answer the first wanted are asked for. are_alone:
   nothing stands around any of them; is_whole: no features come from elsewhere. */
typedef struct {
    const trait_columns *traits;
    const asked_traits *asked;
    const feature_layout *layout;
    const talk_links *talk;
    const importance_columns *importance;
    const ranking_model *model;
    valuation value;
    long wanted, are_alone, is_whole;
} judging;

/* A second look at candidates, and what comes of it; pool lies in room. */
typedef struct {
    late_query *query;
    const token_rows *stored;
    const pool_bounds *bounds;
    const judging *how;
    void *room;
    pool_memories *pool;
    long status;
} second_look;

void common_features(const pool_memories *pool, const asked_traits *asked, const trait_columns *traits,
                     const feature_layout *layout, int64_t *ahead);
void lone_features(const pool_memories *pool, const word_scores *words, const late_query *query, const feature_layout *layout,
                   float *best);
void close_features(const pool_memories *pool, const double *talk_lengths, const feature_layout *layout);

long cut_pool(const late_query *query, const int64_t *slots, const double *columns, long stride, const pool_bounds *bounds,
              const float *best, const double *first, const judging *how, void *room, pool_memories *pool);
void review(second_look *second, const int64_t *slots, const double *columns, long stride, const word_scores *words);
long judge(const pool_memories *pool, const late_query *query, const judging *how, const word_scores *words);
long conclude(const pool_memories *pool, const double *talk_lengths, const judging *how);
long add_importance(const importance_columns *importance, const valuation *how, const int64_t *slots, long count, double *sums);
void scores_of(const ranking_model *model, const double *relevance, long count, double *scores);

long look(const posting_lists *lists, const talk_links *talk, const vector_rows *rows, const outlook *far,
          const asked_terms *asked, const float *vector, const uint8_t *allowed, long allowed_count, const int64_t *others,
          long other_count, const fusion *how, uint8_t *room, word_scores *words, second_look *second);

void stretches(const int32_t *previous, const int32_t *next, long linked, const uint16_t *words, const int32_t *speakers,
               const double *when, long known, const int64_t *slots, long count, long reach, double pause,
               int32_t *found, int64_t *words_to, int64_t *turns);
long places_of(const int64_t *known, long known_count, const int32_t *around, const uint8_t *wanted, long count,
               int64_t *others, int64_t *places);
void means_of(const double *own, const int64_t *own_words, const double *values, const int64_t *words, const int64_t *places,
              long count, long width, double *means);
void best_alike(const double *values, const int32_t *codes, long count, double *best);
void covering_order(const double *values, const double *found, const double *weights, long count, long tokens,
                    double *covered, int64_t *order);

/* A matrix of the encoder: int8[inner, outer] in panels (encoder_pack), what its sums start at, and a scale and a bias a column.
   tiled: by tiles, which need an inner side of whole tiles (64) and a model that is tiled. */
typedef struct {
    long inner, outer, tiled;
    const int8_t *panels;
    const int32_t *starts;
    const float *scales, *bias;
} dense_weights;

/* A layer: queries, keys and values of all heads; what merges the heads; the inner layer up and down. Each of the last two
   results is added to what went in and normalised. */
typedef struct {
    dense_weights attended, merged, up, down;
    const float *merged_weight, *merged_bias, *down_weight, *down_bias;
} layer_weights;

/* special: by id below vocabulary, whether a token stands for nothing of the text. */
typedef struct {
    long depth, width, heads, tiled, vocabulary, places;
    float epsilon;
    const int8_t *words;
    const float *word_scales, *positions, *norm_weight, *norm_bias;
    const uint8_t *special;
    const layer_weights *layers;
} encoder_weights;

/* What a pass leaves in its room. pooled: [texts, width] at length 1. Of the tokens that are not special, text by text: counts
   [texts], the signs of their states [tokens, width / 8] (the first component in the highest bit), and the states at length 1 in
   16 bits, halves [tokens, width]. */
typedef struct {
    const float *pooled;
    const int32_t *counts;
    const uint8_t *signs;
    const uint16_t *halves;
} encoder_result;

int encoder_runs(void);
int encoder_has_tiles(void);
void encoder_pack(const int8_t *weights, long inner, long outer, int8_t *panels, int32_t *starts);
long encoder_run(const encoder_weights *model, const int32_t *ids, const int32_t *lengths, long texts, int by_first, int tokens,
                 uint8_t *room, long size, encoder_result *result);
