/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside of the event loop, for loop*.c only: loop.c holds what is common (timers, tasks, calls,
 * descriptors that cannot be polled), loop_uring.c and loop_epoll.c wait for the kernel.
 *
 * A registration is a struct loop_node of ours, so that a completion that is still under way when
 * the owner unregisters never finds freed memory: the node is buried, and reaped when the kernel
 * and the dispatch have both let go of it.
 */
#ifndef HULL_BASE_LOOP_BACKEND_H
#define HULL_BASE_LOOP_BACKEND_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/loop.h"

#define LOOP_WAIT_FOREVER UINT64_MAX

struct loop_node {
    struct loop_node *prev, *next; /* loop->nodes, or singly linked by next in loop->graveyard */
    struct loop_fd *lfd;           /* one of these two is set */
    struct loop_event *event;
    int fd;
    short events;
    bool dead;       /* unregistered: fn must not be called */
    bool unpollable; /* the kernel cannot wait for it (regular file): loop.c looks at it itself */

    /* uring: a request is with the kernel, or its completion not yet dispatched; epoll: in the set
     */
    bool armed;

    /* uring */
    bool cancelling;  /* a cancellation of that request is with the kernel, too */
    bool listed;      /* in the list of nodes to look at before the next submission */
    bool poll_event;  /* an O_NONBLOCK eventfd: poll and read */
    bool broken;      /* an event that cannot be read */
    short armed_mask; /* events of that request */
    struct loop_node *todo_prev, *todo_next;
    uint64_t counter; /* where the kernel puts what it read from the eventfd */

    /* epoll */
    int own_fd; /* duplicate of fd where fd was already registered by somebody else; or -1 */
};

struct loop_backend {
    /* Returns 0 or -errno. */
    int (*open)(struct loop *loop);
    void (*close)(struct loop *loop);
    /* Bracket loop_run() on its thread; begin returns 0 or -errno. */
    int (*begin)(struct loop *loop);
    void (*end)(struct loop *loop);
    /* add may set node->unpollable; del buries the node, at once or later. */
    int (*add)(struct loop *loop, struct loop_node *node);
    int (*update)(struct loop *loop, struct loop_node *node);
    void (*del)(struct loop *loop, struct loop_node *node);
    /* Submit, and wait for something to dispatch or for timeout_ns to pass. */
    void (*wait)(struct loop *loop, uint64_t timeout_ns);
    void (*dispatch)(struct loop *loop);
    struct io_uring_sqe *(*sqe)(struct loop *loop, struct loop_op *op); /* may be NULL */
};

extern const struct loop_backend loop_backend_uring;
extern const struct loop_backend loop_backend_epoll;

struct loop {
    const struct loop_backend *backend;
    void *kernel; /* the backend's */

    /* The loop's thread only. */
    struct loop_node *nodes;
    struct loop_node *graveyard;
    unsigned unpollable_count;
    unsigned ops_pending;
    struct loop_event wake;

    /* pthread_self() of the thread inside loop_run(), or 0. Atomic; written under lock. */
    uintptr_t runner;
    /* The loop waits, or is about to, without looking at tasks and timers again. Atomic: set under
     * lock, cleared by anyone. */
    bool asleep;

    pthread_mutex_t lock;
    pthread_cond_t cond;       /* lock; a call is done, the loop ends, a direct call ends */
    bool stop;                 /* lock */
    uintptr_t direct;          /* lock; thread that runs a loop_call() in place of the loop, or 0 */
    uint64_t sleep_deadline;   /* lock; what asleep waits for */
    struct loop_task *tasks;   /* lock */
    struct loop_task **tail;   /* lock */
    struct loop_timer **timer; /* lock; binary heap */
    uint32_t timer_count;      /* lock */
};

/* Call the owner of a node that is not dead. */
void loop_node_fire(struct loop_node *node, short revents);
/* The kernel has let go of a dead node. */
void loop_node_bury(struct loop *loop, struct loop_node *node);
/* A backend found out that the kernel cannot wait for this node. */
void loop_node_set_unpollable(struct loop *loop, struct loop_node *node);
/* Read an eventfd without blocking, whatever its flags. False: there was nothing to read. */
bool loop_event_drain(int fd);

#endif
