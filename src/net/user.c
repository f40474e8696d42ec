/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VM's side of the user network: starts hull-slirp and exchanges packets with it
 * (net/user_proto.h). What comes from the helper is bounded by the system call that receives it,
 * and otherwise goes to the guest as it is, as from any network.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "base/units.h"
#include "net/net.h"
#include "net/packet.h"
#include "net/user_proto.h"

#define START_TIMEOUT_MS 10000
#define SOCKET_BYTES     (4 << 20) /* both directions; the host's wmem_max may make it less */
#define IOV_CAP          1024      /* what the kernel takes (IOV_MAX) */

struct net_user {
    struct net_backend net; /* first */
    int fd;
    pid_t pid;       /* of the helper; 0: reaped */
    bool csum_valid; /* tell the guest that checksums are good */
    bool starting;   /* it has not said that it is ready */
    bool ended;      /* the end of the helper's stream was read */
    struct loop *loop;
    struct loop_fd lfd;
    bool lfd_added;
    void (*rx_ready)(void *ctx, unsigned queue);
    void (*tx_ready)(void *ctx, unsigned queue);
    void *ctx;
};

static struct net_user *user_of(struct net_backend *net)
{
    return CONTAINER_OF(net, struct net_user, net);
}

/* --- the helper process --- */

/* Beside this program, or where an installation puts it. */
static int find_helper(char *path, size_t path_len, struct err *err)
{
    char self[PATH_MAX];
    ssize_t len = readlink("/proc/self/exe", self, sizeof(self) - 1);

    if (len <= 0)
        return err_errno(err, errno, "cannot find this program's folder by /proc/self/exe");
    self[len] = '\0';
    char *slash = strrchr(self, '/');
    int dir_len = slash ? (int)(slash - self) : 0;
    int n = snprintf(path, path_len, "%.*s/hull-slirp", dir_len, self);
    if (n > 0 && (size_t)n < path_len && access(path, X_OK) == 0)
        return 0;
    n = snprintf(path, path_len, "%.*s/../libexec/hull/hull-slirp", dir_len, self);
    if (n > 0 && (size_t)n < path_len && access(path, X_OK) == 0)
        return 0;
    return err_set(err, ENOENT,
                   "the user network needs the program hull-slirp in %.*s or %.*s/../libexec/hull",
                   dir_len, self, dir_len, self);
}

/* What the dynamic loader may need, and nothing else of our environment: a helper that was taken
 * over can read its own. */
static unsigned helper_environment(char **env, unsigned cap)
{
    static const char *const kept[] = {"LD_LIBRARY_PATH=", "ASAN_OPTIONS=", "UBSAN_OPTIONS="};
    unsigned count = 0;

    for (char **e = environ; e && *e; e++) {
        for (unsigned i = 0; i < ARRAY_LEN(kept) && count + 1 < cap; i++) {
            if (strncmp(*e, kept[i], strlen(kept[i])) == 0)
                env[count++] = *e;
        }
    }
    env[count] = NULL;
    return count;
}

/* The socket becomes USER_PROTO_FD; 0 to 2 lead nowhere (the terminal would be a way out: it can be
 * read from and, once, typed into); nothing else is inherited. */
static int helper_files(posix_spawn_file_actions_t *files, int fd)
{
    int ret = 0;

    for (int i = 0; ret == 0 && i < 3; i++)
        ret = posix_spawn_file_actions_addopen(files, i, "/dev/null", O_RDWR, 0);
    if (ret == 0)
        ret = posix_spawn_file_actions_adddup2(files, fd, USER_PROTO_FD);
    if (ret == 0)
        ret = posix_spawn_file_actions_addclosefrom_np(files, USER_PROTO_FD + 1);
    return ret;
}

/* A session of its own: Ctrl-C at the terminal is the VM's business, which then ends the helper. */
static int helper_attributes(posix_spawnattr_t *attr)
{
    sigset_t none, all;
    int ret;

    sigemptyset(&none);
    sigfillset(&all);
    ret = posix_spawnattr_setsigmask(attr, &none);
    if (ret == 0)
        ret = posix_spawnattr_setsigdefault(attr, &all);
    if (ret == 0)
        ret = posix_spawnattr_setflags(attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
                                                 POSIX_SPAWN_SETSID);
    return ret;
}

static int spawn_helper(struct net_user *user, int helper_fd, struct err *err)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    char path[PATH_MAX];
    char name[] = "hull-slirp";
    char *argv[] = {name, NULL};
    char *env[8];
    int ret = find_helper(path, sizeof(path), err);

    if (ret < 0)
        return ret;
    helper_environment(env, ARRAY_LEN(env));
    ret = posix_spawn_file_actions_init(&files);
    if (ret != 0)
        return err_errno(err, ret, "cannot start %s", path);
    ret = posix_spawnattr_init(&attr);
    if (ret == 0) {
        ret = helper_files(&files, helper_fd);
        if (ret == 0)
            ret = helper_attributes(&attr);
        if (ret == 0)
            ret = posix_spawn(&user->pid, path, &files, &attr, argv, env);
        posix_spawnattr_destroy(&attr);
    }
    posix_spawn_file_actions_destroy(&files);
    if (ret != 0) {
        user->pid = 0;
        return err_errno(err, ret, "cannot start %s", path);
    }
    return 0;
}

/* How the helper ended, for people. Waits when asked to; "" while it runs. */
static void reap_helper(struct net_user *user, int flags, char *how, size_t how_len)
{
    int status;
    pid_t got;

    how[0] = '\0';
    if (user->pid <= 0)
        return;
    do
        got = waitpid(user->pid, &status, flags);
    while (got < 0 && errno == EINTR);
    if (got == 0)
        return;
    user->pid = 0;
    if (got < 0)
        snprintf(how, how_len, "it is gone");
    else if (WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS)
        snprintf(how, how_len, "it made a system call that its filter forbids");
    else if (WIFSIGNALED(status))
        snprintf(how, how_len, "signal %d, %s", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else
        snprintf(how, how_len, "exit status %d", WEXITSTATUS(status));
}

static void stop_helper(struct net_user *user)
{
    char how[96];

    if (user->fd >= 0)
        close(user->fd);
    user->fd = -1;
    if (user->pid > 0)
        kill(user->pid, SIGKILL);
    reap_helper(user, 0, how, sizeof(how));
}

/* --- the handshake --- */

static void set_socket_option(int fd, int option, int value)
{
    /* Best effort: smaller buffers and no sender's identity work as well. */
    (void)setsockopt(fd, SOL_SOCKET, option, &value, sizeof(value));
}

static int send_config(struct net_user *user, const struct net_user_options *options,
                       struct err *err)
{
    struct user_config config = {.magic = USER_PROTO_MAGIC};
    ssize_t n;

    if (options->restricted)
        config.flags |= USER_RESTRICTED;
    config.forward_count = options->forward_count;
    if (options->forward_count)
        memcpy(config.forwards, options->forwards,
               options->forward_count * sizeof(config.forwards[0]));
    do
        n = send(user->fd, &config, sizeof(config), MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return err_errno(err, errno, "cannot reach hull-slirp");
    return 0;
}

/*
 * One reply, with the process that sent it: with SO_PASSCRED the kernel says which, in our PID
 * namespace. 1, 0 at the end of the stream, or -errno.
 */
static int receive_reply(struct net_user *user, struct user_reply *reply, pid_t *sender,
                         int timeout_ms)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(struct ucred))];
    } control;
    struct iovec iov = {.iov_base = reply, .iov_len = sizeof(*reply)};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof(control.bytes)};
    struct pollfd p = {.fd = user->fd, .events = POLLIN};
    int ready = poll(&p, 1, timeout_ms);

    if (ready <= 0)
        return ready < 0 ? -errno : -ETIMEDOUT;
    ssize_t n = recvmsg(user->fd, &message, MSG_DONTWAIT);
    if (n <= 0)
        return n < 0 ? -errno : 0;
    if ((size_t)n != sizeof(*reply))
        return -EPROTO;
    reply->text[sizeof(reply->text) - 1] = '\0';
    *sender = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_CREDENTIALS) {
            struct ucred credentials;
            memcpy(&credentials, CMSG_DATA(c), sizeof(credentials));
            *sender = credentials.pid;
        }
    }
    return 1;
}

/* The jail made a PID namespace: the process we started has ended in favour of its sibling. */
static void follow_helper(struct net_user *user, pid_t sender)
{
    char how[96];

    if (sender <= 0 || sender == user->pid)
        return;
    reap_helper(user, 0, how, sizeof(how));
    user->pid = sender;
}

/* What a reply means: 1 ready, 0 there is more to come, or the error that it brought. */
static int take_reply(struct net_user *user, const struct user_reply *reply, pid_t sender,
                      struct err *err)
{
    follow_helper(user, sender);
    switch (reply->kind) {
    case USER_REPLY_READY:
        user->starting = false;
        set_socket_option(user->fd, SO_PASSCRED, 0);
        return 1;
    case USER_REPLY_LOG:
        log_info("user-net", "%s", reply->text);
        return 0;
    case USER_REPLY_ERROR:
        return err_set(err, reply->code, "%s", reply->text);
    default:
        return err_set(err, EPROTO, "hull-slirp and hull are not of the same version");
    }
}

static int wait_ready(struct net_user *user, struct err *err)
{
    const uint64_t deadline_ns = clock_now_ns() + START_TIMEOUT_MS * NS_PER_MS;
    struct user_reply reply;
    char how[96];

    for (;;) {
        uint64_t now_ns = clock_now_ns();
        uint64_t left_ms = now_ns < deadline_ns ? (deadline_ns - now_ns) / NS_PER_MS : 0;
        pid_t sender = 0;
        int ret = receive_reply(user, &reply, &sender, (int)left_ms);

        if (ret == -EINTR || ret == -EAGAIN)
            continue;
        if (ret == 0) {
            reap_helper(user, 0, how, sizeof(how));
            return err_set(err, EIO, "hull-slirp ended while it started: %s", how);
        }
        if (ret < 0)
            return err_errno(err, ret, "hull-slirp does not get ready");
        ret = take_reply(user, &reply, sender, err);
        if (ret != 0)
            return ret < 0 ? ret : 0;
    }
}

/* The same for a helper that nobody waits for: is it ready now? */
static bool look_ready(struct net_user *user)
{
    struct user_reply reply;
    struct err err = ERR_INIT;
    pid_t sender = 0;
    int ret;

    while (user->starting && !user->ended) {
        ret = receive_reply(user, &reply, &sender, 0);
        if (ret == -EINTR || ret == -EAGAIN || ret == -ETIMEDOUT)
            return false;
        if (ret == 0)
            ret = err_set(&err, EIO, "it ended");
        else
            ret =
                ret < 0 ? err_errno(&err, ret, "no reply") : take_reply(user, &reply, sender, &err);
        if (ret < 0) {
            log_error("user-net", "hull-slirp does not start: %s", err.text);
            user->ended = true;
        }
    }
    return !user->starting;
}

/* --- packets --- */

/* The helper has gone: the guest sees its link go down, and nothing else happens to the VM. */
static void helper_lost(struct net_user *user)
{
    char how[96];

    if (!user->net.link_up)
        return;
    if (user->starting)
        (void)look_ready(user); /* it may have said why */
    user->net.link_up = false;
    if (user->lfd_added)
        loop_fd_del(user->loop, &user->lfd);
    user->lfd_added = false;
    /* Its socket closes moments before it can be reaped: without a wait the reason is missed. */
    if (user->pid > 0)
        kill(user->pid, SIGKILL);
    reap_helper(user, 0, how, sizeof(how));
    log_error("user-net", "hull-slirp ended (%s): the guest's network is down", how);
    if (user->rx_ready)
        user->rx_ready(user->ctx, 0);
}

static void user_event(struct loop_fd *lfd, short revents)
{
    struct net_user *user = CONTAINER_OF(lfd, struct net_user, lfd);

    if (revents & (POLLHUP | POLLERR)) {
        helper_lost(user);
        return;
    }
    if (revents & POLLOUT && lfd->events & POLLOUT)
        user->tx_ready(user->ctx, 0);
    if (revents & POLLIN && user->lfd_added && lfd->events & POLLIN)
        user->rx_ready(user->ctx, 0);
    if (user->ended)
        helper_lost(user);
}

static int user_attach(struct net_backend *net, unsigned queue, struct loop *loop,
                       void (*rx_ready)(void *ctx, unsigned queue),
                       void (*tx_ready)(void *ctx, unsigned queue), void *ctx)
{
    struct net_user *user = user_of(net);
    int ret;

    if (queue != 0 || user->lfd_added)
        return -EINVAL;
    user->loop = loop;
    user->rx_ready = rx_ready;
    user->tx_ready = tx_ready;
    user->ctx = ctx;
    user->lfd = (struct loop_fd){.fd = user->fd, .events = 0, .fn = user_event};
    ret = loop_fd_add(loop, &user->lfd);
    user->lfd_added = ret == 0;
    return ret;
}

static void user_watch(struct net_backend *net, unsigned queue, bool rx, bool tx)
{
    struct net_user *user = user_of(net);
    short events = (short)((rx ? POLLIN : 0) | (tx ? POLLOUT : 0));

    (void)queue;
    if (user->lfd_added && events != user->lfd.events)
        loop_fd_modify(user->loop, &user->lfd, events);
}

static ssize_t user_send(struct net_backend *net, unsigned queue, const struct iovec *iov,
                         unsigned iov_count)
{
    struct net_user *user = user_of(net);
    struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = iov_count};
    ssize_t n;

    (void)queue;
    if (!net->link_up)
        return -ENETDOWN;
    if (iov_count > IOV_CAP)
        return -EMSGSIZE;
    do
        n = sendmsg(user->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n >= 0)
        return n;
    /* The loop learns of a helper that ended by itself. */
    return errno == ENOBUFS ? -EAGAIN : -errno;
}

/*
 * The header is ours to write: everything from byte NET_HEADER_BYTES of iov on takes the frame.
 */
static ssize_t user_receive(struct net_backend *net, unsigned queue, const struct iovec *iov,
                            unsigned iov_count)
{
    struct net_user *user = user_of(net);
    const struct net_header header = {.flags = user->csum_valid ? NET_HEADER_DATA_VALID : 0};
    struct iovec frame[IOV_CAP];
    unsigned count = 0;
    size_t header_done = 0;

    (void)queue;
    if (!net->link_up || (user->starting && !look_ready(user)))
        return -EAGAIN;
    for (unsigned i = 0; i < iov_count && count < IOV_CAP; i++) {
        size_t skip = NET_HEADER_BYTES - header_done;
        if (skip > iov[i].iov_len)
            skip = iov[i].iov_len;
        header_done += skip;
        if (iov[i].iov_len > skip)
            frame[count++] = (struct iovec){.iov_base = (uint8_t *)iov[i].iov_base + skip,
                                            .iov_len = iov[i].iov_len - skip};
    }
    if (count == 0)
        return -EINVAL;

    struct msghdr message = {.msg_iov = frame, .msg_iovlen = count};
    ssize_t n;
    do
        n = recvmsg(user->fd, &message, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n <= 0) {
        /* A helper that was taken over may close its side without ending: no POLLHUP comes then,
         * but POLLIN without end. Not from in here, where the card's lock is held. */
        user->ended |= n == 0;
        return -EAGAIN;
    }
    header_done = 0;
    for (unsigned i = 0; header_done < NET_HEADER_BYTES; i++) {
        size_t part = NET_HEADER_BYTES - header_done;
        if (part > iov[i].iov_len)
            part = iov[i].iov_len;
        memcpy(iov[i].iov_base, (const uint8_t *)&header + header_done, part);
        header_done += part;
    }
    return n + NET_HEADER_BYTES;
}

static int user_set_offloads(struct net_backend *net, unsigned offloads)
{
    if (offloads & ~net->offloads_rx)
        return -EINVAL;
    user_of(net)->csum_valid = (offloads & NET_OFFLOAD_CSUM) != 0;
    return 0;
}

static int user_set_queue_pairs(struct net_backend *net, unsigned n)
{
    (void)net;
    return n == 1 ? 0 : -EINVAL;
}

static void user_close(struct net_backend *net)
{
    struct net_user *user = user_of(net);

    if (user->lfd_added)
        loop_fd_del(user->loop, &user->lfd);
    if (user->starting)
        (void)look_ready(user); /* it may have become another process */
    stop_helper(user);
    free(user);
}

static const struct net_ops user_ops = {
    .name = "user",
    .attach = user_attach,
    .watch = user_watch,
    .send = user_send,
    .receive = user_receive,
    .set_offloads = user_set_offloads,
    .set_queue_pairs = user_set_queue_pairs,
    .close = user_close,
};

/* --- opening --- */

static void set_socket_buffers(int fd)
{
    const int bytes = SOCKET_BYTES;

    /* What counts on a Unix socket is the sender's buffer. Root may exceed the host's limit. */
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes)) < 0)
        set_socket_option(fd, SO_SNDBUF, SOCKET_BYTES);
}

static int start_helper(struct net_user *user, const struct net_user_options *options,
                        struct err *err)
{
    int fds[2];
    int ret;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
        return err_errno(err, errno, "cannot make a socket pair for hull-slirp");
    user->fd = fds[0];
    set_socket_buffers(fds[0]);
    set_socket_buffers(fds[1]);
    set_socket_option(user->fd, SO_PASSCRED, 1);
    ret = spawn_helper(user, fds[1], err);
    close(fds[1]);
    if (ret == 0)
        ret = send_config(user, options, err);
    user->starting = true;
    /* A port that cannot be had must be told before the VM starts. Else the guest's packets wait in
     * the socket, and the VM starts meanwhile. */
    if (ret == 0 && options->forward_count)
        ret = wait_ready(user, err);
    return ret;
}

int net_user_open(struct net_backend **net, const struct net_user_options *options, struct err *err)
{
    struct net_user *user;
    int ret;

    *net = NULL;
    if (options->forward_count > NET_FORWARDS_MAX)
        return err_set(err, EINVAL, "more than %u forwarded ports", NET_FORWARDS_MAX);
    user = calloc(1, sizeof(*user));
    if (!user)
        return err_set(err, ENOMEM, "no memory for a user network");
    user->fd = -1;
    user->net = (struct net_backend){
        .ops = &user_ops,
        .queue_pairs = 1,
        .offloads_rx = NET_OFFLOAD_CSUM,
        .offloads_tx = NET_OFFLOAD_CSUM | NET_OFFLOAD_TSO4 | NET_OFFLOAD_TSO6 | NET_OFFLOAD_ECN,
        .link_up = true,
    };
    snprintf(user->net.description, sizeof(user->net.description), "user 10.0.2.0/24%s",
             options->restricted ? ", restricted" : "");
    ret = start_helper(user, options, err);
    if (ret < 0) {
        stop_helper(user);
        free(user);
        return ret;
    }
    *net = &user->net;
    return 0;
}
