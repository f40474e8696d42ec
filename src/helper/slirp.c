/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hull-slirp: the user network of one card, a process of its own. libslirp turns the guest's
 * packets into ordinary sockets of the user who runs the VM; it parses bytes that guest and network
 * chose, which is why it stands here, jailed, and not in the VM's process.
 *
 * It is started by net/user.c with one descriptor, the socket of net/user_proto.h; it opens the
 * forwarded ports, enters the jail, says ready, and then serves until the socket closes.
 *
 * One thread. The only flow control towards the VM is this: while its socket is full, packets wait
 * in a backlog, and no socket of the host is read; the guest's packets always are.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <slirp/libslirp.h>

#include "base/err.h"
#include "jail/jail.h"
#include "net/packet.h"
#include "net/user_proto.h"

/* One a connection of the guest, each of which may fill two buffers of 128 KiB here. */
#define DESCRIPTORS_MAX     1024
#define BUFFER_BYTES        (128 * 1024)
#define PACKETS_PER_TURN    64 /* from the guest, before its connections get their turn */
#define BACKLOG_PACKETS_MAX 1024
#define BACKLOG_BYTES_MAX   (4u << 20)
#define TIMERS_MAX          4  /* libslirp makes one */
#define FRAME_PADDED        60 /* Ethernet's minimum; libslirp reads ARP without looking at length */

struct queued {
    struct queued *next;
    size_t len;
    uint8_t frame[];
};

struct timer {
    bool used;
    SlirpTimerCb fn;
    void *arg;
    int64_t deadline_ms; /* INT64_MAX: disarmed */
};

struct helper {
    Slirp *slirp;
    struct pollfd *polls; /* [0] is the VM's socket */
    unsigned poll_count, poll_capacity;
    struct timer timers[TIMERS_MAX];
    struct queued *backlog, **backlog_end;
    unsigned backlog_packets;
    size_t backlog_bytes;
    uint8_t packet[NET_PACKET_MAX];
};

/* --- what this program asks of the kernel once it is jailed --- */

#define ALWAYS(name)                                                                               \
    {                                                                                              \
        .number = __NR_##name                                                                      \
    }
#define ONLY(name, arg_, mask_, value_)                                                            \
    {                                                                                              \
        .number = __NR_##name, .arg = (arg_), .mask = (mask_), .value = (value_)                   \
    }
#define REFUSE(name, code, arg_, mask_, value_)                                                    \
    {                                                                                              \
        .number = __NR_##name, .refuse = (code), .arg = (arg_), .mask = (mask_), .value = (value_) \
    }
#define WHOLE 0xffffffffULL /* of an int argument */

static const struct jail_syscall syscalls[] = {
    /* The loop: wait, and packets from and to the VM. */
    ALWAYS(poll),
    ALWAYS(ppoll),
    ALWAYS(restart_syscall),
    ALWAYS(recvfrom),
    ALWAYS(sendto),
    ALWAYS(recvmsg),
    ALWAYS(sendmsg),
    ALWAYS(clock_gettime),
    ALWAYS(gettimeofday),

    /* The guest's connections: Internet sockets and nothing else. if_nametoindex(), for a name
     * server like fe80::1%eth0, would rather have a Unix socket, and does with what it gets. */
    ONLY(socket, 0, WHOLE, AF_INET),
    ONLY(socket, 0, WHOLE, AF_INET6),
    REFUSE(socket, EACCES, 0, WHOLE, AF_UNIX),
    ALWAYS(connect),
    ALWAYS(accept),
    ALWAYS(accept4),
    ALWAYS(bind),
    ALWAYS(shutdown),
    ALWAYS(getsockname),
    ALWAYS(getpeername),
    ALWAYS(getsockopt),
    ALWAYS(setsockopt),
    ONLY(fcntl, 1, WHOLE, F_GETFL),
    ONLY(fcntl, 1, WHOLE, F_SETFL),
    ONLY(fcntl, 1, WHOLE, F_GETFD),
    ONLY(fcntl, 1, WHOLE, F_SETFD),
    ONLY(ioctl, 1, WHOLE, FIONREAD),
    ONLY(ioctl, 1, WHOLE, FIONBIO),
    ONLY(ioctl, 1, WHOLE, SIOCGIFINDEX),
    REFUSE(ioctl, ENOTTY, 1, WHOLE, 0x5401 /* TCGETS: stdio asks whether a file is a terminal */),
    ALWAYS(close),

    /* The host's name servers: /etc/resolv.conf is read again when it changed. */
    ONLY(openat, 2, O_ACCMODE | O_CREAT | O_TRUNC, O_RDONLY),
    ALWAYS(newfstatat),
    ALWAYS(fstat),
    ALWAYS(stat),
    ALWAYS(read),
    ALWAYS(lseek),

    /* Memory, never executable. */
    ALWAYS(brk),
    ONLY(mmap, 2, 4 /* PROT_EXEC */, 0),
    ONLY(mprotect, 2, 4, 0),
    ALWAYS(munmap),
    ALWAYS(mremap),
    ALWAYS(madvise),
    ALWAYS(futex),
    ALWAYS(getrandom),

    /* To die with the VM, and to die: abort() in the C library, exit. */
    ONLY(prctl, 0, WHOLE, PR_SET_PDEATHSIG),
    ALWAYS(rt_sigprocmask),
    ALWAYS(rt_sigaction),
    ALWAYS(rt_sigreturn),
    ALWAYS(getpid),
    ALWAYS(gettid),
    /* Where there is no PID namespace it would reach the user's other processes; refused, abort()
     * ends with an instruction that faults. */
    REFUSE(tgkill, EPERM, 2, WHOLE, SIGABRT),
    ALWAYS(write),
    ALWAYS(exit),
    ALWAYS(exit_group),

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    /* The sanitizers' own housekeeping, in test builds. */
    ALWAYS(sched_yield),
    ALWAYS(sigaltstack),
    ALWAYS(readlink),
    ALWAYS(prlimit64),
#endif
};

static const char *const keep[] = {"/etc/resolv.conf"};

/* --- the handshake --- */

static void reply(enum user_reply_kind kind, int code, const char *text)
{
    struct user_reply message = {.kind = kind, .code = code};
    ssize_t n;

    snprintf(message.text, sizeof(message.text), "%s", text);
    do
        n = send(USER_PROTO_FD, &message, sizeof(message), MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
}

static _Noreturn void fail(const struct err *err)
{
    reply(USER_REPLY_ERROR, err->code, err->text);
    _exit(1);
}

static void read_config(struct user_config *config)
{
    struct err err = ERR_INIT;
    ssize_t n;

    do
        n = recv(USER_PROTO_FD, config, sizeof(*config), MSG_TRUNC);
    while (n < 0 && errno == EINTR);
    if (n < 0) {
        static const char usage[] = "hull-slirp is started by hull, for a VM's user network\n";
        if (write(STDERR_FILENO, usage, sizeof(usage) - 1) < 0)
            _exit(3);
        _exit(2);
    }
    if (n == 0) /* the VM has gone already */
        _exit(0);
    if ((size_t)n != sizeof(*config) || config->magic != USER_PROTO_MAGIC ||
        config->forward_count > NET_FORWARDS_MAX) {
        err_set(&err, EPROTO, "hull-slirp and hull are not of the same version");
        fail(&err);
    }
}

/* --- time --- */

static int64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t cb_clock(void *opaque)
{
    (void)opaque;
    return now_ns();
}

static void *cb_timer_new(SlirpTimerCb fn, void *arg, void *opaque)
{
    struct helper *h = opaque;

    for (unsigned i = 0; i < TIMERS_MAX; i++) {
        if (!h->timers[i].used) {
            h->timers[i] =
                (struct timer){.used = true, .fn = fn, .arg = arg, .deadline_ms = INT64_MAX};
            return &h->timers[i];
        }
    }
    abort(); /* a libslirp that needs a larger table */
}

static void cb_timer_free(void *timer, void *opaque)
{
    (void)opaque;
    *(struct timer *)timer = (struct timer){.used = false};
}

static void cb_timer_mod(void *timer, int64_t expire_ms, void *opaque)
{
    (void)opaque;
    ((struct timer *)timer)->deadline_ms = expire_ms;
}

static void run_timers(struct helper *h)
{
    int64_t now_ms = now_ns() / 1000000;

    for (unsigned i = 0; i < TIMERS_MAX; i++) {
        struct timer *t = &h->timers[i];
        if (t->used && t->deadline_ms <= now_ms) {
            t->deadline_ms = INT64_MAX;
            t->fn(t->arg);
        }
    }
}

static uint32_t timers_timeout_ms(const struct helper *h, uint32_t timeout_ms)
{
    int64_t now_ms = now_ns() / 1000000;

    for (unsigned i = 0; i < TIMERS_MAX; i++) {
        const struct timer *t = &h->timers[i];
        int64_t wait = t->deadline_ms > now_ms ? t->deadline_ms - now_ms : 0;
        if (t->used && wait < timeout_ms)
            timeout_ms = (uint32_t)wait;
    }
    return timeout_ms;
}

/* --- packets to the VM --- */

/* Sent, or lost for good: true. false: the socket is full. */
static bool send_frame(const void *frame, size_t len)
{
    ssize_t n;

    do
        n = send(USER_PROTO_FD, frame, len, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
        _exit(0);
    return n >= 0 || (errno != EAGAIN && errno != ENOBUFS);
}

static void backlog_add(struct helper *h, const void *frame, size_t len)
{
    struct queued *q;

    if (h->backlog_packets >= BACKLOG_PACKETS_MAX || h->backlog_bytes + len > BACKLOG_BYTES_MAX)
        return; /* a network card without room drops as well */
    q = malloc(sizeof(*q) + len);
    if (!q)
        return;
    q->next = NULL;
    q->len = len;
    memcpy(q->frame, frame, len);
    *h->backlog_end = q;
    h->backlog_end = &q->next;
    h->backlog_packets++;
    h->backlog_bytes += len;
}

static void backlog_flush(struct helper *h)
{
    while (h->backlog && send_frame(h->backlog->frame, h->backlog->len)) {
        struct queued *q = h->backlog;
        h->backlog = q->next;
        if (!h->backlog)
            h->backlog_end = &h->backlog;
        h->backlog_packets--;
        h->backlog_bytes -= q->len;
        free(q);
    }
}

static ssize_t cb_send_packet(const void *frame, size_t len, void *opaque)
{
    struct helper *h = opaque;

    if (len >= USER_FRAME_MIN && len <= USER_FRAME_MAX && (h->backlog || !send_frame(frame, len)))
        backlog_add(h, frame, len);
    return (ssize_t)len;
}

/* What a guest does wrong on its network is nobody else's news. */
static void cb_guest_error(const char *text, void *opaque)
{
    (void)text;
    (void)opaque;
}

/* All descriptors are gathered anew before each poll. */
static void cb_poll_fd(int fd, void *opaque)
{
    (void)fd;
    (void)opaque;
}

/* For applications whose loop is another thread. */
static void cb_notify(void *opaque)
{
    (void)opaque;
}

static const SlirpCb callbacks = {
    .send_packet = cb_send_packet,
    .guest_error = cb_guest_error,
    .clock_get_ns = cb_clock,
    .timer_new = cb_timer_new,
    .timer_free = cb_timer_free,
    .timer_mod = cb_timer_mod,
    .register_poll_fd = cb_poll_fd,
    .unregister_poll_fd = cb_poll_fd,
    .notify = cb_notify,
};

/* --- set-up --- */

static void start_slirp(struct helper *h, const struct user_config *config)
{
    SlirpConfig cfg = {
        .version = 1, /* the fields used here are all of version 1 */
        .restricted = (config->flags & USER_RESTRICTED) != 0,
        .in_enabled = true,
        .in6_enabled = true,
        .vprefix_len = 64,
        .if_mtu = USER_MTU,
        .if_mru = USER_MTU,
    };

    inet_pton(AF_INET, "10.0.2.0", &cfg.vnetwork);
    inet_pton(AF_INET, "255.255.255.0", &cfg.vnetmask);
    inet_pton(AF_INET, "10.0.2.2", &cfg.vhost);
    inet_pton(AF_INET, "10.0.2.15", &cfg.vdhcp_start);
    inet_pton(AF_INET, "10.0.2.3", &cfg.vnameserver);
    inet_pton(AF_INET6, "fec0::", &cfg.vprefix_addr6);
    inet_pton(AF_INET6, "fec0::2", &cfg.vhost6);
    inet_pton(AF_INET6, "fec0::3", &cfg.vnameserver6);

    h->slirp = slirp_new(&cfg, &callbacks, h);
    if (!h->slirp) {
        struct err err = ERR_INIT;
        err_set(&err, EINVAL, "libslirp %s does not start", slirp_version_string());
        fail(&err);
    }
}

union address {
    struct sockaddr any;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
};

/* text is of either family. Returns the length of the address, 0: none. */
static socklen_t parse_address(union address *address, const char *text, uint16_t port)
{
    *address = (union address){0};
    if (inet_pton(AF_INET, text, &address->in.sin_addr) == 1) {
        address->in.sin_family = AF_INET;
        address->in.sin_port = htons(port);
        return sizeof(address->in);
    }
    if (inet_pton(AF_INET6, text, &address->in6.sin6_addr) == 1) {
        address->in6.sin6_family = AF_INET6;
        address->in6.sin6_port = htons(port);
        return sizeof(address->in6);
    }
    return 0;
}

static void add_forward(struct helper *h, const struct net_forward *f)
{
    const char *proto = f->udp ? "udp" : "tcp";
    char host_text[sizeof(f->host_addr) + 1], guest_text[sizeof(f->guest_addr) + 1];
    struct err err = ERR_INIT;
    union address host, guest;
    socklen_t host_len, guest_len;

    snprintf(host_text, sizeof(host_text), "%.*s", (int)sizeof(f->host_addr),
             f->host_addr[0] ? f->host_addr : "127.0.0.1");
    snprintf(guest_text, sizeof(guest_text), "%.*s", (int)sizeof(f->guest_addr),
             f->guest_addr[0] ? f->guest_addr : "10.0.2.15");
    host_len = parse_address(&host, host_text, f->host_port);
    guest_len = parse_address(&guest, guest_text, f->guest_port);
    if (host_len == 0 || guest_len == 0) {
        err_set(&err, EINVAL, "%s is not a numeric address", host_len ? guest_text : host_text);
        fail(&err);
    }
    if (host.any.sa_family != guest.any.sa_family) {
        err_set(&err, EINVAL,
                "cannot forward %s to %s: one is an IPv4, the other an IPv6 address (name the "
                "guest's, in fec0::/64)",
                host_text, guest_text);
        fail(&err);
    }
    /* An IPv6 port is IPv6's alone, so that the same IPv4 port can be forwarded, too. */
    int flags = (f->udp ? SLIRP_HOSTFWD_UDP : 0) |
                (host.any.sa_family == AF_INET6 ? SLIRP_HOSTFWD_V6ONLY : 0);
    errno = 0;
    if (slirp_add_hostxfwd(h->slirp, &host.any, host_len, &guest.any, guest_len, flags) == 0)
        return;
    int code = errno ? errno : EINVAL;
    err_errno(&err, code, "cannot forward %s port %u of %s%s", proto, f->host_port, host_text,
              code == EADDRINUSE ? ", something else listens there"
              : code == EACCES   ? ", ports below net.ipv4.ip_unprivileged_port_start are root's"
                                 : "");
    fail(&err);
}

static void enter_jail(const struct user_config *config)
{
    const struct jail_options options = {
        .keep = keep,
        .keep_count = sizeof(keep) / sizeof(keep[0]),
        .descriptors_max = DESCRIPTORS_MAX,
        .no_tcp_listen = true, /* the forwarded ports listen already */
        .no_tcp_connect = (config->flags & USER_RESTRICTED) != 0,
        .syscalls = syscalls,
        .syscall_count = sizeof(syscalls) / sizeof(syscalls[0]),
    };
    struct jail_report report;
    struct err err = ERR_INIT;

    if (jail_enter(&options, &report, &err) < 0)
        fail(&err);
    for (unsigned i = 0; i < report.note_count; i++)
        reply(USER_REPLY_LOG, 0, report.notes[i]);
}

/* --- the loop --- */

static int cb_add_poll(int fd, int events, void *opaque)
{
    struct helper *h = opaque;
    short wanted = 0;

    if (h->poll_count == h->poll_capacity)
        return -1; /* more than RLIMIT_NOFILE there cannot be */
    if (events & SLIRP_POLL_IN && !h->backlog)
        wanted |= POLLIN;
    if (events & SLIRP_POLL_OUT)
        wanted |= POLLOUT;
    if (events & SLIRP_POLL_PRI && !h->backlog)
        wanted |= POLLPRI;
    /* A negative descriptor is passed over: with nothing to wait for, a peer that hung up would
     * otherwise wake us without end. */
    h->polls[h->poll_count] = (struct pollfd){.fd = wanted ? fd : -1, .events = wanted};
    return (int)h->poll_count++;
}

static int cb_get_revents(int index, void *opaque)
{
    struct helper *h = opaque;
    int events = 0;

    if (index < 0)
        return 0;
    short revents = h->polls[index].revents;
    if (revents & POLLIN)
        events |= SLIRP_POLL_IN;
    if (revents & POLLOUT)
        events |= SLIRP_POLL_OUT;
    if (revents & POLLPRI)
        events |= SLIRP_POLL_PRI;
    if (revents & POLLERR)
        events |= SLIRP_POLL_ERR;
    if (revents & POLLHUP)
        events |= SLIRP_POLL_HUP;
    return events;
}

/* The guest's packets, up to a turn's worth. */
static void serve_guest(struct helper *h)
{
    for (unsigned i = 0; i < PACKETS_PER_TURN; i++) {
        struct net_header header;
        ssize_t n = recv(USER_PROTO_FD, h->packet, sizeof(h->packet), MSG_DONTWAIT | MSG_TRUNC);

        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) /* the VM closed the socket, or died */
            _exit(0);
        if ((size_t)n < sizeof(header) + USER_FRAME_MIN || (size_t)n > sizeof(h->packet))
            continue;
        memcpy(&header, h->packet, sizeof(header));
        uint8_t *frame = h->packet + sizeof(header);
        size_t len = (size_t)n - sizeof(header);
        if (header.flags & NET_HEADER_NEEDS_CSUM && !packet_finish_checksum(frame, len, &header))
            continue;
        if (len < FRAME_PADDED) {
            memset(frame + len, 0, FRAME_PADDED - len);
            len = FRAME_PADDED;
        }
        slirp_input(h->slirp, frame, (int)len);
    }
}

static void serve(struct helper *h)
{
    for (;;) {
        uint32_t timeout_ms = 60000;

        h->polls[0] = (struct pollfd){.fd = USER_PROTO_FD,
                                      .events = (short)(POLLIN | (h->backlog ? POLLOUT : 0))};
        h->poll_count = 1;
        slirp_pollfds_fill(h->slirp, &timeout_ms, cb_add_poll, h);
        timeout_ms = timers_timeout_ms(h, timeout_ms);

        int n = poll(h->polls, h->poll_count, (int)timeout_ms);
        if (n < 0 && errno != EINTR)
            _exit(1);
        if (h->backlog)
            backlog_flush(h);
        slirp_pollfds_poll(h->slirp, n < 0, cb_get_revents, h);
        if (n > 0 && h->polls[0].revents)
            serve_guest(h);
        run_timers(h);
    }
}

int main(void)
{
    struct user_config config;
    struct helper *h = calloc(1, sizeof(*h));

    /* The VM passes nothing but the socket; whoever else starts us gets no further either. */
    (void)syscall(SYS_close_range, USER_PROTO_FD + 1, ~0u, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    signal(SIGPIPE, SIG_IGN); /* libslirp sends without MSG_NOSIGNAL */
    /* Connections' buffers are mappings of their own: they take memory as they fill, not when they
     * are made, and none any more once they are freed. */
    mallopt(M_MMAP_THRESHOLD, BUFFER_BYTES / 2);
    mallopt(M_MMAP_MAX, 4 * DESCRIPTORS_MAX);
    read_config(&config);

    if (h)
        h->polls = calloc(DESCRIPTORS_MAX + 1, sizeof(*h->polls));
    if (!h || !h->polls) {
        struct err err = ERR_INIT;
        err_set(&err, ENOMEM, "no memory for the user network");
        fail(&err);
    }
    h->poll_capacity = DESCRIPTORS_MAX + 1;
    h->backlog_end = &h->backlog;

    start_slirp(h, &config);
    for (unsigned i = 0; i < config.forward_count; i++)
        add_forward(h, &config.forwards[i]);
    enter_jail(&config);
    /* Once more: this may be another process than the one above. */
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    reply(USER_REPLY_READY, 0, "");
    serve(h);
}
