/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Errors for people. Set-up paths return -errno and fill a struct err with one line that says what
 * failed, on what, and what to do about it. Data paths return -errno alone. Whoever handles an
 * error reports it, once.
 *
 * Threads: a struct err belongs to its caller; no locking.
 */
#ifndef HULL_BASE_ERR_H
#define HULL_BASE_ERR_H

#include <stdarg.h>

struct err {
    int code;        /* -errno; 0 while nothing has failed */
    char text[1024]; /* one line, no trailing newline or full stop */
};

#define ERR_INIT                                                                                   \
    {                                                                                              \
        0                                                                                          \
    }

/*
 * Record a failure and return it. code is an errno, of either sign; the return value is always
 * negative. err may be NULL: then only the code travels. Replaces an earlier text.
 */
int err_set(struct err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* As err_set, with ": <strerror(code)>" appended. */
int err_errno(struct err *err, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Put "<prefix>: " in front of what err already says, e.g. "--disk a.raw". Returns err's code. */
int err_prefix(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
