/* SPDX-License-Identifier: Apache-2.0 */
#include "base/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"

/* What most tests need: a loop, one registration and a count of what it saw. */
struct fixture {
    struct loop *loop;
    struct loop_fd lfd, other;
    struct loop_event event;
    struct loop_timer timer, guard;
    struct loop_task task;
    int count;
    int stop_at; /* calls after which to stop */
    short revents;
    int pipe[2];
    bool timed_out;
};

static struct fixture *the; /* of the test that runs */
static unsigned loop_flags;

static void guard_fired(struct loop_timer *self)
{
    (void)self;
    the->timed_out = true;
    loop_stop(the->loop);
}

static void setup(struct fixture *f)
{
    struct err err = ERR_INIT;

    memset(f, 0, sizeof(*f));
    the = f;
    if (loop_new(&f->loop, loop_flags, &err) < 0)
        printf("Bail out! %s\n", err.text);
    if (pipe2(f->pipe, O_CLOEXEC | O_NONBLOCK) < 0)
        perror("pipe2");
    loop_timer_init(&f->guard, guard_fired);
    f->stop_at = 1;
}

static void teardown(struct fixture *f)
{
    loop_free(f->loop);
    close(f->pipe[0]);
    close(f->pipe[1]);
}

/* Run until somebody stops the loop, at most ms; false when time ran out. */
static bool run_ms(struct fixture *f, unsigned ms)
{
    f->timed_out = false;
    loop_timer_arm(f->loop, &f->guard, clock_now_ns() + ms * NS_PER_MS);
    loop_run(f->loop);
    loop_timer_cancel(f->loop, &f->guard);
    return !f->timed_out;
}

static void put(int fd)
{
    if (write(fd, "x", 1) != 1)
        perror("write");
}

static void fire(int fd)
{
    const uint64_t one = 1;
    if (write(fd, &one, sizeof(one)) != sizeof(one))
        perror("write");
}

static void count_fd(struct loop_fd *self, short revents)
{
    (void)self;
    the->revents = revents;
    if (++the->count == the->stop_at)
        loop_stop(the->loop);
}

/* --- descriptors --- */

static void test_fd_level(void)
{
    struct fixture f;

    setup(&f);
    f.lfd = (struct loop_fd){.fd = f.pipe[0], .events = POLLIN, .fn = count_fd};
    is_int(loop_fd_add(f.loop, &f.lfd), 0, "a pipe is registered");
    ok(!run_ms(&f, 20), "nothing comes from an empty pipe");
    is_int(f.count, 0, "fn was not called");
    put(f.pipe[1]);
    f.stop_at = 5;
    ok(run_ms(&f, 2000), "unread input calls fn again and again");
    is_int(f.revents, POLLIN, "with POLLIN");
    char c;
    is_int(read(f.pipe[0], &c, 1), 1, "once it is read");
    f.count = 0;
    f.stop_at = 1;
    /* A poll that completed before the read may be under way: at most one call out of date. */
    run_ms(&f, 20);
    f.count = 0;
    ok(!run_ms(&f, 20) && f.count == 0, "it is silent again");
    close(f.pipe[1]);
    f.pipe[1] = -1;
    ok(run_ms(&f, 2000) && (f.revents & POLLHUP), "a hang-up is reported");
    is_int(loop_fd_modify(f.loop, &f.lfd, 0), 0, "events 0");
    run_ms(&f, 10);
    f.count = 0;
    ok(!run_ms(&f, 20) && f.count == 0, "silence even a hang-up");
    is_int(loop_fd_modify(f.loop, &f.lfd, POLLIN), 0, "and with events again");
    ok(run_ms(&f, 2000), "it is back");
    loop_fd_del(f.loop, &f.lfd);
    f.count = 0;
    ok(!run_ms(&f, 20) && f.count == 0, "after del it is silent");
    loop_fd_del(f.loop, &f.lfd);
    ok(f.lfd.priv == NULL, "deleting twice does nothing");
    teardown(&f);
}

static void test_fd_errors(void)
{
    struct fixture f;

    setup(&f);
    f.lfd = (struct loop_fd){.fd = 9999, .events = POLLIN, .fn = count_fd};
    is_int(loop_fd_add(f.loop, &f.lfd), -EBADF, "a descriptor that is not open is refused");
    is_int(loop_fd_modify(f.loop, &f.lfd, POLLOUT), -EINVAL, "and cannot be modified");
    teardown(&f);
}

static void test_fd_modify_armed(void)
{
    struct fixture f;
    int sv[2];

    setup(&f);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sv) < 0)
        perror("socketpair");
    f.lfd = (struct loop_fd){.fd = sv[0], .events = POLLIN, .fn = count_fd};
    loop_fd_add(f.loop, &f.lfd);
    ok(!run_ms(&f, 10), "waiting for input");
    loop_fd_modify(f.loop, &f.lfd, POLLIN | POLLOUT);
    ok(run_ms(&f, 2000), "modify reaches a request that is with the kernel");
    is_int(f.revents, POLLOUT, "and reports what was asked for");
    loop_fd_modify(f.loop, &f.lfd, POLLIN);
    run_ms(&f, 10);
    f.count = 0;
    ok(!run_ms(&f, 20) && f.count == 0, "and takes it back");
    put(sv[1]);
    ok(run_ms(&f, 2000) && f.revents == POLLIN, "input still arrives");
    char c;
    is_int(read(sv[0], &c, 1), 1, "and is read");
    loop_fd_del(f.loop, &f.lfd);
    close(sv[0]);
    run_ms(&f, 5);
    is_int(read(sv[1], &c, 1), 0, "del lets go of the file: the peer sees the end");
    close(sv[1]);
    teardown(&f);
}

static void test_fd_close_after_run(void)
{
    struct fixture f;
    char c;

    setup(&f);
    f.lfd = (struct loop_fd){.fd = f.pipe[1], .events = POLLIN, .fn = count_fd};
    loop_fd_add(f.loop, &f.lfd);
    run_ms(&f, 5);
    loop_fd_del(f.loop, &f.lfd);
    close(f.pipe[1]);
    f.pipe[1] = -1;
    /* The reference of a cancelled poll is dropped by the time the loop runs again. */
    run_ms(&f, 5);
    is_int(read(f.pipe[0], &c, 1), 0, "del between two runs lets go of the file");
    teardown(&f);
}

/* Both are ready in one batch; whoever comes first deletes the other. */
static void del_both(struct loop_fd *self, short revents)
{
    (void)self;
    (void)revents;
    the->count++;
    loop_fd_del(the->loop, &the->lfd);
    loop_fd_del(the->loop, &the->other);
}

static void test_fd_del_in_batch(void)
{
    struct fixture f;

    setup(&f);
    put(f.pipe[1]);
    f.lfd = (struct loop_fd){.fd = f.pipe[0], .events = POLLIN, .fn = del_both};
    f.other = (struct loop_fd){.fd = f.pipe[1], .events = POLLOUT, .fn = del_both};
    loop_fd_add(f.loop, &f.lfd);
    loop_fd_add(f.loop, &f.other);
    run_ms(&f, 20);
    is_int(f.count, 1, "no callback after del, also when its event was already there");
    teardown(&f);
}

static void silence_other(struct loop_fd *self, short revents)
{
    (void)revents;
    the->count++;
    loop_fd_modify(the->loop, self == &the->lfd ? &the->other : &the->lfd, 0);
    loop_fd_modify(the->loop, self, 0);
}

static void test_fd_modify_in_batch(void)
{
    struct fixture f;

    setup(&f);
    put(f.pipe[1]);
    f.lfd = (struct loop_fd){.fd = f.pipe[0], .events = POLLIN, .fn = silence_other};
    f.other = (struct loop_fd){.fd = f.pipe[1], .events = POLLOUT, .fn = silence_other};
    loop_fd_add(f.loop, &f.lfd);
    loop_fd_add(f.loop, &f.other);
    run_ms(&f, 20);
    is_int(f.count, 1, "events 0 silences an event that was already there");
    teardown(&f);
}

/* Delete and add again inside the callback, with a new registration in the same memory. */
static void readd(struct loop_fd *self, short revents)
{
    (void)revents;
    loop_fd_del(the->loop, self);
    if (++the->count == 100) {
        loop_stop(the->loop);
        return;
    }
    if (loop_fd_add(the->loop, self) < 0)
        printf("# add failed\n");
}

static void test_fd_readd(void)
{
    struct fixture f;

    setup(&f);
    put(f.pipe[1]);
    f.lfd = (struct loop_fd){.fd = f.pipe[0], .events = POLLIN, .fn = readd};
    loop_fd_add(f.loop, &f.lfd);
    ok(run_ms(&f, 5000), "a callback may delete and add itself");
    teardown(&f);
}

static void test_fd_twice(void)
{
    struct fixture f;

    setup(&f);
    f.lfd = (struct loop_fd){.fd = f.pipe[0], .events = POLLIN, .fn = count_fd};
    f.other = (struct loop_fd){.fd = f.pipe[0], .events = POLLIN, .fn = count_fd};
    loop_fd_add(f.loop, &f.lfd);
    is_int(loop_fd_add(f.loop, &f.other), 0, "one descriptor, two registrations");
    loop_fd_del(f.loop, &f.lfd);
    put(f.pipe[1]);
    ok(run_ms(&f, 2000), "the second works without the first");
    teardown(&f);
}

static void test_fd_unpollable(void)
{
    static const char *const paths[] = {"/dev/null", "/proc/self/exe"};

    for (size_t i = 0; i < ARRAY_LEN(paths); i++) {
        struct fixture f;
        setup(&f);
        int fd = open(paths[i], O_RDONLY | O_CLOEXEC);
        f.lfd = (struct loop_fd){.fd = fd, .events = POLLIN, .fn = count_fd};
        is_int(loop_fd_add(f.loop, &f.lfd), 0, paths[i]);
        f.stop_at = 3;
        ok(run_ms(&f, 2000) && f.revents == POLLIN, "is always ready, as with poll(2)");
        loop_fd_modify(f.loop, &f.lfd, 0);
        f.count = 0;
        ok(!run_ms(&f, 10) && f.count == 0, "and silent when told so");
        loop_fd_modify(f.loop, &f.lfd, POLLIN);
        f.other = (struct loop_fd){.fd = fd, .events = POLLIN, .fn = del_both};
        loop_fd_add(f.loop, &f.other);
        run_ms(&f, 10);
        f.count = 0;
        run_ms(&f, 10);
        is_int(f.count, 0, "and may be deleted by a neighbour");
        close(fd);
        teardown(&f);
    }
}

/* More registrations than any queue has entries. */
static void test_fd_many(void)
{
    enum { MANY = 700 };
    static struct loop_fd many[MANY];
    struct fixture f;
    struct rlimit limit;
    int added = 0;

    setup(&f);
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    for (int i = 0; i < MANY; i++) {
        int fd = fcntl(f.pipe[0], F_DUPFD_CLOEXEC, 0);
        many[i] = (struct loop_fd){.fd = fd, .events = POLLIN, .fn = count_fd};
        added += loop_fd_add(f.loop, &many[i]) == 0;
    }
    is_int(added, MANY, "many descriptors are registered");
    ok(!run_ms(&f, 20), "and wait");
    put(f.pipe[1]);
    f.stop_at = 3 * MANY;
    ok(run_ms(&f, 5000), "and all fire, repeatedly");
    for (int i = 0; i < MANY; i += 2) {
        loop_fd_del(f.loop, &many[i]);
        close(many[i].fd);
    }
    f.count = 0;
    ok(run_ms(&f, 5000), "the half that is left goes on");
    for (int i = 1; i < MANY; i += 2)
        close(many[i].fd);
    teardown(&f);
}

/* --- eventfds --- */

static void count_event(struct loop_event *self)
{
    (void)self;
    if (++the->count == the->stop_at)
        loop_stop(the->loop);
}

static void test_event(int eventfd_flags, const char *what)
{
    struct fixture f;
    int fd = eventfd(0, eventfd_flags);

    setup(&f);
    printf("# %s\n", what);
    f.event = (struct loop_event){.fd = fd, .fn = count_event};
    fire(fd);
    fire(fd);
    is_int(loop_event_add(f.loop, &f.event), 0, "an eventfd is registered");
    ok(run_ms(&f, 2000), "what was written before counts");
    ok(!run_ms(&f, 20) && f.count == 1, "once");
    for (int i = 0; i < 3; i++) {
        fire(fd);
        f.count = 0;
        ok(run_ms(&f, 2000) && f.count == 1, "each later firing calls fn once");
    }
    loop_event_del(f.loop, &f.event);
    fire(fd);
    f.count = 0;
    ok(!run_ms(&f, 20) && f.count == 0, "after del it is silent");
    loop_event_add(f.loop, &f.event);
    ok(run_ms(&f, 2000), "a firing that nobody took is there after a new add");
    close(fd);
    teardown(&f);
}

static void test_event_freed_while_armed(void)
{
    for (int i = 0; i < 50; i++) {
        struct fixture f;
        int fd = eventfd(0, EFD_CLOEXEC);
        setup(&f);
        struct loop_event *event = malloc(sizeof(*event));
        *event = (struct loop_event){.fd = fd, .fn = count_event};
        loop_event_add(f.loop, event);
        run_ms(&f, 1);
        loop_event_del(f.loop, event);
        free(event);
        fire(fd);
        teardown(&f);
        close(fd);
    }
    ok(true, "an event is deleted, freed and fired while its request is with the kernel");
}

/* --- timers --- */

enum { TIMERS = 500 };

struct ordered_timer {
    struct loop_timer timer;
    uint64_t wanted;
};

static struct ordered_timer ordered[TIMERS];
static uint64_t order_last;
static int order_fired, order_wrong, order_early, order_want;

static void ordered_fired(struct loop_timer *self)
{
    struct ordered_timer *o = CONTAINER_OF(self, struct ordered_timer, timer);
    order_wrong += o->wanted < order_last;
    order_early += clock_now_ns() < o->wanted;
    order_wrong += self->deadline_ns != UINT64_MAX;
    order_last = o->wanted;
    if (++order_fired == order_want)
        loop_stop(the->loop);
}

static void test_timer_order(void)
{
    struct fixture f;
    unsigned seed = 7;

    setup(&f);
    order_last = order_fired = order_wrong = order_early = 0;
    order_want = 0;
    uint64_t now = clock_now_ns();
    for (int i = 0; i < TIMERS; i++) {
        loop_timer_init(&ordered[i].timer, ordered_fired);
        loop_timer_arm(f.loop, &ordered[i].timer, now + rand_r(&seed) % 20 * NS_PER_MS);
    }
    /* Every third is re-armed, every fifth is cancelled. */
    for (int i = 0; i < TIMERS; i++) {
        ordered[i].wanted = now + rand_r(&seed) % (20 * NS_PER_MS);
        if (i % 5 == 0)
            loop_timer_cancel(f.loop, &ordered[i].timer);
        else if (i % 3 == 0)
            loop_timer_arm(f.loop, &ordered[i].timer, ordered[i].wanted);
        else
            ordered[i].wanted = ordered[i].timer.deadline_ns;
        order_want += i % 5 != 0;
    }
    loop_timer_cancel(f.loop, &ordered[0].timer);
    ok(run_ms(&f, 5000), "many timers fire");
    is_int(order_fired, order_want, "those that were not cancelled");
    is_int(order_wrong, 0, "in order of their deadlines, disarmed when fn runs");
    is_int(order_early, 0, "never early");
    teardown(&f);
}

static void timer_again(struct loop_timer *self)
{
    if (++the->count == the->stop_at)
        loop_stop(the->loop);
    else
        loop_timer_arm(the->loop, self, 0);
}

static void count_task(struct loop_task *self)
{
    (void)self;
    loop_stop(the->loop);
}

static void test_timer_past(void)
{
    struct fixture f;

    setup(&f);
    loop_timer_init(&f.timer, timer_again);
    loop_timer_arm(f.loop, &f.timer, 0);
    f.stop_at = 10;
    ok(run_ms(&f, 2000), "a timer may re-arm itself for the past");
    f.count = 0;
    f.stop_at = 1 << 30;
    f.task.fn = count_task;
    loop_timer_arm(f.loop, &f.timer, 0);
    loop_post(f.loop, &f.task);
    ok(run_ms(&f, 2000), "and does not starve others");
    loop_timer_arm(f.loop, &f.timer, UINT64_MAX);
    f.count = 0;
    ok(!run_ms(&f, 10) && f.count == 0, "armed for never is disarmed");
    teardown(&f);
}

/* --- threads --- */

enum { POSTERS = 3, POSTS = 2000 };

static struct loop_task *posted[POSTERS];
static int posted_count, posted_last[POSTERS], posted_wrong;

static void posted_fn(struct loop_task *self)
{
    for (int i = 0; i < POSTERS; i++) {
        if (self < posted[i] || self >= posted[i] + POSTS)
            continue;
        posted_wrong += self - posted[i] != posted_last[i];
        posted_last[i]++;
    }
    posted_wrong += !loop_is_current(the->loop);
    if (++posted_count == POSTERS * POSTS)
        loop_stop(the->loop);
}

static void *poster(void *arg)
{
    struct loop_task *tasks = arg;
    for (int i = 0; i < POSTS; i++) {
        tasks[i].fn = posted_fn;
        loop_post(the->loop, &tasks[i]);
        if (i % 64 == 0)
            usleep(50);
    }
    return NULL;
}

static void test_post(void)
{
    struct fixture f;
    pthread_t threads[POSTERS];

    setup(&f);
    posted_count = posted_wrong = 0;
    ok(!loop_is_current(f.loop), "nobody is inside a loop that does not run");
    for (int i = 0; i < POSTERS; i++) {
        posted_last[i] = 0;
        posted[i] = calloc(POSTS, sizeof(struct loop_task));
    }
    for (int i = 0; i < POSTERS; i++)
        pthread_create(&threads[i], NULL, poster, posted[i]);
    loop_run(f.loop);
    for (int i = 0; i < POSTERS; i++)
        pthread_join(threads[i], NULL);
    is_int(posted_count, POSTERS * POSTS, "every task of several threads runs, no wake-up is lost");
    is_int(posted_wrong, 0, "in each thread's order, on the loop's thread");
    for (int i = 0; i < POSTERS; i++)
        free(posted[i]);
    f.task.fn = count_task;
    loop_post(f.loop, &f.task);
    loop_post(f.loop, &f.task);
    ok(run_ms(&f, 1000) && !f.task.queued, "a task posted twice runs once");
    ok(!run_ms(&f, 10), "and not again");
    teardown(&f);
}

static void *runner(void *arg)
{
    loop_run(arg);
    return NULL;
}

static void add_one(void *arg)
{
    int *n = arg;
    ++*n;
}

static void call_nested(void *arg)
{
    loop_call(the->loop, add_one, arg);
}

static void *caller(void *arg)
{
    for (int i = 0; i < 300; i++)
        loop_call(the->loop, i & 1 ? add_one : call_nested, arg);
    return NULL;
}

static void test_call(void)
{
    struct fixture f;
    pthread_t thread, callers[POSTERS];
    int n = 0;

    setup(&f);
    loop_call(f.loop, call_nested, &n);
    is_int(n, 1, "a call while the loop does not run is made at once");
    for (int i = 0; i < POSTERS; i++)
        pthread_create(&callers[i], NULL, caller, &n);
    /* The loop comes and goes meanwhile. */
    for (int i = 0; i < 10; i++) {
        pthread_create(&thread, NULL, runner, f.loop);
        usleep(500);
        loop_stop(f.loop);
        pthread_join(thread, NULL);
    }
    for (int i = 0; i < POSTERS; i++)
        pthread_join(callers[i], NULL);
    is_int(n, 1 + POSTERS * 300,
           "calls from several threads, loop running or not, exclude another");
    teardown(&f);
}

static void *arm_early(void *arg)
{
    struct fixture *f = arg;
    usleep(10000);
    loop_timer_arm(f->loop, &f->timer, clock_now_ns() + NS_PER_MS);
    return NULL;
}

static void timer_stop(struct loop_timer *self)
{
    (void)self;
    the->count++;
    loop_stop(the->loop);
}

static void test_timer_thread(void)
{
    struct fixture f;
    pthread_t thread;

    setup(&f);
    loop_timer_init(&f.timer, timer_stop);
    uint64_t start = clock_now_ns();
    pthread_create(&thread, NULL, arm_early, &f);
    ok(run_ms(&f, 3000), "a timer armed by another thread wakes a loop that sleeps longer");
    pthread_join(thread, NULL);
    ok(clock_now_ns() - start < NS_PER_SEC, "in time");
    teardown(&f);
}

static void test_stop(void)
{
    struct fixture f;
    pthread_t thread;

    setup(&f);
    loop_stop(f.loop);
    ok(run_ms(&f, 1000), "a stop before the run ends it");
    ok(!run_ms(&f, 5), "but only that one");
    for (int i = 0; i < 100; i++) {
        pthread_create(&thread, NULL, runner, f.loop);
        if (i & 1)
            usleep(100);
        loop_stop(f.loop);
        pthread_join(thread, NULL);
    }
    ok(true, "threads that run the loop one after the other are stopped");
    f.lfd = (struct loop_fd){.fd = f.pipe[0], .events = POLLIN, .fn = count_fd};
    loop_fd_add(f.loop, &f.lfd);
    pthread_create(&thread, NULL, runner, f.loop);
    put(f.pipe[1]);
    pthread_join(thread, NULL);
    is_int(f.count, 1, "descriptors move with the loop to another thread");
    teardown(&f);
}

static void on_signal(int sig)
{
    (void)sig;
}

static void *signaller(void *arg)
{
    pthread_t *target = arg;
    for (int i = 0; i < 50; i++) {
        pthread_kill(*target, SIGUSR1);
        usleep(200);
    }
    loop_stop(the->loop);
    return NULL;
}

static void test_signals(void)
{
    struct fixture f;
    struct sigaction action = {.sa_handler = on_signal};
    pthread_t thread, self = pthread_self();

    setup(&f);
    sigaction(SIGUSR1, &action, NULL);
    pthread_create(&thread, NULL, signaller, &self);
    ok(run_ms(&f, 5000), "signals do not disturb the loop");
    pthread_join(thread, NULL);
    teardown(&f);
}

/* An idle loop must sleep: processor time while nothing happens. */
static void test_idle(void)
{
    struct fixture f;
    struct timespec a, b;

    setup(&f);
    f.lfd = (struct loop_fd){.fd = f.pipe[0], .events = POLLIN, .fn = count_fd};
    loop_fd_add(f.loop, &f.lfd);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
    run_ms(&f, 200);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
    int64_t ns = (b.tv_sec - a.tv_sec) * 1000000000 + (b.tv_nsec - a.tv_nsec);
    ok(ns < 50 * (int64_t)NS_PER_MS, "an idle loop sleeps");
    teardown(&f);
}

/* --- io_uring operations --- */

enum { OPS = 600 };

struct read_op {
    struct loop_op op;
    char buf[16];
    int res;
};

static struct read_op ops[OPS];
static int ops_done, ops_failed;

static void op_done(struct loop_op *self, int res)
{
    struct read_op *r = CONTAINER_OF(self, struct read_op, op);
    r->res = res;
    ops_failed += res != 4 || memcmp(r->buf, "\177ELF", 4) != 0;
    if (++ops_done == OPS)
        loop_stop(the->loop);
}

static void ops_queue(int fd)
{
    ops_done = ops_failed = 0;
    for (int i = 0; i < OPS; i++) {
        ops[i] = (struct read_op){.op.done = op_done};
        struct io_uring_sqe *sqe = loop_sqe(the->loop, &ops[i].op);
        io_uring_prep_read(sqe, fd, ops[i].buf, 4, 0);
    }
}

static int ops_fd;

static void ops_task(struct loop_task *self)
{
    (void)self;
    ops_queue(ops_fd);
}

static void test_ops(void)
{
    struct fixture f;
    pthread_t thread;

    setup(&f);
    if (!loop_has_uring(f.loop)) {
        ok(loop_sqe(f.loop, &ops[0].op) == NULL, "no io_uring, no entries");
        teardown(&f);
        return;
    }
    ops_fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    ops_queue(ops_fd);
    is_int(loop_ops_pending(f.loop), OPS,
           "more operations than the queue has room for, before run");
    ok(run_ms(&f, 5000), "all complete");
    is_int(ops_failed, 0, "with what they asked for");
    is_int(loop_ops_pending(f.loop), 0, "none is left");
    f.task.fn = ops_task;
    loop_post(f.loop, &f.task);
    ok(run_ms(&f, 5000) && ops_failed == 0, "the same from inside the loop");
    ops_queue(ops_fd);
    ok(run_ms(&f, 5000) && ops_failed == 0, "the same between two runs");
    loop_post(f.loop, &f.task);
    pthread_create(&thread, NULL, runner, f.loop);
    pthread_join(thread, NULL);
    ok(ops_done == OPS && ops_failed == 0, "the same on another thread");
    close(ops_fd);
    teardown(&f);
}

static void signal_unheard(struct loop_timer *self)
{
    (void)self;
    raise(SIGUSR2);
    loop_fd_modify(the->loop, &the->lfd, 0);
}

/* A signalfd's waiters are woken by every signal of the process, also by one that it does not
 * read: its poll must be gone all the same when it is cancelled in that moment. */
static void test_delete_while_woken(void)
{
    struct fixture f;
    sigset_t set, other, old;

    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigemptyset(&other);
    sigaddset(&other, SIGUSR1);
    sigaddset(&other, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &other, &old);
    setup(&f);
    f.lfd =
        (struct loop_fd){.fd = signalfd(-1, &set, SFD_CLOEXEC), .events = POLLIN, .fn = count_fd};
    loop_fd_add(f.loop, &f.lfd);
    run_ms(&f, 10);
    loop_timer_init(&f.timer, signal_unheard);
    loop_timer_arm(f.loop, &f.timer, clock_now_ns() + NS_PER_MS);
    run_ms(&f, 20);
    loop_fd_modify(f.loop, &f.lfd, POLLIN);
    raise(SIGUSR1);
    ok(run_ms(&f, 1000), "silenced while it was woken, a descriptor can be heard again");
    raise(SIGUSR2);
    loop_fd_del(f.loop, &f.lfd);
    uint64_t before = clock_now_ns();
    teardown(&f);
    ok(clock_now_ns() - before < 500 * NS_PER_MS, "deleted while it is woken, it is gone");
    close(f.lfd.fd);
    signal(SIGUSR1, SIG_IGN); /* drops what is pending */
    signal(SIGUSR2, SIG_IGN);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    signal(SIGUSR1, SIG_DFL);
    signal(SIGUSR2, SIG_DFL);
}

static void test_both(void)
{
    test_fd_level();
    test_fd_errors();
    test_fd_modify_armed();
    test_fd_close_after_run();
    test_fd_del_in_batch();
    test_fd_modify_in_batch();
    test_fd_readd();
    test_fd_twice();
    test_fd_unpollable();
    test_fd_many();
    test_event(EFD_CLOEXEC, "a blocking eventfd");
    test_event(EFD_CLOEXEC | EFD_NONBLOCK, "a non-blocking eventfd");
    test_event_freed_while_armed();
    test_timer_order();
    test_timer_past();
    test_post();
    test_call();
    test_timer_thread();
    test_stop();
    test_signals();
    test_idle();
    test_ops();
    test_delete_while_woken();
}

int main(void)
{
    struct loop *loop;

    if (loop_new(&loop, 0, NULL) < 0)
        return 1;
    if (loop_has_uring(loop)) {
        printf("# io_uring\n");
        test_both();
    } else {
        tap_skip("the loop on io_uring", "this host has none");
    }
    loop_free(loop);
    printf("# epoll\n");
    loop_flags = LOOP_NO_URING;
    test_both();
    return tap_done();
}
