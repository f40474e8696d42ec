/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/virtio/rng.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#include "base/err.h"
#include "base/units.h"

#define DEVICE_ID_ENTROPY 4
#define PCI_CLASS_OTHER   0xff0000u /* no class of the list fits */
#define QUEUE_SIZE        64u

struct virtio_rng {
    struct virtio_device dev; /* first */
    uint64_t sequence;        /* virtual clock: what comes instead of the host's entropy */
    struct iovec iov[VIRTQ_IOV_MAX];
};

static struct virtio_rng *to_rng(struct virtio_device *dev)
{
    return CONTAINER_OF(dev, struct virtio_rng, dev);
}

/* The same in each run (splitmix64), for a machine whose runs are to be equal. */
static void fill_virtual(struct virtio_rng *rng, uint8_t *buf, uint32_t len)
{
    for (uint32_t i = 0; i < len; i++) {
        uint64_t z = rng->sequence += 0x9e3779b97f4a7c15ULL;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
        z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
        buf[i] = (uint8_t)(z >> 56);
    }
}

/* Returns the bytes filled: less than len only when the host gives no more. */
static uint32_t fill(struct virtio_rng *rng, uint8_t *buf, uint32_t len)
{
    uint32_t done = 0;
    if (rng->dev.fn.dev.clock) {
        fill_virtual(rng, buf, len);
        return len;
    }
    while (done < len) {
        ssize_t n = getrandom(buf + done, len - done, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        done += (uint32_t)n;
    }
    return done;
}

/* 5.4.6.1: the device places one or more bytes in the buffer, not necessarily all. */
static uint32_t serve(struct virtio_rng *rng, const struct virtq_chain *chain)
{
    uint32_t done = 0;
    for (uint32_t i = 0; i < chain->in_num && done < VIRTIO_RNG_CHAIN_MAX; i++) {
        const struct iovec *iov = &chain->iov[chain->out_num + i];
        uint32_t want = VIRTIO_RNG_CHAIN_MAX - done;
        if (want > iov->iov_len)
            want = (uint32_t)iov->iov_len;
        uint32_t got = fill(rng, iov->iov_base, want);
        done += got;
        if (got < want)
            break;
    }
    return done;
}

/* Serve until the queue is empty or the turn is over; what is left waits for the next turn. */
static void rng_queue_kick(struct virtio_device *dev, struct virtq *vq)
{
    struct virtio_rng *rng = to_rng(dev);
    unsigned bytes = 0, served = 0;
    bool more = true;
    virtq_disable_kick(vq);
    for (unsigned n = 0; more; n++) {
        if (n == VIRTIO_RNG_TURN_CHAINS || bytes >= VIRTIO_RNG_TURN_BYTES) {
            virtio_queue_kick_later(dev, vq);
            break;
        }
        struct virtq_chain chain;
        int rc = virtq_pop(vq, &chain, rng->iov, VIRTQ_IOV_MAX);
        if (rc < 0) {
            virtio_needs_reset(dev, "a request for entropy is not sound");
            break;
        }
        if (rc == 0) {
            more = virtq_enable_kick(vq);
            continue;
        }
        uint32_t written = serve(rng, &chain);
        virtq_push(vq, &chain, written);
        served++;
        bytes += written;
        if (written == 0 && chain.in_len != 0) {
            virtio_needs_reset(dev, "the host gives no random bytes");
            break;
        }
    }
    if (served != 0)
        virtio_queue_notify(dev, vq);
}

static void rng_fini(struct virtio_device *dev)
{
    free(to_rng(dev));
}

static const struct virtio_ops rng_ops = {
    .device_id = DEVICE_ID_ENTROPY,
    .class_code = PCI_CLASS_OTHER,
    .queue_kick = rng_queue_kick,
    .fini = rng_fini,
};

int virtio_rng_new(struct virtio_device **dev, const struct virtio_env *env, const char *name,
                   struct err *err)
{
    struct virtio_rng *rng = calloc(1, sizeof(*rng));
    if (rng == NULL)
        return err_errno(err, ENOMEM, "%s: entropy device", name);
    int rc = virtio_init(&rng->dev, &rng_ops, env, name, 1, QUEUE_SIZE, 0, NULL, NULL, err);
    if (rc < 0) {
        free(rng);
        return rc;
    }
    *dev = &rng->dev;
    return 0;
}
