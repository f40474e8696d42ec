/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Byte streams of the host behind a serial port or a console: the terminal, a pipe, a file, a
 * pseudo-terminal, nothing. Knows no guest.
 *
 * Threads: all functions and callbacks on the attached loop's thread, except char_write(), which
 * may be called from every thread (a vCPU's port write) and never blocks.
 */
#ifndef HULL_CHAR_CHAR_H
#define HULL_CHAR_CHAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/loop.h"

struct err;
struct char_dev;

/*
 * spec: "stdio" (a terminal in raw mode, or plain pipes), "null",
 * "file:PATH" (output only, appended), "pty" (logs the name of the other side; while nobody has it
 * open, the last 64 KiB of output are kept for who comes). Only one stdio at a time.
 * SIGPIPE, where it has its default action, is ignored from then on. Returns 0 or -errno with err
 * filled.
 */
int char_open(struct char_dev **chr, const char *spec, struct err *err);

/*
 * Detaches; nobody may be inside char_write() any more. Waits for the reader to take what is
 * buffered, for a second at most, and only while he takes something every 250 ms. Restores the
 * terminal.
 */
void char_close(struct char_dev *chr);

/* For people and scripts: "stdio", "null", "file:PATH", "pty:/dev/pts/N". Lives as long as chr. */
const char *char_describe(const struct char_dev *chr);

/* What the owner is told. char_close() must not be called from inside. */
struct char_client {
    /* Input arrived: buf[0..len), at most as much as room() last said. */
    void (*input)(void *ctx, const uint8_t *buf, size_t len);
    /* How many bytes the owner takes now. 0: input is paused until char_kick_input(). */
    size_t (*room)(void *ctx);
    /* After a char_write() that took less than it was given: there is room again. May be NULL. */
    void (*writable)(void *ctx);
    /* The other side is gone (end of file on a pipe). May be NULL. */
    void (*hangup)(void *ctx);
    void *ctx;
};

/* Once; -EBUSY after that. What was written before goes out now. */
int char_attach(struct char_dev *chr, struct loop *loop, const struct char_client *client,
                struct err *err);

/* [any] Room may have grown: look at room() again, soon, on the loop. */
void char_kick_input(struct char_dev *chr);

/*
 * [any] Write; never blocks. Bytes that the host cannot take now wait in a buffer of 64 KiB;
 * returns how many were taken. The loop drains the buffer; an owner that holds back what was not
 * taken until writable() loses nothing to a slow reader.
 */
size_t char_write(struct char_dev *chr, const uint8_t *buf, size_t len);

/* [any] Free bytes of that buffer. */
size_t char_write_room(struct char_dev *chr);

/*
 * Keys that the terminal takes for itself behind Ctrl-A: x quits, h helps, a sends Ctrl-A. on_quit
 * is called on the loop, and must not close chr. Only for stdio on a terminal; no effect elsewhere.
 */
void char_set_escape(struct char_dev *chr, void (*on_quit)(void *ctx), void *ctx);

/* Put the terminal back, from any thread or a signal handler: the way out on a fatal signal. */
void char_restore_terminal(void);

#endif
