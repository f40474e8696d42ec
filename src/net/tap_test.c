/* SPDX-License-Identifier: Apache-2.0 */
/* A real tap, in a network namespace of the test's own. */
#include "net/net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"

/* A frame of an experimental type, which nobody else on the interface sends or takes. */
#define TYPE 0x88b5

static struct loop *loop;
static unsigned rx_calls[2], tx_calls;
static struct net_backend *current;
static uint8_t received[NET_PACKET_MAX];
static ssize_t received_len;

static bool write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool good = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

    if (fd >= 0)
        close(fd);
    return good;
}

/* Root here already, or root of a namespace of our own. */
static bool enter_namespace(void)
{
    char map[64];
    unsigned uid = geteuid(), gid = getegid();

    if (unshare(CLONE_NEWNET) == 0)
        return true;
    if (unshare(CLONE_NEWUSER | CLONE_NEWNET) < 0)
        return false;
    snprintf(map, sizeof(map), "0 %u 1", uid);
    if (!write_text("/proc/self/uid_map", map) || !write_text("/proc/self/setgroups", "deny"))
        return false;
    snprintf(map, sizeof(map), "0 %u 1", gid);
    return write_text("/proc/self/gid_map", map);
}

static void rx_ready(void *ctx, unsigned queue)
{
    (void)ctx;
    rx_calls[queue]++;
    for (;;) {
        struct iovec iov[2] = {
            {received,      20                   },
            {received + 20, sizeof(received) - 20},
        };
        ssize_t n = current->ops->receive(current, queue, iov, 2);
        if (n < 0)
            break;
        if (n > NET_HEADER_BYTES + 14 && received[NET_HEADER_BYTES + 12] == TYPE >> 8 &&
            received[NET_HEADER_BYTES + 13] == (TYPE & 0xff)) {
            received_len = n;
            loop_stop(loop);
            break;
        }
    }
}

static void tx_ready(void *ctx, unsigned queue)
{
    (void)ctx;
    tx_calls++;
    current->ops->watch(current, queue, true, false);
    loop_stop(loop);
}

static void timed_out(struct loop_timer *timer)
{
    (void)timer;
    loop_stop(loop);
}

static void run(unsigned ms)
{
    struct loop_timer timer;

    loop_timer_init(&timer, timed_out);
    loop_timer_arm(loop, &timer, clock_now_ns() + ms * NS_PER_MS);
    loop_run(loop);
    loop_timer_cancel(loop, &timer);
}

/* The name in "tap NAME". */
static const char *name_of(const struct net_backend *net)
{
    return net->description + 4;
}

static int set_up(const char *name)
{
    struct ifreq ifr = {0};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
    ifr.ifr_mtu = 9000;
    int ret = ioctl(fd, SIOCSIFMTU, &ifr);
    if (ret == 0)
        ret = ioctl(fd, SIOCGIFFLAGS, &ifr);
    ifr.ifr_flags |= IFF_UP;
    if (ret == 0)
        ret = ioctl(fd, SIOCSIFFLAGS, &ifr);
    close(fd);
    return ret;
}

/* The host's end of the interface. */
static int open_packet_socket(const char *name)
{
    struct sockaddr_ll a = {.sll_family = AF_PACKET,
                            .sll_protocol = htons(TYPE),
                            .sll_ifindex = (int)if_nametoindex(name)};
    struct timeval timeout = {.tv_sec = 2};
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(TYPE));

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
    if (fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static void fill_frame(uint8_t *frame, size_t len, unsigned seed)
{
    for (size_t i = 0; i < len; i++)
        frame[i] = (uint8_t)(seed + i * 3);
    memset(frame, 0xff, 6);
    memcpy(frame + 6, "\x52\x54\x00\x01\x02\x03", 6);
    frame[12] = TYPE >> 8;
    frame[13] = TYPE & 0xff;
}

static void test_packets(struct net_backend *net, const char *name)
{
    uint8_t frame[8000], got[8000];
    static struct net_header header;
    struct iovec iov[3] = {
        {&header,     sizeof(header)     },
        {frame,       100                },
        {frame + 100, sizeof(frame) - 100},
    };
    int fd = open_packet_socket(name);

    ok(fd >= 0, "the host's end opens");
    fill_frame(frame, sizeof(frame), 1);
    is_int(net->ops->send(net, 0, iov, 3), sizeof(header) + sizeof(frame), "a packet is sent");
    is_int(recv(fd, got, sizeof(got), 0), sizeof(frame), "and arrives");
    ok(memcmp(frame, got, sizeof(frame)) == 0, "as it was");

    fill_frame(frame, 1000, 77);
    received_len = 0;
    is_int(send(fd, frame, 1000, 0), 1000, "the host sends");
    run(50);
    is_int(received_len, 0, "nothing comes while nobody watches");
    net->ops->watch(net, 0, true, false);
    run(2000);
    is_int(received_len, 1000 + NET_HEADER_BYTES, "the packet comes when watched for");
    ok(memcmp(received + NET_HEADER_BYTES, frame, 1000) == 0, "as it was");
    ok(received[0] == 0 && received[1] == 0, "with an empty header");
    net->ops->watch(net, 0, true, true);
    run(2000);
    ok(tx_calls > 0, "there is room to send");

    header.gso_type = 1; /* without NEEDS_CSUM, and not even TCP: the kernel's own checks */
    header.gso_size = 1;
    header.hdr_len = 65535;
    ok(net->ops->send(net, 0, iov, 3) < 0, "the kernel refuses a header that makes no sense");
    close(fd);
}

static bool open_tap(const char *name, unsigned queues, struct err *err)
{
    struct net_tap_options options = {.name = name, .queue_pairs = queues};

    *err = (struct err)ERR_INIT;
    return net_tap_open(&current, &options, err) == 0;
}

static void test_multi_queue(void)
{
    struct err err;

    if (!ok(open_tap("hullmq", 2, &err), "a tap with two queues opens")) {
        printf("# %s\n", err.text);
        return;
    }
    is_int(current->queue_pairs, 2, "it has two queue pairs");
    is_int(set_up("hullmq"), 0, "up");
    is_int(current->ops->attach(current, 0, loop, rx_ready, tx_ready, NULL), 0, "attach 0");
    is_int(current->ops->attach(current, 1, loop, rx_ready, tx_ready, NULL), 0, "attach 1");
    current->ops->watch(current, 0, true, false);
    current->ops->watch(current, 1, true, false);
    run(20);
    is_int(current->ops->set_queue_pairs(current, 2), 0, "both in use");
    int fd = open_packet_socket("hullmq");
    uint8_t frame[60];
    rx_calls[0] = rx_calls[1] = 0;
    /* The kernel picks a queue by a hash of each flow. */
    for (unsigned i = 0; i < 64; i++) {
        fill_frame(frame, sizeof(frame), i);
        frame[11] = (uint8_t)i;
        if (send(fd, frame, sizeof(frame), 0) < 0)
            break;
    }
    run(50);
    run(50);
    ok(rx_calls[0] + rx_calls[1] > 0, "packets arrive on them");
    is_int(current->ops->set_queue_pairs(current, 1), 0, "one in use again");
    rx_calls[0] = rx_calls[1] = 0;
    send(fd, frame, sizeof(frame), 0);
    run(50);
    ok(rx_calls[0] > 0 && rx_calls[1] == 0, "packets arrive on the first alone");
    is_int(current->ops->set_queue_pairs(current, 3), -EINVAL, "three are too many");
    close(fd);
    net_close(current);
}

static void test_persistent(void)
{
    struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE};
    struct err err;
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

    snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "hullkeep");
    ok(ioctl(fd, TUNSETIFF, &ifr) == 0 && ioctl(fd, TUNSETPERSIST, 1) == 0, "a persistent tap");
    close(fd);
    if (ok(open_tap("hullkeep", 1, &err), "one with multi_queue serves a card of one queue"))
        net_close(current);
    else
        printf("# %s\n", err.text);

    fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    ifr.ifr_flags = IFF_TAP | IFF_NO_PI;
    snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "hullone");
    ok(ioctl(fd, TUNSETIFF, &ifr) == 0 && ioctl(fd, TUNSETPERSIST, 1) == 0, "one without");
    ok(!open_tap("hullone", 2, &err), "does not serve two queues");
    ok(strstr(err.text, "multi_queue") != NULL, "and err says what to do");
    ok(!open_tap("hullone", 1, &err) && err.code == -EBUSY, "one that is in use is busy");
    close(fd);
    if (ok(open_tap("hullone", 1, &err), "one that is free is not"))
        net_close(current);
}

int main(void)
{
    struct err err = ERR_INIT;

    is_int(open_tap("a-name-that-is-too-long", 1, &err), false, "a long name is refused");
    if (!enter_namespace()) {
        tap_skip("tap", "no network namespace may be made here");
        return tap_done();
    }
    if (access("/dev/net/tun", R_OK | W_OK) < 0) {
        tap_skip("tap", "/dev/net/tun is missing here, or not for this user");
        return tap_done();
    }
    if (loop_new(&loop, 0, &err) < 0)
        return 1;
    if (!open_tap(NULL, 1, &err)) {
        tap_skip("tap", err.text);
        return tap_done();
    }
    is_int(strncmp(current->description, "tap ", 4), 0, "a tap opens, the kernel names it");
    char name[IFNAMSIZ];
    snprintf(name, sizeof(name), "%.15s", name_of(current));
    is_int(set_up(name), 0, "it can be set up");
    is_int(current->ops->attach(current, 0, loop, rx_ready, tx_ready, NULL), 0, "attached");
    ok(current->offloads_rx & NET_OFFLOAD_CSUM, "it has offloads");
    is_int(current->ops->set_offloads(current, current->offloads_rx), 0, "all can be on");
    is_int(current->ops->set_offloads(current, NET_OFFLOAD_CSUM), 0, "some");
    is_int(current->ops->set_offloads(current, 0), 0, "none");
    is_int(current->ops->set_offloads(current, NET_OFFLOAD_UFO), -EINVAL, "not what it lacks");
    test_packets(current, name);
    net_close(current);
    test_multi_queue();
    test_persistent();
    loop_free(loop);
    return tap_done();
}
