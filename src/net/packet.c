/* SPDX-License-Identifier: Apache-2.0 */
#include "net/packet.h"

#include <string.h>

#include "net/net.h"

static bool checksum_in_frame(const struct net_header *header, size_t len)
{
    return (size_t)header->csum_start + header->csum_offset + 2 <= len;
}

unsigned packet_gso_offloads(uint8_t gso_type)
{
    switch (gso_type & (uint8_t)~NET_GSO_ECN) {
    case NET_GSO_TCPV4:
        return NET_OFFLOAD_TSO4;
    case NET_GSO_TCPV6:
        return NET_OFFLOAD_TSO6;
    case NET_GSO_UDP_L4:
        return NET_OFFLOAD_USO4 | NET_OFFLOAD_USO6;
    default:
        return 0;
    }
}

bool packet_header_check(struct net_header *header, unsigned offloads, size_t frame_len)
{
    header->num_buffers = 0;
    header->flags &= NET_HEADER_NEEDS_CSUM;
    if (header->flags & NET_HEADER_NEEDS_CSUM) {
        if (!(offloads & NET_OFFLOAD_CSUM) || !checksum_in_frame(header, frame_len))
            return false;
    } else {
        header->csum_start = 0;
        header->csum_offset = 0;
    }

    if (header->gso_type == NET_GSO_NONE) {
        header->gso_size = 0;
        header->hdr_len = 0;
        return true;
    }
    if (header->gso_type & NET_GSO_ECN &&
        (header->gso_type == (NET_GSO_UDP_L4 | NET_GSO_ECN) || !(offloads & NET_OFFLOAD_ECN)))
        return false;
    /* 5.1.6.2: segmentation is asked for together with the checksum. hdr_len is a hint, and one
     * beyond the frame would mislead whoever takes it. */
    return offloads & packet_gso_offloads(header->gso_type) &&
           header->flags & NET_HEADER_NEEDS_CSUM && header->gso_size != 0 &&
           header->hdr_len <= frame_len;
}

/* RFC 1071; the sum of 32-bit words folds to that of 16-bit words. */
static uint16_t internet_checksum(const uint8_t *p, size_t len)
{
    uint64_t sum = 0;

    for (; len >= 4; p += 4, len -= 4) {
        uint32_t word;
        memcpy(&word, p, sizeof(word));
        sum += word;
    }
    if (len) {
        uint8_t tail[4] = {0};
        uint32_t word;
        memcpy(tail, p, len);
        memcpy(&word, tail, sizeof(word));
        sum += word;
    }
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

bool packet_finish_checksum(uint8_t *frame, size_t len, const struct net_header *header)
{
    uint16_t sum;

    if (!checksum_in_frame(header, len))
        return false;
    /* The field holds the sum of the pseudo header, and so belongs to what is summed. */
    sum = internet_checksum(frame + header->csum_start, len - header->csum_start);
    /* UDP's 0 means "no checksum" (RFC 768). For TCP, both values are the same number. */
    if (sum == 0)
        sum = 0xffff;
    memcpy(frame + header->csum_start + header->csum_offset, &sum, sizeof(sum));
    return true;
}
