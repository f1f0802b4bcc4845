/* Dot products of one float query with chosen rows (planes.h). */

#include "planes.h"

FOR_EVERY_PROCESSOR
void dots_gather(const uint64_t *high, const uint64_t *low, long chunk_rows, const int64_t *slots, long count,
                 long width, const float *query, float *dots) {
    planes rows = {high, low, chunk_rows, width};
    for (long place = 0; place < count; place++) {
        if (place + ROWS_AHEAD < count) ask_for(&rows, slots[place + ROWS_AHEAD]);
        dots[place] = dot(&rows, slots[place], query);
    }
}
