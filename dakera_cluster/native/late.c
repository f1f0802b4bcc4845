/* MaxSim of a question's tokens over the sign bits of stored tokens, unit by unit (a unit is a memory or a passage of one).
   Integers only until the last step, so that nothing depends on the order of the work. */

#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "portable.h"

#define MAX_WIDTH 4096
/* Two tokens of the question share a lane of 32 bits; so many are matched at once. */
#define LANES 8
#define BLOCK (2 * LANES)
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

typedef uint32_t pairs __attribute__((vector_size(4 * LANES)));

INLINED pairs greater(pairs left, pairs right) {
    pairs is_left = (pairs)(left > right);
    return (left & is_left) | (right & ~is_left);
}

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

/* Sign bits select the steps to be summed, and four of them do so in sixteen ways: a table for each four dimensions holds the
   sums, of all tokens side by side, and a stored token is matched by one look-up in each. Tables go by nibble, the lower one of
   a byte first; a byte has the first dimension in its highest bit. What a sum could fall below zero is added to it (at most
   8,188 are between its bounds), so that eight of them stay within the 16 bits of a token. Returns in lifts what was added. */
INLINED void make_tables(const int16_t *steps, long width, long tokens, pairs *tables, int32_t *lifts) {
    memset(lifts, 0, BLOCK * sizeof(int32_t));
    for (long group = 0; group < width / GROUP; group++) {
        uint32_t halves[GROUP][LANES] = {{0}}, below[LANES] = {0};
        for (long token = 0; token < tokens; token++) {
            const int16_t *own = steps + token * width + (group + 1) * GROUP - 1;
            uint32_t unit = token < LANES ? 1 : 1 << 16;
            int32_t lift = 0;
            for (long bit = 0; bit < GROUP; bit++) {
                halves[bit][token % LANES] += unit * (uint32_t)own[-bit];
                lift -= own[-bit] < 0 ? own[-bit] : 0;
            }
            below[token % LANES] += unit * (uint32_t)lift;
            lifts[token] += lift;
        }
        pairs columns[GROUP], *table = tables + (group ^ 1) * ROWS;
        memcpy(columns, halves, sizeof columns);
        memcpy(table, below, sizeof *table);
        for (long row = 1; row < ROWS; row++) table[row] = table[row & (row - 1)] + columns[__builtin_ctzl(row)];
    }
}

/* The row of a table that the four bits from the sixth on name: with them in place, an index needs no further shift. */
INLINED pairs row_at(const pairs *table, uint64_t bits) {
    return *(const pairs *)((const char *)table + (bits & (ROWS - 1) * sizeof(pairs)));
}

/* The sums of the lower and the upper tokens of all lanes that a row of signs selects, lifted, made the greater of themselves
   and what is given. */
INLINED void raise_to(const uint8_t *row, long bytes, const pairs *table, pairs *lower, pairs *upper) {
    /* both = lower + 65,536 * upper, modulo what a lane holds: the lower sum follows from it at the end. */
    pairs both = {0}, high = {0};
    for (; bytes >= 4; bytes -= 4, row += 4, table += 8 * ROWS) {
        uint64_t word = (uint32_t)row[0] | (uint32_t)row[1] << 8 | (uint32_t)row[2] << 16 | (uint32_t)row[3] << 24;
        pairs sum = row_at(table, word << 5);
        sum += row_at(table + ROWS, word << 1);
        for (long nibble = 2; nibble < 8; nibble++) sum += row_at(table + nibble * ROWS, word >> (4 * nibble - 5));
        both += sum;
        high += sum >> 16;
    }
    for (; bytes > 0; bytes--, row++, table += 2 * ROWS) {
        pairs sum = row_at(table, *row << 5) + row_at(table + ROWS, *row << 1);
        both += sum;
        high += sum >> 16;
    }
    *lower = greater(both - (high << 16), *lower);
    *upper = greater(high, *upper);
}

/* Memories lie anywhere among all tokens: their first lines are asked for while others are matched. */
INLINED void fetch(const uint8_t *data, long bytes) {
    if (bytes > MAX_FETCHED) bytes = MAX_FETCHED;
    for (long at = 0; at < bytes; at += CACHE_LINE) __builtin_prefetch(data + at);
}

/* Of each unit: uint32[BLOCK], the greatest sum that its rows select for each token, lifted. */
INLINED void greatest_of(const uint8_t *signs, long bytes, const int64_t *begins, const int64_t *lengths, long units,
                         const pairs *tables, uint32_t *greatest) {
    for (long unit = 0; unit < units; unit++, greatest += BLOCK) {
        if (unit + AHEAD < units) fetch(signs + begins[unit + AHEAD] * bytes, lengths[unit + AHEAD] * bytes);
        const uint8_t *row = signs + begins[unit] * bytes, *end = row + lengths[unit] * bytes;
        pairs lower = {0}, upper = {0};
        for (; row < end; row += bytes) raise_to(row, bytes, tables, &lower, &upper);
        memcpy(greatest, &lower, sizeof lower);
        memcpy(greatest + LANES, &upper, sizeof upper);
    }
}

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

/* Returns 0, -1 without memory, -2 when a unit reaches beyond the rows or the slots. */
FOR_EVERY_PROCESSOR
long late_exact(const uint8_t *signs, long rows, long width, const int64_t *begins, const int64_t *lengths, const int64_t *owners,
                long units, const int16_t *steps, long tokens, const double *sums, const double *scales,
                const double *weights, float *best, double *first, long slots) {
    if (!are_within(begins, lengths, owners, units, rows, slots)) return -2;
    float similar[MAX_TOKENS];
    int32_t lifts[(MAX_TOKENS + BLOCK - 1) / BLOCK * BLOCK];
    long bytes = width / 8, blocks = (tokens + BLOCK - 1) / BLOCK;
    double leading = 0;
    pairs *tables = aligned_alloc(64, (width / GROUP * ROWS * sizeof(pairs) + 64) / 64 * 64);
    uint32_t *greatest = malloc((blocks * units * BLOCK + 1) * sizeof(uint32_t));
    long status = tables && greatest ? 0 : -1;
    for (long block = 0; !status && block < blocks; block++) {
        long token = block * BLOCK, left = tokens - token;
        uint32_t *own = greatest + block * units * BLOCK;
        make_tables(steps + token * width, width, left < BLOCK ? left : BLOCK, tables, lifts + token);
        greatest_of(signs, bytes, begins, lengths, units, tables, own);
    }
    for (long unit = 0; !status && unit < units; unit++) {
        for (long token = 0; token < tokens; token++) {
            int32_t dot = (int32_t)greatest[(token / BLOCK * units + unit) * BLOCK + token % BLOCK] - lifts[token];
            similar[token] = (float)((2.0 * dot - sums[token]) * scales[token]);
        }
        int is_first = unit == 0 || owners[unit] != owners[unit - 1];
        keep(similar, weights, tokens, owners[unit], is_first, &leading, best, first, slots);
    }
    free(greatest);
    free(tables);
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
