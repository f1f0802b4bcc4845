/* MaxSim by tables that are looked up within registers (AVX-512 with VBMI and VNNI), for late.c. Sixteen stored tokens lie side
   by side, one in each lane of 32 bits, and one of a question's meets eight dimensions of all of them in two instructions: a
   byte of signs is two indices of four bits, into a table of what each of sixteen choices of four steps adds up to, and the two
   sums found are added to the lane's. Unlike the tables of late_tables.h, these cost as much as the question has tokens. */

#if defined(FOR_THIS_PROCESSOR)
#define MATCHES_IN_REGISTERS
#include <immintrin.h>

#define BY_REGISTERS __attribute__((target(AVX512 ",avx512vbmi,avx512vnni")))

/* Stored tokens of a register, registers of them that are matched together, and dimensions whose signs are spread together. */
#define ABREAST 16
#define REGISTERS 4
#define MATCHED_ROWS (ABREAST * REGISTERS)
#define SPREAD_BITS 128

INLINED int has_registers(void) {
    return has_avx512() && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
}

/* tables: [tokens, width / 8, 32], of each byte of signs what its lower four bits select, then its upper; a byte has the first
   dimension in its highest bit. least: [tokens], the least that signs can select. */
BY_REGISTERS static void make_register_tables(const int16_t *steps, long tokens, long width, int16_t *tables, int32_t *least) {
    /* Entries whose index has a bit set. */
    static const uint32_t holders[8] = {0xAAAA, 0xCCCC, 0xF0F0, 0xFF00, 0xAAAA0000, 0xCCCC0000, 0xF0F00000, 0xFF000000};
    for (long token = 0; token < tokens; token++) {
        least[token] = 0;
        for (long at = 0; at < width; at += 8, steps += 8, tables += 32) {
            __m512i table = _mm512_setzero_si512();
            for (long bit = 0; bit < 8; bit++) {
                int16_t step = steps[7 - bit];
                table = _mm512_mask_add_epi16(table, holders[bit], table, _mm512_set1_epi16(step));
                least[token] += step < 0 ? step : 0;
            }
            _mm512_store_si512(tables, table);
        }
    }
}

/* indices: [width / 8, REGISTERS, ABREAST], two words a row: the lower four bits of one of its bytes, and its upper four, which
   look in the upper half of a table. rows: ABREAST of them. */
BY_REGISTERS static void spread_indices(const uint8_t *const *rows, long bytes, uint32_t *indices) {
    const __m512i inside = _mm512_set1_epi32(0x000F000F), upper = _mm512_set1_epi32(0x00100000);
    /* Where in 64 bits, the same 32 of two rows, the bytes of their indices begin: the first, then four times eight on. */
    const __m512i first = _mm512_set1_epi64(0x2424202004040000), next = _mm512_set1_epi8(8);
    for (long at = 0; at < bytes; at += 16) {
        __m512i four[4], pair[4];
        for (long row = 0; row < 4; row++) {
            four[row] = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(rows[row] + at)));
            four[row] = _mm512_mask_broadcast_i32x4(four[row], 0x00F0, _mm_loadu_si128((const __m128i *)(rows[row + 4] + at)));
            four[row] = _mm512_mask_broadcast_i32x4(four[row], 0x0F00, _mm_loadu_si128((const __m128i *)(rows[row + 8] + at)));
            four[row] = _mm512_mask_broadcast_i32x4(four[row], 0xF000, _mm_loadu_si128((const __m128i *)(rows[row + 12] + at)));
        }
        pair[0] = _mm512_unpacklo_epi32(four[0], four[1]);
        pair[1] = _mm512_unpacklo_epi32(four[2], four[3]);
        pair[2] = _mm512_unpackhi_epi32(four[0], four[1]);
        pair[3] = _mm512_unpackhi_epi32(four[2], four[3]);
        for (long column = 0; column < 4; column++) {
            __m512i left = pair[column / 2 * 2], right = pair[column / 2 * 2 + 1], begin = first;
            __m512i word = column % 2 ? _mm512_unpackhi_epi64(left, right) : _mm512_unpacklo_epi64(left, right);
            for (long byte = 0; byte < 4; byte++, indices += MATCHED_ROWS) {
                __m512i found = _mm512_multishift_epi64_epi8(begin, word);
                /* (found & inside) | upper */
                _mm512_store_si512(indices, _mm512_ternarylogic_epi32(found, inside, upper, 0xEA));
                begin = _mm512_add_epi8(begin, next);
            }
        }
    }
}

/* Rows that wait to be matched together, and those of each unit among them: where they end, and its dots. */
typedef struct {
    const uint8_t *rows[MATCHED_ROWS];
    long ends[MATCHED_ROWS], held, units;
    int32_t *dots[MATCHED_ROWS];
} waiting_rows;

/* Ask for the next line of the waiting rows: all at once they would wait for each other, and what comes behind for them. */
INLINED void ask_for_line(const waiting_rows *next, long bytes, long asked) {
    long row = asked % MATCHED_ROWS, at = asked / MATCHED_ROWS * CACHE_LINE;
    if (row < next->held && at < bytes + CACHE_LINE) __builtin_prefetch(next->rows[row] + (at < bytes ? at : bytes - 1));
}

/* sums: [tokens, MATCHED_ROWS], of the steps that each row selects. */
BY_REGISTERS static void sums_in_registers(const uint32_t *indices, long bytes, const int16_t *tables, long tokens,
                                           const waiting_rows *next, int32_t *sums) {
    const __m512i ones = _mm512_set1_epi16(1);
    long asked = 0;
    for (long token = 0; token < tokens; token++, tables += bytes * 32, sums += MATCHED_ROWS) {
        /* Two of each, for a sum is ready later than the next one is due. */
        __m512i even[REGISTERS], odd[REGISTERS];
        for (long at = 0; at < REGISTERS; at++) even[at] = odd[at] = _mm512_setzero_si512();
        for (long byte = 0; byte < bytes; byte += 2) {
            __m512i table = _mm512_load_si512(tables + byte * 32), second = _mm512_load_si512(tables + byte * 32 + 32);
            const uint32_t *own = indices + byte * MATCHED_ROWS;
            ask_for_line(next, bytes, asked++);
            for (long at = 0; at < REGISTERS; at++) {
                __m512i index = _mm512_load_si512(own + at * ABREAST);
                even[at] = _mm512_dpwssd_epi32(even[at], _mm512_permutexvar_epi16(index, table), ones);
            }
            for (long at = 0; at < REGISTERS; at++) {
                __m512i index = _mm512_load_si512(own + MATCHED_ROWS + at * ABREAST);
                odd[at] = _mm512_dpwssd_epi32(odd[at], _mm512_permutexvar_epi16(index, second), ones);
            }
        }
        for (long at = 0; at < REGISTERS; at++)
            _mm512_store_si512(sums + at * ABREAST, _mm512_add_epi32(even[at], odd[at]));
    }
}

/* dots: [tokens], made the greater of themselves and the sums of the rows from first to last (not included). */
BY_REGISTERS static void raise_to_sums(const int32_t *sums, long first, long last, long tokens, int32_t *dots) {
    uint64_t held = (last < MATCHED_ROWS ? ((uint64_t)1 << last) - 1 : ~(uint64_t)0) & (~(uint64_t)0 << first);
    for (long token = 0; token < tokens; token++, sums += MATCHED_ROWS) {
        __m512i greatest = _mm512_set1_epi32(dots[token]);
        for (long at = first / ABREAST * ABREAST; at < last; at += ABREAST)
            greatest = _mm512_mask_max_epi32(greatest, (__mmask16)(held >> at), greatest, _mm512_load_si512(sums + at));
        dots[token] = _mm512_reduce_max_epi32(greatest);
    }
}

/* Where the work of all rows lies. */
typedef struct {
    const int16_t *tables;
    uint32_t *indices;
    int32_t *sums;
    long bytes, tokens;
} register_room;

BY_REGISTERS static void match_waiting(waiting_rows *waiting, const waiting_rows *next, const register_room *room) {
    for (long at = waiting->held; at < MATCHED_ROWS; at++) waiting->rows[at] = waiting->rows[0];
    for (long at = 0; at < REGISTERS; at++)
        spread_indices(waiting->rows + at * ABREAST, room->bytes, room->indices + at * ABREAST);
    sums_in_registers(room->indices, room->bytes, room->tables, room->tokens, next, room->sums);
    for (long unit = 0, first = 0; unit < waiting->units; first = waiting->ends[unit++])
        raise_to_sums(room->sums, first, waiting->ends[unit], room->tokens, waiting->dots[unit]);
    waiting->held = waiting->units = 0;
}

/* As greatest_by_tiles; the width is a multiple of SPREAD_BITS. */
BY_REGISTERS static long greatest_in_registers(const uint8_t *signs, long width, const int64_t *begins, const int64_t *lengths,
                                               long units, const int16_t *steps, long tokens, int32_t *dots) {
    int32_t least[MAX_TOKENS];
    long bytes = width / 8;
    int16_t *tables = aligned_alloc(64, 64 * (tokens * bytes + REGISTERS * (bytes + tokens)) + 64);
    if (!tables) return -1;
    uint32_t *indices = (uint32_t *)(tables + tokens * bytes * 32);
    register_room room = {tables, indices, (int32_t *)(indices + bytes * MATCHED_ROWS), bytes, tokens};
    make_register_tables(steps, tokens, width, tables, least);
    /* While some are matched, the next ones come from memory. */
    waiting_rows both[2], *full = both, *next = both + 1;
    full->held = full->units = next->held = next->units = 0;
    for (long unit = 0; unit < units; unit++, dots += tokens) {
        memcpy(dots, least, tokens * sizeof *dots);
        const uint8_t *row = signs + begins[unit] * bytes;
        for (long left = lengths[unit]; left;) {
            for (; left && next->held < MATCHED_ROWS; left--, row += bytes) next->rows[next->held++] = row;
            next->dots[next->units] = dots;
            next->ends[next->units++] = next->held;
            if (next->held < MATCHED_ROWS) continue;
            if (full->held) match_waiting(full, next, &room);
            waiting_rows *other = full;
            full = next;
            next = other;
        }
    }
    if (full->held) match_waiting(full, next, &room);
    if (next->held) match_waiting(next, full, &room);
    free(tables);
    return 0;
}

#endif
