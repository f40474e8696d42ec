/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Virtqueues (virtio 1.2, 2.6-2.8): split and packed, indirect descriptors, event index. The only
 * code that reads what a guest writes into a ring; everything a device gets from here is validated
 * and is a private copy.
 *
 * Theory of operation: a device calls virtq_pop() until it gives 0, serves each chain, and returns
 * each exactly once with virtq_push(), in any order; then virtio_queue_notify() after a batch.
 * Before it goes back to sleep it arms the guest's notification with virtq_enable_kick() and pops
 * once more when that says so. A guest that breaks the rules gets its device into NEEDS_RESET: the
 * queue is `broken`, pop gives -EPROTO from then on, and chains that were popped before may still
 * be pushed (and are dropped).
 *
 * All functions: device lock held.
 */
#ifndef HULL_DEV_VIRTIO_VIRTQ_H
#define HULL_DEV_VIRTIO_VIRTQ_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "mem/mem.h"
#include "state/state.h"

#define VIRTQ_SIZE_MAX 1024 /* entries a queue; power of two for split queues */
#define VIRTQ_IOV_MAX                                                                              \
    1024 /* segments of one chain, after indirection: longer chains break the queue */

/* Guest-visible state of one queue; nested in the transport's state. */
struct virtq_state {
    uint64_t desc_gpa;   /* descriptor table, or packed ring */
    uint64_t driver_gpa; /* available ring, or driver event suppression */
    uint64_t device_gpa; /* used ring, or device event suppression */
    uint16_t size;
    uint16_t msix_vector;    /* 0xffff: none */
    uint16_t avail_idx;      /* next to pop (split: free running; packed: position) */
    uint16_t used_idx;       /* next to push, likewise */
    uint16_t signalled_used; /* used_idx at the last interrupt decision */
    uint8_t enabled;
    uint8_t avail_wrap; /* packed wrap counters */
    uint8_t used_wrap;
    uint8_t signalled_wrap;
    uint8_t signalled_valid; /* signalled_* hold a decision */
    uint8_t broken;
};

extern const struct state_table virtq_state_table;

struct virtq {
    struct virtq_state *s;
    struct mem *mem;
    uint16_t index;
    uint16_t size_max;
    bool packed, event_idx, indirect, in_order; /* negotiated; set by the transport at enable */
    /* Ring pointers, valid while enabled; each checked for its whole length. */
    uint8_t *desc, *driver, *device;
    unsigned in_flight;                      /* popped and not pushed */
    uint64_t chains_popped, interrupts_sent; /* counters for people */
    const char *why;                         /* a static string once broken, else NULL */
};

/*
 * One request of the guest. Device-readable segments come first. The iovec array belongs to the
 * caller of pop: iov[0..out_num) are readable, iov[out_num..out_num+in_num) writable.
 */
struct virtq_chain {
    uint16_t id;         /* head index (split), buffer id (packed); neither unique nor bounded when
                            the guest is hostile */
    uint16_t desc_count; /* ring entries it takes (packed) */
    uint32_t out_num, in_num;
    uint64_t out_len, in_len; /* bytes */
    struct iovec *iov;
};

/*
 * The transport calls this when the guest enables the queue: check size, alignment (2.7, 2.8) and
 * that the rings lie in guest RAM. 0, or -EINVAL and the queue is broken.
 */
int virtq_enable(struct virtq *vq);
void virtq_disable(struct virtq *vq);

/*
 * Take the next available chain. 1: chain is filled (else its contents are undefined); 0: none;
 * -EPROTO: the guest broke the rules and the queue is broken now. iov_cap is at least VIRTQ_IOV_MAX
 * unless the device bounds its chains; a chain with more segments breaks the queue. Segments of
 * zero bytes are dropped.
 */
int virtq_pop(struct virtq *vq, struct virtq_chain *chain, struct iovec *iov, unsigned iov_cap);

/* Put the chain that was popped last back, so that the next pop gives it again. Only directly after
 * that pop, nothing pushed or popped in between. */
void virtq_unpop(struct virtq *vq, const struct virtq_chain *chain);

/* Return a chain; the device wrote `written` bytes into its writable segments (marks them dirty).
 */
void virtq_push(struct virtq *vq, const struct virtq_chain *chain, uint32_t written);

/*
 * For receive with mergeable buffers: return n chains at once, visible to the driver together
 * (virtio 1.2, 5.1.6.4): written[i] bytes in chains[i].
 */
void virtq_push_many(struct virtq *vq, const struct virtq_chain *chains, const uint32_t *written,
                     unsigned n);

/* Does the driver want an interrupt for what was pushed since the last call? (2.7.7, 2.8.10) */
bool virtq_should_interrupt(struct virtq *vq);

/* Ask the driver not to kick (a hint). */
void virtq_disable_kick(struct virtq *vq);
/* Ask for kicks again; true when chains are available already and the device must pop once more. */
bool virtq_enable_kick(struct virtq *vq);

/* --- helpers on chains --- */

/* Copy up to len bytes at byte offset of the readable / writable part; returns bytes copied. */
size_t virtq_chain_read(const struct virtq_chain *chain, size_t offset, void *buf, size_t len);
size_t virtq_chain_write(const struct virtq_chain *chain, size_t offset, const void *buf,
                         size_t len);

#endif
