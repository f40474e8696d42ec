/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One direction of a host descriptor, used without blocking. A descriptor that we inherited shares
 * its O_NONBLOCK flag with our parent and with every other process on the same terminal or pipe, so
 * that flag is never touched: such a descriptor is opened anew, or used by calls that do not wait.
 *
 * Threads: a stream belongs to its caller; no locking.
 */
#ifndef HULL_CHAR_STREAM_H
#define HULL_CHAR_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum stream_mode {
    STREAM_MODE_NONBLOCK, /* our own description, O_NONBLOCK */
    STREAM_MODE_FILE,     /* a regular file: never blocks for long */
    STREAM_MODE_NOWAIT,   /* inherited; RWF_NOWAIT */
    STREAM_MODE_POLLED,   /* inherited, where the kernel has no RWF_NOWAIT for it */
};

struct stream {
    int fd; /* -1: none */
    enum stream_mode mode;
    bool owned; /* close it */
};

#define STREAM_NONE                                                                                \
    {                                                                                              \
        .fd = -1                                                                                   \
    }

/* Use a descriptor that is ours; sets O_NONBLOCK. Closes it in the end. */
void stream_own(struct stream *stream, int fd);

/* Use one that was inherited: 0 or 1. flags: O_RDONLY or O_WRONLY. */
void stream_inherit(struct stream *stream, int fd, int flags);

/* As read(2) and write(2), -errno on failure; -EAGAIN instead of waiting. A write may be short. */
ssize_t stream_read(struct stream *stream, uint8_t *buf, size_t len);
ssize_t stream_write(struct stream *stream, const uint8_t *buf, size_t len);

void stream_close(struct stream *stream);

#endif
