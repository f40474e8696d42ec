/* SPDX-License-Identifier: Apache-2.0 */
#include "char/char.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "base/tap.h"
#include "base/units.h"

#define RING 65536u

struct fixture {
    struct loop *loop;
    struct char_dev *chr;
    struct loop_timer guard;
    char got[8192];
    size_t got_len, got_max_piece, stop_at;
    size_t room;
    int hangups, writables, quits;
    bool stop_on_hangup, timed_out;
};

static struct fixture *the;
static unsigned loop_flags;

static void guard_fired(struct loop_timer *self)
{
    (void)self;
    the->timed_out = true;
    loop_stop(the->loop);
}

static void on_input(void *ctx, const uint8_t *buf, size_t len)
{
    struct fixture *f = ctx;
    if (len > f->got_max_piece)
        f->got_max_piece = len;
    if (len > sizeof(f->got) - 1 - f->got_len)
        len = sizeof(f->got) - 1 - f->got_len;
    memcpy(f->got + f->got_len, buf, len);
    f->got_len += len;
    f->got[f->got_len] = '\0';
    if (f->stop_at && f->got_len >= f->stop_at)
        loop_stop(f->loop);
}

static size_t on_room(void *ctx)
{
    return ((struct fixture *)ctx)->room;
}

static void on_writable(void *ctx)
{
    ((struct fixture *)ctx)->writables++;
}

static void on_hangup(void *ctx)
{
    struct fixture *f = ctx;
    f->hangups++;
    if (f->stop_on_hangup)
        loop_stop(f->loop);
}

static void on_quit(void *ctx)
{
    struct fixture *f = ctx;
    f->quits++;
    loop_stop(f->loop);
}

static bool setup(struct fixture *f, const char *spec)
{
    struct err err = ERR_INIT;
    const struct char_client client = {
        .input = on_input,
        .room = on_room,
        .writable = on_writable,
        .hangup = on_hangup,
        .ctx = f,
    };

    memset(f, 0, sizeof(*f));
    the = f;
    f->room = 4096;
    loop_timer_init(&f->guard, guard_fired);
    if (loop_new(&f->loop, loop_flags, &err) < 0 || char_open(&f->chr, spec, &err) < 0 ||
        char_attach(f->chr, f->loop, &client, &err) < 0) {
        printf("Bail out! %s: %s\n", spec, err.text);
        exit(1);
    }
    return true;
}

static void teardown(struct fixture *f)
{
    char_close(f->chr);
    loop_free(f->loop);
}

static bool run_ms(struct fixture *f, unsigned ms)
{
    f->timed_out = false;
    loop_timer_arm(f->loop, &f->guard, clock_now_ns() + ms * NS_PER_MS);
    loop_run(f->loop);
    loop_timer_cancel(f->loop, &f->guard);
    return !f->timed_out;
}

/* Run until n more bytes of input have come. */
static bool run_input(struct fixture *f, size_t n)
{
    f->stop_at = f->got_len + n;
    bool in_time = run_ms(f, 3000);
    f->stop_at = 0;
    return in_time;
}

static size_t put(struct fixture *f, const char *text)
{
    return char_write(f->chr, (const uint8_t *)text, strlen(text));
}

static void sleep_ms(unsigned ms)
{
    const struct timespec ts = {.tv_nsec = (long)(ms * NS_PER_MS)};
    nanosleep(&ts, NULL);
}

static void write_all(int fd, const char *text)
{
    if (write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        perror("write");
}

/* What can be read from fd right now. */
static const char *read_now(int fd)
{
    static char buf[8192];
    struct pollfd pfd = {.fd = fd, .events = POLLIN};
    size_t len = 0;

    while (len < sizeof(buf) - 1 && poll(&pfd, 1, 20) > 0 && (pfd.revents & POLLIN)) {
        ssize_t n = read(fd, buf + len, sizeof(buf) - 1 - len);
        if (n <= 0)
            break;
        len += (size_t)n;
    }
    buf[len] = '\0';
    return buf;
}

/* --- standard input and output exchanged --- */

static int saved_in, saved_out;

static void stdio_swap(int in, int out)
{
    saved_in = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 10);
    saved_out = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 10);
    dup2(in, STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
}

static void stdio_back(void)
{
    dup2(saved_in, STDIN_FILENO);
    dup2(saved_out, STDOUT_FILENO);
    close(saved_in);
    close(saved_out);
}

static void terminal_pair(int *master, int *slave)
{
    char name[64];

    *master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (grantpt(*master) < 0 || unlockpt(*master) < 0 ||
        ptsname_r(*master, name, sizeof(name)) != 0)
        perror("pty");
    *slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
}

static bool same_mode(const struct termios *a, const struct termios *b)
{
    return a->c_iflag == b->c_iflag && a->c_oflag == b->c_oflag && a->c_lflag == b->c_lflag &&
           a->c_cflag == b->c_cflag && memcmp(a->c_cc, b->c_cc, sizeof(a->c_cc)) == 0;
}

static void test_terminal(void)
{
    struct fixture f;
    struct termios before, mode;
    struct char_dev *second;
    struct err err = ERR_INIT;
    int master, slave;

    terminal_pair(&master, &slave);
    tcgetattr(slave, &before);
    stdio_swap(slave, slave);
    setup(&f, "stdio");
    char_set_escape(f.chr, on_quit, &f);
    tcgetattr(slave, &mode);
    ok(!(mode.c_lflag & (ICANON | ECHO | ISIG)) && !(mode.c_oflag & OPOST), "the terminal is raw");
    ok(!(fcntl(STDIN_FILENO, F_GETFL) & O_NONBLOCK) && !(fcntl(slave, F_GETFL) & O_NONBLOCK),
       "its descriptors stay blocking for others");
    is_int(char_open(&second, "stdio", &err), -EBUSY, "there is one stdio at a time");
    is_str(char_describe(f.chr), "stdio", "and it says what it is");

    write_all(master, "ls\r\003");
    ok(run_input(&f, 4), "keys arrive, Ctrl-C among them");
    is_str(f.got, "ls\r\003", "as they are");
    is_int(put(&f, "one\ntwo"), 7, "output is taken");
    run_ms(&f, 10);
    is_str(read_now(master), "one\ntwo", "and written as it is");

    f.got_len = 0;
    write_all(master, "\001a.\001\001.\001z.\001");
    run_input(&f, 5);
    is_str(f.got, "\001.\001..", "Ctrl-A a and Ctrl-A Ctrl-A send it, unknown keys are swallowed");
    write_all(master, "h");
    run_ms(&f, 10);
    const char *help = read_now(master);
    ok(strstr(help, "quit") && strstr(help, "\r\n") && !strstr(help, "\n\n"), "Ctrl-A h helps");
    is_int(f.got_len, 5, "and nothing of it reaches the guest");
    write_all(master, "\001x");
    ok(run_ms(&f, 2000) && f.quits == 1, "Ctrl-A x quits");

    char_close(f.chr);
    tcgetattr(slave, &mode);
    ok(same_mode(&before, &mode), "close gives the terminal its mode back");
    is_int(char_open(&f.chr, "stdio", &err), 0, "stdio can be opened again");
    char_restore_terminal();
    tcgetattr(slave, &mode);
    ok(same_mode(&before, &mode), "so does char_restore_terminal()");
    char_restore_terminal();
    teardown(&f);
    stdio_back();
    close(slave);
    close(master);
}

static void test_terminal_no_escape(void)
{
    struct fixture f;
    int master, slave;

    terminal_pair(&master, &slave);
    stdio_swap(slave, slave);
    setup(&f, "stdio");
    write_all(master, "\001x");
    run_input(&f, 2);
    is_str(f.got, "\001x", "without char_set_escape() all keys are the guest's");
    /* The terminal window is closed. */
    close(master);
    f.stop_on_hangup = true;
    ok(run_ms(&f, 2000) && f.hangups == 1, "a terminal that goes away is a hang-up");
    put(&f, "into nothing");
    ok(!run_ms(&f, 20), "and the loop goes on");
    teardown(&f);
    stdio_back();
    close(slave);
}

/* A terminal whose reader stopped it must not stop us. */
static void test_terminal_stopped(void)
{
    static uint8_t bulk[RING];
    struct fixture f;
    int master, slave;

    terminal_pair(&master, &slave);
    stdio_swap(slave, slave);
    setup(&f, "stdio");
    memset(bulk, 'x', sizeof(bulk));
    char_write(f.chr, bulk, sizeof(bulk));
    uint64_t start = clock_now_ns();
    run_ms(&f, 50);
    ok(clock_now_ns() - start < NS_PER_SEC, "a terminal that takes nothing does not hold the loop");
    start = clock_now_ns();
    teardown(&f);
    ok(clock_now_ns() - start < 700 * NS_PER_MS, "nor close for long");
    stdio_back();
    close(slave);
    close(master);
}

/*
 * In a session of its own on that terminal: fn runs in a child process, in the foreground or not.
 * Returns fn's result, or -1 where the child was stopped, was killed or left another mode behind.
 */
static int in_session(int slave, bool foreground, void (*fn)(void))
{
    pid_t leader = fork();
    int status;

    if (leader == 0) {
        struct termios before, after;
        setsid();
        if (ioctl(slave, TIOCSCTTY, 0) < 0)
            _exit(101);
        dup2(slave, STDIN_FILENO);
        dup2(slave, STDOUT_FILENO);
        tcgetattr(slave, &before);
        pid_t child = fork();
        if (child == 0) {
            if (!foreground)
                setpgid(0, 0);
            fn();
            _exit(102);
        }
        if (waitpid(child, &status, WUNTRACED) != child || !WIFEXITED(status))
            _exit(103);
        tcgetattr(slave, &after);
        _exit(same_mode(&before, &after) ? WEXITSTATUS(status) : 104);
    }
    if (waitpid(leader, &status, 0) != leader || !WIFEXITED(status))
        return -1;
    return WEXITSTATUS(status);
}

static struct char_dev *session_chr; /* reachable to the end: not a leak */

static void session_exit(void)
{
    struct termios mode;

    if (char_open(&session_chr, "stdio", NULL) < 0)
        _exit(1);
    tcgetattr(STDIN_FILENO, &mode);
    exit(mode.c_lflag & ICANON ? 2 : 42);
}

static void session_background(void)
{
    struct termios mode;

    if (char_open(&session_chr, "stdio", NULL) < 0)
        _exit(1);
    tcgetattr(STDIN_FILENO, &mode);
    char_close(session_chr);
    _exit(mode.c_lflag & ICANON ? 43 : 2);
}

static void test_sessions(void)
{
    int master, slave;

    terminal_pair(&master, &slave);
    is_int(in_session(slave, true, session_exit), 42, "exit() without close restores the mode");
    close(slave);
    close(master);
    terminal_pair(&master, &slave);
    is_int(in_session(slave, false, session_background), 43,
           "in the background the terminal is left alone, and we are not stopped");
    close(slave);
    close(master);
}

struct pipes {
    int in[2], out[2];
};

static void pipes_swap(struct pipes *p)
{
    if (pipe2(p->in, O_CLOEXEC) < 0 || pipe2(p->out, O_CLOEXEC) < 0)
        perror("pipe2");
    stdio_swap(p->in[0], p->out[1]);
    close(p->in[0]);
    close(p->out[1]);
}

static void pipes_close(struct pipes *p)
{
    if (p->in[1] >= 0)
        close(p->in[1]);
    if (p->out[0] >= 0)
        close(p->out[0]);
}

static void test_pipes(void)
{
    struct fixture f;
    struct pipes p;

    pipes_swap(&p);
    setup(&f, "stdio");
    char_set_escape(f.chr, on_quit, &f);
    write_all(p.in[1], "\001xyz");
    ok(run_input(&f, 4), "a pipe is read");
    is_str(f.got, "\001xyz", "without escapes");
    put(&f, "out");
    run_ms(&f, 10);
    is_str(read_now(p.out[0]), "out", "and written");

    f.room = 3;
    f.got_len = f.got_max_piece = 0;
    write_all(p.in[1], "0123456789");
    run_input(&f, 10);
    is_int(f.got_max_piece, 3, "no more is delivered at once than there is room for");
    is_str(f.got, "0123456789", "and nothing is lost");
    f.room = 0;
    write_all(p.in[1], "later");
    ok(!run_ms(&f, 20) && f.got_len == 10, "without room nothing is delivered");
    f.room = 100;
    ok(!run_ms(&f, 20) && f.got_len == 10, "before the owner says so");
    char_kick_input(f.chr);
    ok(run_input(&f, 5) && strcmp(f.got + 10, "later") == 0, "and then it is");

    close(p.in[1]);
    p.in[1] = -1;
    f.stop_on_hangup = true;
    ok(run_ms(&f, 2000), "the end of the input is a hang-up");
    char_kick_input(f.chr);
    run_ms(&f, 10);
    is_int(f.hangups, 1, "once");
    put(&f, "still here");
    run_ms(&f, 10);
    is_str(read_now(p.out[0]), "still here", "and output goes on");
    ok(!(fcntl(STDOUT_FILENO, F_GETFL) & O_NONBLOCK), "the pipe stays blocking for others");
    teardown(&f);
    stdio_back();
    pipes_close(&p);
}

static uint8_t pattern(size_t i)
{
    return (uint8_t)(i * 7 + i / 251);
}

/* Read everything up to the end, slowly, and check it. */
static void *slow_reader(void *arg)
{
    int fd = *(int *)arg;
    static uint8_t buf[4096];
    size_t total = 0, wrong = 0;
    ssize_t n;

    while ((n = read(fd, buf, sizeof(buf))) > 0) {
        for (ssize_t i = 0; i < n; i++)
            wrong += buf[i] != pattern(total + (size_t)i);
        total += (size_t)n;
        sleep_ms(2);
    }
    return (void *)(uintptr_t)(wrong ? 0 : total);
}

static void test_slow_reader(void)
{
    struct fixture f;
    struct pipes p;
    pthread_t thread;
    void *read_total;
    size_t total = 0, sent;

    pipes_swap(&p);
    setup(&f, "stdio");
    /* Nobody reads yet: fill the pipe and the ring. */
    for (int idle = 0; idle < 3;) {
        uint8_t piece[1000];
        for (size_t i = 0; i < sizeof(piece); i++)
            piece[i] = pattern(total + i);
        sent = char_write(f.chr, piece, sizeof(piece));
        total += sent;
        if (sent == sizeof(piece))
            continue;
        run_ms(&f, 5);
        idle = char_write_room(f.chr) == 0 ? idle + 1 : 0;
    }
    is_int(total, RING + 65536, "a pipe nobody reads takes its 64 KiB and the ring's, and no more");
    is_int(char_write_room(f.chr), 0, "then there is no room");
    int writables = f.writables;
    pthread_create(&thread, NULL, slow_reader, &p.out[0]);
    for (int i = 0; i < 100 && f.writables == writables; i++)
        run_ms(&f, 10);
    ok(f.writables > writables, "a reader makes it writable again");
    ok(char_write_room(f.chr) >= RING / 2, "with room worth while");
    while ((sent = char_write_room(f.chr)) > 0) {
        uint8_t byte = pattern(total);
        total += char_write(f.chr, &byte, 1);
    }
    teardown(&f);
    stdio_back();
    pthread_join(thread, &read_total);
    is_int((uintptr_t)read_total, total, "close waits for a slow reader, and nothing is lost");
    pipes_close(&p);
}

static void test_reader_gone(void)
{
    static uint8_t bulk[RING];
    struct fixture f;
    struct pipes p;

    pipes_swap(&p);
    setup(&f, "stdio");
    close(p.out[0]);
    p.out[0] = -1;
    put(&f, "x");
    run_ms(&f, 10);
    is_int(char_write(f.chr, bulk, sizeof(bulk)), sizeof(bulk), "output without a reader vanishes");
    is_int(char_write(f.chr, bulk, sizeof(bulk)), sizeof(bulk), "all of it");
    write_all(p.in[1], "in");
    ok(run_input(&f, 2), "and input goes on");
    teardown(&f);
    stdio_back();
    pipes_close(&p);
}

static void test_stuck_reader(void)
{
    static uint8_t bulk[RING];
    struct fixture f;
    struct pipes p;

    pipes_swap(&p);
    setup(&f, "stdio");
    char_write(f.chr, bulk, sizeof(bulk));
    run_ms(&f, 10);
    char_write(f.chr, bulk, sizeof(bulk));
    uint64_t start = clock_now_ns();
    char_close(f.chr);
    uint64_t took = clock_now_ns() - start;
    ok(took > 200 * NS_PER_MS && took < 900 * NS_PER_MS,
       "close waits for a stuck reader, a little");
    loop_free(f.loop);
    stdio_back();
    pipes_close(&p);
}

static void test_file_input(void)
{
    char path[] = "/tmp/hull-char-test-XXXXXX";
    struct fixture f;
    int fd = mkstemp(path), null = open("/dev/null", O_RDWR | O_CLOEXEC);

    write_all(fd, "from a file");
    lseek(fd, 0, SEEK_SET);
    stdio_swap(fd, fd);
    setup(&f, "stdio");
    f.room = 4;
    f.stop_on_hangup = true;
    ok(run_ms(&f, 2000), "a regular file ends");
    is_str(f.got, "from a file", "when all of it was read");
    teardown(&f);
    stdio_back();

    stdio_swap(null, fd);
    setup(&f, "stdio");
    f.stop_on_hangup = true;
    ok(run_ms(&f, 2000) && f.got_len == 0, "/dev/null ends at once");
    put(&f, " and to it");
    teardown(&f);
    stdio_back();
    char text[64] = "";
    is_int(pread(fd, text, sizeof(text) - 1, 0), 21,
           "output to a regular file is written by close");
    is_str(text, "from a file and to it", "where the file stood");
    close(fd);
    close(null);
    unlink(path);
}

static void test_socket(void)
{
    struct fixture f;
    int sv[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
        perror("socketpair");
    stdio_swap(sv[0], sv[0]);
    setup(&f, "stdio");
    write_all(sv[1], "ping");
    run_input(&f, 4);
    is_str(f.got, "ping", "a socket is read");
    put(&f, "pong");
    run_ms(&f, 10);
    is_str(read_now(sv[1]), "pong", "and written");
    teardown(&f);
    stdio_back();
    close(sv[0]);
    close(sv[1]);
}

/* --- files, null, bad names --- */

static void test_file(void)
{
    char dir[] = "/tmp/hull-char-test-XXXXXX";
    char path[64], spec[80], text[64] = "";
    struct err err = ERR_INIT;
    struct fixture f;
    struct char_dev *chr;

    if (!mkdtemp(dir))
        perror(dir);
    snprintf(path, sizeof(path), "%s/log", dir);
    snprintf(spec, sizeof(spec), "file:%s", path);
    for (int i = 0; i < 2; i++) {
        setup(&f, spec);
        is_str(char_describe(f.chr), spec, "a file says what it is");
        put(&f, "boot ");
        run_ms(&f, 5);
        put(&f, "end\n");
        teardown(&f);
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ok(read(fd, text, sizeof(text) - 1) > 0, "the file is there");
    is_str(text, "boot end\nboot end\n", "and is appended to");
    close(fd);
    unlink(path);
    mkfifo(path, 0600);
    is_int(char_open(&chr, spec, &err), -ENXIO, "a FIFO without reader is refused, not waited for");
    ok(strstr(err.text, path) != NULL, "by name");
    fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    is_int(char_open(&chr, spec, &err), 0, "with one it opens");
    close(fd);
    char_write(chr, (const uint8_t *)"x", 1);
    char_close(chr);
    ok(true, "and its end does not kill us");
    unlink(path);
    rmdir(dir);
    is_int(char_open(&chr, spec, &err), -ENOENT, "a missing folder is reported");
}

static void test_names(void)
{
    static const char *const bad[] = {"", "tty", "file:", "file", "stdio ", "ptyx"};
    struct err err = ERR_INIT;
    struct char_dev *chr;
    struct fixture f;

    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        is_int(char_open(&chr, bad[i], &err), -EINVAL, "an unknown name is refused");
    setup(&f, "null");
    is_int(put(&f, "nothing"), 7, "null takes everything");
    is_int(char_write_room(f.chr), RING, "always");
    const struct char_client client = {.input = on_input, .room = on_room};
    is_int(char_attach(f.chr, f.loop, &client, &err), -EBUSY, "a second attach is refused");
    char_kick_input(f.chr);
    ok(!run_ms(&f, 10) && f.hangups == 0, "and gives nothing");
    teardown(&f);
    char_close(NULL);
}

/* --- pseudo-terminals --- */

static const char *peer_name(const struct fixture *f)
{
    return char_describe(f->chr) + strlen("pty:");
}

static void test_pty(void)
{
    struct fixture f;

    setup(&f, "pty");
    ok(strncmp(char_describe(f.chr), "pty:/dev/pts/", 13) == 0, "a pty says its name");
    put(&f, "boot\n");
    run_ms(&f, 10);
    int peer = open(peer_name(&f), O_RDWR | O_NOCTTY | O_CLOEXEC);
    run_ms(&f, 20);
    is_str(read_now(peer), "boot\n", "who comes sees what was written before");
    run_ms(&f, 10);
    is_int(f.got_len, 0, "nothing is echoed");
    write_all(peer, "ls\r");
    ok(run_input(&f, 3), "his keys arrive");
    is_str(f.got, "ls\r", "as they are");
    put(&f, "a\nb");
    run_ms(&f, 10);
    is_str(read_now(peer), "a\nb", "and he sees the answer");
    close(peer);
    run_ms(&f, 20);
    is_int(f.hangups, 0, "that he goes is no hang-up");
    put(&f, "meanwhile");
    run_ms(&f, 10);
    peer = open(peer_name(&f), O_RDWR | O_NOCTTY | O_CLOEXEC);
    run_ms(&f, 20);
    is_str(read_now(peer), "meanwhile", "the next one sees what came meanwhile");
    close(peer);
    run_ms(&f, 10);
    f.got_len = 0;
    peer = open(peer_name(&f), O_RDWR | O_NOCTTY | O_CLOEXEC);
    write_all(peer, "echo");
    close(peer);
    ok(run_input(&f, 4), "input of somebody who left at once arrives");
    teardown(&f);
}

static void test_pty_alone(void)
{
    static uint8_t bulk[3 * RING + 100];
    static uint8_t got[RING + 1];
    struct fixture f;
    struct timespec a, b;
    size_t len = 0;

    for (size_t i = 0; i < sizeof(bulk); i++)
        bulk[i] = pattern(i);
    setup(&f, "pty");
    is_int(char_write(f.chr, bulk, 100), 100, "output that nobody reads is taken");
    is_int(char_write(f.chr, bulk + 100, sizeof(bulk) - 100), sizeof(bulk) - 100, "however much");
    is_int(char_write_room(f.chr), RING, "and there is always room");
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
    run_ms(&f, 200);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
    int64_t ns = (b.tv_sec - a.tv_sec) * 1000000000 + (b.tv_nsec - a.tv_nsec);
    ok(ns < 50 * (int64_t)NS_PER_MS, "a pty that nobody has open does not keep the loop busy");
    int peer = open(peer_name(&f), O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    for (int i = 0; i < 100 && len < sizeof(got); i++) {
        run_ms(&f, 3);
        ssize_t n;
        while (len < sizeof(got) && (n = read(peer, got + len, sizeof(got) - len)) > 0)
            len += (size_t)n;
    }
    is_int(len, RING, "who comes gets the last 64 KiB");
    ok(memcmp(got, bulk + sizeof(bulk) - RING, RING) == 0, "the newest ones");
    close(peer);
    uint64_t start = clock_now_ns();
    teardown(&f);
    ok(clock_now_ns() - start < 200 * NS_PER_MS, "and close waits for nobody");
}

static void test_pty_close(void)
{
    static uint8_t bulk[40000];
    struct fixture f;
    pthread_t thread;
    void *read_total;

    for (size_t i = 0; i < sizeof(bulk); i++)
        bulk[i] = pattern(i);
    setup(&f, "pty");
    int peer = open(peer_name(&f), O_RDWR | O_NOCTTY | O_CLOEXEC);
    run_ms(&f, 20);
    char_write(f.chr, bulk, sizeof(bulk));
    pthread_create(&thread, NULL, slow_reader, &peer);
    teardown(&f);
    pthread_join(thread, &read_total);
    is_int((uintptr_t)read_total, sizeof(bulk), "a pty's reader gets the end before it closes");
    close(peer);
}

/* --- threads --- */

enum { WRITERS = 3, LINES = 500 };

static void *writer(void *arg)
{
    const char *line = arg;
    for (int i = 0; i < LINES; i++) {
        size_t sent = 0;
        while (sent < strlen(line)) {
            size_t n = char_write(the->chr, (const uint8_t *)line + sent, strlen(line) - sent);
            sent += n;
            if (n == 0)
                sleep_ms(1);
        }
        char_kick_input(the->chr);
    }
    return NULL;
}

static void *writers(void *arg)
{
    static const char *const lines[WRITERS] = {"aaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbb",
                                               "ccccccccccccccc"};
    pthread_t threads[WRITERS];

    for (int i = 0; i < WRITERS; i++)
        pthread_create(&threads[i], NULL, writer, (void *)(uintptr_t)lines[i]);
    for (int i = 0; i < WRITERS; i++)
        pthread_join(threads[i], NULL);
    loop_stop(((struct fixture *)arg)->loop);
    return NULL;
}

static void *counting_reader(void *arg)
{
    static size_t counts[3];
    static uint8_t buf[4096];
    ssize_t n;

    memset(counts, 0, sizeof(counts));
    while ((n = read(*(int *)arg, buf, sizeof(buf))) > 0) {
        for (ssize_t i = 0; i < n; i++)
            counts[(buf[i] - 'a') % 3]++;
    }
    return counts;
}

static void test_threads(void)
{
    struct fixture f;
    struct pipes p;
    pthread_t thread, reader;
    void *counts;

    pipes_swap(&p);
    setup(&f, "stdio");
    pthread_create(&reader, NULL, counting_reader, &p.out[0]);
    pthread_create(&thread, NULL, writers, &f);
    ok(run_ms(&f, 10000), "several threads write");
    pthread_join(thread, NULL);
    teardown(&f);
    stdio_back();
    pthread_join(reader, &counts);
    const size_t *c = counts;
    ok(c[0] == 15 * LINES && c[1] == 15 * LINES && c[2] == 15 * LINES, "and every byte comes out");
    pipes_close(&p);
}

static void test_all(void)
{
    test_terminal();
    test_terminal_no_escape();
    test_terminal_stopped();
    test_sessions();
    test_pipes();
    test_slow_reader();
    test_reader_gone();
    test_stuck_reader();
    test_file_input();
    test_socket();
    test_file();
    test_names();
    test_pty();
    test_pty_alone();
    test_pty_close();
    test_threads();
}

int main(void)
{
    struct err err = ERR_INIT;

    /* Standard output is exchanged in the tests, the report goes where it was at the start. */
    stdout = fdopen(fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 10), "w");
    if (!stdout || log_configure("error", &err) < 0)
        return 1;
    test_all();
    printf("# the same on epoll\n");
    loop_flags = LOOP_NO_URING;
    test_all();
    return tap_done();
}
