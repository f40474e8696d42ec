/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/io_threads.h"

#include <pthread.h>
#include <stdio.h>

#include "base/err.h"
#include "base/units.h"

#define IO_STACK_BYTES (256 * KIB)

int io_threads_take(struct io_threads *io, struct loop **loop, struct err *err)
{
    if (io->count < IO_THREADS_MAX) {
        int ret = loop_new(&io->threads[io->count].loop, 0, err);
        if (ret != 0)
            return ret;
        io->count++;
        *loop = io->threads[io->count - 1].loop;
        return 0;
    }
    *loop = io->threads[io->next++ % IO_THREADS_MAX].loop;
    return 0;
}

static void *io_main(void *arg)
{
    loop_run(arg);
    return NULL;
}

int io_threads_start(struct io_threads *io, struct err *err)
{
    pthread_attr_t attr;
    char name[16];
    int code = 0;

    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, IO_STACK_BYTES);
    for (unsigned i = 0; i < io->count && code == 0; i++) {
        struct io_thread *thread = &io->threads[i];
        code = pthread_create(&thread->thread, &attr, io_main, thread->loop);
        thread->started = code == 0;
        snprintf(name, sizeof(name), "io%u", i);
        if (thread->started)
            pthread_setname_np(thread->thread, name);
    }
    pthread_attr_destroy(&attr);
    return code ? err_errno(err, code, "cannot create an I/O thread") : 0;
}

void io_threads_stop(struct io_threads *io)
{
    for (unsigned i = 0; i < io->count; i++) {
        struct io_thread *thread = &io->threads[i];
        if (!thread->started)
            continue;
        loop_stop(thread->loop);
        pthread_join(thread->thread, NULL);
        thread->started = false;
    }
}

void io_threads_fini(struct io_threads *io)
{
    io_threads_stop(io);
    for (unsigned i = 0; i < io->count; i++)
        loop_free(io->threads[i].loop);
    io->count = 0;
}
