/* MaxSim by the tiles of AMX, for late.c: sixteen stored tokens meet sixteen of a question's in one instruction for each 64
   dimensions. A stored token's signs are spread to bytes of 0 and 1, and a question's steps parted into their upper and lower
   bytes, both signed (step = 256 * upper + lower): products of bytes, summed as integers, so that a sum is the one the tables
   give. */

#include "tiles.h"

#if defined(FOR_THIS_PROCESSOR) && defined(HAS_TILES)
#define MATCHES_BY_TILES

/* Stored tokens that are matched together: two tiles of them beside a tile of each byte, and four of sums. */
#define SPREAD_ROWS (2 * TILE_ROWS)
/* Bytes of 64 dimensions: of sixteen tokens' steps, and of the stored tokens' spread signs. */
#define STEP_BYTES (2 * TILE_ROWS * TILE_BYTES)
#define SPREAD_BYTES (SPREAD_ROWS * TILE_BYTES)

static int has_tiles(void) {
    /* Asked once: the question goes to the hypervisor and to the system. 0: not yet. */
    static int known;
    int found = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (!found) {
        found = encoder_has_tiles() ? 1 : -1;
        __atomic_store_n(&known, found, __ATOMIC_RELAXED);
    }
    return found > 0;
}

/* parted: [blocks of sixteen tokens, width / 64, upper and lower, sixteen times four dimensions, token, four dimensions]. Signs
   come with the first dimension of a byte in its highest bit and are spread from the lowest on: so are the steps. least:
   [tokens], the least that signs can select. */
TILED static void part_steps(const int16_t *steps, long tokens, long width, int8_t *parted, int32_t *least) {
    long blocks = (tokens + TILE_ROWS - 1) / TILE_ROWS;
    memset(parted, 0, blocks * (width / TILE_BYTES) * STEP_BYTES);
    for (long token = 0; token < tokens; token++) {
        const int16_t *own = steps + token * width;
        int8_t *to = parted + token / TILE_ROWS * (width / TILE_BYTES) * STEP_BYTES + token % TILE_ROWS * 4;
        least[token] = 0;
        for (long at = 0; at < width; at++) least[token] += own[at] < 0 ? own[at] : 0;
        for (long at = 0; at < width; at += TILE_BYTES, to += STEP_BYTES) {
            int8_t bytes[2][TILE_BYTES];
            for (long bit = 0; bit < TILE_BYTES; bit++) {
                bytes[0][bit] = (int8_t)((own[at + bit] + 128) >> 8);
                bytes[1][bit] = (int8_t)own[at + bit];
            }
            for (long byte = 0; byte < 2 * TILE_BYTES; byte += 8) {
                uint64_t eight;
                memcpy(&eight, (int8_t *)bytes + byte, 8);
                eight = __builtin_bswap64(eight);
                memcpy(to + byte / 4 * TILE_BYTES, &eight, 4);
                memcpy(to + (byte / 4 + 1) * TILE_BYTES, (int8_t *)&eight + 4, 4);
            }
        }
    }
}

/* spread: [width / 64, SPREAD_ROWS, 64]; a row of signs becomes the given one of it. */
TILED INLINED void spread_signs(const uint8_t *row, long bytes, uint8_t *spread, long place) {
    for (long at = 0; at < bytes; at += 8, spread += SPREAD_BYTES) {
        uint64_t word;
        memcpy(&word, row + at, 8);
        _mm512_store_si512(spread + place * TILE_BYTES, _mm512_maskz_mov_epi8((__mmask64)word, _mm512_set1_epi8(1)));
    }
}

/* What `count` rows of spread signs select of each token's steps, made the greater of itself and what is kept; owners: of each
   row, int32[tokens] of its unit, those of one behind one another. parts: width / 64. */
TILED static void raise_to_tiles(const uint8_t *spread, long count, const int8_t *parted, long parts, int32_t *const *owners,
                                 long tokens) {
    int32_t upper[SPREAD_ROWS * TILE_ROWS] __attribute__((aligned(64)));
    int32_t lower[SPREAD_ROWS * TILE_ROWS] __attribute__((aligned(64)));
    long stride = TILE_ROWS * sizeof *upper;
    WRITTEN_OUT;
    for (long token = 0; token < tokens; token += TILE_ROWS, parted += parts * STEP_BYTES) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (long part = 0; part < parts; part++) {
            const uint8_t *own = spread + part * SPREAD_BYTES;
            const int8_t *steps = parted + part * STEP_BYTES;
            _tile_loadd(4, own, TILE_BYTES);
            _tile_loadd(5, steps, TILE_BYTES);
            _tile_dpbusd(0, 4, 5);
            _tile_loadd(6, own + SPREAD_BYTES / 2, TILE_BYTES);
            _tile_dpbusd(1, 6, 5);
            _tile_loadd(7, steps + STEP_BYTES / 2, TILE_BYTES);
            _tile_dpbusd(2, 4, 7);
            _tile_dpbusd(3, 6, 7);
        }
        _tile_stored(0, upper, stride);
        _tile_stored(1, upper + TILE_ROWS * TILE_ROWS, stride);
        _tile_stored(2, lower, stride);
        _tile_stored(3, lower + TILE_ROWS * TILE_ROWS, stride);
        WRITTEN_OUT;
        __mmask16 kept = tokens - token < TILE_ROWS ? (1u << (tokens - token)) - 1 : 0xFFFF;
        int32_t *to = owners[0] + token;
        __m512i greatest = _mm512_maskz_loadu_epi32(kept, to);
        for (long row = 0; row < count; row++) {
            if (owners[row] + token != to) {
                _mm512_mask_storeu_epi32(to, kept, greatest);
                to = owners[row] + token;
                greatest = _mm512_maskz_loadu_epi32(kept, to);
            }
            __m512i high = _mm512_slli_epi32(_mm512_load_si512(upper + row * TILE_ROWS), 8);
            __m512i sum = _mm512_add_epi32(high, _mm512_load_si512(lower + row * TILE_ROWS));
            greatest = _mm512_max_epi32(greatest, sum);
        }
        _mm512_mask_storeu_epi32(to, kept, greatest);
    }
}

/* dots: [units, tokens], of each unit the greatest sum that its rows select for each token; of one without rows, the least that
   there is. The width is of whole tiles. Returns 0, or -1 without memory. */
TILED static long greatest_by_tiles(const uint8_t *signs, long width, const int64_t *begins, const int64_t *lengths, long units,
                                    const int16_t *steps, long tokens, int32_t *dots) {
    int32_t least[MAX_TOKENS], *owners[SPREAD_ROWS];
    long bytes = width / 8, filled = 0, parts = width / TILE_BYTES, blocks = (tokens + TILE_ROWS - 1) / TILE_ROWS;
    int8_t *parted = aligned_alloc(64, parts * (blocks * STEP_BYTES + SPREAD_BYTES) + 64);
    if (!parted) return -1;
    uint8_t *spread = (uint8_t *)parted + parts * blocks * STEP_BYTES;
    part_steps(steps, tokens, width, parted, least);
    tiles_open();
    for (long unit = 0; unit < units; unit++) {
        if (unit + AHEAD < units) fetch(signs + begins[unit + AHEAD] * bytes, lengths[unit + AHEAD] * bytes);
        memcpy(dots + unit * tokens, least, tokens * sizeof *dots);
        const uint8_t *row = signs + begins[unit] * bytes, *end = row + lengths[unit] * bytes;
        for (; row < end; row += bytes) {
            spread_signs(row, bytes, spread, filled);
            owners[filled++] = dots + unit * tokens;
            if (filled < SPREAD_ROWS) continue;
            raise_to_tiles(spread, filled, parted, parts, owners, tokens);
            filled = 0;
        }
    }
    if (filled) raise_to_tiles(spread, filled, parted, parts, owners, tokens);
    tiles_close();
    free(parted);
    return 0;
}

#endif
