/* SPDX-License-Identifier: Apache-2.0 */
/* Threads that share a job, wait for each other, and are in each other's way. */
#include "work.h"

#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MOST_THREADS = 4 };

static size_t share;
static uint64_t results[MOST_THREADS][8]; /* a cache line each */

/* All begin together: else the first may be done before the last is there. */
static pthread_barrier_t start;
static void *(*body)(void *);

static void *thread(void *result)
{
    pthread_barrier_wait(&start);
    return body(result);
}

static uint64_t threads(int count, void *(*run)(void *))
{
    pthread_t ids[MOST_THREADS];
    uint64_t sum = 0;
    body = run;
    pthread_barrier_init(&start, NULL, (unsigned)count + 1);
    for (int i = 0; i < count; i++)
        work_check(pthread_create(&ids[i], NULL, thread, results[i]) == 0, "pthread_create");
    work_begin();
    pthread_barrier_wait(&start);
    for (int i = 0; i < count; i++)
        pthread_join(ids[i], NULL);
    work_end();
    for (int i = 0; i < count; i++)
        sum = sum * 31 + results[i][0];
    return sum;
}

/* --- a job in two parts that do not meet --- */

static void *job(void *result)
{
    uint32_t table[1024];
    uint64_t state = 1, sum = 0;
    for (int i = 0; i < 1024; i++)
        table[i] = work_random(&state);
    for (size_t i = 0; i < share; i++) {
        uint32_t r = work_random(&state);
        sum += table[r % 1024] ^ r;
        table[r >> 22] += (uint32_t)sum;
        if (sum & 8)
            sum = sum << 3 | sum >> 61;
    }
    *(uint64_t *)result = sum;
    return NULL;
}

static uint64_t run_job_1(size_t ops)
{
    share = ops / 2;
    work_on_one_cpu();
    return threads(2, job);
}

static uint64_t run_job_2(size_t ops)
{
    share = ops / 2;
    return threads(2, job);
}

/* --- two threads that wake each other --- */

static _Atomic uint32_t turn;

static void *wait_and_wake(void *result)
{
    uint32_t mine = result == results[1];
    for (size_t i = 0; i < share; i++) {
        while (atomic_load(&turn) != mine)
            syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, !mine, NULL, NULL, 0);
        atomic_store(&turn, !mine);
        syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
    *(uint64_t *)result = share;
    return NULL;
}

static uint64_t run_futex(size_t ops)
{
    share = ops;
    return threads(2, wait_and_wake);
}

/* --- four threads and one lock --- */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_spinlock_t spinlock;
static uint64_t counter;

static void *count_by_mutex(void *result)
{
    for (size_t i = 0; i < share; i++) {
        pthread_mutex_lock(&mutex);
        counter++;
        pthread_mutex_unlock(&mutex);
    }
    *(uint64_t *)result = share;
    return NULL;
}

static void *count_by_spinlock(void *result)
{
    for (size_t i = 0; i < share; i++) {
        pthread_spin_lock(&spinlock);
        counter++;
        pthread_spin_unlock(&spinlock);
    }
    *(uint64_t *)result = share;
    return NULL;
}

static uint64_t run_mutex(size_t ops)
{
    share = ops / 4;
    return threads(4, count_by_mutex) + counter;
}

static uint64_t run_spinlock(size_t ops)
{
    share = ops / 4;
    pthread_spin_init(&spinlock, PTHREAD_PROCESS_PRIVATE);
    return threads(4, count_by_spinlock) + counter;
}

static const struct work works[] = {
    {"job-1",    run_job_1,    1000000000},
    {"job-2",    run_job_2,    1000000000},
    {"futex",    run_futex,    100000    },
    {"mutex",    run_mutex,    4000000   },
    {"spinlock", run_spinlock, 4000000   },
};

WORK_MAIN(works)
