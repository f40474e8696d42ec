/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Time is read without the lock: each RDTSC of a guest does so, and vCPUs must not wait for each
 * other there. On the host's clock what it is computed from is under a sequence count, odd while it
 * changes; a virtual clock's time is one word.
 *
 * Timers are in a binary heap by deadline. The host kind has a thread that sleeps until the
 * earliest; it is woken only when a new one is earlier than what it sleeps for.
 */
#include "engine/chip/clock.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "base/err.h"

#define NS_PER_S 1000000000ULL
#define NO_INDEX UINT32_MAX

struct chip_clock {
    enum chip_clock_kind kind;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* the heap's head, running, or quit */
    pthread_cond_t fired;   /* a timer's function has returned */
    struct chip_timer **heap;
    unsigned count, size;
    struct chip_timer *firing; /* its function is running, on firing_thread */
    pthread_t firing_thread;
    uint64_t sleeping_until; /* the thread's; 0: it is awake */

    /* Atomic; written under the lock. */
    uint32_t sequence; /* of the three below, host kind */
    bool running;
    uint64_t base_ns; /* guest time when it last started or stopped; virtual: now */
    uint64_t host_ns; /* host time then */

    unsigned holds; /* atomic */
    void (*released)(void *ctx);
    void *released_ctx;

    bool quit, has_thread;
    pthread_t thread;
};

static uint64_t host_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static uint64_t now_locked(const struct chip_clock *c)
{
    if (c->kind == CHIP_CLOCK_VIRTUAL || !c->running)
        return c->base_ns;
    return c->base_ns + (host_now() - c->host_ns);
}

/*
 * Stop or go on. The count is odd before the host's time is read, so that no reader comes with a
 * later one. Stores release and loads acquire: a reader that saw one new value sees the odd count,
 * too, when it looks again. Lock held.
 */
static void set_running(struct chip_clock *c, bool running)
{
    uint32_t sequence = c->sequence;
    __atomic_store_n(&c->sequence, sequence + 1, __ATOMIC_SEQ_CST);
    uint64_t base_ns = now_locked(c), host_ns = host_now();
    __atomic_store_n(&c->base_ns, base_ns, __ATOMIC_RELEASE);
    __atomic_store_n(&c->host_ns, host_ns, __ATOMIC_RELEASE);
    __atomic_store_n(&c->running, running, __ATOMIC_RELEASE);
    __atomic_store_n(&c->sequence, sequence + 2, __ATOMIC_RELEASE);
}

/* --- the heap --- */

static void place(struct chip_clock *c, unsigned index, struct chip_timer *t)
{
    c->heap[index] = t;
    t->heap_index = index;
}

static void sift_up(struct chip_clock *c, unsigned i)
{
    struct chip_timer *t = c->heap[i];
    while (i > 0 && c->heap[(i - 1) / 2]->deadline_ns > t->deadline_ns) {
        place(c, i, c->heap[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    place(c, i, t);
}

static void sift_down(struct chip_clock *c, unsigned i)
{
    struct chip_timer *t = c->heap[i];
    for (;;) {
        unsigned child = 2 * i + 1;
        if (child >= c->count)
            break;
        if (child + 1 < c->count && c->heap[child + 1]->deadline_ns < c->heap[child]->deadline_ns)
            child++;
        if (c->heap[child]->deadline_ns >= t->deadline_ns)
            break;
        place(c, i, c->heap[child]);
        i = child;
    }
    place(c, i, t);
}

static void heap_remove(struct chip_clock *c, struct chip_timer *t)
{
    unsigned i = t->heap_index;
    if (i == NO_INDEX)
        return;
    struct chip_timer *last = c->heap[--c->count];
    t->heap_index = NO_INDEX;
    if (last == t)
        return;
    place(c, i, last);
    sift_up(c, i);
    sift_down(c, last->heap_index);
}

static uint64_t head_deadline(const struct chip_clock *c)
{
    return c->count > 0 ? c->heap[0]->deadline_ns : CHIP_NEVER;
}

/* --- firing --- */

/* Lock held; dropped while functions run. */
static void fire_due(struct chip_clock *c, uint64_t now)
{
    while (c->count > 0 && c->heap[0]->deadline_ns <= now) {
        struct chip_timer *t = c->heap[0];
        heap_remove(c, t);
        t->deadline_ns = CHIP_NEVER;
        c->firing = t;
        c->firing_thread = pthread_self();
        pthread_mutex_unlock(&c->lock);
        t->fire(t->ctx);
        pthread_mutex_lock(&c->lock);
        c->firing = NULL;
        pthread_cond_broadcast(&c->fired);
    }
}

static void sleep_until(struct chip_clock *c, uint64_t deadline)
{
    c->sleeping_until = deadline;
    if (deadline == CHIP_NEVER || !c->running) {
        pthread_cond_wait(&c->changed, &c->lock);
    } else {
        uint64_t host = c->host_ns + (deadline - c->base_ns);
        const struct timespec ts = {.tv_sec = (time_t)(host / NS_PER_S),
                                    .tv_nsec = (long)(host % NS_PER_S)};
        pthread_cond_timedwait(&c->changed, &c->lock, &ts);
    }
    c->sleeping_until = 0;
}

static void *clock_main(void *arg)
{
    struct chip_clock *c = arg;
    pthread_setname_np(pthread_self(), "clock");
    pthread_mutex_lock(&c->lock);
    while (!c->quit) {
        if (c->running)
            fire_due(c, now_locked(c));
        if (c->quit)
            break;
        uint64_t deadline = head_deadline(c);
        if (!c->running || deadline > now_locked(c))
            sleep_until(c, deadline);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

/* --- life --- */

int chip_clock_new(struct chip_clock **out, enum chip_clock_kind kind, struct err *err)
{
    struct chip_clock *c = calloc(1, sizeof(*c));
    pthread_condattr_t attr;
    if (!c)
        return err_errno(err, ENOMEM, "the machine's clock");
    c->kind = kind;
    pthread_mutex_init(&c->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&c->changed, &attr);
    pthread_cond_init(&c->fired, &attr);
    pthread_condattr_destroy(&attr);
    c->running = true;
    c->host_ns = host_now();
    if (kind == CHIP_CLOCK_HOST) {
        int code = pthread_create(&c->thread, NULL, clock_main, c);
        if (code != 0) {
            chip_clock_free(c);
            return err_errno(err, code, "start the thread of the machine's clock");
        }
        c->has_thread = true;
    }
    *out = c;
    return 0;
}

void chip_clock_free(struct chip_clock *c)
{
    if (!c)
        return;
    pthread_mutex_lock(&c->lock);
    c->quit = true;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    if (c->has_thread)
        pthread_join(c->thread, NULL);
    pthread_cond_destroy(&c->changed);
    pthread_cond_destroy(&c->fired);
    pthread_mutex_destroy(&c->lock);
    free(c->heap);
    free(c);
}

uint64_t chip_clock_now(struct chip_clock *c)
{
    if (c->kind == CHIP_CLOCK_VIRTUAL)
        return __atomic_load_n(&c->base_ns, __ATOMIC_ACQUIRE);
    for (;;) {
        uint32_t sequence = __atomic_load_n(&c->sequence, __ATOMIC_ACQUIRE);
        bool running = __atomic_load_n(&c->running, __ATOMIC_ACQUIRE);
        uint64_t now = __atomic_load_n(&c->base_ns, __ATOMIC_ACQUIRE);
        uint64_t since = __atomic_load_n(&c->host_ns, __ATOMIC_ACQUIRE);
        if (running) /* before the second look: what is paused does not go on */
            now += host_now() - since;
        if (!(sequence & 1) && __atomic_load_n(&c->sequence, __ATOMIC_ACQUIRE) == sequence)
            return now;
    }
}

bool chip_clock_is_virtual(const struct chip_clock *c)
{
    return c->kind == CHIP_CLOCK_VIRTUAL;
}

void chip_clock_pause(struct chip_clock *c)
{
    pthread_mutex_lock(&c->lock);
    set_running(c, false);
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

void chip_clock_resume(struct chip_clock *c)
{
    pthread_mutex_lock(&c->lock);
    if (!c->running)
        set_running(c, true);
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

/* --- timers --- */

void chip_timer_init(struct chip_timer *t, struct chip_clock *clock, void (*fire)(void *ctx),
                     void *ctx)
{
    *t = (struct chip_timer){.clock = clock,
                             .fire = fire,
                             .ctx = ctx,
                             .deadline_ns = CHIP_NEVER,
                             .heap_index = NO_INDEX};
}

static bool heap_room(struct chip_clock *c)
{
    if (c->count < c->size)
        return true;
    unsigned size = c->size ? 2 * c->size : 64;
    struct chip_timer **heap = realloc(c->heap, size * sizeof(struct chip_timer *));
    if (!heap)
        return false;
    c->heap = heap;
    c->size = size;
    return true;
}

void chip_timer_start(struct chip_timer *t, uint64_t deadline_ns)
{
    struct chip_clock *c = t->clock;
    pthread_mutex_lock(&c->lock);
    heap_remove(c, t);
    t->deadline_ns = deadline_ns;
    if (deadline_ns != CHIP_NEVER && heap_room(c)) {
        place(c, c->count++, t);
        sift_up(c, c->count - 1);
        if (c->sleeping_until > deadline_ns)
            pthread_cond_broadcast(&c->changed);
    }
    pthread_mutex_unlock(&c->lock);
}

void chip_timer_stop(struct chip_timer *t)
{
    struct chip_clock *c = t->clock;
    pthread_mutex_lock(&c->lock);
    heap_remove(c, t);
    t->deadline_ns = CHIP_NEVER;
    while (c->firing == t && !pthread_equal(c->firing_thread, pthread_self()))
        pthread_cond_wait(&c->fired, &c->lock);
    pthread_mutex_unlock(&c->lock);
}

/* --- virtual --- */

uint64_t chip_clock_advance(struct chip_clock *c, uint64_t now_ns)
{
    pthread_mutex_lock(&c->lock);
    if (now_ns > c->base_ns)
        __atomic_store_n(&c->base_ns, now_ns, __ATOMIC_RELEASE);
    fire_due(c, c->base_ns);
    uint64_t deadline = head_deadline(c);
    pthread_mutex_unlock(&c->lock);
    return deadline;
}

bool chip_clock_skip(struct chip_clock *c)
{
    pthread_mutex_lock(&c->lock);
    uint64_t deadline = head_deadline(c);
    if (deadline != CHIP_NEVER) {
        if (deadline > c->base_ns)
            __atomic_store_n(&c->base_ns, deadline, __ATOMIC_RELEASE);
        fire_due(c, c->base_ns);
    }
    pthread_mutex_unlock(&c->lock);
    return deadline != CHIP_NEVER;
}

void chip_clock_hold(struct chip_clock *c)
{
    __atomic_fetch_add(&c->holds, 1, __ATOMIC_SEQ_CST);
}

void chip_clock_release(struct chip_clock *c)
{
    if (__atomic_sub_fetch(&c->holds, 1, __ATOMIC_SEQ_CST) == 0 && c->released)
        c->released(c->released_ctx);
}

bool chip_clock_is_held(const struct chip_clock *c)
{
    return __atomic_load_n(&c->holds, __ATOMIC_SEQ_CST) > 0;
}

void chip_clock_on_release(struct chip_clock *c, void (*fn)(void *ctx), void *ctx)
{
    c->released = fn;
    c->released_ctx = ctx;
}
