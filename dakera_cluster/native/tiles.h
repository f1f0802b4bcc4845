/* The tiles of AMX, and whether there are any: eight registers of sixteen rows of 64 bytes, and products of whole tiles, whose
   sums are of integers. For encoder_products.h and late_tiles.h. */

#pragma once
#include "portable.h"

/* A tile: so many rows of so many bytes. */
#define TILE_ROWS 16
#define TILE_BYTES 64

#if defined(__x86_64__) && defined(__linux__) && (__GNUC__ >= 11 || __clang_major__ >= 12)
#define HAS_TILES
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TILED __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,amx-tile,amx-int8")))

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

#define XTILEDATA 18
#define ARCH_REQ_XCOMP_PERM 0x1023

static int tiles_granted(void) {
    unsigned a, b, c, features;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &features)) return 0;
    int has_tiles = features >> 24 & 1, has_bytes = features >> 25 & 1;
    return has_tiles && has_bytes && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
}

#else

#define TILED
static int tiles_granted(void) { return 0; }
static void tiles_open(void) {}
static void tiles_close(void) {}

#endif
