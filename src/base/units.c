/* SPDX-License-Identifier: Apache-2.0 */
#include "base/units.h"

#include <errno.h>
#include <stdio.h>
#include <strings.h>
#include <time.h>

#include "base/err.h"

/* Digits of a fraction that are looked at; 10^18 still fits 64 bits. */
#define FRACTION_DIGITS_MAX 18

static const char *const size_units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* The suffix at p, up to the end of the string, as a number of bytes; 0 when it is none. */
static uint64_t suffix_unit(const char *p, uint64_t bare_unit)
{
    static const struct {
        char letter;
        uint64_t unit;
    } suffixes[] = {
        {'k', KIB},
        {'m', MIB},
        {'g', GIB},
        {'t', TIB},
    };
    if (*p == '\0')
        return bare_unit;
    if (strcasecmp(p, "B") == 0)
        return 1;
    for (size_t i = 0; i < ARRAY_LEN(suffixes); i++) {
        if ((*p | 0x20) != suffixes[i].letter)
            continue;
        if (p[1] == '\0' || strcasecmp(p + 1, "B") == 0 || strcasecmp(p + 1, "iB") == 0)
            return suffixes[i].unit;
    }
    return 0;
}

int size_parse(const char *text, uint64_t bare_unit, uint64_t *bytes, struct err *err)
{
    const char *p = text;
    uint64_t whole = 0, fraction = 0, scale = 1;

    if (!is_digit(*p))
        goto invalid;
    for (; is_digit(*p); p++) {
        if (__builtin_mul_overflow(whole, 10, &whole) ||
            __builtin_add_overflow(whole, (uint64_t)(*p - '0'), &whole))
            goto too_large;
    }
    if (*p == '.') {
        p++;
        if (!is_digit(*p))
            goto invalid;
        for (int digits = 0; is_digit(*p); p++, digits++) {
            if (digits >= FRACTION_DIGITS_MAX)
                continue;
            fraction = fraction * 10 + (uint64_t)(*p - '0');
            scale *= 10;
        }
    }
    uint64_t unit = suffix_unit(p, bare_unit);
    if (unit == 0)
        goto invalid;
    __extension__ typedef unsigned __int128 u128;
    u128 total = (u128)whole * unit + (u128)fraction * unit / scale;
    if (total > UINT64_MAX)
        goto too_large;
    *bytes = (uint64_t)total;
    return 0;

invalid:
    return err_set(err, -EINVAL, "\"%s\" is no size: give a number with K, M, G or T, as in 512M",
                   text);
too_large:
    return err_set(err, -ERANGE, "size \"%s\" is too large", text);
}

const char *size_format(uint64_t bytes, char *buf, size_t buf_len)
{
    size_t i = 0;
    uint64_t unit = 1, whole, tenths;

    while (i + 1 < ARRAY_LEN(size_units) && bytes / 1024 >= unit) {
        unit *= 1024;
        i++;
    }
    whole = bytes / unit;
    tenths = (bytes % unit * 10 + unit / 2) / unit;
    if (tenths == 10) {
        whole++;
        tenths = 0;
    }
    if (whole == 1024 && i + 1 < ARRAY_LEN(size_units)) {
        whole = 1;
        i++;
    }
    if (tenths)
        snprintf(buf, buf_len, "%llu.%llu %s", (unsigned long long)whole,
                 (unsigned long long)tenths, size_units[i]);
    else
        snprintf(buf, buf_len, "%llu %s", (unsigned long long)whole,
                 bytes == 1 ? "byte" : size_units[i]);
    return buf;
}

uint64_t clock_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_SEC + (uint64_t)now.tv_nsec;
}
