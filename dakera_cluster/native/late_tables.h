/* MaxSim by tables, for up to 2 * LANES tokens of a question at once: late.c includes this file for each number of lanes, with
   LANES, LANE_BITS (the bytes of all lanes are 1 << LANE_BITS) and BY_LANES (the names of this copy) defined. Two tokens
   share a lane of 32 bits.

   Sign bits select the steps to be summed, and four of them do so in sixteen ways: a table for each four dimensions holds the
   sums, of all tokens side by side, and a stored token is matched by one look-up in each. Tables go by nibble, the lower one of
   a byte first; a byte has the first dimension in its highest bit. What a sum could fall below zero is added to it (at most
   8,188 are between its bounds), so that eight of them stay within the 16 bits of a token. */

#define BLOCK (2 * LANES)
#define pairs BY_LANES(pairs)
#define greater BY_LANES(greater)
#define make_tables BY_LANES(make_tables)
#define row_at BY_LANES(row_at)
#define raise_to BY_LANES(raise_to)
#define greatest BY_LANES(greatest)

typedef uint32_t pairs __attribute__((vector_size(4 * LANES)));

INLINED pairs greater(pairs left, pairs right) {
    pairs is_left = (pairs)(left > right);
    return (left & is_left) | (right & ~is_left);
}

/* Returns in lifts what was added. */
INLINED void make_tables(const int16_t *steps, long width, long tokens, pairs *tables, int32_t *lifts) {
    memset(lifts, 0, tokens * sizeof(int32_t));
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

/* The row of a table that the four bits from LANE_BITS on name: with them in place, an index needs no further shift. */
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
        pairs sum = row_at(table, word << LANE_BITS);
        sum += row_at(table + ROWS, word << LANE_BITS >> 4);
        for (long nibble = 2; nibble < 8; nibble++) sum += row_at(table + nibble * ROWS, word >> (4 * nibble - LANE_BITS));
        both += sum;
        high += sum >> 16;
    }
    for (; bytes > 0; bytes--, row++, table += 2 * ROWS) {
        pairs sum = row_at(table, (uint64_t)*row << LANE_BITS) + row_at(table + ROWS, (uint64_t)*row << LANE_BITS >> 4);
        both += sum;
        high += sum >> 16;
    }
    *lower = greater(both - (high << 16), *lower);
    *upper = greater(high, *upper);
}

/* dots: of each unit, all_tokens apart, the greatest sum that its rows select for each of the tokens, without the lift. */
INLINED void greatest(const uint8_t *signs, long bytes, const int64_t *begins, const int64_t *lengths, long units,
                         const pairs *tables, const int32_t *lifts, long tokens, long all_tokens, int32_t *dots) {
    for (long unit = 0; unit < units; unit++, dots += all_tokens) {
        if (unit + AHEAD < units) fetch(signs + begins[unit + AHEAD] * bytes, lengths[unit + AHEAD] * bytes);
        const uint8_t *row = signs + begins[unit] * bytes, *end = row + lengths[unit] * bytes;
        pairs lower = {0}, upper = {0};
        for (; row < end; row += bytes) raise_to(row, bytes, tables, &lower, &upper);
        for (long token = 0; token < tokens; token++)
            dots[token] = (int32_t)(token < LANES ? lower[token] : upper[token - LANES]) - lifts[token];
    }
}

#undef BLOCK
#undef pairs
#undef greater
#undef make_tables
#undef row_at
#undef raise_to
#undef greatest
#undef LANES
#undef LANE_BITS
#undef BY_LANES
