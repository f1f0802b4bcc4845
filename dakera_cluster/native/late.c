/* MaxSim of a question's tokens over the sign bits of stored tokens, unit by unit (a unit is a memory or a passage of one).
   Integers only until the last step, so that nothing depends on the order of the work. */

#include "portable.h"

#define LANES 32
#define MAX_WIDTH 4096
/* 16 steps of at most 2,047 stay within a short. */
#define FLUSH 16
/* The width of the usual models (MiniLM, bge-small, e5-small). */
#define USUAL_WIDTH 384

typedef int16_t shorts __attribute__((vector_size(2 * LANES)));

/* A byte of signs, the first dimension in its highest bit, as eight masks. */
static int16_t masks_of_byte[256][8];

__attribute__((constructor)) static void make_masks(void) {
    for (int byte = 0; byte < 256; byte++)
        for (int bit = 0; bit < 8; bit++) masks_of_byte[byte][bit] = (byte >> (7 - bit)) & 1 ? -1 : 0;
}

INLINED int32_t across(shorts values) {
    int32_t sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += values[lane];
    return sum;
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

/* The greatest dot product of each question token with the rows of a unit. With parts known when this is compiled, the masks
   of a row stay in registers. */
INLINED void greatest_of(const uint8_t *rows, long count, long bytes, const int16_t *steps, long tokens, long parts,
                         shorts *masks, int32_t *greatest) {
    for (long token = 0; token < tokens; token++) greatest[token] = INT32_MIN;
    for (const uint8_t *row = rows; row < rows + count * bytes; row += bytes) {
        for (long byte = 0; byte < bytes; byte++) memcpy((int16_t *)masks + 8 * byte, masks_of_byte[row[byte]], 16);
        for (long token = 0; token < tokens; token++) {
            int32_t dot = 0;
            for (long part = 0; part < parts;) {
                long stop = part + FLUSH < parts ? part + FLUSH : parts;
                shorts sum = {0};
                for (; part < stop; part++) {
                    shorts own;
                    memcpy(&own, steps + (token * parts + part) * LANES, sizeof own);
                    sum += own & masks[part];
                }
                dot += across(sum);
            }
            if (dot > greatest[token]) greatest[token] = dot;
        }
    }
}

FOR_EVERY_PROCESSOR
void late_exact(const uint8_t *signs, long width, const int64_t *begins, const int64_t *lengths, const int64_t *owners,
                long units, const int16_t *steps, long tokens, const double *sums, const double *scales,
                const double *weights, float *best, double *first, long slots) {
    shorts masks[MAX_WIDTH / LANES];
    int32_t greatest[MAX_TOKENS];
    float similar[MAX_TOKENS];
    long bytes = width / 8, parts = (width + LANES - 1) / LANES;
    double leading = 0;
    memset(masks, 0, parts * sizeof(shorts));
    for (long unit = 0; unit < units; unit++) {
        const uint8_t *rows = signs + begins[unit] * bytes;
        if (width == USUAL_WIDTH)
            greatest_of(rows, lengths[unit], USUAL_WIDTH / 8, steps, tokens, USUAL_WIDTH / LANES, masks, greatest);
        else
            greatest_of(rows, lengths[unit], bytes, steps, tokens, parts, masks, greatest);
        for (long token = 0; token < tokens; token++)
            similar[token] = (float)((2.0 * greatest[token] - sums[token]) * scales[token]);
        int is_first = unit == 0 || owners[unit] != owners[unit - 1];
        keep(similar, weights, tokens, owners[unit], is_first, &leading, best, first, slots);
    }
}

FOR_EVERY_PROCESSOR
void late_estimated(const uint8_t *signs, long width, const int64_t *begins, const int64_t *lengths,
                    const int64_t *owners, long units, const uint8_t *query, long tokens, const float *cosines,
                    const double *weights, float *best, double *first, long slots) {
    float similar[MAX_TOKENS];
    uint64_t asked[MAX_TOKENS][MAX_WIDTH / 64], own[MAX_WIDTH / 64];
    long bytes = width / 8, words = (bytes + 7) / 8;
    double leading = 0;
    memset(own, 0, sizeof own);
    for (long token = 0; token < tokens; token++) {
        memset(asked[token], 0, 8 * words);
        memcpy(asked[token], query + token * bytes, bytes);
    }
    for (long unit = 0; unit < units; unit++) {
        long fewest[MAX_TOKENS];
        for (long token = 0; token < tokens; token++) fewest[token] = width;
        for (long row = begins[unit]; row < begins[unit] + lengths[unit]; row++) {
            memcpy(own, signs + row * bytes, bytes);
            for (long token = 0; token < tokens; token++) {
                long differing = 0;
                for (long word = 0; word < words; word++) differing += __builtin_popcountll(asked[token][word] ^ own[word]);
                if (differing < fewest[token]) fewest[token] = differing;
            }
        }
        for (long token = 0; token < tokens; token++) similar[token] = cosines[fewest[token]];
        int is_first = unit == 0 || owners[unit] != owners[unit - 1];
        keep(similar, weights, tokens, owners[unit], is_first, &leading, best, first, slots);
    }
}
