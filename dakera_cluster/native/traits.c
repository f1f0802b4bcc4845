/* What the words of memories say about them, gathered for a question. */

#include "portable.h"

/* rows: [7, count], see traits.py. Returns 0, or -1 when a slot lies beyond the columns' size. */
long trait_rows(const int64_t *slots, long count, long size, const uint16_t *words, const float *about_self,
                const uint8_t *asks, const uint8_t *has_time, const uint8_t *has_number, const uint8_t *roles,
                uint8_t assistant, const double *lengths, long longest, int asks_when, int asks_how_much, int of_self,
                double *rows) {
    for (long place = 0; place < count; place++) {
        int64_t slot = slots[place];
        if (slot < 0 || slot >= size) return -1;
        rows[place] = asks_when && has_time[slot];
        rows[count + place] = asks_how_much && has_number[slot];
        rows[2 * count + place] = lengths[words[slot] < longest ? words[slot] : longest];
        rows[3 * count + place] = about_self[slot];
        rows[4 * count + place] = asks[slot] != 0;
        rows[5 * count + place] = of_self ? about_self[slot] : 0;
        rows[6 * count + place] = of_self && roles[slot] == assistant;
    }
    return 0;
}
