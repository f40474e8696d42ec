/* SPDX-License-Identifier: Apache-2.0 */
/* The event loop on epoll, for hosts that deny io_uring. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "base/loop_backend.h"
#include "base/units.h"

#define BATCH 64

struct epoll_kernel {
    int epfd;
    bool no_pwait2; /* the kernel (before 5.11) or a filter lacks epoll_pwait2() */
    int ready_count;
    struct epoll_event ready[BATCH];
};

static int ep_open(struct loop *loop)
{
    struct epoll_kernel *kernel = calloc(1, sizeof(*kernel));

    if (!kernel)
        return -ENOMEM;
    kernel->epfd = epoll_create1(EPOLL_CLOEXEC);
    if (kernel->epfd < 0) {
        int r = -errno;
        free(kernel);
        return r;
    }
    loop->kernel = kernel;
    return 0;
}

static void ep_close(struct loop *loop)
{
    struct epoll_kernel *kernel = loop->kernel;

    close(kernel->epfd);
    free(kernel);
}

static int ep_begin(struct loop *loop)
{
    (void)loop;
    return 0;
}

static void ep_end(struct loop *loop)
{
    (void)loop;
}

static int node_fd(const struct loop_node *node)
{
    return node->own_fd >= 0 ? node->own_fd : node->fd;
}

/* The bits of POLL* and EPOLL* agree: both are the kernel's. */
static int node_ctl(struct loop *loop, struct loop_node *node, int op)
{
    struct epoll_kernel *kernel = loop->kernel;
    struct epoll_event event = {
        .events = (uint32_t)(unsigned short)node->events,
        .data.ptr = node,
    };
    return epoll_ctl(kernel->epfd, op, node_fd(node), &event) < 0 ? -errno : 0;
}

/* Watch node. A silent one (no events) stays outside: epoll would still report hang-ups. */
static int node_watch(struct loop *loop, struct loop_node *node)
{
    int r = node_ctl(loop, node, EPOLL_CTL_ADD);
    if (r == -EEXIST) {
        /* epoll takes a descriptor once, the contract any number of times. */
        node->own_fd = fcntl(node->fd, F_DUPFD_CLOEXEC, 0);
        if (node->own_fd < 0)
            return -errno;
        r = node_ctl(loop, node, EPOLL_CTL_ADD);
    }
    if (r == -EPERM) {
        loop_node_set_unpollable(loop, node);
        return 0;
    }
    node->armed = r == 0;
    if (r < 0 && node->own_fd >= 0) {
        close(node->own_fd);
        node->own_fd = -1;
    }
    return r;
}

static void node_unwatch(struct loop *loop, struct loop_node *node)
{
    if (node->armed)
        node_ctl(loop, node, EPOLL_CTL_DEL);
    node->armed = false;
    if (node->own_fd >= 0)
        close(node->own_fd);
    node->own_fd = -1;
}

static int ep_add(struct loop *loop, struct loop_node *node)
{
    if (node->events != 0)
        return node_watch(loop, node);
    /* Find out now what the kernel thinks of it, so that a later modify cannot fail. */
    int r = node_watch(loop, node);
    if (r == 0 && !node->unpollable)
        node_unwatch(loop, node);
    return r;
}

static int ep_update(struct loop *loop, struct loop_node *node)
{
    if (node->events == 0) {
        node_unwatch(loop, node);
        return 0;
    }
    return node->armed ? node_ctl(loop, node, EPOLL_CTL_MOD) : node_watch(loop, node);
}

/* The node may be in ready[]: dispatch skips the dead, and they are reaped only after it. */
static void ep_del(struct loop *loop, struct loop_node *node)
{
    node_unwatch(loop, node);
    loop_node_bury(loop, node);
}

static void ep_wait(struct loop *loop, uint64_t timeout_ns)
{
    struct epoll_kernel *kernel = loop->kernel;
    int n = -1;

    if (!kernel->no_pwait2) {
        struct timespec ts = {
            .tv_sec = (time_t)(timeout_ns / NS_PER_SEC),
            .tv_nsec = (long)(timeout_ns % NS_PER_SEC),
        };
        n = epoll_pwait2(kernel->epfd, kernel->ready, BATCH,
                         timeout_ns == LOOP_WAIT_FOREVER ? NULL : &ts, NULL);
        if (n < 0 && (errno == ENOSYS || errno == EPERM))
            kernel->no_pwait2 = true;
    }
    if (kernel->no_pwait2) {
        uint64_t ms = timeout_ns / NS_PER_MS + (timeout_ns % NS_PER_MS != 0);
        int timeout_ms = timeout_ns == LOOP_WAIT_FOREVER ? -1 : ms > INT_MAX ? INT_MAX : (int)ms;
        n = epoll_wait(kernel->epfd, kernel->ready, BATCH, timeout_ms);
    }
    assert(n >= 0 || errno == EINTR);
    kernel->ready_count = n > 0 ? n : 0;
}

static void ep_dispatch(struct loop *loop)
{
    struct epoll_kernel *kernel = loop->kernel;

    for (int i = 0; i < kernel->ready_count; i++) {
        struct loop_node *node = kernel->ready[i].data.ptr;
        if (node->dead)
            continue;
        if (node->event) {
            if (loop_event_drain(node->fd))
                loop_node_fire(node, POLLIN);
            continue;
        }
        /* A callback before this one may have changed what the owner wants to hear. */
        short wanted = node->events ? (short)(node->events | POLLERR | POLLHUP) : 0;
        short revents = (short)(kernel->ready[i].events & (unsigned short)wanted);
        if (revents)
            loop_node_fire(node, revents);
    }
    kernel->ready_count = 0;
}

const struct loop_backend loop_backend_epoll = {
    .open = ep_open,
    .close = ep_close,
    .begin = ep_begin,
    .end = ep_end,
    .add = ep_add,
    .update = ep_update,
    .del = ep_del,
    .wait = ep_wait,
    .dispatch = ep_dispatch,
};
