/* Dot products of one float query with chosen rows (planes.h). */

#include "planes.h"

FOR_EVERY_PROCESSOR
void dots_gather(const vector_rows *stored, const int64_t *slots, long count, const float *query, float *dots) {
    planes rows = planes_of(stored);
    for (long place = 0; place < count; place++) {
        if (place + ROWS_AHEAD < count) ask_for(&rows, slots[place + ROWS_AHEAD]);
        dots[place] = dot(&rows, slots[place], query);
    }
}
