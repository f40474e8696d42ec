/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A few threads for the system calls that block and that the loop's io_uring cannot make: ioctls,
 * and everything on a host without io_uring. Results come back on the loop.
 *
 * Threads: all functions on the loop's thread, or while the loop does not run.
 */
#ifndef HULL_BLOCK_POOL_H
#define HULL_BLOCK_POOL_H

#include "base/loop.h"

struct err;
struct block_pool;

/* Embedded in its owner; stays until finished() was called for it. */
struct block_pool_item {
    struct block_pool_item *next; /* the pool's */
    int res;                      /* what run() returned */
};

/*
 * run() makes the blocking call on a thread of the pool; finished() follows on the loop's thread,
 * with item->res filled. The threads exist from here on: none is made later.
 */
int block_pool_new(struct block_pool **pool, struct loop *loop, unsigned threads,
                   int (*run)(struct block_pool_item *item),
                   void (*finished)(struct block_pool_item *item), struct err *err);

/* No item is queued or running. May be called from finished() of the last item. */
void block_pool_free(struct block_pool *pool);

void block_pool_add(struct block_pool *pool, struct block_pool_item *item);

#endif
