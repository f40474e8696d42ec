/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The event loop: file descriptors, timers, tasks from other threads, and io_uring operations,
 * served by one thread. A VM has one main loop and any number of I/O loops.
 *
 * A loop stands on one io_uring: an iteration is a single io_uring_enter() that submits what the
 * callbacks queued and waits for the next event (polls of descriptors are io_uring operations too).
 * Where the host denies io_uring, the same contract is met with epoll, and loop_sqe() returns NULL:
 * its users then have a path without io_uring.
 *
 * Threads: the thread inside loop_run() owns the loop. Functions marked [any] may be called from
 * every thread; all others from the owner only, or before loop_run() starts.
 */
#ifndef HULL_BASE_LOOP_H
#define HULL_BASE_LOOP_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct io_uring_sqe;
struct loop;

/* flags of loop_new() */
#define LOOP_NO_URING 1u /* epoll, as on a host without io_uring: for tests */

/* Returns 0 or -errno with err filled. */
int loop_new(struct loop **loop, unsigned flags, struct err *err);

/* The loop must not be running; registered fds and armed timers are forgotten, not closed. */
void loop_free(struct loop *loop);

/*
 * Serve until loop_stop(). Returns when the callbacks of the current iteration are done. Later runs
 * are best made by the same thread: another one costs a new io_uring, and is refused (with an error
 * in the log) while operations of loop_sqe() are pending.
 */
void loop_run(struct loop *loop);

/* [any] End loop_run(), also one that has not started yet. */
void loop_stop(struct loop *loop);

/* [any] Is the caller inside loop_run() of this loop? */
bool loop_is_current(const struct loop *loop);

/* --- file descriptors --- */

/*
 * Embedded in its owner. Level-triggered: fn is called with the poll(2) revents for as long as they
 * hold. As after poll(2), a callback before this one may have read what there was: use descriptors
 * that do not block. What cannot be waited for (a regular file) is always ready, also as there.
 * Owner fills fd, events (POLLIN, POLLOUT) and fn, and sets the rest to zero.
 */
struct loop_fd {
    int fd;
    short events;
    void (*fn)(struct loop_fd *self, short revents);
    void *priv; /* the loop's; NULL while not registered */
};

int loop_fd_add(struct loop *loop, struct loop_fd *lfd);
/* Change events. 0 keeps it registered and silent. */
int loop_fd_modify(struct loop *loop, struct loop_fd *lfd, short events);
/* After this fn is not called again, and lfd->fd may be closed. Safe inside every callback. The
 * kernel lets go of the file by the end of the iteration, or of this call between two runs. */
void loop_fd_del(struct loop *loop, struct loop_fd *lfd);

/*
 * An eventfd that fires often and carries nothing but its firing (an ioeventfd): the loop reads the
 * counter itself, in the same system call as its wait, and then calls fn once. On io_uring this
 * saves a poll and a read() a firing. Same lifetime rules as struct loop_fd. A firing that falls
 * together with loop_event_del() may be lost: after a new add, look at what it announces.
 */
struct loop_event {
    int fd; /* eventfd; the loop sets no flags on it */
    void (*fn)(struct loop_event *self);
    void *priv;
};

int loop_event_add(struct loop *loop, struct loop_event *event);
void loop_event_del(struct loop *loop, struct loop_event *event);

/* --- timers --- */

struct loop_timer {
    void (*fn)(struct loop_timer *self);
    uint64_t deadline_ns; /* CLOCK_MONOTONIC; UINT64_MAX while disarmed */
    uint32_t heap_index;  /* the loop's */
};

void loop_timer_init(struct loop_timer *timer, void (*fn)(struct loop_timer *self));
/* [any] (Re)arm for deadline_ns. fn runs on the loop's thread, once, at or after the deadline. */
void loop_timer_arm(struct loop *loop, struct loop_timer *timer, uint64_t deadline_ns);
/* [any] Disarm. When called from another thread fn may be running at that moment. */
void loop_timer_cancel(struct loop *loop, struct loop_timer *timer);

/* --- tasks --- */

/* Embedded in its owner; must stay until fn has been called. */
struct loop_task {
    void (*fn)(struct loop_task *self);
    struct loop_task *next; /* the loop's */
    bool queued;            /* the loop's */
};

/* [any] Call fn on the loop's thread, soon, in order of posting. A task that is still queued is
 * left. */
void loop_post(struct loop *loop, struct loop_task *task);

/* [any] Take back a task that is still queued, so that its memory may go; true when it was. When
 * called from another thread than the loop's, fn may be running at that moment. */
bool loop_unpost(struct loop *loop, struct loop_task *task);

/* [any] Call fn(arg) on the loop's thread and wait until it returned. Called on that thread, or
 * while the loop is not running: calls it at once. */
void loop_call(struct loop *loop, void (*fn)(void *arg), void *arg);

/* --- io_uring operations --- */

/* Embedded in its owner; must stay until done has been called. res as in a CQE: >= 0 or -errno. */
struct loop_op {
    void (*done)(struct loop_op *self, int res);
};

/*
 * A submission entry whose completion goes to op; the caller prepares it with io_uring_prep_*()
 * before anything else is queued, and leaves its user_data alone. It is submitted by the end of the
 * iteration. No IOSQE_IO_LINK: the queue may be submitted between any two entries. NULL: this loop
 * has no io_uring (permanent), or no memory is left.
 */
struct io_uring_sqe *loop_sqe(struct loop *loop, struct loop_op *op);

bool loop_has_uring(const struct loop *loop);

/* Operations submitted and not completed. */
unsigned loop_ops_pending(const struct loop *loop);

#endif
