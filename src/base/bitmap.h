/* SPDX-License-Identifier: Apache-2.0 */
/* Bitmaps of 64-bit words, bit 0 in the least significant place of word 0. */
#ifndef HULL_BASE_BITMAP_H
#define HULL_BASE_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline size_t bitmap_words(size_t bits)
{
    return (bits + 63) / 64;
}

static inline bool bitmap_test(const uint64_t *map, size_t bit)
{
    return (map[bit / 64] >> (bit % 64)) & 1;
}

static inline void bitmap_set(uint64_t *map, size_t bit)
{
    map[bit / 64] |= 1ULL << (bit % 64);
}

static inline void bitmap_clear(uint64_t *map, size_t bit)
{
    map[bit / 64] &= ~(1ULL << (bit % 64));
}

/* Safe against other threads that set bits of the same word; relaxed order. */
static inline void bitmap_set_atomic(uint64_t *map, size_t bit)
{
    __atomic_fetch_or(&map[bit / 64], 1ULL << (bit % 64), __ATOMIC_RELAXED);
}

#endif
