/* SPDX-License-Identifier: Apache-2.0 */
/* A guest made of hand-built packets, on a real hull-slirp. */
#include "net/net.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "base/tap.h"
#include "base/units.h"
#include "net/packet.h"
#include "net/user_proto.h"

#define FRAMES_MAX 64
#define ETH        ETHERNET_HEADER_BYTES
#define IP_BYTES   20
#define TCP_BYTES  20

static const uint8_t guest_mac[6] = {0x52, 0x54, 0, 0x12, 0x34, 0x56};

struct fixture {
    struct loop *loop;
    struct net_backend *net;
    struct loop_timer timer;
    uint8_t host_mac[6];
    /* The last frame that `match` took. */
    bool (*match)(const uint8_t *frame, size_t len);
    bool matched;
    uint8_t frame[NET_PACKET_MAX];
    size_t len;
    uint8_t flags;
    unsigned rx_calls;
};

/* --- the loop --- */

static void rx_ready(void *ctx, unsigned queue)
{
    struct fixture *f = ctx;
    uint8_t packet[4096];

    f->rx_calls++;
    for (;;) {
        /* In pieces that cut the header, as a guest may. */
        struct iovec iov[3] = {
            {packet,      5                  },
            {packet + 5,  40                 },
            {packet + 45, sizeof(packet) - 45},
        };
        ssize_t n = f->net->ops->receive(f->net, queue, iov, 3);
        if (n <= 0)
            break;
        if (f->match && !f->matched &&
            f->match(packet + NET_HEADER_BYTES, (size_t)n - NET_HEADER_BYTES)) {
            f->matched = true;
            f->flags = packet[0];
            f->len = (size_t)n - NET_HEADER_BYTES;
            memcpy(f->frame, packet + NET_HEADER_BYTES, f->len);
        }
    }
    if (f->matched || !f->net->link_up)
        loop_stop(f->loop);
}

static void tx_ready(void *ctx, unsigned queue)
{
    struct fixture *f = ctx;

    f->net->ops->watch(f->net, queue, true, false);
    loop_stop(f->loop);
}

static struct fixture *timer_owner;

static void timed_out(struct loop_timer *timer)
{
    (void)timer;
    loop_stop(timer_owner->loop);
}

static void run(struct fixture *f, unsigned ms)
{
    timer_owner = f;
    loop_timer_arm(f->loop, &f->timer, clock_now_ns() + ms * NS_PER_MS);
    loop_run(f->loop);
    loop_timer_cancel(f->loop, &f->timer);
}

static bool wait_frame(struct fixture *f, bool (*match)(const uint8_t *frame, size_t len))
{
    uint64_t deadline_ns = clock_now_ns() + 5000 * NS_PER_MS;

    f->match = match;
    f->matched = false;
    while (!f->matched && f->net->link_up && clock_now_ns() < deadline_ns)
        run(f, 1000);
    f->match = NULL;
    return f->matched;
}

static ssize_t send_packet(struct fixture *f, const struct net_header *header, const void *frame,
                           size_t len)
{
    static const struct net_header none;
    struct iovec iov[2] = {
        {(void *)(uintptr_t)(header ? header : &none), NET_HEADER_BYTES},
        {(void *)(uintptr_t)frame,                     len             },
    };

    for (;;) {
        ssize_t n = f->net->ops->send(f->net, 0, iov, 2);
        if (n != -EAGAIN)
            return n;
        f->net->ops->watch(f->net, 0, true, true);
        run(f, 1000);
    }
}

static bool open_net(struct fixture *f, const struct net_user_options *options, struct err *err)
{
    *f = (struct fixture){0};
    loop_timer_init(&f->timer, timed_out);
    if (net_user_open(&f->net, options, err) < 0)
        return false;
    if (loop_new(&f->loop, 0, err) < 0)
        return false;
    if (f->net->ops->attach(f->net, 0, f->loop, rx_ready, tx_ready, f) < 0)
        return false;
    f->net->ops->watch(f->net, 0, true, false);
    return true;
}

static void close_net(struct fixture *f)
{
    net_close(f->net);
    loop_free(f->loop);
}

/* --- packets --- */

static void put16(uint8_t *p, unsigned value)
{
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

static void put32(uint8_t *p, uint32_t value)
{
    put16(p, value >> 16);
    put16(p + 2, value & 0xffff);
}

static unsigned get16(const uint8_t *p)
{
    return (unsigned)p[0] << 8 | p[1];
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)get16(p) << 16 | get16(p + 2);
}

static uint32_t sum_words(const uint8_t *p, size_t len)
{
    uint32_t sum = 0;

    for (size_t i = 0; i + 1 < len; i += 2)
        sum += get16(p + i);
    if (len & 1)
        sum += (uint32_t)p[len - 1] << 8;
    return sum;
}

static unsigned fold(uint32_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

static void put_ethernet(uint8_t *frame, const uint8_t *to, unsigned type)
{
    memcpy(frame, to, 6);
    memcpy(frame + 6, guest_mac, 6);
    put16(frame + 12, type);
}

/* An IPv4 header without options; payload_len bytes follow. */
static void put_ip(uint8_t *ip, unsigned protocol, uint32_t from, uint32_t to, size_t payload_len)
{
    memset(ip, 0, IP_BYTES);
    ip[0] = 0x45;
    put16(ip + 2, (unsigned)(IP_BYTES + payload_len));
    ip[8] = 64;
    ip[9] = (uint8_t)protocol;
    put32(ip + 12, from);
    put32(ip + 16, to);
    put16(ip + 10, ~fold(sum_words(ip, IP_BYTES)) & 0xffff);
}

/* The pseudo header's sum, as a guest with checksum offload leaves it in the field. */
static unsigned pseudo_sum(const uint8_t *ip, size_t l4_len)
{
    return fold(sum_words(ip + 12, 8) + ip[9] + (uint32_t)l4_len);
}

#define GUEST 0x0a00020fu
#define HOST  0x0a000202u

static size_t arp_request(uint8_t *frame, uint32_t target)
{
    static const uint8_t broadcast[6] = {255, 255, 255, 255, 255, 255};
    static const uint8_t head[8] = {0, 1, 8, 0, 6, 4, 0, 1};

    memset(frame, 0, 42);
    put_ethernet(frame, broadcast, 0x0806);
    memcpy(frame + 14, head, sizeof(head));
    memcpy(frame + 22, guest_mac, 6);
    put32(frame + 28, GUEST);
    put32(frame + 38, target);
    return 42;
}

static bool is_arp_reply(const uint8_t *frame, size_t len)
{
    return len >= 42 && get16(frame + 12) == 0x0806 && get16(frame + 20) == 2;
}

static bool is_ip(const uint8_t *frame, size_t len, unsigned protocol)
{
    return len >= ETH + IP_BYTES + 8 && get16(frame + 12) == 0x0800 && frame[ETH + 9] == protocol;
}

static bool is_echo_reply(const uint8_t *frame, size_t len)
{
    return is_ip(frame, len, 1) && frame[ETH + IP_BYTES] == 0;
}

static bool is_dhcp(const uint8_t *frame, size_t len)
{
    return is_ip(frame, len, 17) && len >= ETH + IP_BYTES + 8 + 240 &&
           get16(frame + ETH + IP_BYTES + 2) == 68;
}

static bool is_tcp(const uint8_t *frame, size_t len)
{
    return is_ip(frame, len, 6) && len >= ETH + IP_BYTES + TCP_BYTES;
}

static bool is_udp_echo(const uint8_t *frame, size_t len)
{
    return is_ip(frame, len, 17) && get16(frame + ETH + IP_BYTES + 2) == 4000;
}

static bool is_reset(const uint8_t *frame, size_t len)
{
    return is_tcp(frame, len) && frame[ETH + IP_BYTES + 13] & 4;
}

static bool is_router_advertisement(const uint8_t *frame, size_t len)
{
    return len > ETH + 40 && get16(frame + 12) == 0x86dd && frame[ETH + 6] == 58 &&
           frame[ETH + 40] == 134;
}

static bool is_syn(const uint8_t *frame, size_t len)
{
    return is_tcp(frame, len) && frame[ETH + IP_BYTES + 13] == 2;
}

static uint32_t tcp_acked;

static bool acks_all(const uint8_t *frame, size_t len)
{
    return is_tcp(frame, len) && get32(frame + ETH + IP_BYTES + 8) == tcp_acked;
}

static bool has_data(const uint8_t *frame, size_t len)
{
    return is_tcp(frame, len) && get16(frame + ETH + 2) > IP_BYTES + TCP_BYTES;
}

static void test_arp(struct fixture *f)
{
    uint8_t frame[64];
    size_t len = arp_request(frame, HOST);

    is_int(send_packet(f, NULL, frame, len), NET_HEADER_BYTES + len, "a packet is taken whole");
    ok(wait_frame(f, is_arp_reply), "10.0.2.2 answers ARP");
    memcpy(f->host_mac, f->frame + 22, 6);
    ok(memcmp(f->frame, guest_mac, 6) == 0, "to the guest's MAC address");
}

static void test_icmp(struct fixture *f)
{
    uint8_t frame[ETH + IP_BYTES + 16] = {0};
    uint8_t *icmp = frame + ETH + IP_BYTES;

    put_ethernet(frame, f->host_mac, 0x0800);
    put_ip(frame + ETH, 1, GUEST, HOST, 16);
    icmp[0] = 8;
    put32(icmp + 8, 0x12345678);
    put16(icmp + 2, ~fold(sum_words(icmp, 16)) & 0xffff);
    send_packet(f, NULL, frame, sizeof(frame));
    ok(wait_frame(f, is_echo_reply), "10.0.2.2 answers a ping");
    is_int(get32(f->frame + ETH + IP_BYTES + 8), 0x12345678, "with its payload");
}

static void test_dhcp(struct fixture *f)
{
    static const uint8_t broadcast[6] = {255, 255, 255, 255, 255, 255};
    enum { BOOTP = 300 };
    uint8_t frame[ETH + IP_BYTES + 8 + BOOTP] = {0};
    uint8_t *udp = frame + ETH + IP_BYTES, *bootp = udp + 8;

    put_ethernet(frame, broadcast, 0x0800);
    put_ip(frame + ETH, 17, 0, 0xffffffff, 8 + BOOTP);
    put16(udp, 68);
    put16(udp + 2, 67);
    put16(udp + 4, 8 + BOOTP);
    bootp[0] = 1; /* request, Ethernet, 6 bytes */
    bootp[1] = 1;
    bootp[2] = 6;
    put32(bootp + 4, 0xcafe);
    memcpy(bootp + 28, guest_mac, 6);
    put32(bootp + 236, 0x63825363);
    bootp[240] = 53; /* message type: discover */
    bootp[241] = 1;
    bootp[242] = 1;
    bootp[243] = 255;
    /* Left to the helper to sum. */
    struct net_header header = {
        .flags = NET_HEADER_NEEDS_CSUM, .csum_start = ETH + IP_BYTES, .csum_offset = 6};
    put16(udp + 6, pseudo_sum(frame + ETH, 8 + BOOTP));
    send_packet(f, &header, frame, sizeof(frame));
    ok(wait_frame(f, is_dhcp), "DHCP offers");
    const uint8_t *offer = f->frame + ETH + IP_BYTES + 8;
    is_int(get32(offer + 4), 0xcafe, "  to our request");
    is_int(get32(offer + 16), GUEST, "  10.0.2.15");
}

/* --- TCP --- */

struct tcp {
    uint16_t local, remote;
    uint32_t seq, ack;
};

static uint8_t tcp_frame[ETH + IP_BYTES + TCP_BYTES + 65535];

static void send_tcp(struct fixture *f, const struct tcp *tcp, unsigned flags, const void *data,
                     size_t len)
{
    uint8_t *ip = tcp_frame + ETH, *t = ip + IP_BYTES;
    struct net_header header = {
        .flags = NET_HEADER_NEEDS_CSUM, .csum_start = ETH + IP_BYTES, .csum_offset = 16};

    put_ethernet(tcp_frame, f->host_mac, 0x0800);
    put_ip(ip, 6, GUEST, HOST, TCP_BYTES + len);
    memset(t, 0, TCP_BYTES);
    put16(t, tcp->local);
    put16(t + 2, tcp->remote);
    put32(t + 4, tcp->seq);
    put32(t + 8, tcp->ack);
    t[12] = 5 << 4;
    t[13] = (uint8_t)flags;
    put16(t + 14, 65535);
    if (len)
        memcpy(t + TCP_BYTES, data, len);
    put16(t + 16, pseudo_sum(ip, TCP_BYTES + len));
    if (len > 1460) {
        header.gso_type = NET_GSO_TCPV4;
        header.gso_size = 1460;
        header.hdr_len = ETH + IP_BYTES + TCP_BYTES;
    }
    send_packet(f, &header, tcp_frame, ETH + IP_BYTES + TCP_BYTES + len);
}

#define TCP_FIN 1u
#define TCP_SYN 2u
#define TCP_ACK 0x10u

static int listen_somewhere(uint16_t *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    *port = 0;
    if (bind(fd, (struct sockaddr *)&a, len) < 0 || listen(fd, 4) < 0 ||
        getsockname(fd, (struct sockaddr *)&a, &len) < 0)
        return -1;
    *port = ntohs(a.sin_port);
    return fd;
}

/* A port that was free a moment ago. */
static uint16_t free_port(void)
{
    uint16_t port;
    int fd = listen_somewhere(&port);

    close(fd);
    return port;
}

static bool wait_fd(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    return poll(&p, 1, 5000) == 1;
}

/* The guest connects to 10.0.2.2, which is this host, and sends 40,000 bytes as one segment. */
static void test_tcp_out(struct fixture *f)
{
    enum { BULK = 40000 };
    static uint8_t sent[BULK], got[BULK];
    struct tcp tcp = {.local = 5000, .seq = 1000};
    size_t have = 0;
    int listener = listen_somewhere(&tcp.remote);

    for (unsigned i = 0; i < BULK; i++)
        sent[i] = (uint8_t)(i * 7 + i / 251);
    send_tcp(f, &tcp, TCP_SYN, NULL, 0);
    ok(wait_frame(f, is_tcp), "a connection out is answered");
    const uint8_t *t = f->frame + ETH + IP_BYTES;
    is_int(t[13], TCP_SYN | TCP_ACK, "  by SYN and ACK");
    tcp.seq++;
    tcp.ack = get32(t + 4) + 1;
    send_tcp(f, &tcp, TCP_ACK, NULL, 0);
    ok(wait_fd(listener), "  and reaches the host's listener");
    int fd = accept(listener, NULL, NULL);

    send_tcp(f, &tcp, TCP_ACK, sent, BULK);
    tcp.seq += BULK;
    tcp_acked = tcp.seq;
    ok(wait_frame(f, acks_all), "40,000 bytes in one segment are acknowledged");
    while (have < BULK && wait_fd(fd)) {
        ssize_t n = read(fd, got + have, BULK - have);
        if (n <= 0)
            break;
        have += (size_t)n;
    }
    ok(have == BULK && memcmp(sent, got, BULK) == 0, "  and arrive as they were sent");

    is_int(write(fd, "hello", 5), 5, "the host answers");
    ok(wait_frame(f, has_data) &&
           memcmp(f->frame + ETH + IP_BYTES + (f->frame[ETH + IP_BYTES + 12] >> 4) * 4, "hello",
                  5) == 0,
       "  and the guest gets it");
    close(fd);
    close(listener);
}

/* The host connects to a forwarded port: the helper looks for the guest and passes the SYN on. */
static void test_forward(struct fixture *f, uint16_t port)
{
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct tcp tcp = {.local = 22, .seq = 7000};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    is_int(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0, "the forwarded port listens");
    ok(wait_frame(f, is_syn), "a connection to the forwarded port reaches the guest");
    const uint8_t *t = f->frame + ETH + IP_BYTES;
    is_int(get16(t + 2), 22, "  to port 22");
    tcp.remote = (uint16_t)get16(t);
    tcp.ack = get32(t + 4) + 1;
    send_tcp(f, &tcp, TCP_SYN | TCP_ACK, NULL, 0);
    tcp.seq++;
    send_tcp(f, &tcp, TCP_ACK, "SSH", 3);
    run(f, 100);
    char got[3] = "";
    ok(wait_fd(fd) && read(fd, got, 3) == 3 && memcmp(got, "SSH", 3) == 0,
       "  and what the guest says comes out");
    close(fd);
}

/* --- other ways through the helper, each with system calls of its own --- */

static void send_udp(struct fixture *f, uint32_t to, unsigned port, const char *text)
{
    size_t len = 8 + strlen(text);
    uint8_t frame[ETH + IP_BYTES + 64] = {0};
    uint8_t *udp = frame + ETH + IP_BYTES;
    struct net_header header = {
        .flags = NET_HEADER_NEEDS_CSUM, .csum_start = ETH + IP_BYTES, .csum_offset = 6};

    put_ethernet(frame, f->host_mac, 0x0800);
    put_ip(frame + ETH, 17, GUEST, to, len);
    put16(udp, 4000);
    put16(udp + 2, port);
    put16(udp + 4, (unsigned)len);
    memcpy(udp + 8, text, strlen(text));
    put16(udp + 6, pseudo_sum(frame + ETH, len));
    send_packet(f, &header, frame, ETH + IP_BYTES + len);
}

static void test_udp(struct fixture *f)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    char got[16] = "";
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (bind(fd, (struct sockaddr *)&a, len) < 0 || getsockname(fd, (struct sockaddr *)&a, &len))
        return;
    send_udp(f, HOST, ntohs(a.sin_port), "question");
    ok(wait_fd(fd) && recvfrom(fd, got, sizeof(got), 0, (struct sockaddr *)&a, &len) == 8,
       "a datagram reaches the host");
    is_int(sendto(fd, "answer", 6, 0, (struct sockaddr *)&a, len), 6, "which answers");
    ok(wait_frame(f, is_udp_echo) && memcmp(f->frame + ETH + IP_BYTES + 8, "answer", 6) == 0,
       "and the guest gets it");
    close(fd);
}

/* Name servers, pings to elsewhere: whether they answer is the host's affair. */
static void test_unanswered(struct fixture *f)
{
    uint8_t frame[ETH + IP_BYTES + 16] = {0};
    uint8_t *icmp = frame + ETH + IP_BYTES;

    send_udp(f, 0x0a000203, 53, "no DNS query");
    put_ethernet(frame, f->host_mac, 0x0800);
    put_ip(frame + ETH, 1, GUEST, 0x7f000001, 16);
    icmp[0] = 8;
    put16(icmp + 2, ~fold(sum_words(icmp, 16)) & 0xffff);
    send_packet(f, NULL, frame, sizeof(frame));
    put_ip(frame + ETH, 1, GUEST, 0xc0000201, 16);
    send_packet(f, NULL, frame, sizeof(frame));
    run(f, 50);
    ok(f->net->link_up, "name queries and pings do not end the helper");
}

static void test_refused(struct fixture *f)
{
    struct tcp tcp = {.local = 6000, .remote = free_port(), .seq = 1};

    send_tcp(f, &tcp, TCP_SYN, NULL, 0);
    ok(wait_frame(f, is_reset), "a port where nobody listens resets the connection");
}

static void test_ipv6(struct fixture *f)
{
    static const uint8_t all_routers[6] = {0x33, 0x33, 0, 0, 0, 2};
    uint8_t frame[ETH + 40 + 8] = {0};
    uint8_t *ip = frame + ETH;
    struct net_header header = {
        .flags = NET_HEADER_NEEDS_CSUM, .csum_start = ETH + 40, .csum_offset = 2};

    put_ethernet(frame, all_routers, 0x86dd);
    ip[0] = 0x60;
    ip[5] = 8;
    ip[6] = 58;
    ip[7] = 255;
    put32(ip + 8, 0xfe800000);
    put32(ip + 20, 0x12345678);
    put32(ip + 24, 0xff020000);
    ip[39] = 2;
    ip[40] = 133; /* router solicitation */
    put16(ip + 42, fold(sum_words(ip + 8, 32) + 58 + 8));
    send_packet(f, &header, frame, sizeof(frame));
    ok(wait_frame(f, is_router_advertisement), "an IPv6 router answers");
}

/* --- the helper as a process --- */

static pid_t helper_pid(void)
{
    char path[64];
    pid_t pid = 0;
    int value;

    snprintf(path, sizeof(path), "/proc/self/task/%d/children", (int)getpid());
    FILE *file = fopen(path, "re");
    if (file && fscanf(file, "%d", &value) == 1)
        pid = value;
    if (file)
        fclose(file);
    return pid;
}

/* The rest of the line of /proc/PID/status that starts with name, or "". */
static const char *status_of(pid_t pid, const char *name, char *line, int line_len)
{
    char path[64];
    const char *found = "";

    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    FILE *file = fopen(path, "re");
    while (file && fgets(line, line_len, file)) {
        if (strncmp(line, name, strlen(name)) == 0) {
            line[strcspn(line, "\n")] = '\0';
            found = line + strlen(name);
            found += strspn(found, ":\t ");
            break;
        }
    }
    if (file)
        fclose(file);
    return found;
}

static unsigned count_descriptors(pid_t pid)
{
    char path[64];
    unsigned count = 0;

    snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && (e = readdir(dir));)
        count += e->d_name[0] != '.';
    if (dir)
        closedir(dir);
    return count;
}

static bool same_namespace(pid_t pid, const char *name)
{
    char ours[64], theirs[64], path[64];
    ssize_t a, b;

    snprintf(path, sizeof(path), "/proc/self/ns/%s", name);
    a = readlink(path, ours, sizeof(ours));
    snprintf(path, sizeof(path), "/proc/%d/ns/%s", (int)pid, name);
    b = readlink(path, theirs, sizeof(theirs));
    return a > 0 && a == b && memcmp(ours, theirs, (size_t)a) == 0;
}

static void test_jail(unsigned forwards)
{
    pid_t pid = helper_pid();
    char line[256], path[64];

    ok(pid > 0, "the helper is a child of the VM");
    is_str(status_of(pid, "NoNewPrivs", line, sizeof(line)), "1", "  no_new_privs");
    is_str(status_of(pid, "Seccomp", line, sizeof(line)), "2", "  a system call filter");
    is_str(status_of(pid, "CapEff", line, sizeof(line)), "0000000000000000", "  no capability");
    is_str(status_of(pid, "CapPrm", line, sizeof(line)), "0000000000000000", "  none permitted");
    is_str(status_of(pid, "CapBnd", line, sizeof(line)), "0000000000000000", "  none within reach");
    is_int(count_descriptors(pid), 4 + forwards, "  no descriptor but the socket and the ports");
    printf("# resident: %s\n", status_of(pid, "VmRSS", line, sizeof(line)));
    if (same_namespace(pid, "mnt") || access("/etc/resolv.conf", F_OK) < 0) {
        tap_skip("  an empty root", "no namespaces or no name servers here");
        tap_skip("  its own PID namespace", "no namespaces or no name servers here");
        return;
    }
    snprintf(path, sizeof(path), "/proc/%d/root/etc", (int)pid);
    if (access(path, X_OK) < 0) {
        tap_skip("  an empty root", "this user may not look into it");
    } else {
        snprintf(path, sizeof(path), "/proc/%d/root/usr", (int)pid);
        ok(access(path, F_OK) < 0, "  an empty root");
        snprintf(path, sizeof(path), "/proc/%d/root/etc/resolv.conf", (int)pid);
        ok(access(path, R_OK) == 0, "  but for the name servers");
    }
    ok(!same_namespace(pid, "pid"), "  its own PID namespace");
}

/* Random packets, and packets that are right but for a few bytes. */
static void test_hostile_guest(struct fixture *f)
{
    static uint8_t frame[2048];
    unsigned seed = 1;
    size_t len;

    for (unsigned i = 0; i < 20000 && f->net->link_up; i++) {
        struct net_header header = {0};
        len = (size_t)rand_r(&seed) % 1600;
        for (size_t k = 0; k < len; k++)
            frame[k] = (uint8_t)rand_r(&seed);
        if (len > ETH + IP_BYTES + TCP_BYTES && i % 4) {
            static const uint8_t protocols[] = {1, 6, 17, 58};
            put_ethernet(frame, f->host_mac, i % 8 == 1 ? 0x86dd : 0x0800);
            put_ip(frame + ETH, protocols[i % 3], GUEST, HOST, len - ETH - IP_BYTES);
            header = (struct net_header){.flags = NET_HEADER_NEEDS_CSUM,
                                         .csum_start = (uint16_t)rand_r(&seed),
                                         .csum_offset = (uint16_t)rand_r(&seed)};
            if (i % 2)
                header.csum_start = ETH + IP_BYTES, header.csum_offset = i % 3 ? 6 : 16;
        }
        send_packet(f, &header, frame, len);
        if (i % 64 == 0)
            run(f, 0);
    }
    run(f, 50);
    ok(f->net->link_up, "random packets leave the helper running");
    /* Whatever the packets made it send has been read: it still answers. */
    len = arp_request(frame, HOST);
    send_packet(f, NULL, frame, len);
    ok(wait_frame(f, is_arp_reply), "and serving");
}

static void test_helper_dies(struct fixture *f)
{
    uint8_t frame[64];
    pid_t pid = helper_pid();
    unsigned calls = f->rx_calls;

    kill(pid, SIGKILL);
    for (unsigned i = 0; i < 50 && f->net->link_up; i++)
        run(f, 100);
    ok(!f->net->link_up, "the helper's end takes the link down");
    ok(f->rx_calls > calls, "and the card is told");
    is_int(send_packet(f, NULL, frame, arp_request(frame, HOST)), -ENETDOWN,
           "packets are dropped from then on");
    calls = f->rx_calls;
    run(f, 20);
    is_int(f->rx_calls, calls, "and the loop is left alone");
    is_int(waitpid(pid, NULL, WNOHANG), -1, "no zombie stays");
}

/* Tests run in a folder below that of the programs. */
static bool find_program(void)
{
    char self[PATH_MAX], link[PATH_MAX + 16], target[PATH_MAX + 32];
    ssize_t len = readlink("/proc/self/exe", self, sizeof(self) - 1);

    if (len <= 0)
        return false;
    self[len] = '\0';
    *strrchr(self, '/') = '\0';
    snprintf(link, sizeof(link), "%s/hull-slirp", self);
    if (access(link, X_OK) == 0)
        return true;
    for (int up = 1; up <= 4; up++) {
        snprintf(target, sizeof(target), "%s/%.*shull-slirp", self, 3 * up, "../../../../");
        if (access(target, X_OK) == 0)
            return (unlink(link) == 0 || errno == ENOENT) && symlink(target, link) == 0;
    }
    return false;
}

/* This program in the place of hull-slirp: gets ready, and then closes its side without ending. */
static _Noreturn void play_taken_over_helper(void)
{
    static struct user_config config;
    struct user_reply ready = {.kind = USER_REPLY_READY};

    alarm(20);
    if (recv(USER_PROTO_FD, &config, sizeof(config), 0) != sizeof(config) ||
        send(USER_PROTO_FD, &ready, sizeof(ready), 0) != sizeof(ready))
        _exit(1);
    shutdown(USER_PROTO_FD, SHUT_WR);
    for (;;)
        pause();
}

/* The end of its stream is for ever: a loop that only waits for packets would never sleep again. */
static void test_taken_over_helper(struct fixture *f)
{
    char self[PATH_MAX], link[PATH_MAX + 16], target[PATH_MAX];
    struct net_user_options options = {0};
    struct err err = ERR_INIT;
    ssize_t len = readlink("/proc/self/exe", self, sizeof(self) - 1);

    self[len > 0 ? len : 0] = '\0';
    snprintf(link, sizeof(link), "%s", self);
    snprintf(strrchr(link, '/'), 16, "/hull-slirp");
    len = readlink(link, target, sizeof(target) - 1);
    if (len <= 0) {
        tap_skip("a helper that was taken over", "the program stands in the folder of the tests");
        return;
    }
    target[len] = '\0';
    if (unlink(link) < 0 || symlink(self, link) < 0) {
        ok(false, "a program takes the place of hull-slirp");
        return;
    }
    ok(open_net(f, &options, &err), "a helper that closes its side");
    for (unsigned i = 0; i < 10 && f->net->link_up; i++)
        run(f, 100);
    ok(!f->net->link_up, "takes the link down");
    ok(f->rx_calls < 10, "and does not keep the loop awake");
    is_int(helper_pid(), 0, "and is ended");
    close_net(f);
    if (unlink(link) < 0 || symlink(target, link) < 0)
        ok(false, "hull-slirp stands in its place again");
}

static void test_errors(uint16_t port)
{
    struct net_forward forward = {.host_port = port, .guest_port = 22};
    struct net_user_options options = {.forwards = &forward, .forward_count = 1};
    struct net_backend *net;
    struct err err = ERR_INIT;
    char text[32];

    is_int(net_user_open(&net, &options, &err), -EADDRINUSE, "a port that is taken is an error");
    snprintf(text, sizeof(text), "tcp port %u of 127.0.0.1", port);
    ok(strstr(err.text, text) != NULL, "which names it");
    is_int(helper_pid(), 0, "and leaves no process");

    snprintf(forward.host_addr, sizeof(forward.host_addr), "::1");
    is_int(net_user_open(&net, &options, &err), -EINVAL, "an IPv6 port needs an IPv6 guest");
    memset(forward.guest_addr, 'x', sizeof(forward.guest_addr));
    is_int(net_user_open(&net, &options, &err), -EINVAL, "an address without end is refused");
}

int main(int argc, char **argv)
{
    static struct fixture f;
    struct err err = ERR_INIT;
    uint16_t occupied;

    if (argc == 1 && strcmp(argv[0], "hull-slirp") == 0)
        play_taken_over_helper();
    if (!find_program()) {
        tap_skip("user network", "hull-slirp is not built");
        return tap_done();
    }
    signal(SIGPIPE, SIG_DFL);
    int listener = listen_somewhere(&occupied);
    test_errors(occupied);
    close(listener);

    struct net_forward forwards[2] = {
        {.host_port = free_port(),  .guest_port = 22},
        { .udp = true, .host_port = free_port(), .guest_port = 53},
    };
    struct net_user_options options = {.forwards = forwards, .forward_count = 2};
    uint64_t start_ns = clock_now_ns();
    if (!ok(open_net(&f, &options, &err), "the user network opens")) {
        printf("# %s\n", err.text);
        return tap_done();
    }
    printf("# started in %llu us\n", (unsigned long long)(clock_now_ns() - start_ns) / 1000);
    test_jail(2);
    test_arp(&f);
    is_int(f.flags, 0, "no flags before the guest can take them");
    is_int(f.net->ops->set_offloads(f.net, NET_OFFLOAD_CSUM), 0, "checksums may be skipped");
    test_icmp(&f);
    is_int(f.flags, NET_HEADER_DATA_VALID, "checksums are said to be good then");
    test_dhcp(&f);
    test_tcp_out(&f);
    test_forward(&f, forwards[0].host_port);
    test_udp(&f);
    test_unanswered(&f);
    test_refused(&f);
    test_ipv6(&f);
    test_hostile_guest(&f);
    test_helper_dies(&f);
    close_net(&f);

    options = (struct net_user_options){.restricted = true};
    ok(open_net(&f, &options, &err), "a restricted network opens");
    test_arp(&f);
    pid_t pid = helper_pid();
    close_net(&f);
    ok(kill(pid, 0) < 0 && errno == ESRCH, "closing ends the helper");
    test_taken_over_helper(&f);
    return tap_done();
}
