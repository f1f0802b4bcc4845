/* One source for every processor: vectors are GCC's own, of one width everywhere, and the loader picks the copy of a
   function that fits the machine. Products and sums are never fused (-ffp-contract=off), so a score is the same bit for bit
   whichever copy ran. Where FOR_THIS_PROCESSOR is defined, instructions that are asked for at run time may stand in for a
   loop of integers: those have one result. */

#pragma once
#include <stdint.h>
#include <string.h>

#include "kernels.h"

#if !defined(ONE_COPY) && defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_THIS_PROCESSOR
#if __GNUC__ >= 12
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "arch=x86-64-v2", "default")))
#else
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("avx2", "popcnt", "default")))
#endif
#else
#define FOR_EVERY_PROCESSOR
#endif

#if defined(__x86_64__) && defined(__GNUC__)
/* For target attributes, and whether this processor has it: what all that is written for 512 bits needs. */
#define AVX512 "avx512f,avx512bw,avx512dq,avx512vl"

static inline int has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}
#endif

/* Tokens of a question, at most. */
#define MAX_TOKENS 64

#define INLINED static inline __attribute__((always_inline))
