/* Rows in 16-bit fixed point. A row lies in two planes, its high bytes (signed) and its low bytes: value = 256 * high + low. A
   plane lies in chunks of chunk_rows rows. */

#pragma once
#include "portable.h"

typedef struct {
    const uint64_t *high, *low;
    long chunk_rows, width;
} planes;

INLINED planes planes_of(const vector_rows *rows) {
    return (planes){rows->high, rows->low, rows->chunk_rows, rows->width};
}

INLINED const void *row_of(const uint64_t *chunks, const planes *rows, int64_t slot) {
    return (const char *)(uintptr_t)chunks[slot / rows->chunk_rows] + (slot % rows->chunk_rows) * rows->width;
}
