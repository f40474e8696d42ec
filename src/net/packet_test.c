/* SPDX-License-Identifier: Apache-2.0 */
#include "net/packet.h"

#include "base/tap.h"
#include "net/net.h"

#define ALL                                                                                        \
    (NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6 | NET_OFFLOAD_ECN | NET_OFFLOAD_USO4 | \
     NET_OFFLOAD_USO6)

static const struct net_header tso4 = {.flags = NET_HEADER_NEEDS_CSUM,
                                       .gso_type = NET_GSO_TCPV4,
                                       .hdr_len = 54,
                                       .gso_size = 1460,
                                       .csum_start = 34,
                                       .csum_offset = 16};

static bool passes(struct net_header header, unsigned offloads, size_t len)
{
    return packet_header_check(&header, offloads, len);
}

static void test_header(void)
{
    struct net_header h = {.flags = 0xfe,
                           .hdr_len = 9,
                           .gso_size = 9,
                           .csum_start = 9,
                           .csum_offset = 9,
                           .num_buffers = 9};

    ok(packet_header_check(&h, 0, 60), "a header that asks for nothing passes");
    static const struct net_header none;
    ok(memcmp(&h, &none, sizeof(h)) == 0, "what means nothing is cleared");

    ok(passes(tso4, ALL, 4000), "segmentation passes");
    ok(!passes(tso4, ALL & ~NET_OFFLOAD_TSO4, 4000), "unless it was not agreed on");
    ok(!passes(tso4, ALL & ~NET_OFFLOAD_CSUM, 4000), "or the checksum was not");
    h = tso4;
    h.flags = 0;
    ok(!passes(h, ALL, 4000), "5.1.6.2: not without NEEDS_CSUM");
    h = tso4;
    h.gso_size = 0;
    ok(!passes(h, ALL, 4000), "not into segments of 0 bytes");
    h = tso4;
    h.hdr_len = 4001;
    ok(!passes(h, ALL, 4000), "not with a header beyond the frame");
    h.hdr_len = 54;
    h.gso_type |= NET_GSO_ECN;
    ok(passes(h, ALL, 4000), "with ECN");
    ok(!passes(h, ALL & ~NET_OFFLOAD_ECN, 4000), "unless that was not agreed on");
    h.gso_type = NET_GSO_ECN;
    ok(!passes(h, ALL, 4000), "ECN alone is no type");
    h.gso_type = NET_GSO_UDP_L4 | NET_GSO_ECN;
    ok(!passes(h, ALL, 4000), "nor is it one of UDP");
    h.gso_type = NET_GSO_UDP_L4;
    ok(passes(h, ALL, 4000), "UDP segmentation");
    ok(!passes(h, ALL & ~(NET_OFFLOAD_USO4 | NET_OFFLOAD_USO6), 4000), "where agreed on");
    h.gso_type = NET_GSO_UDP;
    ok(!passes(h, ALL, 4000), "no UDP fragmentation");

    h = (struct net_header){.flags = NET_HEADER_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16};
    ok(passes(h, ALL, 52), "a checksum at the end of the frame");
    ok(!passes(h, ALL, 51), "but not beyond it");
    h.csum_start = 0xffff;
    h.csum_offset = 0xffff;
    ok(!passes(h, ALL, 60), "nor where the sum of both would wrap");
}

static void test_checksum(void)
{
    /* RFC 1071, 3: 00 01 f2 03 f4 f5 f6 f7 sum to ddf2. */
    uint8_t frame[16] = {0, 0, 0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7, 0, 0};
    struct net_header h = {.csum_start = 2, .csum_offset = 8};

    ok(packet_finish_checksum(frame, 12, &h), "a checksum");
    is_int(frame[10] << 8 | frame[11], 0xffff & ~0xddf2, "is that of RFC 1071");
    frame[10] = frame[11] = 0;
    frame[12] = 0x80;
    packet_finish_checksum(frame, 13, &h);
    is_int(frame[10] << 8 | frame[11], 0xffff & ~(0xddf2 + 0x8000 - 0xffff), "an odd byte counts");
    uint8_t ones[8] = {0xff, 0xff};
    h = (struct net_header){.csum_start = 0, .csum_offset = 2};
    packet_finish_checksum(ones, 8, &h);
    is_int(ones[2] << 8 | ones[3], 0xffff, "0 is sent as ffff");
    h.csum_offset = 7;
    ok(!packet_finish_checksum(ones, 8, &h), "no byte beyond the frame is touched");
}

int main(void)
{
    test_header();
    test_checksum();
    return tap_done();
}
