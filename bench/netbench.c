/* SPDX-License-Identifier: Apache-2.0 */
/*
 * netbench serve PORT                     serve one connection after another, for ever
 * netbench ADDRESS PORT SECONDS TEST...   send, receive: a TCP stream in MiB/s; rr: requests of one
 *                                         byte and their answers, a second
 *
 * Prints TEST=FIGURE. The first byte of a connection tells the server which it is.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char buffer[256 * 1024];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void check(bool ok, const char *what)
{
    if (ok)
        return;
    perror(what);
    exit(1);
}

/* All bytes until the other side ends. */
static uint64_t drain(int fd)
{
    uint64_t total = 0;
    for (ssize_t got; (got = read(fd, buffer, sizeof(buffer))) > 0;)
        total += (uint64_t)got;
    return total;
}

static void serve_one(int fd)
{
    char kind, byte;
    uint32_t ms;
    if (read(fd, &kind, 1) != 1)
        return;
    if (kind == 's') { /* it sends: count, and tell at the end */
        uint64_t total = drain(fd);
        if (write(fd, &total, sizeof(total)) != sizeof(total))
            return;
    } else if (kind == 'r' && read(fd, &ms, sizeof(ms)) == sizeof(ms)) { /* so long it receives */
        for (double end = now() + ms * 1e-3; now() < end;) {
            if (write(fd, buffer, sizeof(buffer)) <= 0)
                return;
        }
    } else {
        while (read(fd, &byte, 1) == 1 && write(fd, &byte, 1) == 1)
            ;
    }
}

static void serve(int port)
{
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    check(bind(listener, (struct sockaddr *)&addr, sizeof(addr)) == 0 && listen(listener, 8) == 0,
          "listen");
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            continue;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        serve_one(fd);
        close(fd);
    }
}

static int dial(const char *address, int port)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    check(inet_pton(AF_INET, address, &addr.sin_addr) == 1, address);
    check(connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0, "connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    return fd;
}

static double test_send(int fd, double seconds)
{
    uint64_t total = 0;
    check(write(fd, "s", 1) == 1, "start");
    double start = now(), end = start + seconds;
    while (now() < end)
        check(write(fd, buffer, sizeof(buffer)) > 0, "send");
    shutdown(fd, SHUT_WR);
    check(read(fd, &total, sizeof(total)) == sizeof(total), "the server's count");
    return (double)total / (now() - start) / (1 << 20);
}

static double test_receive(int fd, double seconds)
{
    uint32_t ms = (uint32_t)(seconds * 1e3);
    check(write(fd, "r", 1) == 1 && write(fd, &ms, sizeof(ms)) == sizeof(ms), "start");
    double start = now();
    uint64_t total = drain(fd);
    return (double)total / (now() - start) / (1 << 20);
}

static double test_rr(int fd, double seconds)
{
    uint64_t count = 0;
    char byte = 'x';
    check(write(fd, "e", 1) == 1, "start");
    double start = now(), end = start + seconds, last;
    do {
        check(write(fd, &byte, 1) == 1 && read(fd, &byte, 1) == 1, "request");
        count++;
        last = now();
    } while (last < end);
    return (double)count / (last - start);
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    if (argc == 3 && strcmp(argv[1], "serve") == 0)
        serve(atoi(argv[2]));
    check(argc >= 5, "usage: netbench serve PORT | netbench ADDRESS PORT SECONDS TEST...");
    for (int i = 4; i < argc; i++) {
        int fd = dial(argv[1], atoi(argv[2]));
        double seconds = atof(argv[3]);
        double figure = strcmp(argv[i], "send") == 0      ? test_send(fd, seconds)
                        : strcmp(argv[i], "receive") == 0 ? test_receive(fd, seconds)
                                                          : test_rr(fd, seconds);
        printf("%s=%.1f\n", argv[i], figure);
        fflush(stdout);
        close(fd);
    }
    return 0;
}
