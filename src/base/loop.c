/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation. One iteration: decide how long to sleep and announce it (loop->asleep), let
 * the backend submit and wait, dispatch what it brought, run the tasks, run the timers.
 *
 * No wake-up is lost: the loop looks for tasks, the stop flag and the earliest timer, and sets
 * asleep, all under loop->lock; whoever adds one of these does so under the same lock and writes
 * the eventfd when he finds asleep set (and clears it: one write is enough). The write is made
 * under the lock too, since without it the loop could end and be freed before the write.
 */
#include "base/loop.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "base/loop_backend.h"
#include "base/units.h"

/* Room in the heap. It is reserved, not touched: pages appear as timers do. */
#define TIMERS_MAX     65536u
#define TIMER_DISARMED UINT32_MAX

static uintptr_t self_id(void)
{
    return (uintptr_t)pthread_self();
}

bool loop_is_current(const struct loop *loop)
{
    return __atomic_load_n(&loop->runner, __ATOMIC_RELAXED) == self_id();
}

static bool loop_owned(const struct loop *loop)
{
    uintptr_t runner = __atomic_load_n(&loop->runner, __ATOMIC_RELAXED);
    return runner == 0 || runner == self_id();
}

/* Lock held. */
static void loop_wake(struct loop *loop)
{
    const uint64_t one = 1;
    ssize_t n;

    if (!__atomic_exchange_n(&loop->asleep, false, __ATOMIC_RELAXED))
        return;
    do
        n = write(loop->wake.fd, &one, sizeof(one));
    while (n < 0 && errno == EINTR);
    assert(n == sizeof(one));
}

/* --- set-up --- */

static void wake_fired(struct loop_event *self)
{
    (void)self; /* what it was woken for is looked up by the iteration */
}

static int backend_open(struct loop *loop, unsigned flags, struct err *err)
{
    int r;

    if (!(flags & LOOP_NO_URING)) {
        loop->backend = &loop_backend_uring;
        r = loop->backend->open(loop);
        if (r == 0)
            return 0;
        log_info("loop", "no io_uring on this host (%s): using epoll", strerror(-r));
    }
    loop->backend = &loop_backend_epoll;
    r = loop->backend->open(loop);
    return r < 0 ? err_errno(err, r, "cannot create an event loop") : 0;
}

int loop_new(struct loop **out, unsigned flags, struct err *err)
{
    struct loop *loop = calloc(1, sizeof(*loop));
    int r;

    if (!loop)
        return err_errno(err, ENOMEM, "cannot create an event loop");
    pthread_mutex_init(&loop->lock, NULL);
    pthread_cond_init(&loop->cond, NULL);
    loop->tail = &loop->tasks;
    loop->wake.fn = wake_fired;
    loop->timer = malloc(TIMERS_MAX * sizeof(struct loop_timer *));
    if (!loop->timer) {
        r = err_errno(err, ENOMEM, "cannot create an event loop");
        goto free_loop;
    }
    r = backend_open(loop, flags, err);
    if (r < 0)
        goto free_timers;
    loop->wake.fd = eventfd(0, EFD_CLOEXEC);
    if (loop->wake.fd < 0) {
        r = err_errno(err, errno, "cannot create an eventfd");
        goto close_backend;
    }
    r = loop_event_add(loop, &loop->wake);
    if (r < 0) {
        err_errno(err, r, "cannot watch an eventfd");
        goto close_wake;
    }
    *out = loop;
    return 0;

close_wake:
    close(loop->wake.fd);
close_backend:
    loop->backend->close(loop);
free_timers:
    free(loop->timer);
free_loop:
    pthread_cond_destroy(&loop->cond);
    pthread_mutex_destroy(&loop->lock);
    free(loop);
    return r;
}

static void graveyard_reap(struct loop *loop)
{
    while (loop->graveyard) {
        struct loop_node *node = loop->graveyard;
        loop->graveyard = node->next;
        free(node);
    }
}

static void node_forget(struct loop *loop, struct loop_node *node)
{
    if (node->prev)
        node->prev->next = node->next;
    else
        loop->nodes = node->next;
    if (node->next)
        node->next->prev = node->prev;
    node->prev = node->next = NULL;
    node->dead = true;
    if (node->unpollable) {
        loop->unpollable_count--;
        loop_node_bury(loop, node);
    } else {
        loop->backend->del(loop, node);
    }
}

void loop_free(struct loop *loop)
{
    if (!loop)
        return;
    /* A thread that just woke the loop may still be inside the lock. */
    pthread_mutex_lock(&loop->lock);
    assert(loop->runner == 0);
    pthread_mutex_unlock(&loop->lock);
    /* Owners may be gone already: nothing of theirs is touched. */
    while (loop->nodes)
        node_forget(loop, loop->nodes);
    loop->backend->close(loop);
    graveyard_reap(loop);
    close(loop->wake.fd);
    free(loop->timer);
    pthread_cond_destroy(&loop->cond);
    pthread_mutex_destroy(&loop->lock);
    free(loop);
}

bool loop_has_uring(const struct loop *loop)
{
    return loop->backend->sqe != NULL;
}

struct io_uring_sqe *loop_sqe(struct loop *loop, struct loop_op *op)
{
    assert(loop_owned(loop));
    return loop->backend->sqe ? loop->backend->sqe(loop, op) : NULL;
}

unsigned loop_ops_pending(const struct loop *loop)
{
    return loop->ops_pending;
}

/* --- registrations --- */

void loop_node_fire(struct loop_node *node, short revents)
{
    if (node->lfd)
        node->lfd->fn(node->lfd, revents);
    else
        node->event->fn(node->event);
}

void loop_node_bury(struct loop *loop, struct loop_node *node)
{
    assert(node->dead);
    node->next = loop->graveyard;
    loop->graveyard = node;
}

void loop_node_set_unpollable(struct loop *loop, struct loop_node *node)
{
    assert(!node->unpollable);
    node->unpollable = true;
    loop->unpollable_count++;
}

bool loop_event_drain(int fd)
{
    uint64_t counter;
    struct iovec iov = {.iov_base = &counter, .iov_len = sizeof(counter)};
    ssize_t n;

    /* Somebody else may have emptied it since the poll, and then a plain read() would block. */
    do
        n = preadv2(fd, &iov, 1, -1, RWF_NOWAIT);
    while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EOPNOTSUPP || errno == ENOSYS)) {
        do
            n = read(fd, &counter, sizeof(counter));
        while (n < 0 && errno == EINTR);
    }
    return n > 0;
}

static int node_add(struct loop *loop, struct loop_node *from, void **priv)
{
    struct stat st;
    struct loop_node *node;

    assert(loop_owned(loop));
    assert(*priv == NULL);
    if (fstat(from->fd, &st) < 0)
        return -errno;
    node = malloc(sizeof(*node));
    if (!node)
        return -ENOMEM;
    *node = *from;
    node->own_fd = -1;
    if (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)) {
        loop_node_set_unpollable(loop, node);
    } else {
        int r = loop->backend->add(loop, node);
        if (r < 0) {
            free(node);
            return r;
        }
    }
    node->next = loop->nodes;
    if (node->next)
        node->next->prev = node;
    loop->nodes = node;
    *priv = node;
    return 0;
}

static void node_del(struct loop *loop, void **priv)
{
    struct loop_node *node = *priv;

    assert(loop_owned(loop));
    if (!node)
        return;
    *priv = NULL;
    node_forget(loop, node);
}

int loop_fd_add(struct loop *loop, struct loop_fd *lfd)
{
    struct loop_node node = {.lfd = lfd, .fd = lfd->fd, .events = lfd->events};
    return node_add(loop, &node, &lfd->priv);
}

int loop_fd_modify(struct loop *loop, struct loop_fd *lfd, short events)
{
    struct loop_node *node = lfd->priv;

    assert(loop_owned(loop));
    if (!node)
        return -EINVAL;
    if (events == node->events)
        return 0;
    lfd->events = events;
    node->events = events;
    return node->unpollable ? 0 : loop->backend->update(loop, node);
}

void loop_fd_del(struct loop *loop, struct loop_fd *lfd)
{
    node_del(loop, &lfd->priv);
}

int loop_event_add(struct loop *loop, struct loop_event *event)
{
    struct loop_node node = {.event = event, .fd = event->fd, .events = POLLIN};
    return node_add(loop, &node, &event->priv);
}

void loop_event_del(struct loop *loop, struct loop_event *event)
{
    node_del(loop, &event->priv);
}

/* What holds of a descriptor that nothing can be waited for on: a regular file, /dev/null. */
static short unpollable_revents(const struct loop_node *node)
{
    struct pollfd pfd = {.fd = node->fd, .events = node->events};
    if (!node->unpollable || node->events == 0 || poll(&pfd, 1, 0) <= 0)
        return 0;
    return pfd.revents;
}

static bool unpollable_ready(const struct loop *loop)
{
    if (loop->unpollable_count == 0)
        return false;
    for (const struct loop_node *node = loop->nodes; node; node = node->next) {
        if (unpollable_revents(node))
            return true;
    }
    return false;
}

static void unpollable_dispatch(struct loop *loop)
{
    struct loop_node *node;

    if (loop->unpollable_count == 0)
        return;
    /* A callback may unregister any of them. Where that is its own node, the rest is served in the
     * next iteration: they are level-triggered. Nodes added meanwhile stand in front. */
    for (node = loop->nodes; node; node = node->next) {
        short revents = unpollable_revents(node);
        if (revents)
            loop_node_fire(node, revents);
        if (node->dead)
            return;
    }
}

/* --- timers --- */

/* A binary heap; heap_index is a timer's place in it. All with the lock held. */

static void heap_put(struct loop *loop, uint32_t i, struct loop_timer *timer)
{
    loop->timer[i] = timer;
    timer->heap_index = i;
}

static void heap_sift_up(struct loop *loop, uint32_t i, struct loop_timer *timer)
{
    while (i > 0) {
        uint32_t parent = (i - 1) / 2;
        if (loop->timer[parent]->deadline_ns <= timer->deadline_ns)
            break;
        heap_put(loop, i, loop->timer[parent]);
        i = parent;
    }
    heap_put(loop, i, timer);
}

static void heap_sift_down(struct loop *loop, uint32_t i, struct loop_timer *timer)
{
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= loop->timer_count)
            break;
        if (child + 1 < loop->timer_count &&
            loop->timer[child + 1]->deadline_ns < loop->timer[child]->deadline_ns)
            child++;
        if (timer->deadline_ns <= loop->timer[child]->deadline_ns)
            break;
        heap_put(loop, i, loop->timer[child]);
        i = child;
    }
    heap_put(loop, i, timer);
}

/* Put timer, with its new deadline, where it belongs, starting from place i, which is free. */
static void heap_settle(struct loop *loop, uint32_t i, struct loop_timer *timer)
{
    if (i > 0 && timer->deadline_ns < loop->timer[(i - 1) / 2]->deadline_ns)
        heap_sift_up(loop, i, timer);
    else
        heap_sift_down(loop, i, timer);
}

static void heap_remove(struct loop *loop, struct loop_timer *timer)
{
    uint32_t i = timer->heap_index;
    struct loop_timer *last = loop->timer[--loop->timer_count];

    assert(loop->timer[i] == timer || last == timer);
    if (last != timer)
        heap_settle(loop, i, last);
    timer->heap_index = TIMER_DISARMED;
    timer->deadline_ns = UINT64_MAX;
}

void loop_timer_init(struct loop_timer *timer, void (*fn)(struct loop_timer *self))
{
    timer->fn = fn;
    timer->deadline_ns = UINT64_MAX;
    timer->heap_index = TIMER_DISARMED;
}

void loop_timer_arm(struct loop *loop, struct loop_timer *timer, uint64_t deadline_ns)
{
    if (deadline_ns == UINT64_MAX) {
        loop_timer_cancel(loop, timer);
        return;
    }
    pthread_mutex_lock(&loop->lock);
    timer->deadline_ns = deadline_ns;
    if (timer->heap_index != TIMER_DISARMED) {
        heap_settle(loop, timer->heap_index, timer);
    } else {
        assert(loop->timer_count < TIMERS_MAX);
        heap_sift_up(loop, loop->timer_count++, timer);
    }
    if (deadline_ns < loop->sleep_deadline)
        loop_wake(loop);
    pthread_mutex_unlock(&loop->lock);
}

void loop_timer_cancel(struct loop *loop, struct loop_timer *timer)
{
    pthread_mutex_lock(&loop->lock);
    if (timer->heap_index != TIMER_DISARMED)
        heap_remove(loop, timer);
    pthread_mutex_unlock(&loop->lock);
}

static void timers_run(struct loop *loop)
{
    pthread_mutex_lock(&loop->lock);
    if (loop->timer_count > 0) {
        uint64_t now = clock_now_ns();
        /* A timer that re-arms itself for the past has its turn again in the next iteration. */
        for (uint32_t budget = loop->timer_count; budget > 0 && loop->timer_count > 0; budget--) {
            struct loop_timer *timer = loop->timer[0];
            if (timer->deadline_ns > now)
                break;
            heap_remove(loop, timer);
            pthread_mutex_unlock(&loop->lock);
            timer->fn(timer);
            pthread_mutex_lock(&loop->lock);
        }
    }
    pthread_mutex_unlock(&loop->lock);
}

/* --- tasks --- */

/* Lock held. */
static void task_append(struct loop *loop, struct loop_task *task)
{
    if (task->queued)
        return;
    task->queued = true;
    task->next = NULL;
    *loop->tail = task;
    loop->tail = &task->next;
    loop_wake(loop);
}

/* Lock held. */
static void task_unlink(struct loop *loop, struct loop_task *task)
{
    struct loop_task **p = &loop->tasks;

    while (*p != task)
        p = &(*p)->next;
    *p = task->next;
    if (!*p)
        loop->tail = p;
    task->queued = false;
}

void loop_post(struct loop *loop, struct loop_task *task)
{
    pthread_mutex_lock(&loop->lock);
    task_append(loop, task);
    pthread_mutex_unlock(&loop->lock);
}

bool loop_unpost(struct loop *loop, struct loop_task *task)
{
    pthread_mutex_lock(&loop->lock);
    bool queued = task->queued;
    if (queued)
        task_unlink(loop, task);
    pthread_mutex_unlock(&loop->lock);
    return queued;
}

static void tasks_run(struct loop *loop)
{
    pthread_mutex_lock(&loop->lock);
    /* What the tasks themselves post has its turn in the next iteration. */
    size_t budget = 0;
    for (const struct loop_task *task = loop->tasks; task; task = task->next)
        budget++;
    for (; budget > 0 && loop->tasks; budget--) {
        struct loop_task *task = loop->tasks;
        task_unlink(loop, task);
        pthread_mutex_unlock(&loop->lock);
        task->fn(task);
        pthread_mutex_lock(&loop->lock);
    }
    pthread_mutex_unlock(&loop->lock);
}

struct call {
    struct loop_task task;
    struct loop *loop;
    void (*fn)(void *arg);
    void *arg;
    bool done; /* loop->lock */
};

static void call_run(struct loop_task *task)
{
    struct call *call = CONTAINER_OF(task, struct call, task);
    struct loop *loop = call->loop;

    call->fn(call->arg);
    pthread_mutex_lock(&loop->lock);
    call->done = true;
    pthread_cond_broadcast(&loop->cond);
    pthread_mutex_unlock(&loop->lock);
}

/* Lock held, and released during fn: call fn in place of the loop, which is not running and does
 * not start before fn returned. */
static void call_direct(struct loop *loop, void (*fn)(void *arg), void *arg)
{
    loop->direct = self_id();
    pthread_mutex_unlock(&loop->lock);
    fn(arg);
    pthread_mutex_lock(&loop->lock);
    loop->direct = 0;
    pthread_cond_broadcast(&loop->cond);
}

void loop_call(struct loop *loop, void (*fn)(void *arg), void *arg)
{
    struct call call = {.task.fn = call_run, .loop = loop, .fn = fn, .arg = arg};
    bool posted = false; /* once: the task may be running when a broadcast for others comes */

    pthread_mutex_lock(&loop->lock);
    if (loop->runner == self_id() || loop->direct == self_id()) {
        pthread_mutex_unlock(&loop->lock);
        fn(arg);
        return;
    }
    while (!call.done) {
        if (loop->runner == 0 && loop->direct == 0) {
            /* The loop ended before it came to the task: nobody else will. */
            if (call.task.queued)
                task_unlink(loop, &call.task);
            call_direct(loop, fn, arg);
            break;
        }
        if (loop->runner != 0 && !posted)
            task_append(loop, &call.task);
        posted = posted || loop->runner != 0;
        pthread_cond_wait(&loop->cond, &loop->lock);
    }
    pthread_mutex_unlock(&loop->lock);
}

/* --- running --- */

void loop_stop(struct loop *loop)
{
    pthread_mutex_lock(&loop->lock);
    loop->stop = true;
    loop_wake(loop);
    pthread_mutex_unlock(&loop->lock);
}

/* How long to sleep, and announce it. False: loop_stop() was called. */
static bool sleep_begin(struct loop *loop, uint64_t *timeout_ns)
{
    bool ready = unpollable_ready(loop);
    uint64_t deadline = UINT64_MAX;

    pthread_mutex_lock(&loop->lock);
    bool stop = loop->stop;
    if (loop->timer_count > 0)
        deadline = loop->timer[0]->deadline_ns;
    if (ready || stop || loop->tasks) {
        *timeout_ns = 0;
    } else if (deadline == UINT64_MAX) {
        *timeout_ns = LOOP_WAIT_FOREVER;
    } else {
        uint64_t now = clock_now_ns();
        *timeout_ns = deadline > now ? deadline - now : 0;
    }
    loop->sleep_deadline = deadline;
    if (*timeout_ns != 0)
        __atomic_store_n(&loop->asleep, true, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&loop->lock);
    return !stop;
}

static bool run_begin(struct loop *loop)
{
    int r;

    pthread_mutex_lock(&loop->lock);
    assert(loop->runner == 0);
    while (loop->direct != 0 && loop->direct != self_id())
        pthread_cond_wait(&loop->cond, &loop->lock);
    __atomic_store_n(&loop->runner, self_id(), __ATOMIC_RELAXED);
    pthread_mutex_unlock(&loop->lock);
    r = loop->backend->begin(loop);
    if (r < 0)
        log_error("loop", "cannot start the event loop: %s", strerror(-r));
    return r == 0;
}

static void run_end(struct loop *loop)
{
    loop->backend->end(loop);
    graveyard_reap(loop);
    pthread_mutex_lock(&loop->lock);
    loop->stop = false;
    __atomic_store_n(&loop->runner, 0, __ATOMIC_RELAXED);
    pthread_cond_broadcast(&loop->cond);
    pthread_mutex_unlock(&loop->lock);
}

void loop_run(struct loop *loop)
{
    uint64_t timeout_ns;
    bool go = run_begin(loop);

    while (go && sleep_begin(loop, &timeout_ns)) {
        loop->backend->wait(loop, timeout_ns);
        __atomic_store_n(&loop->asleep, false, __ATOMIC_RELAXED);
        loop->backend->dispatch(loop);
        unpollable_dispatch(loop);
        tasks_run(loop);
        timers_run(loop);
        graveyard_reap(loop);
    }
    run_end(loop);
}
