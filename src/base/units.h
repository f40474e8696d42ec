/* SPDX-License-Identifier: Apache-2.0 */
/* Sizes, alignment, little-endian access: the small arithmetic that every room uses. */
#ifndef HULL_BASE_UNITS_H
#define HULL_BASE_UNITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define KIB                             (1024ULL)
#define MIB                             (1024ULL * KIB)
#define GIB                             (1024ULL * MIB)
#define TIB                             (1024ULL * GIB)

#define NS_PER_SEC                      1000000000ULL
#define NS_PER_MS                       1000000ULL
#define NS_PER_US                       1000ULL

#define PAGE_SIZE_BYTES                 4096ULL

#define ARRAY_LEN(a)                    (sizeof(a) / sizeof((a)[0]))
#define CONTAINER_OF(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

static inline uint64_t align_down(uint64_t value, uint64_t power_of_two)
{
    return value & ~(power_of_two - 1);
}

/* The caller knows that value + power_of_two does not overflow. */
static inline uint64_t align_up(uint64_t value, uint64_t power_of_two)
{
    return align_down(value + power_of_two - 1, power_of_two);
}

static inline bool is_power_of_two(uint64_t value)
{
    return value != 0 && (value & (value - 1)) == 0;
}

/* Does [start, start + len) lie in [0, limit)? Free of overflow. */
static inline bool range_fits(uint64_t start, uint64_t len, uint64_t limit)
{
    return len <= limit && start <= limit - len;
}

static inline uint16_t load_le16(const void *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline uint32_t load_le32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline uint64_t load_le64(const void *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline void store_le16(void *p, uint16_t v)
{
    memcpy(p, &v, sizeof(v));
}

static inline void store_le32(void *p, uint32_t v)
{
    memcpy(p, &v, sizeof(v));
}

static inline void store_le64(void *p, uint64_t v)
{
    memcpy(p, &v, sizeof(v));
}

/* len is 1, 2, 4 or 8. */
static inline uint64_t load_le(const void *p, size_t len)
{
    uint64_t v = 0;
    memcpy(&v, p, len);
    return v;
}

static inline void store_le(void *p, uint64_t v, size_t len)
{
    memcpy(p, &v, len);
}

struct err;

/*
 * "512M", "1G", "4096", "1.5G": a number with an optional suffix K, M, G, T (powers of 1024, either
 * case, an optional "iB" or "B" behind). A bare number is in bytes times bare_unit.
 * Returns 0 or -EINVAL / -ERANGE with err filled.
 */
int size_parse(const char *text, uint64_t bare_unit, uint64_t *bytes, struct err *err);

/* Writes e.g. "1.5 GiB" and returns buf. */
const char *size_format(uint64_t bytes, char *buf, size_t buf_len);

/* Nanoseconds of CLOCK_MONOTONIC. */
uint64_t clock_now_ns(void);

#endif
