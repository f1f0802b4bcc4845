/* What the kernels offer. This file is the whole contract: the C files include it and library.py gives it to cffi.
   Arrays are contiguous; shapes stand beside the arguments; no array is kept. */

void dots_gather(const uint64_t *high, const uint64_t *low, long chunk_rows, const int64_t *slots, long count,
                 long width, const float *query, float *dots);
long nearest(const uint64_t *high, const uint64_t *low, long chunk_rows, long width, const uint8_t *present,
             const uint8_t *allowed, const float *scales, long count, const float *query, long wanted, int64_t *slots,
             float *scores);
long survey(const uint64_t *high, const uint64_t *low, long chunk_rows, long width, const uint8_t *present,
            const uint8_t *allowed, const float *scales, long count, long known, const float *query, const uint64_t *keys,
            long wanted, const int64_t *held, long held_count, long wanted_held, const int64_t *others, long other_count,
            int64_t *slots, double *cosines);

void late_exact(const uint8_t *signs, long width, const int64_t *begins, const int64_t *lengths, const int64_t *owners,
                long units, const int16_t *steps, long tokens, const double *sums, const double *scales,
                const double *weights, float *best, double *first, long slots);
void late_estimated(const uint8_t *signs, long width, const int64_t *begins, const int64_t *lengths,
                    const int64_t *owners, long units, const uint8_t *query, long tokens, const float *cosines,
                    const double *weights, float *best, double *first, long slots);

void tally(const uint16_t *ids, long count, int32_t step, int32_t *counts);
void neighbours(const int32_t *previous, const int32_t *next, long linked, const uint16_t *words, const int32_t *speakers,
                long known, const int64_t *slots, long count, long reach, int32_t *found, int64_t *words_to);
void window_bm25(const int64_t *slots, long count, const int32_t *around, const uint8_t *inside, long width,
                 const double *lengths, const uint8_t *frequencies, long size, const double *idf, long terms, double k1,
                 double b, double *scores);
void lent_cover(const float *best, long tokens, const int64_t *places, const uint8_t *inside, long count, long width,
                double share, const double *weights, double *cover);

long order_best(const double *scores, const uint64_t *keys, long count, long wanted, int64_t *order);
void scale_rows(double *values, const uint8_t *wanted, long rows, long count);
void weighted_sums(const float *values, const double *weights, long tokens, long columns, double *sums);

long terms_found(const int32_t *slots, const uint16_t *counts, const int64_t *ends, long terms, long postings, const double *idf, double k1,
                 double norm, double norm_a_term, const double *lengths, long size, int32_t *places, int64_t *found,
                 double *bm25, double *coverage, uint8_t *frequencies);
long windows_around(const int32_t *previous, const int32_t *next, long linked, const uint16_t *words, const int32_t *speakers,
                    long known, const int64_t *slots, long count, long reach, long budget, int64_t *found);
void windows_bm25(const int32_t *previous, const int32_t *next, long linked, const uint16_t *words, const int32_t *speakers,
                  long known, const int64_t *slots, long count, long reach, long budget, const double *lengths,
                  const uint8_t *frequencies, long size, const double *idf, long terms, double k1, double b, double *scores);
long best_hits(const int64_t *slots, const double *scores, long count, const uint8_t *allowed, long allowed_count,
               const uint64_t *keys, long key_count, long wanted, int64_t *places);
