/* The live postings of some terms, out of the segments and the tail of an inverted file. */

#include "portable.h"

/* Keys of the tail that are looked at together. */
#define SIDE 16

INLINED uint64_t number_at(const void *values, long width, long at) {
    uint8_t byte;
    uint16_t word;
    uint32_t half;
    uint64_t whole;
    const char *own = (const char *)values + at * width;
    switch (width) {
    case 1: memcpy(&byte, own, 1); return byte;
    case 2: memcpy(&word, own, 2); return word;
    case 4: memcpy(&half, own, 4); return half;
    default: memcpy(&whole, own, 8); return whole;
    }
}

/* Where postings are written, as long as there is room; count goes on beyond it. */
typedef struct {
    int32_t *slots;
    uint16_t *counts;
    long room, count;
} postings;

INLINED void keep(postings *into, uint64_t slot, uint64_t count) {
    if (into->count < into->room) {
        into->slots[into->count] = (int32_t)slot;
        into->counts[into->count] = (uint16_t)count;
    }
    into->count++;
}

INLINED void copy(const posting_segment *in, const uint8_t *home, long homes, long first, long last, long slot_width,
                  long count_width, postings *into) {
    for (long at = first; at < last; at++) {
        uint64_t slot = number_at(in->slots, slot_width, at);
        if (slot < (uint64_t)homes && home[slot] == in->home) keep(into, slot, number_at(in->counts, count_width, at));
    }
}

static void from_segment(const posting_segment *in, const uint8_t *home, long homes, uint64_t key, postings *into) {
    long low = 0, high = in->terms;
    while (low < high) {
        long middle = low + (high - low) / 2;
        if (in->keys[middle] < key)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == in->terms || in->keys[low] != key) return;
    long first = number_at(in->starts, in->start_width, low), last = number_at(in->starts, in->start_width, low + 1);
    if (last > in->postings) last = in->postings;
    /* With the commonest widths known, no number needs to ask for its own. */
    if (in->slot_width == 2 && in->count_width == 1)
        copy(in, home, homes, first, last, 2, 1, into);
    else if (in->slot_width == 4 && in->count_width == 1)
        copy(in, home, homes, first, last, 4, 1, into);
    else
        copy(in, home, homes, first, last, in->slot_width, in->count_width, into);
}

FOR_EVERY_PROCESSOR
static void from_tail(const uint64_t *keys, const int32_t *slots, const uint16_t *counts, long size, uint64_t key,
                      postings *into) {
    for (long first = 0; first < size; first += SIDE) {
        long last = first + SIDE < size ? first + SIDE : size;
        int any = 0;
        for (long at = first; at < last; at++) any |= keys[at] == key;
        for (long at = first; any && at < last; at++)
            if (keys[at] == key && slots[at] >= 0) keep(into, slots[at], counts[at]);
    }
}

/* The live postings of each key, one after another up to ends[key]: a posting of a segment lives while its slot is at home
   there, one of the tail while its slot is not negative. Returns how many there are; those beyond room are not written. */
long postings_of(const posting_lists *lists, const uint64_t *keys, long wanted, int64_t *ends, int32_t *slots, uint16_t *counts,
                 long room) {
    postings into = {slots, counts, room, 0};
    for (long place = 0; place < wanted; place++) {
        for (long at = 0; at < lists->count; at++)
            from_segment(lists->segments + at, lists->home, lists->homes, keys[place], &into);
        from_tail(lists->tail_keys, lists->tail_slots, lists->tail_counts, lists->tail, keys[place], &into);
        ends[place] = into.count;
    }
    return into.count;
}
