/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/units.h"

#define LINE_MAX_BYTES   2048
#define BUDGET_BURST     10
#define BUDGET_REFILL_NS NS_PER_SEC

static const char *const level_names[] = {
    [LOG_LEVEL_ERROR] = "error", [LOG_LEVEL_WARN] = "warn",   [LOG_LEVEL_INFO] = "info",
    [LOG_LEVEL_DEBUG] = "debug", [LOG_LEVEL_TRACE] = "trace",
};

/* The sink: the one global of the program. */
static struct {
    pthread_mutex_t lock; /* the innermost lock of all: one line at a time, and the budgets */
    int fd;               /* lock; -1: standard error */
    bool raw_terminal;    /* lock */
    int level;            /* atomic */
} sink = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .fd = -1,
    .level = LOG_LEVEL_WARN,
};

int log_configure(const char *spec, struct err *err)
{
    const char *comma = strchr(spec, ',');
    size_t name_len = comma ? (size_t)(comma - spec) : strlen(spec);
    size_t level = 0;
    int fd = -1;

    while (level < ARRAY_LEN(level_names) && (strlen(level_names[level]) != name_len ||
                                              memcmp(level_names[level], spec, name_len) != 0))
        level++;
    if (level == ARRAY_LEN(level_names))
        return err_set(err, -EINVAL,
                       "\"%.*s\" is no log level: give error, warn, info, debug or trace",
                       (int)name_len, spec);
    if (comma) {
        if (strncmp(comma + 1, "file=", 5) != 0 || comma[6] == '\0')
            return err_set(err, -EINVAL, "log option \"%s\" is unknown: give file=PATH", comma + 1);
        const char *path = comma + 6;
        fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, 0600);
        if (fd < 0)
            return err_errno(err, errno, "cannot open the log file %s", path);
    }
    pthread_mutex_lock(&sink.lock);
    int old = sink.fd;
    sink.fd = fd;
    pthread_mutex_unlock(&sink.lock);
    __atomic_store_n(&sink.level, (int)level, __ATOMIC_RELAXED);
    if (old >= 0)
        close(old);
    return 0;
}

void log_set_raw_terminal(bool raw)
{
    pthread_mutex_lock(&sink.lock);
    sink.raw_terminal = raw;
    pthread_mutex_unlock(&sink.lock);
}

bool log_enabled(enum log_level level)
{
    return (int)level <= __atomic_load_n(&sink.level, __ATOMIC_RELAXED);
}

/* One write() for a line, so that lines of several processes into one file stay whole. */
static void sink_write(const char *line, size_t len)
{
    int fd = sink.fd >= 0 ? sink.fd : STDERR_FILENO;
    while (len > 0) {
        ssize_t n = write(fd, line, len);
        if (n < 0 && errno == EINTR)
            continue;
        /* There is no place left to report a failing log to. */
        if (n <= 0)
            return;
        line += n;
        len -= (size_t)n;
    }
}

/* Takes the sink's lock itself. dropped: lines that a budget held back before this one. */
static void __attribute__((format(printf, 4, 0)))
line_write(enum log_level level, const char *module, uint32_t dropped, const char *fmt,
           va_list args)
{
    char line[LINE_MAX_BYTES];
    const size_t room = sizeof(line) - 64; /* keeps the note and the line end */
    size_t len;

    len = (size_t)snprintf(line, room, "hull: %s: %s: ", level_names[level], module);
    if (len < room) {
        int n = vsnprintf(line + len, room - len, fmt, args);
        len += n > 0 ? (size_t)n : 0;
    }
    if (len >= room)
        len = room - 1;
    if (dropped)
        len += (size_t)snprintf(line + len, sizeof(line) - len, " (%u earlier messages left out)",
                                dropped);
    /* Text may come from a guest or an image file: no line breaks or terminal escapes from there.
     * Bytes from 0x80 on stay, they are UTF-8. */
    for (size_t i = 0; i < len; i++) {
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = '?';
    }
    pthread_mutex_lock(&sink.lock);
    if (sink.raw_terminal && sink.fd < 0)
        line[len++] = '\r';
    line[len++] = '\n';
    sink_write(line, len);
    pthread_mutex_unlock(&sink.lock);
}

void log_write(enum log_level level, const char *module, const char *fmt, ...)
{
    int saved_errno = errno;
    va_list args;

    if (!log_enabled(level))
        return;
    va_start(args, fmt);
    line_write(level, module, 0, fmt, args);
    va_end(args);
    errno = saved_errno;
}

/* Take one token; true when the message may pass, with the number of those that did not. */
static bool budget_take(struct log_budget *budget, uint32_t *dropped)
{
    uint64_t now = clock_now_ns();
    bool pass = false;

    pthread_mutex_lock(&sink.lock);
    uint64_t refills =
        now > budget->refilled_ns ? (now - budget->refilled_ns) / BUDGET_REFILL_NS : 0;
    budget->refilled_ns += refills * BUDGET_REFILL_NS;
    budget->tokens_used -= refills < budget->tokens_used ? (uint32_t)refills : budget->tokens_used;
    if (budget->tokens_used < BUDGET_BURST) {
        budget->tokens_used++;
        *dropped = budget->dropped;
        budget->dropped = 0;
        pass = true;
    } else if (budget->dropped < UINT32_MAX) {
        budget->dropped++;
    }
    pthread_mutex_unlock(&sink.lock);
    return pass;
}

void log_guest(struct log_budget *budget, const char *module, const char *fmt, ...)
{
    int saved_errno = errno;
    uint32_t dropped = 0;
    va_list args;

    if (!log_enabled(LOG_LEVEL_WARN) || !budget_take(budget, &dropped))
        return;
    va_start(args, fmt);
    line_write(LOG_LEVEL_WARN, module, dropped, fmt, args);
    va_end(args);
    errno = saved_errno;
}
