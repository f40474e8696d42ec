/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The testbed's agent: runs commands for tests/testbed.py. One connection is one command.
 *
 *   agent PORT   listens on a TCP port that the emulator forwards; any number of commands side by
 *                side. Runs as the testbed's process 1
 *   agent PATH   listens on a socket in the file system: process 1 of the enclosure
 *   agent -      serves one connection, its standard input: a command of this machine
 *
 *   agent -> client   'H' once, when the connection is served
 *   client -> agent   request: flags (1: terminal), rows, columns, length of the command (each a
 *                     big-endian u32), then the command for /bin/sh -c
 *   both ways         frames: type, length (big-endian u32), payload
 *     'i' input  'e' end of input  'k' signal (u32) to the command's process group
 *     'w' rows, columns  'o' standard output  'E' standard error  'x' status (u32), the last frame
 *
 * A client that hangs up takes its command's process group with it.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define CHUNK       65536u
#define COMMAND_MAX (1u << 20)

struct job {
    int sock;
    pid_t pid;
    int in, out, err; /* ours; -1 closed. With a terminal, in and out are its master */
    bool terminal;
};

static _Noreturn void quit(const struct job *job, int status)
{
    if (status != 0 && job->pid > 0)
        kill(-job->pid, SIGKILL);
    _exit(status);
}

static bool read_full(int fd, void *buf, size_t len)
{
    char *to = buf;
    while (len > 0) {
        ssize_t n = read(fd, to, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        to += n;
        len -= (size_t)n;
    }
    return true;
}

static bool write_full(int fd, const void *buf, size_t len)
{
    const char *from = buf;
    while (len > 0) {
        ssize_t n = write(fd, from, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        from += n;
        len -= (size_t)n;
    }
    return true;
}

static void send_frame(const struct job *job, char type, const void *payload, uint32_t len)
{
    uint8_t head[5] = {(uint8_t)type, (uint8_t)(len >> 24), (uint8_t)(len >> 16),
                       (uint8_t)(len >> 8), (uint8_t)len};
    if (!write_full(job->sock, head, sizeof(head)) || !write_full(job->sock, payload, len))
        quit(job, 1);
}

static void set_size(int tty, uint32_t rows, uint32_t columns)
{
    struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns};
    ioctl(tty, TIOCSWINSZ, &size);
}

static _Noreturn void command_exec(char *command, int in, int out, int err, bool terminal)
{
    setsid();
    signal(SIGCHLD, SIG_DFL);
    dup2(in, 0);
    dup2(out, 1);
    dup2(err, 2);
    if (terminal)
        ioctl(0, TIOCSCTTY, 0);
    for (int fd = 3; fd < 64; fd++)
        close(fd);
    signal(SIGPIPE, SIG_DFL);
    char *argv[] = {"sh", "-c", command, NULL};
    execv("/bin/sh", argv);
    _exit(127);
}

static void job_start(struct job *job, char *command, uint32_t rows, uint32_t columns)
{
    int in[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1};
    if (job->terminal) {
        int master = posix_openpt(O_RDWR | O_NOCTTY);
        if (master < 0 || grantpt(master) < 0 || unlockpt(master) < 0)
            quit(job, 1);
        int tty = open(ptsname(master), O_RDWR | O_NOCTTY);
        if (tty < 0)
            quit(job, 1);
        set_size(tty, rows, columns);
        in[0] = out[1] = err[1] = tty;
        in[1] = out[0] = master;
    } else if (pipe(in) < 0 || pipe(out) < 0 || pipe(err) < 0) {
        quit(job, 1);
    }
    job->pid = fork();
    if (job->pid < 0)
        quit(job, 1);
    if (job->pid == 0)
        command_exec(command, in[0], out[1], err[1], job->terminal);
    close(in[0]);
    if (!job->terminal) {
        close(out[1]);
        close(err[1]);
    }
    job->in = in[1];
    job->out = out[0];
    job->err = err[0];
}

/* One frame of the client. */
static void job_receive(struct job *job)
{
    uint8_t head[5];
    static char payload[CHUNK];
    if (!read_full(job->sock, head, sizeof(head)))
        quit(job, 1);
    uint32_t len =
        (uint32_t)head[1] << 24 | (uint32_t)head[2] << 16 | (uint32_t)head[3] << 8 | head[4];
    if (len > sizeof(payload) || !read_full(job->sock, payload, len))
        quit(job, 1);
    uint32_t words[2] = {0, 0};
    memcpy(words, payload, len < sizeof(words) ? len : sizeof(words));
    switch (head[0]) {
    case 'i':
        /* A command that no longer reads its input is no error of the client's. */
        if (job->in >= 0 && !write_full(job->in, payload, len) && !job->terminal) {
            close(job->in);
            job->in = -1;
        }
        break;
    case 'e':
        if (job->terminal) {
            char end_of_file = 4;
            write_full(job->in, &end_of_file, 1);
        } else if (job->in >= 0) {
            close(job->in);
            job->in = -1;
        }
        break;
    case 'k':
        kill(-job->pid, (int)ntohl(words[0]));
        break;
    case 'w':
        set_size(job->out, ntohl(words[0]), ntohl(words[1]));
        kill(-job->pid, SIGWINCH);
        break;
    default:
        quit(job, 1);
    }
}

/* What the command wrote. False when this stream has ended. */
static bool job_forward(const struct job *job, int fd, char type)
{
    static char buf[CHUNK];
    ssize_t n = read(fd, buf, sizeof(buf));
    if (n < 0 && errno == EINTR)
        return true;
    if (n <= 0)
        return false; /* a terminal's master reads EIO when its last user has left */
    send_frame(job, type, buf, (uint32_t)n);
    return true;
}

/* Input has a thread of its own: a command that does not read must not hold up its output. */
static void *job_receive_all(void *job)
{
    for (;;)
        job_receive(job);
    return NULL;
}

static void child_ended(int signo)
{
    (void)signo; /* only has to interrupt poll() */
}

static void job_serve(struct job *job)
{
    pthread_t receiver;
    if (pthread_create(&receiver, NULL, job_receive_all, job) != 0)
        quit(job, 1);
    int status = -1;
    for (;;) {
        struct pollfd fds[2] = {
            {.fd = job->out, .events = POLLIN},
            {.fd = job->err, .events = POLLIN},
        };
        /* The command may leave children behind that hold its output: its own end is what counts,
         * and what it wrote before that is drained. */
        int n = poll(fds, 2, status >= 0 ? 0 : 50);
        if (n < 0 && errno != EINTR)
            quit(job, 1);
        if (n > 0 && fds[0].revents && !job_forward(job, job->out, 'o'))
            job->out = -1;
        if (n > 0 && fds[1].revents && !job_forward(job, job->err, 'E'))
            job->err = -1;
        if (status >= 0 && n == 0)
            break;
        int wstatus;
        if (status < 0 && waitpid(job->pid, &wstatus, WNOHANG) == job->pid)
            status = WIFEXITED(wstatus) ? WEXITSTATUS(wstatus) : 128 + WTERMSIG(wstatus);
    }
    uint32_t word = htonl((uint32_t)status);
    send_frame(job, 'x', &word, sizeof(word));
}

static _Noreturn void connection_serve(int sock)
{
    struct job job = {.sock = sock, .in = -1, .out = -1, .err = -1};
    uint32_t head[4];
    if (!write_full(sock, "H", 1) || !read_full(sock, head, sizeof(head)))
        quit(&job, 1);
    uint32_t len = ntohl(head[3]);
    char *command = len <= COMMAND_MAX ? malloc(len + 1) : NULL;
    if (!command || !read_full(sock, command, len))
        quit(&job, 1);
    command[len] = 0;
    job.terminal = ntohl(head[0]) & 1;
    job_start(&job, command, ntohl(head[1]), ntohl(head[2]));
    job_serve(&job);
    shutdown(sock, SHUT_WR);
    quit(&job, 0);
}

static void child_watch(void)
{
    struct sigaction action = {.sa_handler = child_ended};
    sigaction(SIGCHLD, &action, NULL);
}

/* A socket for connections: a path has a slash, a TCP port has none. Exits on an error. */
static int listen_on(const char *where)
{
    struct sockaddr_in inet = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(where))};
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    bool is_path = strchr(where, '/');
    int on = 1;
    int listener = socket(is_path ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int failed;

    if (is_path) {
        strncpy(local.sun_path, where, sizeof(local.sun_path) - 1);
        failed = bind(listener, (struct sockaddr *)&local, sizeof(local));
    } else {
        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        failed = bind(listener, (struct sockaddr *)&inet, sizeof(inet));
    }
    if (failed < 0 || listen(listener, 64) < 0) {
        perror("agent");
        exit(1);
    }
    return listener;
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    if (argc == 2 && strcmp(argv[1], "-") == 0) {
        int sock = fcntl(0, F_DUPFD_CLOEXEC, 3);
        child_watch();
        connection_serve(sock);
    }
    if (argc != 2) {
        fprintf(stderr, "usage: agent PORT|PATH|-\n");
        return 2;
    }
    signal(SIGCHLD, SIG_IGN); /* buries connections, and whatever is left to process 1 */
    int listener = listen_on(argv[1]);
    puts("agent: ready");
    fflush(stdout);
    for (;;) {
        int sock = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (sock < 0)
            continue;
        int on = 1;
        setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); /* of a TCP one */
        if (fork() == 0) {
            child_watch();
            close(listener);
            connection_serve(sock);
        }
        close(sock);
    }
}
