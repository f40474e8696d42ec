/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The I/O loops of one VM: each a thread that serves the disks or network cards that make it their
 * home. Called by the thread that builds the VM.
 */
#ifndef HULL_VM_IO_THREADS_H
#define HULL_VM_IO_THREADS_H

#include <pthread.h>

#include "base/loop.h"

#define IO_THREADS_MAX 8

struct io_thread {
    struct loop *loop;
    pthread_t thread;
    bool started;
};

struct io_threads {
    struct io_thread threads[IO_THREADS_MAX];
    unsigned count;
    unsigned next; /* whose loop the next device shares, once there are IO_THREADS_MAX */
};

/* A loop for one more device: its own while there are few, shared beyond IO_THREADS_MAX. */
int io_threads_take(struct io_threads *io, struct loop **loop, struct err *err);

/* Start and join the threads. Between the two the loops run. */
int io_threads_start(struct io_threads *io, struct err *err);
void io_threads_stop(struct io_threads *io);
void io_threads_fini(struct io_threads *io);

#endif
