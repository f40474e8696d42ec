/* SPDX-License-Identifier: Apache-2.0 */
#include "block/pool.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/units.h"

struct block_pool {
    struct loop *loop;
    int (*run)(struct block_pool_item *item);
    void (*finished)(struct block_pool_item *item);
    struct loop_task task;

    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct block_pool_item *todo_head, **todo_tail;
    struct block_pool_item *done_head, **done_tail;
    /* The task was posted and has not taken the done list since. Without it a thread could post a
     * task whose items an earlier one already took, and which would outlive the pool. */
    bool posted;
    bool stop;

    unsigned thread_count;
    pthread_t threads[];
};

static void block_pool_finish(struct loop_task *task)
{
    struct block_pool *pool = CONTAINER_OF(task, struct block_pool, task);
    void (*finished)(struct block_pool_item * item) = pool->finished;

    pthread_mutex_lock(&pool->lock);
    struct block_pool_item *item = pool->done_head;
    pool->done_head = NULL;
    pool->done_tail = &pool->done_head;
    pool->posted = false;
    pthread_mutex_unlock(&pool->lock);

    while (item) {
        struct block_pool_item *next = item->next;
        finished(item); /* the last one may free the pool */
        item = next;
    }
}

static void *block_pool_thread(void *arg)
{
    struct block_pool *pool = arg;
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        struct block_pool_item *item = pool->todo_head;
        if (!item) {
            if (pool->stop)
                break;
            pthread_cond_wait(&pool->wake, &pool->lock);
            continue;
        }
        pool->todo_head = item->next;
        if (!pool->todo_head)
            pool->todo_tail = &pool->todo_head;
        pthread_mutex_unlock(&pool->lock);

        item->res = pool->run(item);

        pthread_mutex_lock(&pool->lock);
        item->next = NULL;
        *pool->done_tail = item;
        pool->done_tail = &item->next;
        if (!pool->posted) {
            pool->posted = true;
            loop_post(pool->loop, &pool->task);
        }
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

int block_pool_new(struct block_pool **out, struct loop *loop, unsigned threads,
                   int (*run)(struct block_pool_item *item),
                   void (*finished)(struct block_pool_item *item), struct err *err)
{
    struct block_pool *pool = calloc(1, sizeof(*pool) + threads * sizeof(pool->threads[0]));
    if (!pool)
        return err_errno(err, ENOMEM, "disk threads");
    pool->loop = loop;
    pool->run = run;
    pool->finished = finished;
    pool->task.fn = block_pool_finish;
    pool->todo_tail = &pool->todo_head;
    pool->done_tail = &pool->done_head;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);

    /* Signals are the main loop's. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = 0;
    while (rc == 0 && pool->thread_count < threads) {
        rc = pthread_create(&pool->threads[pool->thread_count], NULL, block_pool_thread, pool);
        if (rc == 0)
            pthread_setname_np(pool->threads[pool->thread_count++], "hull-disk");
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc) {
        block_pool_free(pool);
        return err_errno(err, rc, "cannot start a disk thread");
    }
    *out = pool;
    return 0;
}

void block_pool_free(struct block_pool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->thread_count; i++)
        pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

void block_pool_add(struct block_pool *pool, struct block_pool_item *item)
{
    item->next = NULL;
    pthread_mutex_lock(&pool->lock);
    *pool->todo_tail = item;
    pool->todo_tail = &item->next;
    pthread_cond_signal(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}
