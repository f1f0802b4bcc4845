/* The rows nearest to a query, exactly: bounds from the high plane, products only where a bound leaves a doubt.

   The high plane alone bounds a row's score within a hundredth, in integers and at half of the memory traffic, which is what
   a scan is bound by. Where the wanted-th score lies is counted in levels rather than kept in order: a row costs one addition,
   whatever its rank. */

#include <math.h>
#include <stdlib.h>

#include "hits.h"
#include "planes.h"

/* Rows chosen before they are multiplied. */
#define BLOCK 64
#define GROUP 4
/* Eight bytes of what is present, where all is. */
#define ALL_PRESENT 0x0101010101010101u
/* Bounds that are looked at together. */
#define SIDE 16
#define PAD 64
/* How far ahead of a row the next ones are asked for: without it, rows that lie beyond the second cache come late. */
#define BYTES_AHEAD 12288
/* Steps of the cosine from -1 to 1 in which rows are counted: a tenth of what a bound leaves open. */
#define LEVELS 2048
/* More than the rounding of a bound and of its level. */
#define ROUNDING 1e-5f
/* What the steps of a query may add up to: times a high byte, the sum fits 32 bits. */
#define SUM_LIMIT 16777215.0
/* The largest step whose upper and lower bytes are both signed ones. */
#define MAX_STEP 32639.0

/* What may be found: the present, and allowed (unless NULL), slots below count. scales: by slot. */
typedef struct {
    const uint8_t *present, *allowed;
    const float *scales;
    long count;
} choice;

/* steps * step is the query, nearly; offset what the middle of the low bytes adds; slack bounds all that is neglected. The
   steps also in bytes: step = 256 * upper + lower. Padded with zeros. */
typedef struct {
    int16_t *steps;
    int8_t *upper, *lower;
    int32_t total;
    double step, offset, slack;
} coarse;

static int make_coarse(coarse *made, const float *query, long width) {
    long padded = (width + PAD - 1) / PAD * PAD;
    double total = 0, sum = 0, peak = 0;
    for (long at = 0; at < width; at++) {
        double size = fabs((double)query[at]);
        total += size;
        sum += query[at];
        if (size > peak) peak = size;
    }
    made->steps = calloc(padded, 4);
    if (!made->steps) return 0;
    made->upper = (int8_t *)(made->steps + padded);
    made->lower = made->upper + padded;
    made->total = 0;
    made->step = made->offset = 0;
    made->slack = 1;
    if (!(peak > 0)) return 1;
    double most = (SUM_LIMIT - width) / total, per_unit = MAX_STEP / peak;
    if (most < per_unit) per_unit = most;
    for (long at = 0; at < width; at++) {
        int32_t step = (int32_t)rint(query[at] * per_unit), upper = (step + 128) >> 8;
        made->steps[at] = step;
        made->upper[at] = upper;
        made->lower[at] = step - 256 * upper;
        made->total += step;
    }
    made->step = 256 / per_unit;
    made->offset = 128 * sum;
    made->slack = 128 * total + 0.5 * width * 32768 / per_unit;
    return 1;
}

FOR_EVERY_PROCESSOR
static void high_sums(const int8_t *const *rows, long count, long width, const coarse *query, int32_t *sums) {
    for (long place = 0; place < count; place++) {
        const int8_t *row = rows[place];
        int32_t sum = 0;
        for (long at = 0; at < width; at++) sum += (int32_t)(int16_t)row[at] * (int32_t)query->steps[at];
        sums[place] = sum;
    }
}

#ifdef FOR_THIS_PROCESSOR
#include <immintrin.h>

/* The same sums in products of bytes: high bytes are read as unsigned (128 more), which the total of the steps takes back.
   Sums wrap around, and end within 32 bits. */
__attribute__((target(AVX512 ",avx512vnni"))) static void high_sums_of_bytes(
    const int8_t *const *rows, long count, long width, const coarse *query, int32_t *sums) {
    const __m512i middle = _mm512_set1_epi8((char)0x80);
    for (long first = 0; first < count; first += GROUP) {
        const int8_t *row[GROUP];
        __m512i above[GROUP], below[GROUP];
        for (long place = 0; place < GROUP; place++) {
            row[place] = rows[first + place < count ? first + place : count - 1];
            above[place] = below[place] = _mm512_setzero_si512();
        }
        for (long at = 0; at < width; at += PAD) {
            __mmask64 inside = width - at < PAD ? ((__mmask64)1 << (width - at)) - 1 : ~(__mmask64)0;
            __m512i upper = _mm512_loadu_si512(query->upper + at), lower = _mm512_loadu_si512(query->lower + at);
            for (long place = 0; place < GROUP; place++) {
                _mm_prefetch((const char *)row[place] + at + BYTES_AHEAD, _MM_HINT_T1);
                __m512i high = _mm512_xor_si512(_mm512_maskz_loadu_epi8(inside, row[place] + at), middle);
                above[place] = _mm512_dpbusd_epi32(above[place], high, upper);
                below[place] = _mm512_dpbusd_epi32(below[place], high, lower);
            }
        }
        for (long place = 0; place < GROUP; place++)
            above[place] = _mm512_add_epi32(_mm512_slli_epi32(above[place], 8), below[place]);
        __m512i pair = _mm512_add_epi32(_mm512_unpacklo_epi32(above[0], above[1]), _mm512_unpackhi_epi32(above[0], above[1]));
        __m512i other = _mm512_add_epi32(_mm512_unpacklo_epi32(above[2], above[3]), _mm512_unpackhi_epi32(above[2], above[3]));
        __m512i four = _mm512_add_epi32(_mm512_unpacklo_epi64(pair, other), _mm512_unpackhi_epi64(pair, other));
        __m256i two = _mm256_add_epi32(_mm512_castsi512_si256(four), _mm512_extracti64x4_epi64(four, 1));
        __m128i one = _mm_add_epi32(_mm256_castsi256_si128(two), _mm256_extracti128_si256(two, 1));
        int32_t found[GROUP];
        _mm_storeu_si128((__m128i *)found, one);
        for (long place = 0; place < GROUP && first + place < count; place++)
            sums[first + place] = (int32_t)((uint32_t)found[place] - 128u * (uint32_t)query->total);
    }
}
#endif

static void (*sums_of)(const int8_t *const *, long, long, const coarse *, int32_t *) = high_sums;

__attribute__((constructor)) static void choose_sums(void) {
#ifdef FOR_THIS_PROCESSOR
    __builtin_cpu_init();
    if (has_avx512() && __builtin_cpu_supports("avx512vnni")) sums_of = high_sums_of_bytes;
#endif
}

/* ---- counting in levels ---- */

INLINED int32_t level_of(float lower) {
    float level = (lower + 1) * (LEVELS / 2);
    /* What is no number is said to reach nothing. */
    level = level > 0 ? level : 0;
    return (int32_t)(level < LEVELS - 1 ? level : LEVELS - 1);
}

/* A value that at least wanted of those counted reach. */
static float floor_of(const int32_t *levels, long wanted) {
    long level = LEVELS - 1, held = 0;
    for (; level > 0; level--) {
        held += levels[level];
        if (held >= wanted) break;
    }
    return level > 0 ? level * (2.0f / LEVELS) - 1 - ROUNDING : -INFINITY;
}

INLINED int is_chosen(const choice *from, int64_t slot) {
    return from->present[slot] && (!from->allowed || from->allowed[slot]);
}

INLINED float doubt_of(const coarse *query, float scale) { return (float)query->slack * fabsf(scale) + ROUNDING; }

/* Whether so many slots (a multiple of eight) from first on, all before the end, are chosen. */
INLINED int are_chosen(const choice *from, long first, long count, long end) {
    uint64_t word, all = ALL_PRESENT;
    if (from->allowed || end - first < count) return 0;
    for (long at = first; at < first + count; at += sizeof word) {
        memcpy(&word, from->present + at, sizeof word);
        all &= word;
    }
    return all == ALL_PRESENT;
}

/* The slots from first on that are chosen, up to a block of them and the end; the bounds of all others are -inf. Returns
   where it stopped. */
INLINED long next_block(const choice *from, long first, long end, float *bounds, int64_t *chosen, long *held) {
    long size = 0;
    while (first < end && size < BLOCK) {
        if (size + 8 <= BLOCK && are_chosen(from, first, 8, end)) {
            for (long place = 0; place < 8; place++) chosen[size + place] = first + place;
            size += 8;
            first += 8;
            continue;
        }
        chosen[size] = first;
        bounds[first] = -INFINITY;
        size += is_chosen(from, first++);
    }
    *held = size;
    return first;
}

/* The upper bounds of the cosines of rows, and the levels that they reach at least. */
INLINED void bound_of(const coarse *query, const int32_t *sums, const float *scales, long count, float *upper,
                      int32_t *reached) {
    for (long place = 0; place < count; place++) {
        float near = (float)(sums[place] * query->step + query->offset) * scales[place];
        float doubt = doubt_of(query, scales[place]);
        upper[place] = near + doubt;
        reached[place] = level_of(near - doubt);
    }
}

/* Upper bounds of the cosines of the chosen slots, and how many of them lie in each level at least. */
FOR_EVERY_PROCESSOR
static void bound(const planes *rows, const choice *from, const coarse *query, float *bounds, int32_t *levels) {
    int64_t chosen[BLOCK];
    const int8_t *row[BLOCK];
    int32_t sums[BLOCK], reached[BLOCK], others[LEVELS] = {0};
    float scales[BLOCK], upper[BLOCK];
    memset(levels, 0, LEVELS * sizeof *levels);
    for (long first = 0; first < from->count;) {
        long chunk = first / rows->chunk_rows, before = chunk * rows->chunk_rows, end = before + rows->chunk_rows, held = BLOCK;
        const int8_t *start = row_of(rows->high, rows, before);
        if (end > from->count) end = from->count;
        if (are_chosen(from, first, BLOCK, end)) {
            for (long place = 0; place < BLOCK; place++) row[place] = start + (first - before + place) * rows->width;
            sums_of(row, BLOCK, rows->width, query, sums);
            bound_of(query, sums, from->scales + first, BLOCK, bounds + first, reached);
            first += BLOCK;
        } else {
            first = next_block(from, first, end, bounds, chosen, &held);
            for (long place = 0; place < held; place++) {
                row[place] = start + (chosen[place] - before) * rows->width;
                scales[place] = from->scales[chosen[place]];
            }
            if (held) sums_of(row, held, rows->width, query, sums);
            bound_of(query, sums, scales, held, upper, reached);
            for (long place = 0; place < held; place++) bounds[chosen[place]] = upper[place];
        }
        /* In two arrays, for rows that are alike wait for each other. */
        long place = 0;
        for (; place + 2 <= held; place += 2) {
            levels[reached[place]]++;
            others[reached[place + 1]]++;
        }
        if (place < held) levels[reached[place]]++;
    }
    for (long level = 0; level < LEVELS; level++) levels[level] += others[level];
}

/* scores: by slot, the cosines of slots, all of which are present. dots: room for as many. */
static void score_all(const vector_rows *stored, const choice *from, const float *query, const int64_t *slots, long count,
                      float *dots, float *scores) {
    dots_gather(stored, slots, count, query, dots);
    for (long at = 0; at < count; at++) {
        float score = dots[at] * from->scales[slots[at]];
        scores[slots[at]] = score > 1 ? 1 : score < -1 ? -1 : score;
    }
}

/* The slots whose bounds reach the floor; returns how many. */
FOR_EVERY_PROCESSOR
static long reaching(const choice *from, const float *bounds, float floor, int64_t *slots) {
    long size = 0;
    int all = floor == -INFINITY;
    for (long first = 0; first < from->count; first += SIDE) {
        long last = first + SIDE < from->count ? first + SIDE : from->count;
        /* Most reach nothing: those not chosen are at -inf. */
        int any = all;
        for (long slot = first; slot < last; slot++) any |= !(bounds[slot] < floor);
        for (long slot = first; any && slot < last; slot++) {
            slots[size] = slot;
            size += all ? is_chosen(from, slot) : !(bounds[slot] < floor);
        }
    }
    return size;
}

/* The hits at slots, sorted. scores: by slot; hits is room for twice as many. */
static void ranked(const int64_t *slots, const float *scores, long size, hit *hits) {
    for (long at = 0; at < size; at++) hits[at] = hit_of(slots[at], scores[slots[at]]);
    sort_hits(hits, hits + size, size);
}

/* The slots below limit that may be chosen; allowed: NULL for all. */
INLINED choice choice_of(const vector_rows *rows, const uint8_t *allowed, long allowed_count, long limit) {
    long count = rows->known < limit ? rows->known : limit;
    if (allowed && allowed_count < count) count = allowed_count;
    return (choice){rows->present, allowed, rows->scales, count};
}

/* The best chosen slots by cosine, then slot, in order; returns how many, -1 without memory. */
long nearest(const vector_rows *stored, const uint8_t *allowed, long allowed_count, const float *query, long wanted,
             int64_t *slots, float *scores) {
    planes rows = planes_of(stored);
    choice from = choice_of(stored, allowed, allowed_count, stored->known);
    long count = from.count;
    if (wanted <= 0 || count <= 0) return 0;
    coarse near = {0};
    int32_t levels[LEVELS];
    int64_t *doubtful = malloc(count * sizeof *doubtful);
    float *bounds = malloc(count * sizeof *bounds);
    hit *hits = NULL;
    long size = 0;
    if (doubtful && bounds && make_coarse(&near, query, rows.width)) {
        bound(&rows, &from, &near, bounds, levels);
        size = reaching(&from, bounds, floor_of(levels, wanted), doubtful);
        hits = malloc((2 * size + 1) * sizeof *hits);
    }
    if (hits) {
        /* The hits are not there yet, and the bounds no longer needed. */
        score_all(stored, &from, query, doubtful, size, (float *)hits, bounds);
        ranked(doubtful, bounds, size, hits);
        if (size > wanted) size = wanted;
        for (long place = 0; place < size; place++) {
            slots[place] = hits[place].slot;
            scores[place] = hits[place].score;
        }
    }
    free(doubtful);
    free(bounds);
    free(near.steps);
    free(hits);
    return hits ? size : -1;
}

/* A set of slots, and a score of each. */
typedef struct {
    uint64_t *marks;
    float *scores;
} found;

INLINED void mark(found *set, int64_t slot) { set->marks[slot / 64] |= (uint64_t)1 << slot % 64; }

INLINED int is_marked(const found *set, int64_t slot) { return set->marks[slot / 64] >> slot % 64 & 1; }

/* Returns 0 when it was marked before. */
INLINED int is_marked_now(found *set, int64_t slot) {
    int is_new = !is_marked(set, slot);
    mark(set, slot);
    return is_new;
}

/* Those of the held slots that may be among its wanted best, each once; returns how many. set: empty, scored by the bounds of
   all chosen slots. */
static long held_reaching(const choice *from, const coarse *query, found *set, const int64_t *held, long count,
                          long wanted, int32_t *levels, int64_t *slots) {
    const float *bounds = set->scores;
    long size = 0, kept = 0;
    memset(levels, 0, LEVELS * sizeof *levels);
    for (long at = 0; at < count; at++) {
        int64_t slot = held[at];
        if (slot < 0 || slot >= from->count || !is_chosen(from, slot) || !is_marked_now(set, slot)) continue;
        slots[size++] = slot;
        levels[level_of(bounds[slot] - 2 * doubt_of(query, from->scales[slot]))]++;
    }
    float floor = floor_of(levels, wanted);
    for (long at = 0; at < size; at++) {
        set->marks[slots[at] / 64] = 0;
        if (!(bounds[slots[at]] < floor)) slots[kept++] = slots[at];
    }
    return kept;
}

/* Mark the wanted best of slots, those of equal score by key; 0 without memory. hits: room for twice as many. */
static int mark_best(found *set, const int64_t *slots, long size, long wanted, const uint64_t *keys, hit *hits) {
    if (size <= wanted) {
        for (long at = 0; at < size; at++) mark(set, slots[at]);
        return 1;
    }
    ranked(slots, set->scores, size, hits);
    if (!settle_ties(hits, size, wanted, wanted + 1, keys)) return 0;
    for (long at = 0; at < wanted; at++) mark(set, hits[at].slot);
    return 1;
}

/* What is asked for besides the best of the chosen slots: the best of those that are also held, and others. */
typedef struct {
    const int64_t *held, *others;
    long held_count, other_count;
} company;

/* Fills a set whose scores are room to work in, as are slots; 0 without memory. */
static int surveyed(const vector_rows *stored, const choice *from, const coarse *near, const float *query, const uint64_t *keys,
                    long wanted, const company *also, long wanted_held, int64_t *slots, found *set) {
    planes rows = planes_of(stored);
    int32_t levels[LEVELS];
    bound(&rows, from, near, set->scores, levels);
    long size = reaching(from, set->scores, floor_of(levels, wanted), slots), all = size;
    int64_t *held = slots + from->count + also->held_count + also->other_count;
    long of_held = held_reaching(from, near, set, also->held, also->held_count, wanted_held, levels, held);
    /* Whoever has a row and is spoken of, each once: they are scored together. */
    for (long at = 0; at < size; at++) mark(set, slots[at]);
    for (long at = 0; at < of_held; at++)
        if (is_marked_now(set, held[at])) slots[all++] = held[at];
    for (long at = 0; at < also->other_count; at++) {
        int64_t slot = also->others[at];
        if (slot >= 0 && slot < stored->known && from->present[slot] && is_marked_now(set, slot)) slots[all++] = slot;
    }
    hit *hits = malloc((2 * all + 1) * sizeof *hits);
    if (!hits) return 0;
    score_all(stored, from, query, slots, all, (float *)hits, set->scores);
    for (long at = 0; at < all; at++) set->marks[slots[at] / 64] = 0;
    int whole = mark_best(set, slots, size, wanted, keys, hits) && mark_best(set, held, of_held, wanted_held, keys, hits);
    free(hits);
    for (long at = 0; at < also->other_count; at++) {
        int64_t slot = also->others[at];
        if (slot < 0) continue;
        mark(set, slot);
        if (slot >= stored->known || !from->present[slot]) set->scores[slot] = NAN;
    }
    return whole;
}

/* The wanted best of the chosen slots (those with a row and a key) and the wanted best of those that are also held, both by
   cosine, then key; and the others. Each once, ascending, with its cosine, NaN without a row. Returns how many, -1 without
   memory. */
long survey(const vector_rows *stored, const uint8_t *allowed, long allowed_count, const float *query, const uint64_t *keys,
            long key_count, long wanted, const int64_t *held, long held_count, long wanted_held, const int64_t *others,
            long other_count, int64_t *slots, double *cosines) {
    long size = stored->known, written = -1;
    for (long at = 0; at < other_count; at++)
        if (others[at] >= size) size = others[at] + 1;
    choice from = choice_of(stored, allowed, allowed_count, key_count);
    company also = {held, others, held_count, other_count};
    coarse near = {0};
    found set = {calloc(size / 64 + 1, sizeof *set.marks), malloc((size + 1) * sizeof *set.scores)};
    int64_t *room = malloc((from.count + 2 * held_count + other_count + 1) * sizeof *room);
    if (set.marks && set.scores && room && make_coarse(&near, query, stored->width) &&
        surveyed(stored, &from, &near, query, keys, wanted, &also, wanted_held, room, &set)) {
        written = 0;
        for (long word = 0; word <= size / 64; word++)
            for (uint64_t marks = set.marks[word]; marks; marks &= marks - 1) {
                int64_t slot = 64 * word + __builtin_ctzll(marks);
                slots[written] = slot;
                cosines[written++] = set.scores[slot];
            }
    }
    free(set.marks);
    free(set.scores);
    free(room);
    free(near.steps);
    return written;
}
