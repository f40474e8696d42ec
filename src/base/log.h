/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log: one sink for the process, safe from every thread. Lines go to standard error or a file
 * as "hull: <level>: <module>: text". When standard error is a terminal in raw mode, lines end in
 * CR LF.
 *
 * Anything that a guest can trigger at will goes through log_guest(), which drops what exceeds a
 * budget, so that a guest cannot fill the host's disk.
 */
#ifndef HULL_BASE_LOG_H
#define HULL_BASE_LOG_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

enum log_level {
    LOG_LEVEL_ERROR,
    LOG_LEVEL_WARN,
    LOG_LEVEL_INFO,
    LOG_LEVEL_DEBUG,
    LOG_LEVEL_TRACE,
};

/*
 * Configure the sink from the text of --log: "level[,file=PATH]", e.g. "debug" or
 * "info,file=vm.log". Returns 0, or -EINVAL / -errno of open with err filled.
 */
struct err;
int log_configure(const char *spec, struct err *err);

/* The terminal of standard error is raw (true) or cooked: decides between CR LF and LF. */
void log_set_raw_terminal(bool raw);

bool log_enabled(enum log_level level);
void log_write(enum log_level level, const char *module, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define log_error(module, ...) log_write(LOG_LEVEL_ERROR, module, __VA_ARGS__)
#define log_warn(module, ...)  log_write(LOG_LEVEL_WARN, module, __VA_ARGS__)
#define log_info(module, ...)  log_write(LOG_LEVEL_INFO, module, __VA_ARGS__)
#define log_debug(module, ...)                                                                     \
    do {                                                                                           \
        if (log_enabled(LOG_LEVEL_DEBUG))                                                          \
            log_write(LOG_LEVEL_DEBUG, module, __VA_ARGS__);                                       \
    } while (0)

/*
 * A budget for messages that a guest can cause: a burst of 10, then 1 a second; what was dropped is
 * counted and said with the next line that passes. Zero-initialised is ready for use. One per
 * device.
 */
struct log_budget {
    uint64_t refilled_ns;
    uint32_t tokens_used;
    uint32_t dropped;
};

void log_guest(struct log_budget *budget, const char *module, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
