/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Block device (virtio 1.2, 5.2): serves a block_dev to a guest's driver.
 */
#ifndef HULL_DEV_VIRTIO_BLK_H
#define HULL_DEV_VIRTIO_BLK_H

#include "block/block.h"
#include "dev/virtio/virtio.h"

/* Feature bits (5.2.3). */
#define VIRTIO_BLK_F_SEG_MAX      2
#define VIRTIO_BLK_F_RO           5
#define VIRTIO_BLK_F_BLK_SIZE     6
#define VIRTIO_BLK_F_FLUSH        9
#define VIRTIO_BLK_F_TOPOLOGY     10
#define VIRTIO_BLK_F_CONFIG_WCE   11
#define VIRTIO_BLK_F_MQ           12
#define VIRTIO_BLK_F_DISCARD      13
#define VIRTIO_BLK_F_WRITE_ZEROES 14

/* Types and results of requests (5.2.6). */
#define VIRTIO_BLK_T_IN           0
#define VIRTIO_BLK_T_OUT          1
#define VIRTIO_BLK_T_FLUSH        4
#define VIRTIO_BLK_T_GET_ID       8
#define VIRTIO_BLK_T_DISCARD      11
#define VIRTIO_BLK_T_WRITE_ZEROES 13

#define VIRTIO_BLK_S_OK           0
#define VIRTIO_BLK_S_IOERR        1
#define VIRTIO_BLK_S_UNSUPP       2

#define VIRTIO_BLK_ID_BYTES       20
#define VIRTIO_BLK_SECTOR_BYTES   512

/* Device configuration structure (5.2.4); little-endian. */
struct __attribute__((packed)) virtio_blk_config {
    uint64_t capacity; /* sectors of 512 bytes, whatever the block size */
    uint32_t size_max;
    uint32_t seg_max;
    uint16_t cylinders;
    uint8_t heads, sectors;
    uint32_t blk_size;
    uint8_t physical_block_exp;
    uint8_t alignment_offset;
    uint16_t min_io_size;
    uint32_t opt_io_size;
    uint8_t writeback;
    uint8_t unused0;
    uint16_t num_queues;
    uint32_t max_discard_sectors;
    uint32_t max_discard_seg;
    uint32_t discard_sector_alignment;
    uint32_t max_write_zeroes_sectors;
    uint32_t max_write_zeroes_seg;
    uint8_t write_zeroes_may_unmap;
    uint8_t unused1[3];
};

/* The only state beyond the transport's. Requests in flight are none of it: they are waited for. */
struct virtio_blk_state {
    uint8_t writeback; /* as the driver set it through configuration (CONFIG_WCE) */
};

extern const struct state_table virtio_blk_state_table;

struct virtio_blk_options {
    const char *serial;  /* NULL or "": none; at most VIRTIO_BLK_ID_BYTES are used */
    unsigned queues;     /* 0: 1 */
    unsigned queue_size; /* 0: 256; a power of two, 4 to 1024 */
};

/*
 * Make the device, for virtio_pci_plug(), and attach disk to env->loop. With 0 it owns disk, and
 * closes it at its end; with -errno (err filled) disk is still the caller's to close.
 */
int virtio_blk_new(struct virtio_device **dev, const struct virtio_env *env, const char *name,
                   struct block_dev *disk, const struct virtio_blk_options *options,
                   struct err *err);

#endif
