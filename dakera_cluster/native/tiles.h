/* The tiles of AMX: eight registers of sixteen rows of 64 bytes, and products of whole tiles, whose sums are of integers. Whether
   there are any, encoder_has_tiles says. For encoder_products.h and late_tiles.h. */

#pragma once
#include "portable.h"

/* A tile: so many rows of so many bytes. */
#define TILE_ROWS 16
#define TILE_BYTES 64

#if defined(__x86_64__) && defined(__linux__) && (__GNUC__ >= 11 || __clang_major__ >= 12)
#define HAS_TILES
#include <immintrin.h>

#define TILED __attribute__((target(AVX512 ",avx512vnni,avx2,fma,amx-tile,amx-int8")))

/* What _tile_loadconfig reads: Intel's manual, volume 1, 18.3. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

/* GCC does not know that its tile instructions read memory: what they are to find there must have been put there. */
#define WRITTEN_OUT __asm__ volatile("" ::: "memory")

TILED static void tiles_open(void) {
    tile_config config = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        config.row_bytes[tile] = TILE_BYTES;
        config.rows[tile] = TILE_ROWS;
    }
    WRITTEN_OUT;
    _tile_loadconfig(&config);
}

/* What a thread leaves in its tiles is saved and restored whenever it is switched. */
TILED static void tiles_close(void) { _tile_release(); }

#else

#define TILED
static void tiles_open(void) {}
static void tiles_close(void) {}

#endif
