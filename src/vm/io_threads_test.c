/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/io_threads.h"

#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/tap.h"

#define DEVICES (2 * IO_THREADS_MAX + 3)

static pthread_t thread_seen[DEVICES];
static char name_seen[16];

static void note_thread(void *arg)
{
    *(pthread_t *)arg = pthread_self();
    pthread_getname_np(pthread_self(), name_seen, sizeof(name_seen));
}

static void test_sharing(void)
{
    struct io_threads io = {0};
    struct err err = ERR_INIT;
    struct loop *loops[DEVICES] = {0};
    unsigned users[IO_THREADS_MAX] = {0};
    bool own = true, all = true, apart = true;

    for (unsigned i = 0; i < DEVICES; i++)
        all &= io_threads_take(&io, &loops[i], &err) == 0;
    ok(all, "a loop for each device");
    is_int(io.count, IO_THREADS_MAX, "no more threads than the limit");
    for (unsigned i = 0; i < IO_THREADS_MAX; i++) {
        for (unsigned j = 0; j < i; j++)
            own &= loops[i] != loops[j];
    }
    ok(own, "the first devices have their own");
    for (unsigned i = 0; i < DEVICES; i++) {
        for (unsigned j = 0; j < IO_THREADS_MAX; j++)
            users[j] += loops[i] == io.threads[j].loop;
    }
    for (unsigned j = 0; j < IO_THREADS_MAX; j++)
        apart &= users[j] == 2 || users[j] == 3;
    ok(apart, "the others share evenly");

    is_int(io_threads_start(&io, &err), 0, "started");
    for (unsigned i = 0; i < DEVICES; i++) {
        /* Until its thread has come to serve it, a loop calls on ours. */
        unsigned tries = 0;
        do {
            loop_call(loops[i], note_thread, &thread_seen[i]);
        } while (pthread_equal(thread_seen[i], pthread_self()) && tries++ < 5000 &&
                 usleep(1000) == 0);
    }
    bool served = true;
    for (unsigned i = 0; i < DEVICES; i++) {
        for (unsigned j = 0; j < IO_THREADS_MAX; j++) {
            if (loops[i] == io.threads[j].loop)
                served &= pthread_equal(thread_seen[i], io.threads[j].thread) != 0;
        }
    }
    ok(served, "each loop is served by its thread");
    ok(strncmp(name_seen, "io", 2) == 0, "which has a name");
    io_threads_stop(&io);
    io_threads_stop(&io);
    ok(!io.threads[0].started, "stopped, twice");
    /* The devices are freed between stop and fini, and may still call their loop. */
    loop_call(loops[0], note_thread, &thread_seen[0]);
    ok(pthread_equal(thread_seen[0], pthread_self()), "a stopped loop serves its caller");
    io_threads_fini(&io);
    is_int(io.count, 0, "gone");
}

static void test_none(void)
{
    struct io_threads io = {0};
    struct err err = ERR_INIT;
    struct loop *loop;

    is_int(io_threads_start(&io, &err), 0, "a machine without disks and cards");
    io_threads_fini(&io);
    io_threads_take(&io, &loop, &err);
    io_threads_fini(&io);
    is_int(io.count, 0, "ended before it started");
}

int main(void)
{
    test_sharing();
    test_none();
    return tap_done();
}
