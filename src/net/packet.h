/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What struct net_header says of a packet (virtio 1.2, 5.1.6): checks of headers that a guest
 * wrote, and completing a checksum that a guest left to us. Pure functions, any thread.
 */
#ifndef HULL_NET_PACKET_H
#define HULL_NET_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct net_header;

/* net_header.flags */
#define NET_HEADER_NEEDS_CSUM 1u /* csum_start and csum_offset tell what is to be summed */
#define NET_HEADER_DATA_VALID 2u /* towards the guest: the checksums were verified */

/* net_header.gso_type */
#define NET_GSO_NONE          0u
#define NET_GSO_TCPV4         1u
#define NET_GSO_UDP           3u
#define NET_GSO_TCPV6         4u
#define NET_GSO_UDP_L4        5u
#define NET_GSO_ECN           0x80u /* a bit, with the TCP types */

#define ETHERNET_HEADER_BYTES 14u
#define ETHERNET_VLAN_BYTES   4u

/* The offloads of which one is needed for packets of this type; 0: no such type is known. */
unsigned packet_gso_offloads(uint8_t gso_type);

/*
 * Check a header against offloads (NET_OFFLOAD_*) that may be asked for and the length of the frame
 * behind it, and clear what means nothing: flags but NEEDS_CSUM, and fields that the rest makes
 * irrelevant. false: the packet is to be dropped.
 */
bool packet_header_check(struct net_header *header, unsigned offloads, size_t frame_len);

/* Sum what header (with NEEDS_CSUM) says and store the result in the frame. false: out of the
 * frame. */
bool packet_finish_checksum(uint8_t *frame, size_t len, const struct net_header *header);

#endif
