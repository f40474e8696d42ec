/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Output: char_write() puts bytes into a ring under the lock and posts a task; the loop writes them
 * out, waiting for POLLOUT when the host takes no more. Input: the loop reads no more than the
 * owner has room for, and stops watching while that is nothing.
 */
#include "char/char.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "base/units.h"
#include "char/pty.h"
#include "char/stream.h"
#include "char/terminal.h"

#define RING_BYTES     65536u
#define READ_BYTES     4096u
#define WRITES_A_TURN  16 /* then others on the loop have their turn */
#define CLOSE_TOTAL_NS (1000 * NS_PER_MS)
#define CLOSE_STALL_NS (250 * NS_PER_MS)
#define PTY_LOOK_NS    (500 * NS_PER_MS)

#define KEY_ESCAPE     0x01 /* Ctrl-A */

struct char_dev {
    char *name;
    struct stream in, out;
    bool terminal; /* in is a terminal that we made raw */
    bool stdio;
    bool is_pty;
    struct pty pty;

    /* The loop's thread only. */
    struct char_client client;
    struct loop_fd in_watch, out_watch;
    bool in_open;  /* no end of file yet */
    bool escaping; /* the key before was Ctrl-A */
    void (*on_quit)(void *ctx);
    void *quit_ctx;
    struct loop_fd pty_watch;
    struct loop_timer pty_timer; /* in place of pty_watch on a host without inotify */
    struct log_budget budget;

    struct loop_task drain_task, input_task;

    pthread_mutex_t lock;
    struct loop *loop; /* lock; NULL before char_attach() */
    bool discard;      /* lock; output has no place to go to */
    bool absent;       /* lock; a pty that nobody has open: the newest output is kept */
    bool short_write;  /* lock; the owner waits for writable() */
    uint32_t head;     /* lock; ring[head] goes out next */
    uint32_t used;     /* lock */
    uint8_t ring[RING_BYTES];
};

static const char help_text[] = "\r\n"
                                "Keys of Hull, each behind Ctrl-A:\r\n"
                                "  x       quit: end the virtual machine\r\n"
                                "  a       send Ctrl-A to the guest (Ctrl-A does, too)\r\n"
                                "  h or ?  this help\r\n";

/* --- opening --- */

static int open_stdio(struct char_dev *chr, struct err *err)
{
    if (!terminal_claim())
        return err_set(err, EBUSY, "stdio is in use already: only one device can have it");
    chr->stdio = true;
    stream_inherit(&chr->in, STDIN_FILENO, O_RDONLY);
    stream_inherit(&chr->out, STDOUT_FILENO, O_WRONLY);
    if (isatty(STDIN_FILENO)) {
        chr->terminal = terminal_raw(STDIN_FILENO);
        if (!chr->terminal) {
            log_info("char", "the terminal is not ours to read from (background): no input");
            stream_close(&chr->in);
        }
    }
    return 0;
}

static int open_file(struct char_dev *chr, const char *path, struct err *err)
{
    /* Without O_NONBLOCK a FIFO without reader would not open before somebody reads. */
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0600);
    if (fd < 0 && errno == ENXIO)
        return err_set(err, ENXIO, "nobody reads from the FIFO %s: start its reader first", path);
    if (fd < 0)
        return err_errno(err, errno, "cannot open %s for output", path);
    stream_own(&chr->out, fd);
    return 0;
}

static int open_pty(struct char_dev *chr, struct err *err)
{
    int r = pty_open(&chr->pty, err);
    if (r < 0)
        return r;
    chr->is_pty = true;
    chr->absent = true;
    chr->in = (struct stream){.fd = chr->pty.master, .mode = STREAM_MODE_NONBLOCK};
    chr->out = chr->in;
    return 0;
}

static int open_spec(struct char_dev *chr, const char *spec, struct err *err)
{
    if (strcmp(spec, "stdio") == 0)
        return open_stdio(chr, err);
    if (strcmp(spec, "null") == 0)
        return 0;
    if (strcmp(spec, "pty") == 0)
        return open_pty(chr, err);
    if (strncmp(spec, "file:", 5) == 0 && spec[5] != '\0')
        return open_file(chr, spec + 5, err);
    return err_set(err, EINVAL, "\"%s\" is no character device: give stdio, null, pty or file:PATH",
                   spec);
}

static void release(struct char_dev *chr)
{
    stream_close(&chr->in);
    stream_close(&chr->out);
    if (chr->is_pty)
        pty_close(&chr->pty);
    if (chr->stdio)
        terminal_release();
    pthread_mutex_destroy(&chr->lock);
    free(chr->name);
    free(chr);
}

static void drain_run(struct loop_task *self);
static void input_run(struct loop_task *self);
static void pty_look_timer(struct loop_timer *self);

int char_open(struct char_dev **out, const char *spec, struct err *err)
{
    struct char_dev *chr = calloc(1, sizeof(*chr));
    struct sigaction action;
    int r;

    if (!chr)
        return err_errno(err, ENOMEM, "cannot open %s", spec);
    /* A reader that goes away costs its output, not the virtual machine. */
    if (sigaction(SIGPIPE, NULL, &action) == 0 && action.sa_handler == SIG_DFL)
        signal(SIGPIPE, SIG_IGN);
    chr->in = chr->out = (struct stream)STREAM_NONE;
    chr->drain_task.fn = drain_run;
    chr->input_task.fn = input_run;
    loop_timer_init(&chr->pty_timer, pty_look_timer);
    pthread_mutex_init(&chr->lock, NULL);
    r = open_spec(chr, spec, err);
    if (r < 0)
        goto fail;
    if (chr->is_pty)
        r = asprintf(&chr->name, "pty:%s", chr->pty.name);
    else
        chr->name = strdup(spec);
    if (!chr->name || r < 0) {
        chr->name = NULL;
        r = err_errno(err, ENOMEM, "cannot open %s", spec);
        goto fail;
    }
    if (chr->is_pty)
        log_info("char", "the pseudo-terminal is %s", chr->pty.name);
    chr->discard = chr->out.fd < 0;
    chr->in_open = chr->in.fd >= 0;
    *out = chr;
    return 0;

fail:
    release(chr);
    return r;
}

const char *char_describe(const struct char_dev *chr)
{
    return chr->name;
}

/* --- the ring, with the lock held --- */

static void ring_put(struct char_dev *chr, const uint8_t *buf, size_t len)
{
    uint32_t tail = (chr->head + chr->used) % RING_BYTES;
    size_t first = len < RING_BYTES - tail ? len : RING_BYTES - tail;

    assert(len <= RING_BYTES - chr->used);
    memcpy(chr->ring + tail, buf, first);
    memcpy(chr->ring, buf + first, len - first);
    chr->used += (uint32_t)len;
}

static void ring_drop(struct char_dev *chr, size_t len)
{
    chr->head = (chr->head + (uint32_t)len) % RING_BYTES;
    chr->used -= (uint32_t)len;
}

size_t char_write(struct char_dev *chr, const uint8_t *buf, size_t len)
{
    size_t taken = len;

    if (len == 0)
        return 0;
    pthread_mutex_lock(&chr->lock);
    if (chr->discard) {
        pthread_mutex_unlock(&chr->lock);
        return len;
    }
    if (chr->absent) {
        if (len > RING_BYTES) {
            buf += len - RING_BYTES;
            len = RING_BYTES;
        }
        if (len > RING_BYTES - chr->used)
            ring_drop(chr, len - (RING_BYTES - chr->used));
        ring_put(chr, buf, len);
    } else {
        if (len > RING_BYTES - chr->used) {
            taken = RING_BYTES - chr->used;
            chr->short_write = true;
        }
        ring_put(chr, buf, taken);
        if (chr->loop)
            loop_post(chr->loop, &chr->drain_task);
    }
    pthread_mutex_unlock(&chr->lock);
    return taken;
}

size_t char_write_room(struct char_dev *chr)
{
    size_t room;

    pthread_mutex_lock(&chr->lock);
    room = chr->discard || chr->absent ? RING_BYTES : RING_BYTES - chr->used;
    pthread_mutex_unlock(&chr->lock);
    return room;
}

/* --- output, on the loop --- */

/* Write one piece. Returns its length, 0 when nothing is left, or -errno; -EAGAIN: wait. The lock
 * is not held during the write: only this thread takes from the ring (but for an absent pty's). */
static ssize_t drain_once(struct char_dev *chr)
{
    uint8_t piece[READ_BYTES];

    pthread_mutex_lock(&chr->lock);
    size_t len = chr->used < sizeof(piece) ? chr->used : sizeof(piece);
    size_t first = len < RING_BYTES - chr->head ? len : RING_BYTES - chr->head;
    memcpy(piece, chr->ring + chr->head, first);
    memcpy(piece + first, chr->ring, len - first);
    pthread_mutex_unlock(&chr->lock);
    if (len == 0)
        return 0;
    ssize_t n = stream_write(&chr->out, piece, len);
    if (n == 0)
        n = -EAGAIN;
    if (n < 0)
        return n;
    pthread_mutex_lock(&chr->lock);
    ring_drop(chr, (size_t)n);
    pthread_mutex_unlock(&chr->lock);
    return n;
}

/* What is buffered can never be written: let it go, or the guest would wait for ever. */
static void output_failed(struct char_dev *chr, int error)
{
    /* A full disk may have room again. */
    bool passing = error == -ENOSPC || error == -EDQUOT || error == -EFBIG;

    log_guest(&chr->budget, "char", "output to %s is lost: %s", chr->name, strerror(-error));
    pthread_mutex_lock(&chr->lock);
    ring_drop(chr, chr->used);
    chr->discard = !passing;
    pthread_mutex_unlock(&chr->lock);
}

/* Tell an owner who was refused, once there is room worth coming back for. */
static void tell_writable(struct char_dev *chr)
{
    bool tell = false;

    pthread_mutex_lock(&chr->lock);
    if (chr->short_write && chr->used <= RING_BYTES / 2) {
        chr->short_write = false;
        tell = true;
    }
    pthread_mutex_unlock(&chr->lock);
    if (tell && chr->client.writable)
        chr->client.writable(chr->client.ctx);
}

static void drain(struct char_dev *chr)
{
    ssize_t n = 0;
    bool absent;

    if (!chr->out_watch.priv)
        return;
    pthread_mutex_lock(&chr->lock);
    absent = chr->absent;
    pthread_mutex_unlock(&chr->lock);
    if (absent)
        return;
    for (int turn = 0; turn < WRITES_A_TURN; turn++) {
        n = drain_once(chr);
        if (n <= 0)
            break;
    }
    if (n < 0 && n != -EAGAIN)
        output_failed(chr, (int)n);
    /* n > 0: there may be more, and its turn comes when the loop has looked at the others. */
    loop_fd_modify(chr->loop, &chr->out_watch, n > 0 || n == -EAGAIN ? POLLOUT : 0);
    tell_writable(chr);
}

static void drain_run(struct loop_task *self)
{
    drain(CONTAINER_OF(self, struct char_dev, drain_task));
}

/* --- a pty's other side --- */

static void pty_absent(struct char_dev *chr)
{
    pthread_mutex_lock(&chr->lock);
    chr->absent = true;
    pthread_mutex_unlock(&chr->lock);
    loop_fd_modify(chr->loop, &chr->in_watch, 0);
    loop_fd_modify(chr->loop, &chr->out_watch, 0);
    tell_writable(chr);
    if (chr->pty.watch < 0)
        loop_timer_arm(chr->loop, &chr->pty_timer, clock_now_ns() + PTY_LOOK_NS);
}

static void input_resume(struct char_dev *chr);

static void pty_look(struct char_dev *chr)
{
    if (!chr->absent)
        return;
    if (!pty_in_use(&chr->pty)) {
        pty_absent(chr);
        return;
    }
    pthread_mutex_lock(&chr->lock);
    chr->absent = false;
    pthread_mutex_unlock(&chr->lock);
    input_resume(chr);
    drain(chr);
}

static void pty_look_timer(struct loop_timer *self)
{
    pty_look(CONTAINER_OF(self, struct char_dev, pty_timer));
}

static void pty_watch_ready(struct loop_fd *self, short revents)
{
    struct char_dev *chr = CONTAINER_OF(self, struct char_dev, pty_watch);

    (void)revents;
    pty_watch_clear(&chr->pty);
    pty_look(chr);
}

static void out_ready(struct loop_fd *self, short revents)
{
    struct char_dev *chr = CONTAINER_OF(self, struct char_dev, out_watch);

    if (chr->is_pty && (revents & POLLHUP) && !pty_in_use(&chr->pty))
        pty_absent(chr);
    else if (!(revents & POLLOUT) && !chr->is_pty)
        output_failed(chr, -EPIPE);
    drain(chr);
}

/* --- input, on the loop --- */

static void key_command(struct char_dev *chr, uint8_t key)
{
    switch (key) {
    case 'x':
    case 'X':
        chr->on_quit(chr->quit_ctx);
        break;
    case 'h':
    case 'H':
    case '?':
        char_write(chr, (const uint8_t *)help_text, sizeof(help_text) - 1);
        break;
    default: /* not a command: swallowed, as the help says nothing of it */
        break;
    }
}

/* Take the escape sequences out of buf, in place; returns what is left for the guest. */
static size_t take_escapes(struct char_dev *chr, uint8_t *buf, size_t len)
{
    size_t kept = 0;

    for (size_t i = 0; i < len; i++) {
        uint8_t key = buf[i];
        if (!chr->escaping && key == KEY_ESCAPE) {
            chr->escaping = true;
        } else if (!chr->escaping) {
            buf[kept++] = key;
        } else {
            chr->escaping = false;
            if (key == 'a' || key == 'A' || key == KEY_ESCAPE)
                buf[kept++] = KEY_ESCAPE;
            else
                key_command(chr, key);
        }
    }
    return kept;
}

static void input_end(struct char_dev *chr)
{
    chr->in_open = false;
    loop_fd_del(chr->loop, &chr->in_watch);
    if (chr->client.hangup)
        chr->client.hangup(chr->client.ctx);
}

static void in_ready(struct loop_fd *self, short revents)
{
    struct char_dev *chr = CONTAINER_OF(self, struct char_dev, in_watch);
    uint8_t buf[READ_BYTES];
    size_t room = chr->client.room(chr->client.ctx);

    (void)revents; /* the read finds out what a hang-up means */
    if (room == 0) {
        loop_fd_modify(chr->loop, &chr->in_watch, 0);
        return;
    }
    ssize_t n = stream_read(&chr->in, buf, room < sizeof(buf) ? room : sizeof(buf));
    if (n == -EAGAIN) {
        if (chr->is_pty && !pty_in_use(&chr->pty))
            pty_absent(chr);
        return;
    }
    if (n <= 0) {
        if (chr->is_pty)
            pty_absent(chr); /* EIO: the last one closed the other side */
        else
            input_end(chr);
        return;
    }
    size_t len = (size_t)n;
    if (chr->terminal && chr->on_quit)
        len = take_escapes(chr, buf, len);
    if (len > 0)
        chr->client.input(chr->client.ctx, buf, len);
}

/* Watch the input again if there is room for it. */
static void input_resume(struct char_dev *chr)
{
    if (!chr->in_open || (chr->is_pty && chr->absent))
        return;
    if (chr->client.room(chr->client.ctx) > 0)
        loop_fd_modify(chr->loop, &chr->in_watch, POLLIN);
}

static void input_run(struct loop_task *self)
{
    struct char_dev *chr = CONTAINER_OF(self, struct char_dev, input_task);

    if (chr->is_pty && chr->absent)
        pty_look(chr); /* right after char_attach(): somebody may have come before */
    else
        input_resume(chr);
}

void char_kick_input(struct char_dev *chr)
{
    pthread_mutex_lock(&chr->lock);
    if (chr->loop)
        loop_post(chr->loop, &chr->input_task);
    pthread_mutex_unlock(&chr->lock);
}

void char_set_escape(struct char_dev *chr, void (*on_quit)(void *ctx), void *ctx)
{
    chr->on_quit = on_quit;
    chr->quit_ctx = ctx;
}

/* --- attaching and closing --- */

static void watches_remove(struct char_dev *chr, struct loop *loop)
{
    loop_fd_del(loop, &chr->in_watch);
    loop_fd_del(loop, &chr->out_watch);
    loop_fd_del(loop, &chr->pty_watch);
    loop_timer_cancel(loop, &chr->pty_timer);
}

static int watches_add(struct char_dev *chr, struct loop *loop)
{
    int r = 0;

    chr->in_watch = (struct loop_fd){.fd = chr->in.fd, .fn = in_ready};
    chr->out_watch = (struct loop_fd){.fd = chr->out.fd, .fn = out_ready};
    chr->pty_watch =
        (struct loop_fd){.fd = chr->pty.watch, .events = POLLIN, .fn = pty_watch_ready};
    if (chr->in.fd >= 0)
        r = loop_fd_add(loop, &chr->in_watch);
    if (r == 0 && chr->out.fd >= 0)
        r = loop_fd_add(loop, &chr->out_watch);
    if (r == 0 && chr->is_pty && chr->pty.watch >= 0)
        r = loop_fd_add(loop, &chr->pty_watch);
    if (r < 0)
        watches_remove(chr, loop);
    return r;
}

int char_attach(struct char_dev *chr, struct loop *loop, const struct char_client *client,
                struct err *err)
{
    int r;

    if (chr->loop)
        return err_set(err, EBUSY, "%s is attached to a device already", chr->name);
    chr->client = *client;
    r = watches_add(chr, loop);
    if (r < 0)
        return err_errno(err, r, "cannot watch %s", chr->name);
    pthread_mutex_lock(&chr->lock);
    chr->loop = loop;
    pthread_mutex_unlock(&chr->lock);
    loop_post(loop, &chr->input_task);
    loop_post(loop, &chr->drain_task);
    return 0;
}

/* Write out what is buffered, as long as somebody takes it. */
static void flush(struct char_dev *chr)
{
    uint64_t now = clock_now_ns();
    const uint64_t end = now + CLOSE_TOTAL_NS;
    uint64_t stall = now + CLOSE_STALL_NS;

    if (chr->discard || chr->out.fd < 0)
        return;
    if (chr->is_pty && !pty_in_use(&chr->pty))
        return;
    while (now < end && now < stall) {
        ssize_t n = drain_once(chr);
        if (n == 0 || (n < 0 && n != -EAGAIN))
            break;
        if (n > 0) {
            stall = clock_now_ns() + CLOSE_STALL_NS;
        } else {
            struct pollfd pfd = {.fd = chr->out.fd, .events = POLLOUT};
            uint64_t until = stall < end ? stall : end;
            poll(&pfd, 1, (int)((until - now) / NS_PER_MS) + 1);
            if ((pfd.revents & (POLLHUP | POLLERR | POLLNVAL)) && !(pfd.revents & POLLOUT))
                break;
        }
        now = clock_now_ns();
    }
    if (chr->used > 0)
        log_info("char", "%u bytes of output to %s were not taken in time", chr->used, chr->name);
    if (chr->is_pty)
        pty_linger(&chr->pty, stall < end ? stall : end);
}

void char_close(struct char_dev *chr)
{
    if (!chr)
        return;
    if (chr->loop) {
        watches_remove(chr, chr->loop);
        loop_unpost(chr->loop, &chr->drain_task);
        loop_unpost(chr->loop, &chr->input_task);
    }
    flush(chr);
    release(chr);
}
