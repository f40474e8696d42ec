/* SPDX-License-Identifier: Apache-2.0 */
#include "base/err.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A code of 0 would read as success to the caller of the function that failed. */
static int err_code(int code)
{
    if (code == 0)
        return -EINVAL;
    return code < 0 ? code : -code;
}

int err_set(struct err *err, int code, const char *fmt, ...)
{
    /* Built aside: the arguments may point into err->text itself. */
    char text[sizeof(err->text)];
    va_list args;

    code = err_code(code);
    if (!err)
        return code;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    err->code = code;
    memcpy(err->text, text, sizeof(text));
    return code;
}

int err_errno(struct err *err, int code, const char *fmt, ...)
{
    char text[sizeof(err->text)];
    char reason[128];
    va_list args;
    size_t used;

    code = err_code(code);
    if (!err)
        return code;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    used = strlen(text);
    snprintf(text + used, sizeof(text) - used, ": %s", strerror_r(-code, reason, sizeof(reason)));
    err->code = code;
    memcpy(err->text, text, sizeof(text));
    return code;
}

int err_prefix(struct err *err, const char *fmt, ...)
{
    char text[sizeof(err->text)];
    va_list args;
    size_t used;

    if (!err)
        return -EINVAL;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    used = strlen(text);
    if (used + 2 < sizeof(text)) {
        memcpy(text + used, ": ", 3);
        used += 2;
        size_t len = strnlen(err->text, sizeof(err->text) - 1);
        if (len > sizeof(text) - 1 - used)
            len = sizeof(text) - 1 - used;
        memcpy(text + used, err->text, len);
        text[used + len] = '\0';
    }
    memcpy(err->text, text, sizeof(text));
    err->code = err_code(err->code);
    return err->code;
}
