/* MaxSim of a question's tokens over the sign bits of stored tokens, unit by unit (a unit is a memory or a passage of one).
   Integers only until the last step, so that nothing depends on the order of the work. */

#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "portable.h"

#define MAX_WIDTH 4096
/* Tokens of a question that are matched at once: the tables of so few stay in the nearest cache, those of so many do not. */
#define FEW 8
#define MANY 16
#define TABLE_BYTES (2 * MANY)
/* Dimensions a table stands for, and its rows. */
#define GROUP 4
#define ROWS (1 << GROUP)

/* Units that are matched while the next one comes from memory, and bytes of it that are asked for. */
#define AHEAD 2
#define MAX_FETCHED 2048
#define CACHE_LINE 64

/* Tokens whose differing signs are counted side by side. As many as a word has bytes: what they hold for the word at a byte of
   a row begins at the same index. */
#define SIDE 8
/* No copy of `target_clones` can ask for the count of set bits in vectors, so that one is chosen by hand. */
#if !defined(ONE_COPY) && defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define COUNTS_BITS_OF_VECTORS
#include <immintrin.h>
#endif

/* What the units of a slot mean for it: the best unit's similarities, and the first one's weighted sum. */
INLINED void keep(const float *similar, const double *weights, long tokens, int64_t owner, int is_first, double *leading,
                  float *best, double *first, long slots) {
    double total = 0;
    for (long token = 0; token < tokens; token++) total += weights[token] * similar[token];
    if (is_first) first[owner] = total;
    if (!is_first && total <= *leading) return;
    *leading = total;
    for (long token = 0; token < tokens; token++) best[token * slots + owner] = similar[token];
}

/* Memories lie anywhere among all tokens: their first lines are asked for while others are matched. */
INLINED void fetch(const uint8_t *data, long bytes) {
    if (bytes > MAX_FETCHED) bytes = MAX_FETCHED;
    for (long at = 0; at < bytes; at += CACHE_LINE) __builtin_prefetch(data + at);
}

#include "late_tiles.h"

#define LANES 4
#define LANE_BITS 4
#define BY_LANES(name) name##_of_four
#include "late_tables.h"

#define LANES 8
#define LANE_BITS 5
#define BY_LANES(name) name##_of_eight
#include "late_tables.h"

/* Each token as whole steps, its largest component at largest of them; scales: a step's worth in the whole, unit the worth of a
   token's greatest component in steps; signs: [tokens, width / 8], the first dimension in the highest bit. */
FOR_EVERY_PROCESSOR
void late_steps(const float *vectors, long tokens, long width, double largest, double unit, int16_t *steps, double *sums,
                double *scales, uint8_t *signs) {
    memset(signs, 0, tokens * (width / 8));
    for (long token = 0; token < tokens; token++) {
        const float *own = vectors + token * width;
        int16_t *whole = steps + token * width;
        float peak = FLT_MIN;
        int32_t sum = 0;
        for (long at = 0; at < width; at++) peak = fabsf(own[at]) > peak ? fabsf(own[at]) : peak;
        for (long at = 0; at < width; at++) {
            double step = rint((double)own[at] / peak * largest);
            whole[at] = step >= -largest && step <= largest ? (int16_t)step : 0;
            sum += whole[at];
        }
        for (long at = 0; at < width; at++) signs[(token * width + at) / 8] |= (own[at] > 0) << (7 - at % 8);
        sums[token] = sum;
        scales[token] = peak / unit;
    }
}

INLINED int are_within(const int64_t *begins, const int64_t *lengths, const int64_t *owners, long units, long rows, long slots) {
    int are = 1;
    for (long unit = 0; unit < units; unit++)
        are &= begins[unit] >= 0 && lengths[unit] >= 0 && lengths[unit] <= rows && begins[unit] <= rows - lengths[unit] &&
               owners[unit] >= 0 && owners[unit] < slots;
    return are;
}

/* dots: [units, tokens], of each unit the greatest sum of steps that the signs of one of its rows select. Returns 0, or -1
   without memory. */
FOR_EVERY_PROCESSOR
static long greatest_sums(const uint8_t *signs, long width, const int64_t *begins, const int64_t *lengths, long units,
                          const int16_t *steps, long tokens, int32_t *dots) {
#ifdef MATCHES_BY_TILES
    if (width % TILE_BYTES == 0 && has_tiles())
        return greatest_by_tiles(signs, width, begins, lengths, units, steps, tokens, dots);
#endif
    int32_t lifts[MANY];
    long bytes = width / 8;
    void *tables = aligned_alloc(64, (width / GROUP * ROWS * TABLE_BYTES + 64) / 64 * 64);
    if (!tables) return -1;
    for (long token = 0, some; token < tokens; token += some) {
        const int16_t *own = steps + token * width;
        long left = tokens - token;
        some = left < MANY ? left : MANY;
        if (some <= FEW) {
            make_tables_of_four(own, width, some, tables, lifts);
            greatest_of_four(signs, bytes, begins, lengths, units, tables, lifts, some, tokens, dots + token);
        } else {
            make_tables_of_eight(own, width, some, tables, lifts);
            greatest_of_eight(signs, bytes, begins, lengths, units, tables, lifts, some, tokens, dots + token);
        }
    }
    free(tables);
    return 0;
}

/* Returns 0, -1 without memory, -2 when a unit reaches beyond the rows or the slots. */
FOR_EVERY_PROCESSOR
long late_exact(const uint8_t *signs, long rows, long width, const int64_t *begins, const int64_t *lengths, const int64_t *owners,
                long units, const int16_t *steps, long tokens, const double *sums, const double *scales,
                const double *weights, float *best, double *first, long slots) {
    if (!are_within(begins, lengths, owners, units, rows, slots)) return -2;
    float similar[MAX_TOKENS];
    double leading = 0;
    int32_t *dots = malloc((tokens * units + 1) * sizeof *dots);
    long status = dots ? greatest_sums(signs, width, begins, lengths, units, steps, tokens, dots) : -1;
    for (long unit = 0; !status && unit < units; unit++) {
        const int32_t *own = dots + unit * tokens;
        for (long token = 0; token < tokens; token++)
            similar[token] = (float)((2.0 * own[token] - sums[token]) * scales[token]);
        int is_first = unit == 0 || owners[unit] != owners[unit - 1];
        keep(similar, weights, tokens, owners[unit], is_first, &leading, best, first, slots);
    }
    free(dots);
    return status;
}

/* Eight bytes of a row from a place on, or what is left of them. */
INLINED uint64_t word_at(const uint8_t *row, long at, long bytes) {
    uint64_t word = 0;
    if (bytes - at >= 8)
        memcpy(&word, row + at, 8);
    else
        memcpy(&word, row + at, bytes - at);
    return word;
}

/* Of each unit: uint64[SIDE], the fewest signs in which one of its rows differs from each token. asked: [words, SIDE]. */
FOR_EVERY_PROCESSOR
static void count_differing(const uint8_t *signs, long bytes, const int64_t *begins, const int64_t *lengths, long units,
                            const uint64_t *asked, uint64_t *fewest) {
    for (long unit = 0; unit < units; unit++, fewest += SIDE) {
        const uint8_t *row = signs + begins[unit] * bytes, *end = row + lengths[unit] * bytes;
        for (long side = 0; side < SIDE; side++) fewest[side] = 8 * bytes;
        for (; row < end; row += bytes) {
            uint64_t differing[SIDE] = {0};
            for (long at = 0; at < bytes; at += 8) {
                uint64_t word = word_at(row, at, bytes);
                for (long side = 0; side < SIDE; side++) differing[side] += __builtin_popcountll(asked[at + side] ^ word);
            }
            for (long side = 0; side < SIDE; side++)
                if (differing[side] < fewest[side]) fewest[side] = differing[side];
        }
    }
}

#ifdef COUNTS_BITS_OF_VECTORS
__attribute__((target("avx512f,avx512vpopcntdq"))) static void
count_differing_by_vectors(const uint8_t *signs, long bytes, const int64_t *begins, const int64_t *lengths, long units,
                           const uint64_t *asked, uint64_t *fewest) {
    for (long unit = 0; unit < units; unit++, fewest += SIDE) {
        if (unit + AHEAD < units) fetch(signs + begins[unit + AHEAD] * bytes, lengths[unit + AHEAD] * bytes);
        const uint8_t *row = signs + begins[unit] * bytes, *end = row + lengths[unit] * bytes;
        __m512i least = _mm512_set1_epi64(8 * bytes);
        for (; row < end; row += bytes) {
            __m512i differing = _mm512_setzero_si512();
            for (long at = 0; at < bytes; at += 8) {
                __m512i own = _mm512_set1_epi64((long long)word_at(row, at, bytes));
                own = _mm512_xor_si512(own, _mm512_loadu_si512(asked + at));
                differing = _mm512_add_epi64(differing, _mm512_popcnt_epi64(own));
            }
            least = _mm512_min_epu64(least, differing);
        }
        _mm512_storeu_si512(fewest, least);
    }
}
#endif

/* Returns 0, or -1 and -2 as late_exact. */
long late_estimated(const uint8_t *signs, long rows, long width, const int64_t *begins, const int64_t *lengths,
                    const int64_t *owners, long units, const uint8_t *query, long tokens, const float *cosines,
                    const double *weights, float *best, double *first, long slots) {
    if (!are_within(begins, lengths, owners, units, rows, slots)) return -2;
    float similar[MAX_TOKENS];
    long bytes = width / 8, words = (bytes + 7) / 8, blocks = (tokens + SIDE - 1) / SIDE;
    double leading = 0;
    uint64_t *fewest = malloc((blocks * units * SIDE + 1) * sizeof(uint64_t)), asked[MAX_WIDTH / 64 * SIDE];
    if (!fewest) return -1;
    for (long block = 0; block < blocks; block++) {
        long left = tokens - block * SIDE;
        memset(asked, 0, words * SIDE * sizeof(uint64_t));
        for (long side = 0; side < (left < SIDE ? left : SIDE); side++)
            for (long at = 0; at < bytes; at += 8)
                asked[at + side] = word_at(query + (block * SIDE + side) * bytes, at, bytes);
        uint64_t *own = fewest + block * units * SIDE;
#ifdef COUNTS_BITS_OF_VECTORS
        if (__builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512f")) {
            count_differing_by_vectors(signs, bytes, begins, lengths, units, asked, own);
            continue;
        }
#endif
        count_differing(signs, bytes, begins, lengths, units, asked, own);
    }
    for (long unit = 0; unit < units; unit++) {
        for (long token = 0; token < tokens; token++)
            similar[token] = cosines[fewest[(token / SIDE * units + unit) * SIDE + token % SIDE]];
        int is_first = unit == 0 || owners[unit] != owners[unit - 1];
        keep(similar, weights, tokens, owners[unit], is_first, &leading, best, first, slots);
    }
    free(fewest);
    return 0;
}

/* Memories matched as one unit each, those of more tokens in all than most_exact by signs alone. best: [tokens, count]; first and
   seen: [count]; what has no tokens is not seen. Returns 0, -1 and -2 as late_exact, or -3 when there are more tokens than
   most: then nothing is matched. */
long late_whole(const late_query *query, const token_rows *stored, const int64_t *slots, long count, long most_exact, long most,
                float *best, double *first, uint8_t *seen) {
    int64_t *begins = malloc((3 * count + 1) * sizeof *begins), *lengths = begins + count, *owners = lengths + count, total = 0;
    if (!begins) return -1;
    long units = 0;
    for (long at = 0; at < count; at++) {
        int64_t slot = slots[at], own = slot >= 0 && slot < stored->known ? stored->counts[slot] : 0;
        seen[at] = own > 0;
        if (own <= 0) continue;
        begins[units] = stored->starts[slot];
        lengths[units] = own;
        owners[units++] = at;
        total += own;
    }
    long status = 0;
    if (total > most) {
        status = -3;
    } else {
        memset(best, 0, query->tokens * count * sizeof *best);
        memset(first, 0, count * sizeof *first);
        if (total && total <= most_exact)
            status = late_exact(stored->signs, stored->rows, stored->width, begins, lengths, owners, units, query->steps,
                                query->tokens, query->sums, query->scales, query->weights, best, first, count);
        else if (total)
            status = late_estimated(stored->signs, stored->rows, stored->width, begins, lengths, owners, units, query->signs,
                                    query->tokens, query->cosines, query->weights, best, first, count);
    }
    free(begins);
    return status;
}

/* counts: [wanted_count], how often each is among the ids. */
FOR_EVERY_PROCESSOR
void occurrences(const uint16_t *ids, long count, const uint16_t *wanted, long wanted_count, int64_t *counts) {
    for (long place = 0; place < wanted_count; place++) {
        int64_t found = 0;
        for (long start = 0; start < count; start += UINT16_MAX) {
            uint16_t some = 0, one = wanted[place];
            for (long at = start; at < count && at < start + UINT16_MAX; at++) some += ids[at] == one;
            found += some;
        }
        counts[place] = found;
    }
}
