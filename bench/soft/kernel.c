/* SPDX-License-Identifier: Apache-2.0 */
/* What costs when a program asks the kernel, on one CPU; and code that modifies itself. */
#include "work.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096 };

static void begin(void)
{
    work_on_one_cpu();
    work_begin();
}

static uint64_t run_getpid(size_t ops)
{
    uint64_t good = 0;
    begin();
    for (size_t i = 0; i < ops; i++)
        good += syscall(SYS_getpid) > 0;
    return good;
}

static uint64_t run_stat(size_t ops)
{
    struct stat st;
    uint64_t good = 0;
    begin();
    for (size_t i = 0; i < ops; i++)
        good += stat("/dev/null", &st) == 0;
    return good;
}

static uint64_t children(size_t ops, const char *path)
{
    uint64_t good = 0;
    begin();
    for (size_t i = 0; i < ops; i++) {
        int status = -1;
        pid_t child = fork();
        if (child == 0) {
            if (path)
                execl(path, path, NULL);
            _exit(path != NULL);
        }
        good += waitpid(child, &status, 0) == child && status == 0;
    }
    return good;
}

static uint64_t run_fork(size_t ops)
{
    return children(ops, NULL);
}

static uint64_t run_exec(size_t ops)
{
    return children(ops, work_beside("soft-empty"));
}

static void *map(size_t size, int protection)
{
    void *memory = mmap(NULL, size, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    work_check(memory != MAP_FAILED, "mmap");
    return memory;
}

static uint64_t run_fault(size_t pages)
{
    enum { AT_ONCE = 256 }; /* 1 MiB: the kernel does not make huge pages of it */
    uint64_t sum = 0;
    begin();
    for (size_t done = 0; done < pages; done += AT_ONCE) {
        volatile unsigned char *memory = map(AT_ONCE * PAGE, PROT_READ | PROT_WRITE);
        for (int i = 0; i < AT_ONCE; i++)
            sum += ++memory[i * PAGE];
        munmap((void *)memory, AT_ONCE * PAGE);
    }
    return sum;
}

static uint64_t run_mmap(size_t ops)
{
    begin();
    for (size_t i = 0; i < ops; i++)
        munmap(map(16 * PAGE, PROT_READ | PROT_WRITE), 16 * PAGE);
    return 0;
}

static uint64_t run_mprotect(size_t ops)
{
    volatile unsigned char *page = map(PAGE, PROT_READ | PROT_WRITE);
    uint64_t sum = 0;
    begin();
    for (size_t i = 0; i < ops; i++) {
        *page = (unsigned char)i;
        mprotect((void *)page, PAGE, PROT_READ);
        sum += *page;
        mprotect((void *)page, PAGE, PROT_READ | PROT_WRITE);
    }
    return sum;
}

static volatile uint64_t signals;

static void count_signal(int number)
{
    (void)number;
    signals++;
}

static uint64_t run_signal(size_t ops)
{
    struct sigaction action = {.sa_handler = count_signal};
    sigaction(SIGUSR1, &action, NULL);
    pid_t self = getpid();
    begin();
    for (size_t i = 0; i < ops; i++)
        kill(self, SIGUSR1);
    return signals;
}

static uint64_t run_pipe(size_t ops)
{
    int to[2], from[2], status = -1;
    unsigned char byte = 0;
    uint64_t sum = 0;
    work_check(pipe(to) == 0 && pipe(from) == 0, "pipe");
    begin();
    pid_t child = fork();
    if (child == 0) {
        for (size_t i = 0; i < ops; i++)
            if (read(to[0], &byte, 1) != 1 || (byte++, write(from[1], &byte, 1)) != 1)
                _exit(1);
        _exit(0);
    }
    for (size_t i = 0; i < ops; i++) {
        work_check(write(to[1], &byte, 1) == 1 && read(from[0], &byte, 1) == 1, "pipe");
        sum += byte;
    }
    work_check(waitpid(child, &status, 0) == child && status == 0, "the other process");
    return sum;
}

static uint64_t run_read(size_t ops)
{
    static unsigned char buffer[PAGE];
    int fd = open("/dev/zero", O_RDONLY);
    uint64_t sum = 0;
    begin();
    for (size_t i = 0; i < ops; i++)
        sum += (uint64_t)read(fd, buffer, sizeof(buffer));
    return sum;
}

/* A function that returns a constant, which is another one at each call. */
static uint64_t run_modify(size_t ops)
{
    unsigned char *code = map(PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    uint32_t (*function)(void) = (uint32_t(*)(void))(uintptr_t)code;
    uint64_t sum = 0;
    memcpy(code, "\xb8\0\0\0\0\xc3", 6); /* mov $0, %eax; ret */
    begin();
    for (size_t i = 0; i < ops; i++) {
        uint32_t value = (uint32_t)i;
        memcpy(code + 1, &value, sizeof(value));
        __asm__ volatile("" : : : "memory");
        sum += function();
    }
    return sum;
}

static const struct work works[] = {
    {"getpid",      run_getpid,   2000000},
    {"stat",        run_stat,     300000 },
    {"fork",        run_fork,     4000   },
    {"exec",        run_exec,     2000   },
    {"fault",       run_fault,    150000 },
    {"mmap",        run_mmap,     100000 },
    {"mprotect",    run_mprotect, 150000 },
    {"signal",      run_signal,   120000 },
    {"pipe",        run_pipe,     60000  },
    {"read-zero",   run_read,     1200000},
    {"modify-code", run_modify,   1000000}, /* less: an engine translates at every call */
};

WORK_MAIN(works)
