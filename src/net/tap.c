/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TAP interfaces of Linux (Documentation/networking/tuntap.rst of the kernel). The interface's
 * header, with IFF_VNET_HDR, is struct net_header, so that packets pass between guest memory and
 * kernel as they are. Each queue is a descriptor of its own.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "base/units.h"
#include "net/net.h"

#define TAP_DEVICE "/dev/net/tun"

/* Newer than the headers of some distributions (Linux 6.2). */
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

_Static_assert(NET_OFFLOAD_CSUM == TUN_F_CSUM && NET_OFFLOAD_TSO4 == TUN_F_TSO4 &&
                   NET_OFFLOAD_TSO6 == TUN_F_TSO6 && NET_OFFLOAD_ECN == TUN_F_TSO_ECN &&
                   NET_OFFLOAD_UFO == TUN_F_UFO && NET_OFFLOAD_USO4 == TUN_F_USO4 &&
                   NET_OFFLOAD_USO6 == TUN_F_USO6,
               "NET_OFFLOAD_* are the numbers of the tun driver");

struct tap_queue {
    struct net_tap *tap;
    unsigned index;
    int fd;
    bool enabled; /* attached to the interface: carries packets */
    struct loop *loop;
    struct loop_fd lfd;
    bool lfd_added;
    void (*rx_ready)(void *ctx, unsigned queue);
    void (*tx_ready)(void *ctx, unsigned queue);
    void *ctx;
};

struct net_tap {
    struct net_backend net; /* first */
    bool multi_queue;
    char name[IFNAMSIZ];
    struct tap_queue queues[]; /* net.queue_pairs of them */
};

static struct net_tap *tap_of(struct net_backend *net)
{
    return CONTAINER_OF(net, struct net_tap, net);
}

/* --- packets --- */

static void tap_event(struct loop_fd *lfd, short revents)
{
    struct tap_queue *q = CONTAINER_OF(lfd, struct tap_queue, lfd);

    /* The interface was deleted, or its queue detached: poll would report that without end. */
    if (revents & (POLLERR | POLLHUP | POLLNVAL) && !(revents & POLLIN)) {
        loop_fd_del(q->loop, lfd);
        q->lfd_added = false;
        if (q->enabled) {
            q->tap->net.link_up = false;
            log_error("tap", "%s: the interface has gone: the guest's network is down",
                      q->tap->name);
            q->rx_ready(q->ctx, q->index);
        }
        return;
    }
    if (revents & POLLOUT && lfd->events & POLLOUT)
        q->tx_ready(q->ctx, q->index);
    if (revents & POLLIN && q->lfd_added && lfd->events & POLLIN)
        q->rx_ready(q->ctx, q->index);
}

static int tap_attach(struct net_backend *net, unsigned queue, struct loop *loop,
                      void (*rx_ready)(void *ctx, unsigned queue),
                      void (*tx_ready)(void *ctx, unsigned queue), void *ctx)
{
    struct tap_queue *q = &tap_of(net)->queues[queue];
    int ret = 0;

    if (queue >= net->queue_pairs || q->loop)
        return -EINVAL;
    q->loop = loop;
    q->rx_ready = rx_ready;
    q->tx_ready = tx_ready;
    q->ctx = ctx;
    q->lfd = (struct loop_fd){.fd = q->fd, .events = 0, .fn = tap_event};
    if (q->enabled) {
        ret = loop_fd_add(loop, &q->lfd);
        q->lfd_added = ret == 0;
    }
    return ret;
}

static void tap_watch(struct net_backend *net, unsigned queue, bool rx, bool tx)
{
    struct tap_queue *q = &tap_of(net)->queues[queue];
    short events = (short)((rx ? POLLIN : 0) | (tx ? POLLOUT : 0));

    if (events == q->lfd.events)
        return;
    if (q->lfd_added)
        loop_fd_modify(q->loop, &q->lfd, events);
    else
        q->lfd.events = events; /* for when the queue is enabled again */
}

static ssize_t tap_send(struct net_backend *net, unsigned queue, const struct iovec *iov,
                        unsigned iov_count)
{
    ssize_t n;

    do
        n = writev(tap_of(net)->queues[queue].fd, iov, (int)iov_count);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

static ssize_t tap_receive(struct net_backend *net, unsigned queue, const struct iovec *iov,
                           unsigned iov_count)
{
    ssize_t n;

    do
        n = readv(tap_of(net)->queues[queue].fd, iov, (int)iov_count);
    while (n < 0 && errno == EINTR);
    /* EBADFD: a queue that is detached. Whatever else is wrong, there is no packet. */
    return n < 0 ? -EAGAIN : n;
}

/* --- control --- */

static int tap_set_offloads(struct net_backend *net, unsigned offloads)
{
    if (offloads & ~net->offloads_rx)
        return -EINVAL;
    /* The kernel takes segmentation only together with the checksum, and ECN only with TCP. */
    if (!(offloads & NET_OFFLOAD_CSUM))
        offloads = 0;
    if (!(offloads & (NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6)))
        offloads &= ~NET_OFFLOAD_ECN;
    if (ioctl(tap_of(net)->queues[0].fd, TUNSETOFFLOAD, (unsigned long)offloads) < 0)
        return -errno;
    return 0;
}

static int enable_queue(struct tap_queue *q, bool enable)
{
    struct ifreq ifr = {.ifr_flags = enable ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE};
    int ret;

    if (q->enabled == enable)
        return 0;
    /* Out of the loop first: a detached descriptor is in a permanent error. */
    if (!enable && q->lfd_added) {
        loop_fd_del(q->loop, &q->lfd);
        q->lfd_added = false;
    }
    if (ioctl(q->fd, TUNSETQUEUE, &ifr) < 0)
        return -errno;
    q->enabled = enable;
    if (enable && q->loop) {
        ret = loop_fd_add(q->loop, &q->lfd);
        if (ret < 0)
            return ret;
        q->lfd_added = true;
    }
    return 0;
}

static int tap_set_queue_pairs(struct net_backend *net, unsigned n)
{
    struct net_tap *tap = tap_of(net);

    if (n == 0 || n > net->queue_pairs)
        return -EINVAL;
    for (unsigned i = 0; tap->multi_queue && i < net->queue_pairs; i++) {
        int ret = enable_queue(&tap->queues[i], i < n);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static void tap_close(struct net_backend *net)
{
    struct net_tap *tap = tap_of(net);

    for (unsigned i = 0; i < net->queue_pairs; i++) {
        struct tap_queue *q = &tap->queues[i];
        if (q->lfd_added)
            loop_fd_del(q->loop, &q->lfd);
        if (q->fd >= 0)
            close(q->fd);
    }
    free(tap);
}

static const struct net_ops tap_ops = {
    .name = "tap",
    .attach = tap_attach,
    .watch = tap_watch,
    .send = tap_send,
    .receive = tap_receive,
    .set_offloads = tap_set_offloads,
    .set_queue_pairs = tap_set_queue_pairs,
    .close = tap_close,
};

/* --- opening --- */

static int open_error(int code, struct err *err)
{
    switch (code) {
    case ENOENT:
    case ENODEV:
        return err_set(err, code,
                       "there is no " TAP_DEVICE " on this host: load the kernel's module tun "
                       "(modprobe tun), or use --net user");
    case EACCES:
    case EPERM:
        return err_set(err, code,
                       TAP_DEVICE " may not be opened by this user: set its mode to 0666 (Linux "
                                  "guards the interfaces themselves), or use --net user");
    default:
        return err_errno(err, code, "cannot open " TAP_DEVICE);
    }
}

static int bind_error(int code, const char *name, unsigned queues, struct err *err)
{
    const char *shown = name[0] ? name : "hull0";
    const char *multi = queues > 1 ? " multi_queue" : "";

    switch (code) {
    case EPERM:
    case EACCES:
        return err_set(err, code,
                       "not permitted to %s the interface %s: have root make it for you, once: ip "
                       "tuntap add dev %s mode tap user $USER%s && ip link set %s up; then --net "
                       "tap=%s; or use --net user",
                       name[0] ? "use" : "create", name[0] ? name : "of a tap", shown, multi, shown,
                       shown);
    case EBUSY:
        return err_set(err, code, "%s is in use, by another VM or as something else than a tap",
                       shown);
    case EINVAL:
        return err_set(err, code,
                       "%s is no tap%s: ip tuntap del dev %s mode tap; ip tuntap add dev %s mode "
                       "tap user $USER%s",
                       shown, queues > 1 ? " with multi_queue" : "", shown, shown, multi);
    case E2BIG:
        return err_set(err, code, "%s has fewer than %u queues free", shown, queues);
    default:
        return err_errno(err, code, "cannot use the tap %s", shown);
    }
}

/* Make fd a queue of the interface called tap->name ("": learn its name). 0 or -errno. */
static int bind_queue(struct net_tap *tap, int fd)
{
    struct ifreq ifr = {0};

    memcpy(ifr.ifr_name, tap->name, IFNAMSIZ);
    ifr.ifr_flags =
        (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (tap->multi_queue ? IFF_MULTI_QUEUE : 0));
    if (ioctl(fd, TUNSETIFF, &ifr) < 0)
        return -errno;
    memcpy(tap->name, ifr.ifr_name, IFNAMSIZ);
    tap->name[IFNAMSIZ - 1] = '\0';
    return 0;
}

static int open_queue(struct net_tap *tap, unsigned index, struct err *err)
{
    struct tap_queue *q = &tap->queues[index];
    const int header_bytes = NET_HEADER_BYTES;
    const int little_endian = 1;
    int ret;

    q->fd = open(TAP_DEVICE, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (q->fd < 0)
        return open_error(errno, err);
    ret = bind_queue(tap, q->fd);
    if (ret == -EINVAL && tap->net.queue_pairs == 1 && !tap->multi_queue) {
        /* A persistent tap that was made with multi_queue; one queue of it will do. */
        tap->multi_queue = true;
        ret = bind_queue(tap, q->fd);
    }
    if (ret < 0)
        return bind_error(-ret, tap->name, tap->net.queue_pairs, err);
    if (ioctl(q->fd, TUNSETVNETHDRSZ, &header_bytes) < 0)
        return err_errno(err, errno, "%s: the kernel does not take virtio 1.0 headers", tap->name);
    /* Little endian is what a little-endian host does anyway. */
    if (ioctl(q->fd, TUNSETVNETLE, &little_endian) < 0 && errno != EINVAL && errno != ENOTTY)
        return err_errno(err, errno, "%s: the kernel does not take little-endian headers",
                         tap->name);
    q->enabled = true;
    return 0;
}

static int check_features(struct net_tap *tap, struct err *err)
{
    unsigned features = 0;
    int fd = open(TAP_DEVICE, O_RDWR | O_NONBLOCK | O_CLOEXEC);

    if (fd < 0)
        return open_error(errno, err);
    int ret = ioctl(fd, TUNGETFEATURES, &features) < 0 ? -errno : 0;
    close(fd);
    if (ret < 0)
        return err_errno(err, ret, TAP_DEVICE " does not tell its features");
    if (!(features & IFF_VNET_HDR))
        return err_set(err, ENOTSUP, "the kernel's tun driver has no IFF_VNET_HDR");
    if (tap->multi_queue && !(features & IFF_MULTI_QUEUE))
        return err_set(err, ENOTSUP, "the kernel's tun driver has no multi-queue: queues=1");
    return 0;
}

static void probe_offloads(struct net_tap *tap)
{
    static const unsigned sets[] = {
        NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6 | NET_OFFLOAD_ECN |
            NET_OFFLOAD_USO4 | NET_OFFLOAD_USO6,
        NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6 | NET_OFFLOAD_ECN,
        NET_OFFLOAD_CSUM,
    };
    int fd = tap->queues[0].fd;

    for (unsigned i = 0; i < ARRAY_LEN(sets); i++) {
        if (ioctl(fd, TUNSETOFFLOAD, (unsigned long)sets[i]) == 0) {
            tap->net.offloads_rx = sets[i];
            tap->net.offloads_tx = sets[i];
            break;
        }
    }
    ioctl(fd, TUNSETOFFLOAD, 0ul); /* until the guest says what it takes */
}

/* MTU, and whether packets can flow at all. What cannot be asked is left as it is. */
static void look_at_interface(struct net_tap *tap)
{
    struct ifreq ifr = {0};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return;
    memcpy(ifr.ifr_name, tap->name, IFNAMSIZ);
    if (ioctl(fd, SIOCGIFMTU, &ifr) == 0 && ifr.ifr_mtu >= 68 && ifr.ifr_mtu <= 65535 &&
        ifr.ifr_mtu != 1500)
        tap->net.mtu = (uint16_t)ifr.ifr_mtu;
    if (ioctl(fd, SIOCGIFFLAGS, &ifr) == 0 && !(ifr.ifr_flags & IFF_UP))
        log_info("tap", "%s is down, no packet will pass: ip link set %s up", tap->name, tap->name);
    close(fd);
}

static int open_all(struct net_tap *tap, const struct net_tap_options *options, struct err *err)
{
    int ret;

    if (options->name && strlen(options->name) >= IFNAMSIZ)
        return err_set(err, EINVAL, "%s: an interface name has at most %d characters",
                       options->name, IFNAMSIZ - 1);
    if (options->name)
        snprintf(tap->name, sizeof(tap->name), "%s", options->name);
    ret = check_features(tap, err);
    for (unsigned i = 0; ret == 0 && i < tap->net.queue_pairs; i++)
        ret = open_queue(tap, i, err);
    if (ret < 0)
        return ret;
    probe_offloads(tap);
    look_at_interface(tap);
    /* Further queues carry packets once the guest asks for them. */
    ret = tap_set_queue_pairs(&tap->net, 1);
    if (ret < 0)
        return err_errno(err, ret, "%s: cannot set the number of queues", tap->name);
    snprintf(tap->net.description, sizeof(tap->net.description), "tap %s", tap->name);
    return 0;
}

int net_tap_open(struct net_backend **net, const struct net_tap_options *options, struct err *err)
{
    unsigned pairs = options->queue_pairs ? options->queue_pairs : 1;
    struct net_tap *tap;
    int ret;

    *net = NULL;
    if (pairs > 64)
        return err_set(err, EINVAL, "a tap has at most 64 queues here, not %u", pairs);
    tap = calloc(1, sizeof(*tap) + pairs * sizeof(tap->queues[0]));
    if (!tap)
        return err_set(err, ENOMEM, "no memory for a tap");
    tap->net = (struct net_backend){.ops = &tap_ops, .queue_pairs = pairs, .link_up = true};
    tap->multi_queue = pairs > 1;
    for (unsigned i = 0; i < pairs; i++) {
        tap->queues[i].tap = tap;
        tap->queues[i].index = i;
        tap->queues[i].fd = -1;
    }
    ret = open_all(tap, options, err);
    if (ret < 0) {
        tap_close(&tap->net);
        return ret;
    }
    *net = &tap->net;
    return 0;
}
