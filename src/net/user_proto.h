/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a VM and its hull-slirp say to each other, over a SOCK_SEQPACKET pair that is descriptor
 * USER_PROTO_FD of the helper. First a handshake: one struct user_config from the VM; any number of
 * USER_REPLY_LOG and then one USER_REPLY_READY or USER_REPLY_ERROR from the helper. From then on
 * each datagram is a packet: struct net_header and Ethernet frame towards the helper, which
 * completes checksums and takes TCP segments of up to 64 KiB; the bare frame towards the VM.
 *
 * Both ends are built from the same sources: the magic number changes with the layout.
 */
#ifndef HULL_NET_USER_PROTO_H
#define HULL_NET_USER_PROTO_H

#include "net/net.h"

#define USER_PROTO_FD    3
#define USER_PROTO_MAGIC 0x484c5331u /* "HLS1" */

#define USER_FRAME_MIN   14 /* an Ethernet header */
#define USER_FRAME_MAX   (NET_PACKET_MAX - NET_HEADER_BYTES)
#define USER_MTU         1500

#define USER_RESTRICTED  1u /* flags of struct user_config */

struct user_config {
    uint32_t magic;
    uint32_t flags;
    uint32_t forward_count;
    struct net_forward forwards[NET_FORWARDS_MAX];
};

enum user_reply_kind {
    USER_REPLY_READY = 1,
    USER_REPLY_ERROR, /* text: what failed; the helper ends */
    USER_REPLY_LOG,   /* text: worth telling, e.g. isolation that this host lacks */
};

struct user_reply {
    uint32_t kind;
    int32_t code; /* ERROR: errno */
    char text[1016];
};

#endif
