/* SPDX-License-Identifier: Apache-2.0 */
/*
 * launch [-m MIB] [-t SECONDS] TEXT COMMAND...
 *
 * Starts a command with its output in a pipe, waits until TEXT appears there, and prints how long
 * that took from just before exec. Then the command and its descendants are killed.
 *
 *     ns=NANOSECONDS
 *     memory=NAME pss=KIB rss=KIB ram=KIB       with -m, a line a process
 *
 * MIB is the size of guest RAM. A writable mapping of at least half of it is taken for it, with the
 * one before it when both together have that size. ram is the size of those; pss and rss are what
 * is resident in all others.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PIDS_MAX 64

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void die(const char *what)
{
    fprintf(stderr, "launch: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* --- processes --- */

static pid_t parent_of(pid_t pid)
{
    char path[64], text[512];
    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file)
        return 0;
    size_t len = fread(text, 1, sizeof(text) - 1, file);
    fclose(file);
    text[len] = '\0';
    const char *end = strrchr(text, ')'); /* the name before it may hold anything */
    int parent = 0;
    if (!end || sscanf(end + 1, " %*c %d", &parent) != 1)
        return 0;
    return parent;
}

static bool descends(pid_t pid, pid_t ancestor)
{
    for (int depth = 0; pid > 1 && depth < 16; depth++) {
        pid = parent_of(pid);
        if (pid == ancestor)
            return true;
    }
    return false;
}

/* All below this process: it is the subreaper of what its child started. */
static int find_descendants(pid_t *pids)
{
    int count = 0;
    DIR *proc = opendir("/proc");
    if (!proc)
        die("/proc");
    for (struct dirent *entry; count < PIDS_MAX && (entry = readdir(proc));) {
        pid_t pid = atoi(entry->d_name);
        if (pid > 1 && descends(pid, getpid()))
            pids[count++] = pid;
    }
    closedir(proc);
    return count;
}

static void read_name(pid_t pid, char *name, size_t len)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/comm", pid);
    FILE *file = fopen(path, "r");
    if (!file || !fgets(name, (int)len, file))
        snprintf(name, len, "?");
    name[strcspn(name, "\n")] = '\0';
    if (file)
        fclose(file);
}

struct mapping {
    unsigned long long start, end, pss, rss;
    bool is_writable;
};

/* The next mapping of smaps: a line with addresses, then lines of a name and a number. */
static bool next_mapping(FILE *file, struct mapping *m)
{
    char line[512], mode[8];
    unsigned long long start, end, kib;

    *m = (struct mapping){0};
    while (fgets(line, sizeof(line), file)) {
        if (sscanf(line, "%llx-%llx %7s", &start, &end, mode) == 3)
            *m = (struct mapping){.start = start, .end = end, .is_writable = mode[1] == 'w'};
        else if (sscanf(line, "Pss: %llu", &kib) == 1)
            m->pss = kib;
        else if (sscanf(line, "Rss: %llu", &kib) == 1)
            m->rss = kib;
        else if (strncmp(line, "VmFlags:", 8) == 0)
            return true;
    }
    return false;
}

static void print_memory(pid_t pid, unsigned long long ram_kib)
{
    char path[64], name[64];
    unsigned long long pss = 0, rss = 0, ram = 0;
    struct mapping m, before = {0};

    snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
    FILE *file = fopen(path, "r");
    if (!file)
        return;
    for (; next_mapping(file, &m); before = m) {
        unsigned long long kib = (m.end - m.start) / 1024;
        if (!m.is_writable || kib < ram_kib / 2) {
            pss += m.pss;
            rss += m.rss;
            continue;
        }
        ram += kib;
        if (before.end == m.start && before.is_writable &&
            (m.end - before.start) / 1024 == ram_kib) {
            ram = ram_kib;
            pss -= before.pss;
            rss -= before.rss;
        }
    }
    fclose(file);
    read_name(pid, name, sizeof(name));
    printf("memory=%s pss=%llu rss=%llu ram=%llu\n", name, pss, rss, ram);
}

static void kill_all(void)
{
    pid_t pids[PIDS_MAX];
    for (int attempt = 0; attempt < 100; attempt++) {
        int count = find_descendants(pids);
        for (int i = 0; i < count; i++)
            kill(pids[i], SIGKILL);
        while (waitpid(-1, NULL, 0) > 0)
            ;
        if (count == 0)
            return;
    }
}

/* --- the wait --- */

/* Read until text has appeared; the time of that, or 0. What came is kept for the error message. */
static int64_t await_text(int fd, const char *text, int64_t limit_ns, char *seen, size_t seen_size)
{
    size_t len = 0;
    for (;;) {
        struct pollfd pfd = {.fd = fd, .events = POLLIN};
        int64_t left = limit_ns - now_ns();
        if (left <= 0 || poll(&pfd, 1, (int)(left / 1000000) + 1) < 0)
            return 0;
        if (!pfd.revents)
            continue;
        if (len >= seen_size - 1) { /* keep the newer half */
            memmove(seen, seen + seen_size / 2, len - seen_size / 2);
            len -= seen_size / 2;
        }
        ssize_t got = read(fd, seen + len, seen_size - 1 - len);
        int64_t now = now_ns();
        if (got <= 0)
            return 0;
        len += (size_t)got;
        seen[len] = '\0';
        if (memmem(seen, len, text, strlen(text)))
            return now;
    }
}

static void run_child(char **command, int out, volatile int64_t *start)
{
    int null = open("/dev/null", O_RDONLY);
    if (null < 0 || dup2(null, 0) < 0 || dup2(out, 1) < 0)
        _exit(126);
    *start = now_ns();
    execvp(command[0], command);
    fprintf(stderr, "launch: %s: %s\n", command[0], strerror(errno));
    _exit(127);
}

int main(int argc, char **argv)
{
    static char seen[65536];
    unsigned long long ram_kib = 0;
    int seconds = 60, option, pipes[2];

    while ((option = getopt(argc, argv, "+m:t:")) != -1) {
        if (option == 'm')
            ram_kib = strtoull(optarg, NULL, 10) * 1024;
        else if (option == 't')
            seconds = atoi(optarg);
        else
            return 2;
    }
    if (argc - optind < 2) {
        fprintf(stderr, "usage: launch [-m MIB] [-t SECONDS] TEXT COMMAND...\n");
        return 2;
    }
    int64_t *start = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED || pipe2(pipes, O_CLOEXEC) < 0)
        die("set up");
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    pid_t child = fork();
    if (child < 0)
        die("fork");
    if (child == 0)
        run_child(argv + optind + 1, pipes[1], start);
    close(pipes[1]);
    int64_t end =
        await_text(pipes[0], argv[optind], now_ns() + seconds * 1000000000LL, seen, sizeof(seen));
    if (end) {
        printf("ns=%lld\n", (long long)(end - *start));
        pid_t pids[PIDS_MAX];
        int count = ram_kib ? find_descendants(pids) : 0;
        for (int i = 0; i < count; i++)
            print_memory(pids[i], ram_kib);
    } else {
        fprintf(stderr, "launch: no '%s' from %s; its output:\n%s\n", argv[optind],
                argv[optind + 1], seen);
    }
    kill_all();
    return end ? 0 : 1;
}
