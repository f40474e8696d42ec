/* SPDX-License-Identifier: Apache-2.0 */
#include "char/stream.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

void stream_own(struct stream *stream, int fd)
{
    struct stat st;
    int flags = fcntl(fd, F_GETFL);

    *stream = (struct stream){.fd = fd, .mode = STREAM_MODE_NONBLOCK, .owned = true};
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode))
        stream->mode = STREAM_MODE_FILE;
    else if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        stream->mode = STREAM_MODE_NOWAIT;
}

/* A second description of the same terminal; -1 where there is none to be had. */
static int terminal_reopen(int fd, int flags)
{
    char path[32];
    unsigned number;

    /* The inside of a pseudo-terminal is a terminal as well, but opening it makes a new pair. */
    if (!isatty(fd) || ioctl(fd, TIOCGPTN, &number) == 0)
        return -1;
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    return open(path, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

void stream_inherit(struct stream *stream, int fd, int flags)
{
    struct stat st;

    *stream = (struct stream){.fd = -1};
    if (fstat(fd, &st) < 0)
        return; /* closed by the parent */
    int own = terminal_reopen(fd, flags);
    if (own >= 0) {
        *stream = (struct stream){.fd = own, .mode = STREAM_MODE_NONBLOCK, .owned = true};
        return;
    }
    stream->fd = fd;
    stream->mode = S_ISREG(st.st_mode) ? STREAM_MODE_FILE : STREAM_MODE_NOWAIT;
}

/* One attempt; -1 with errno. RWF_NOWAIT without support for it changes the mode for good. */
static ssize_t stream_transfer(struct stream *stream, void *buf, size_t len, bool out)
{
    struct iovec iov = {.iov_base = buf, .iov_len = len};
    struct pollfd pfd = {.fd = stream->fd, .events = out ? POLLOUT : POLLIN};

    if (stream->mode == STREAM_MODE_NOWAIT) {
        ssize_t n = out ? pwritev2(stream->fd, &iov, 1, -1, RWF_NOWAIT)
                        : preadv2(stream->fd, &iov, 1, -1, RWF_NOWAIT);
        if (n >= 0 || (errno != EOPNOTSUPP && errno != ENOSYS))
            return n;
        stream->mode = STREAM_MODE_POLLED;
    }
    if (stream->mode == STREAM_MODE_POLLED) {
        if (poll(&pfd, 1, 0) == 0) {
            errno = EAGAIN;
            return -1;
        }
        /* A pipe that is ready takes that much without waiting: see POLLOUT of pipe(7). */
        if (out && len > PIPE_BUF)
            len = PIPE_BUF;
    }
    return out ? write(stream->fd, buf, len) : read(stream->fd, buf, len);
}

ssize_t stream_read(struct stream *stream, uint8_t *buf, size_t len)
{
    ssize_t n;
    do
        n = stream_transfer(stream, buf, len, false);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

ssize_t stream_write(struct stream *stream, const uint8_t *buf, size_t len)
{
    ssize_t n;
    do
        n = stream_transfer(stream, (void *)(uintptr_t)buf, len, true);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

void stream_close(struct stream *stream)
{
    if (stream->owned && stream->fd >= 0)
        close(stream->fd);
    stream->fd = -1;
}
