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
#include "late_registers.h"

#define LANES 4
#define LANE_BITS 4
#define BY_LANES(name) name##_of_four
#include "late_tables.h"

#define LANES 8
#define LANE_BITS 5
#define BY_LANES(name) name##_of_eight
#include "late_tables.h"

/* Components that are made steps together. */
#define WIDE 8
typedef float floats __attribute__((vector_size(4 * WIDE)));
typedef double doubles __attribute__((vector_size(8 * WIDE)));
typedef int32_t ints __attribute__((vector_size(4 * WIDE)));
typedef int16_t shorts __attribute__((vector_size(2 * WIDE)));
typedef uint16_t halves __attribute__((vector_size(2 * WIDE)));
typedef int8_t chars __attribute__((vector_size(WIDE)));

/* Floats of 16 bits, the same of 32: what is below the least normal one is put upon it and taken off again. */
INLINED floats widened(halves half) {
    ints bits = __builtin_convertvector(half, ints), size = (bits & 0x7FFF) << 13, exponent = size & 31 << 23;
    ints is_tiny = exponent == 0, is_no_number = exponent == 31 << 23;
    ints lifted = size + (112 << 23) + (is_no_number & 112 << 23) + (is_tiny & 1 << 23);
    ints lift = is_tiny & 113 << 23;
    return (floats)((ints)((floats)lifted - (floats)lift) | (bits & 0x8000) << 16);
}

/* A float's whole number, halves to the even one: exact below 2^51, as every step is. */
INLINED doubles whole_of(doubles value) {
    const double places = 6755399441055744.0;
    return value + places - places;
}

/* What a question's tokens are matched by, into its room, unless it is there: each as whole steps, its largest component at
   largest of them; their sums and scales (a step's worth in a similarity, unit the worth of a token's greatest component in steps);
   signs, the first dimension in the highest bit. room: doubles, 2 a token, and bytes, 17 for each 8 components. What is no
   number counts as 0. */
FOR_EVERY_PROCESSOR
void late_ready(late_query *query) {
    if (query->steps) return;
    const void *vectors = query->vectors;
    long tokens = query->tokens, width = query->width;
    double *sums = query->room, *scales = sums + tokens;
    int16_t *steps = (int16_t *)(scales + tokens);
    uint8_t *signs = (uint8_t *)(steps + tokens * width);
    query->sums = sums;
    query->scales = scales;
    query->steps = steps;
    query->signs = signs;
    const chars places = {-128, 64, 32, 16, 8, 4, 2, 1};
    for (long token = 0; token < tokens; token++, steps += width) {
        float own[MAX_WIDTH], peak = FLT_MIN;
        floats peaks = {0};
        ints sum = {0};
        for (long at = 0; at < width; at += WIDE) {
            floats some;
            if (query->are_halves) {
                halves half;
                memcpy(&half, (const uint16_t *)vectors + token * width + at, sizeof half);
                some = widened(half);
            } else {
                memcpy(&some, (const float *)vectors + token * width + at, sizeof some);
            }
            memcpy(own + at, &some, sizeof some);
            ints size = (ints)some & INT32_MAX, is_greater = (floats)size > peaks;
            peaks = (floats)((size & is_greater) | ((ints)peaks & ~is_greater));
        }
        for (long lane = 0; lane < WIDE; lane++) peak = peaks[lane] > peak ? peaks[lane] : peak;
        for (long at = 0; at < width; at += WIDE) {
            floats some;
            memcpy(&some, own + at, sizeof some);
            floats number = (floats)((ints)some & (((ints)some & 255 << 23) != 255 << 23));
            doubles step = whole_of(__builtin_convertvector(number, doubles) / (double)peak * query->largest);
            ints whole = __builtin_convertvector(step, ints);
            shorts narrow = __builtin_convertvector(whole, shorts);
            chars bits = __builtin_convertvector(some > 0, chars) & places;
            uint64_t bytes;
            sum += whole;
            memcpy(steps + at, &narrow, sizeof narrow);
            /* No two bytes have a bit in common: their sum, the product's upper byte, is all of them. */
            memcpy(&bytes, &bits, sizeof bytes);
            *signs++ = bytes * 0x0101010101010101 >> 56;
        }
        int32_t total = 0;
        for (long lane = 0; lane < WIDE; lane++) total += sum[lane];
        sums[token] = total;
        scales[token] = peak / query->unit;
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
#ifdef MATCHES_IN_REGISTERS
    if (width % SPREAD_BITS == 0 && has_registers())
        return greatest_in_registers(signs, width, begins, lengths, units, steps, tokens, dots);
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
long late_exact(late_query *query, const token_rows *stored, const int64_t *begins, const int64_t *lengths,
                const int64_t *owners, long units, float *best, double *first, long slots) {
    if (!are_within(begins, lengths, owners, units, stored->rows, slots)) return -2;
    late_ready(query);
    long tokens = query->tokens;
    float similar[MAX_TOKENS];
    double leading = 0;
    int32_t *dots = malloc((tokens * units + 1) * sizeof *dots);
    long status = dots ? greatest_sums(stored->signs, query->width, begins, lengths, units, query->steps, tokens, dots) : -1;
    for (long unit = 0; !status && unit < units; unit++) {
        const int32_t *own = dots + unit * tokens;
        for (long token = 0; token < tokens; token++)
            similar[token] = (float)((2.0 * own[token] - query->sums[token]) * query->scales[token]);
        int is_first = unit == 0 || owners[unit] != owners[unit - 1];
        keep(similar, query->weights, tokens, owners[unit], is_first, &leading, best, first, slots);
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
long late_estimated(late_query *query, const token_rows *stored, const int64_t *begins, const int64_t *lengths,
                    const int64_t *owners, long units, float *best, double *first, long slots) {
    if (!are_within(begins, lengths, owners, units, stored->rows, slots)) return -2;
    late_ready(query);
    float similar[MAX_TOKENS];
    const uint8_t *signs = stored->signs;
    long tokens = query->tokens, bytes = query->width / 8, words = (bytes + 7) / 8, blocks = (tokens + SIDE - 1) / SIDE;
    double leading = 0;
    uint64_t *fewest = malloc((blocks * units * SIDE + 1) * sizeof(uint64_t)), asked[MAX_WIDTH / 64 * SIDE];
    if (!fewest) return -1;
    for (long block = 0; block < blocks; block++) {
        long left = tokens - block * SIDE;
        memset(asked, 0, words * SIDE * sizeof(uint64_t));
        for (long side = 0; side < (left < SIDE ? left : SIDE); side++)
            for (long at = 0; at < bytes; at += 8)
                asked[at + side] = word_at(query->signs + (block * SIDE + side) * bytes, at, bytes);
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
            similar[token] = query->cosines[fewest[(token / SIDE * units + unit) * SIDE + token % SIDE]];
        int is_first = unit == 0 || owners[unit] != owners[unit - 1];
        keep(similar, query->weights, tokens, owners[unit], is_first, &leading, best, first, slots);
    }
    free(fewest);
    return 0;
}

/* Memories matched as one unit each, those of more tokens in all than most_exact by signs alone. best: [tokens, count]; first and
   seen: [count]; what has no tokens is not seen. Returns 0, -1 and -2 as late_exact, or -3 when there are more tokens than
   most: then nothing is matched. */
long late_whole(late_query *query, const token_rows *stored, const int64_t *slots, long count, long most_exact, long most,
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
            status = late_exact(query, stored, begins, lengths, owners, units, best, first, count);
        else if (total)
            status = late_estimated(query, stored, begins, lengths, owners, units, best, first, count);
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
