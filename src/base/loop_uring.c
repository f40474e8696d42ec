/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The event loop on io_uring.
 *
 * A descriptor is watched by a one-shot poll request. Its completion is dispatched, and then the
 * node stands in the todo list, from which the next submission arms it again: since the kernel
 * looks at the descriptor while it arms, what still holds completes at once, which makes the watch
 * level-triggered. An eventfd is watched by a read request in the same way. So the steady state is
 * one io_uring_enter() an iteration.
 *
 * A node has at most one request with the kernel. When the owner unregisters, or changes the events
 * of an armed one, that request is cancelled; whatever it then completes with is the sign that the
 * node may be armed anew, or freed. A cancellation names its request by the node's address: it is
 * submitted, and so has taken effect, before a new node at the same address can be armed.
 *
 * Kernel 6.1 and later run the completion side only inside our own io_uring_enter()
 * (DEFER_TASKRUN), which spares the thread interruptions; it binds the ring to one task, the first
 * that runs the loop. Older kernels (5.10 on) go without.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/loop_backend.h"
#include "base/units.h"

#define SQ_ENTRIES 128
#define CQ_ENTRIES 1024

/* user_data: 0 for completions that nobody waits for, the address of a struct loop_op, or that of a
 * struct loop_node plus 1. */
#define USER_NONE      0ull
#define USER_NODE      1ull
#define USER_TAG       7ull

#define DRAIN_ROUNDS   100
#define DRAIN_ROUND_NS (10 * NS_PER_MS)

struct uring_kernel {
    struct io_uring ring;
    bool bound;         /* only `owner` may enter the ring, and only once it is enabled */
    bool enabled;       /* not R_DISABLED (any more) */
    pid_t owner;        /* thread id; valid when bound and enabled */
    unsigned in_flight; /* nodes that are armed */
    struct loop_node *todo, *todo_last;
    struct loop_node *dying; /* dead, and still armed; linked by prev and next */
    /* Entries that were made while the queue was full and could not be submitted. */
    struct io_uring_sqe *spill;
    size_t spill_count, spill_size;
    struct log_budget budget;
};

static int ring_open(struct uring_kernel *kernel)
{
    static const unsigned setups[] = {
        IORING_SETUP_R_DISABLED | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
            IORING_SETUP_SUBMIT_ALL,
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SUBMIT_ALL,
        0,
    };
    int r = -EINVAL;

    for (size_t i = 0; i < ARRAY_LEN(setups) && r == -EINVAL; i++) {
        struct io_uring_params params = {
            .flags = setups[i] | IORING_SETUP_CQSIZE,
            .cq_entries = CQ_ENTRIES,
        };
        r = io_uring_queue_init_params(SQ_ENTRIES, &kernel->ring, &params);
        kernel->bound = setups[i] & IORING_SETUP_SINGLE_ISSUER;
        kernel->enabled = !(setups[i] & IORING_SETUP_R_DISABLED);
    }
    if (r < 0)
        return r;
    /* Without NODROP (5.5) a full completion queue loses completions. */
    if (!(kernel->ring.features & IORING_FEAT_NODROP)) {
        io_uring_queue_exit(&kernel->ring);
        return -ENOSYS;
    }
    return 0;
}

static int uring_open(struct loop *loop)
{
    struct uring_kernel *kernel = calloc(1, sizeof(*kernel));
    int r;

    if (!kernel)
        return -ENOMEM;
    r = ring_open(kernel);
    if (r < 0) {
        free(kernel);
        return r;
    }
    loop->kernel = kernel;
    return 0;
}

/* May this thread enter the ring now? */
static bool can_enter(const struct uring_kernel *kernel)
{
    return kernel->enabled && (!kernel->bound || kernel->owner == gettid());
}

/* --- the submission queue --- */

static struct io_uring_sqe *sqe_get(struct uring_kernel *kernel)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&kernel->ring);

    if (!sqe && can_enter(kernel)) {
        io_uring_submit(&kernel->ring);
        sqe = io_uring_get_sqe(&kernel->ring);
    }
    return sqe;
}

static struct io_uring_sqe *spill_get(struct uring_kernel *kernel)
{
    if (kernel->spill_count == kernel->spill_size) {
        size_t size = kernel->spill_size ? 2 * kernel->spill_size : 64;
        struct io_uring_sqe *spill = realloc(kernel->spill, size * sizeof(*spill));
        if (!spill)
            return NULL;
        kernel->spill = spill;
        kernel->spill_size = size;
    }
    return &kernel->spill[kernel->spill_count++];
}

/* False: the queue is full. */
static bool spill_flush(struct uring_kernel *kernel)
{
    size_t i;

    for (i = 0; i < kernel->spill_count; i++) {
        struct io_uring_sqe *sqe = sqe_get(kernel);
        if (!sqe)
            break;
        memcpy(sqe, &kernel->spill[i], sizeof(*sqe));
    }
    kernel->spill_count -= i;
    if (i > 0)
        memmove(kernel->spill, kernel->spill + i, kernel->spill_count * sizeof(*kernel->spill));
    return kernel->spill_count == 0;
}

static struct io_uring_sqe *uring_sqe(struct loop *loop, struct loop_op *op)
{
    struct uring_kernel *kernel = loop->kernel;
    struct io_uring_sqe *sqe = NULL;

    /* Behind what spilled before, so that nothing overtakes. */
    if (kernel->spill_count == 0)
        sqe = sqe_get(kernel);
    if (!sqe)
        sqe = spill_get(kernel);
    if (!sqe)
        return NULL;
    memset(sqe, 0, sizeof(*sqe));
    sqe->user_data = (uintptr_t)op;
    loop->ops_pending++;
    return sqe;
}

/* --- nodes --- */

static uint64_t node_user_data(const struct loop_node *node)
{
    return (uintptr_t)node | USER_NODE;
}

static void todo_add(struct uring_kernel *kernel, struct loop_node *node)
{
    if (node->listed)
        return;
    node->listed = true;
    node->todo_next = NULL;
    node->todo_prev = kernel->todo_last;
    if (kernel->todo_last)
        kernel->todo_last->todo_next = node;
    else
        kernel->todo = node;
    kernel->todo_last = node;
}

static void todo_remove(struct uring_kernel *kernel, struct loop_node *node)
{
    if (!node->listed)
        return;
    node->listed = false;
    if (node->todo_prev)
        node->todo_prev->todo_next = node->todo_next;
    else
        kernel->todo = node->todo_next;
    if (node->todo_next)
        node->todo_next->todo_prev = node->todo_prev;
    else
        kernel->todo_last = node->todo_prev;
}

static void node_prepare(struct uring_kernel *kernel, struct loop_node *node,
                         struct io_uring_sqe *sqe)
{
    if (node->event && !node->poll_event)
        io_uring_prep_read(sqe, node->fd, &node->counter, sizeof(node->counter), 0);
    else
        io_uring_prep_poll_add(sqe, node->fd, (unsigned short)node->events);
    sqe->user_data = node_user_data(node);
    node->armed_mask = node->events;
    node->armed = true;
    kernel->in_flight++;
}

/* For polls, too: IORING_OP_POLL_REMOVE leaves one alone (-EALREADY) that is being woken just now,
 * and where the file turns out not to be ready that poll goes on. */
static void node_prepare_cancel(struct loop_node *node, struct io_uring_sqe *sqe)
{
    io_uring_prep_cancel64(sqe, node_user_data(node), 0);
    sqe->user_data = USER_NONE;
    node->cancelling = true;
}

/* Queue what the todo list asks for. False: the queue is full. */
static bool todo_flush(struct uring_kernel *kernel)
{
    while (kernel->todo) {
        struct loop_node *node = kernel->todo;
        bool stale = node->dead || node->events != node->armed_mask;
        bool cancel = node->armed && stale && !node->cancelling;
        bool arm = !node->armed && !node->dead && node->events != 0 && !node->broken;
        if (cancel || arm) {
            struct io_uring_sqe *sqe = sqe_get(kernel);
            if (!sqe)
                return false;
            if (cancel)
                node_prepare_cancel(node, sqe);
            else
                node_prepare(kernel, node, sqe);
        }
        todo_remove(kernel, node);
    }
    return true;
}

static int uring_add(struct loop *loop, struct loop_node *node)
{
    if (node->event) {
        int flags = fcntl(node->fd, F_GETFL);
        if (flags < 0)
            return -errno;
        /* A read request on such a descriptor would not wait. */
        node->poll_event = flags & O_NONBLOCK;
    }
    todo_add(loop->kernel, node);
    return 0;
}

static int uring_update(struct loop *loop, struct loop_node *node)
{
    todo_add(loop->kernel, node);
    return 0;
}

static void uring_del(struct loop *loop, struct loop_node *node)
{
    struct uring_kernel *kernel = loop->kernel;

    if (!node->armed) {
        todo_remove(kernel, node);
        loop_node_bury(loop, node);
        return;
    }
    node->next = kernel->dying;
    if (node->next)
        node->next->prev = node;
    kernel->dying = node;
    todo_add(kernel, node);
    /* The kernel holds the file until it is told: between runs nothing else would tell it. */
    if (!loop_is_current(loop) && can_enter(kernel)) {
        todo_flush(kernel);
        io_uring_submit(&kernel->ring);
    }
}

/* --- completions --- */

static void event_complete(struct loop_node *node, int res)
{
    bool fired = false;

    if (node->poll_event) {
        fired = res > 0 && loop_event_drain(node->fd);
    } else if (res > 0) {
        fired = true;
    } else if (res == -EAGAIN) {
        node->poll_event = true; /* became O_NONBLOCK behind our back */
    } else if (res != -ECANCELED && res != -EINTR && res != -ENOMEM) {
        log_error("loop", "descriptor %d is watched as an eventfd, and cannot be read: %s",
                  node->fd, strerror(-res));
        node->broken = true;
    }
    if (fired)
        loop_node_fire(node, POLLIN);
}

static void fd_complete(struct loop *loop, struct loop_node *node, int res)
{
    short revents = 0;

    if (res >= 0)
        revents = (short)(res & ((unsigned short)node->events | POLLERR | POLLHUP | POLLNVAL));
    else if (res == -EINVAL)
        /* The file has no queue to wait on: /dev/null, a terminal that was hung up. */
        loop_node_set_unpollable(loop, node);
    else if (res == -EBADF)
        revents = POLLNVAL;
    else if (res != -ECANCELED && res != -EINTR && res != -ENOMEM)
        revents = POLLERR;
    /* A callback before this one may have silenced it. */
    if (revents && node->events)
        loop_node_fire(node, revents);
}

/* The kernel has nothing of a dead node any more. */
static void node_release(struct loop *loop, struct loop_node *node)
{
    struct uring_kernel *kernel = loop->kernel;

    if (node->prev)
        node->prev->next = node->next;
    else
        kernel->dying = node->next;
    if (node->next)
        node->next->prev = node->prev;
    todo_remove(kernel, node);
    loop_node_bury(loop, node);
}

static void node_complete(struct loop *loop, struct loop_node *node, int res)
{
    struct uring_kernel *kernel = loop->kernel;

    node->armed = false;
    node->cancelling = false;
    kernel->in_flight--;
    if (node->dead) {
        node_release(loop, node);
        return;
    }
    if (node->event)
        event_complete(node, res);
    else
        fd_complete(loop, node, res);
    /* Unregistered from inside its callback: then del, which found it unarmed, buried it. */
    if (!node->dead && !node->unpollable)
        todo_add(kernel, node);
}

/* quiet: the loop is being torn down, the owners of operations may be gone. */
static void completions_run(struct loop *loop, bool quiet)
{
    struct uring_kernel *kernel = loop->kernel;
    /* What comes in meanwhile has its turn after the tasks and timers. */
    unsigned budget = io_uring_cq_ready(&kernel->ring);
    struct io_uring_cqe *cqe;

    while (budget-- > 0 && io_uring_peek_cqe(&kernel->ring, &cqe) == 0) {
        uint64_t user_data = cqe->user_data;
        int res = cqe->res;
        io_uring_cqe_seen(&kernel->ring, cqe);
        if ((user_data & USER_TAG) == USER_NODE) {
            node_complete(loop, (struct loop_node *)(uintptr_t)(user_data & ~USER_TAG), res);
        } else if (user_data != USER_NONE && (user_data & USER_TAG) == 0) {
            struct loop_op *op = (struct loop_op *)(uintptr_t)user_data;
            loop->ops_pending--;
            if (!quiet)
                op->done(op, res);
        }
    }
}

static void uring_dispatch(struct loop *loop)
{
    completions_run(loop, false);
}

/* --- waiting --- */

static void uring_wait(struct loop *loop, uint64_t timeout_ns)
{
    struct uring_kernel *kernel = loop->kernel;
    struct io_uring_cqe *cqe;
    int r;

    /* What does not fit now does after some completions have been taken. */
    if (!spill_flush(kernel) || !todo_flush(kernel))
        timeout_ns = 0;
    if (timeout_ns == 0) {
        r = io_uring_submit_and_get_events(&kernel->ring);
    } else {
        struct __kernel_timespec ts = {
            .tv_sec = (int64_t)(timeout_ns / NS_PER_SEC),
            .tv_nsec = (long long)(timeout_ns % NS_PER_SEC),
        };
        r = io_uring_submit_and_wait_timeout(&kernel->ring, &cqe, 1,
                                             timeout_ns == LOOP_WAIT_FOREVER ? NULL : &ts, NULL);
    }
    switch (r < 0 ? -r : 0) {
    case 0:
    case ETIME:
    case EINTR:
    case EAGAIN:
    case EBUSY: /* completions overflowed: the kernel wants them taken first */
        return;
    default: {
        const struct timespec nap = {.tv_nsec = 10 * NS_PER_MS};
        log_guest(&kernel->budget, "loop", "io_uring_enter: %s", strerror(-r));
        nanosleep(&nap, NULL);
    }
    }
}

/*
 * The loop is run by another thread than the one its ring is bound to: give it a new ring. The old
 * one's requests are gone with its thread, or never complete; what did complete is dispatched.
 */
static int ring_rebind(struct loop *loop)
{
    struct uring_kernel *kernel = loop->kernel;
    struct io_uring old;
    int r;

    completions_run(loop, false);
    if (loop->ops_pending > 0)
        return -EBUSY;
    old = kernel->ring;
    r = ring_open(kernel);
    if (r < 0) {
        kernel->ring = old;
        kernel->bound = true;
        kernel->enabled = true;
        return r;
    }
    io_uring_queue_exit(&old);
    kernel->in_flight = 0;
    while (kernel->dying)
        node_release(loop, kernel->dying);
    for (struct loop_node *node = loop->nodes; node; node = node->next) {
        node->armed = false;
        node->cancelling = false;
        if (!node->unpollable)
            todo_add(kernel, node);
    }
    return 0;
}

static int uring_begin(struct loop *loop)
{
    struct uring_kernel *kernel = loop->kernel;
    int r;

    if (kernel->enabled && !can_enter(kernel)) {
        r = ring_rebind(loop);
        if (r < 0)
            return r;
    }
    if (!kernel->enabled) {
        r = io_uring_register(kernel->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
        if (r < 0)
            return r;
        kernel->enabled = true;
        kernel->owner = gettid();
    }
    /* Saves the look-up of the descriptor an iteration; without it all works the same. */
    io_uring_register_ring_fd(&kernel->ring);
    return 0;
}

static void uring_end(struct loop *loop)
{
    struct uring_kernel *kernel = loop->kernel;

    if (!can_enter(kernel))
        return;
    /* The last callbacks may have unregistered descriptors whose files should go now. */
    spill_flush(kernel);
    todo_flush(kernel);
    io_uring_submit(&kernel->ring);
    io_uring_unregister_ring_fd(&kernel->ring);
}

/*
 * All nodes are dead here. A request that is still with the kernel could write to a node's counter
 * after it is freed, so the ring is emptied first. Where this thread may not enter the ring, its
 * owner's end has cancelled all requests, or he is alive and does not enter it any more, and then
 * nothing is written either (DEFER_TASKRUN).
 */
static void uring_close(struct loop *loop)
{
    struct uring_kernel *kernel = loop->kernel;
    int rounds = 0;

    while (can_enter(kernel) && (kernel->in_flight > 0 || loop->ops_pending > 0)) {
        if (rounds++ == DRAIN_ROUNDS) {
            log_error("loop", "%u requests do not end: their memory is left to them",
                      kernel->in_flight + loop->ops_pending);
            kernel->dying = NULL;
            break;
        }
        uring_wait(loop, DRAIN_ROUND_NS);
        completions_run(loop, true);
    }
    io_uring_queue_exit(&kernel->ring);
    while (kernel->dying)
        node_release(loop, kernel->dying);
    free(kernel->spill);
    free(kernel);
}

const struct loop_backend loop_backend_uring = {
    .open = uring_open,
    .close = uring_close,
    .begin = uring_begin,
    .end = uring_end,
    .add = uring_add,
    .update = uring_update,
    .del = uring_del,
    .wait = uring_wait,
    .dispatch = uring_dispatch,
    .sqe = uring_sqe,
};
