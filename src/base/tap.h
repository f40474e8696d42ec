/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The unit tests' harness: a test program calls ok() and friends and ends with `return
 * tap_done();`. Output is the Test Anything Protocol, run by prove(1).
 */
#ifndef HULL_BASE_TAP_H
#define HULL_BASE_TAP_H

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static int tap_count;
static int tap_failed;

static inline bool tap_report(bool pass, const char *file, int line, const char *what)
{
    tap_count++;
    if (!pass)
        tap_failed++;
    printf("%s %d - %s\n", pass ? "ok" : "not ok", tap_count, what);
    if (!pass)
        printf("# at %s:%d\n", file, line);
    fflush(stdout);
    return pass;
}

#define ok(cond, what) tap_report((cond), __FILE__, __LINE__, (what))

#define is_int(got, want, what)                                                                    \
    do {                                                                                           \
        long long tap_got = (long long)(got), tap_want = (long long)(want);                        \
        if (!tap_report(tap_got == tap_want, __FILE__, __LINE__, (what)))                          \
            printf("# got %lld (0x%llx), want %lld (0x%llx)\n", tap_got,                           \
                   (unsigned long long)tap_got, tap_want, (unsigned long long)tap_want);           \
    } while (0)

#define is_str(got, want, what)                                                                    \
    do {                                                                                           \
        const char *tap_got = (got), *tap_want = (want);                                           \
        if (!tap_report(strcmp(tap_got, tap_want) == 0, __FILE__, __LINE__, (what)))               \
            printf("# got \"%s\", want \"%s\"\n", tap_got, tap_want);                              \
    } while (0)

/* A test that cannot run here says why; prove counts it. */
static inline void tap_skip(const char *what, const char *why)
{
    tap_count++;
    printf("ok %d - %s # SKIP %s\n", tap_count, what, why);
}

static inline int tap_done(void)
{
    printf("1..%d\n", tap_count);
    return tap_failed ? 1 : 0;
}

#endif
