/* SPDX-License-Identifier: Apache-2.0 */
/*
 * diskbench DEVICE MIB SECONDS TEST...
 *
 * A TEST is PATTERN:BYTES:DEPTH with PATTERN one of randread, randwrite, read, write (those two go
 * from start to end and begin again), all in the first MIB of the device. Asynchronous I/O with
 * O_DIRECT; for each test a line
 *
 *     PATTERN:BYTES:DEPTH=OPERATIONS-PER-SECOND
 */
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define DEPTH_MAX 128

struct test {
    char pattern[16];
    uint64_t bytes;
    unsigned depth;
    bool is_random;
    bool is_write;
    /* the walk */
    uint64_t blocks;
    uint64_t next;
    uint64_t seed;
};

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

static uint64_t next_offset(struct test *test)
{
    if (!test->is_random)
        return test->next++ % test->blocks * test->bytes;
    test->seed ^= test->seed << 13;
    test->seed ^= test->seed >> 7;
    test->seed ^= test->seed << 17;
    return test->seed % test->blocks * test->bytes;
}

static void prepare(struct test *test, struct iocb *iocb, int fd, uint8_t *buffer)
{
    *iocb = (struct iocb){
        .aio_lio_opcode = test->is_write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
        .aio_fildes = (uint32_t)fd,
        .aio_buf = (uintptr_t)buffer,
        .aio_nbytes = test->bytes,
        .aio_offset = (int64_t)next_offset(test),
        .aio_data = (uintptr_t)iocb,
    };
}

/* Operations per second. What completes together is submitted together. */
static double run(struct test *test, int fd, double seconds)
{
    static struct iocb iocbs[DEPTH_MAX];
    struct iocb *list[DEPTH_MAX];
    struct io_event events[DEPTH_MAX];
    aio_context_t context = 0;
    size_t len = test->bytes * test->depth;
    uint8_t *buffers = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(buffers != MAP_FAILED, "memory");
    memset(buffers, 0x5a, len);
    check(syscall(SYS_io_setup, DEPTH_MAX, &context) == 0, "io_setup");

    unsigned to_submit = test->depth, flying = 0;
    for (unsigned i = 0; i < test->depth; i++) {
        prepare(test, &iocbs[i], fd, buffers + i * test->bytes);
        list[i] = &iocbs[i];
    }
    uint64_t done = 0;
    double start = now(), end = start + seconds, last;
    do {
        for (unsigned sent = 0; sent < to_submit;) {
            long got = syscall(SYS_io_submit, context, (long)(to_submit - sent), list + sent);
            check(got > 0, "io_submit");
            sent += (unsigned)got;
        }
        flying += to_submit;
        long got = syscall(SYS_io_getevents, context, 1L, (long)flying, events, NULL);
        check(got > 0, "io_getevents");
        last = now();
        flying -= (unsigned)got;
        done += (uint64_t)got;
        to_submit = 0;
        for (long i = 0; i < got; i++) {
            struct iocb *iocb = (struct iocb *)(uintptr_t)events[i].data;
            check(events[i].res == (int64_t)test->bytes, "input or output");
            if (last < end) {
                prepare(test, iocb, fd, (uint8_t *)(uintptr_t)iocb->aio_buf);
                list[to_submit++] = iocb;
            }
        }
    } while (flying + to_submit > 0);
    syscall(SYS_io_destroy, context);
    munmap(buffers, len);
    return (double)done / (last - start);
}

int main(int argc, char **argv)
{
    check(argc >= 5, "usage: diskbench DEVICE MIB SECONDS TEST...");
    int fd = open(argv[1], O_RDWR | O_DIRECT);
    uint64_t size = 0;
    check(fd >= 0 && ioctl(fd, BLKGETSIZE64, &size) == 0, argv[1]);
    uint64_t limit = strtoull(argv[2], NULL, 10) << 20;
    if (size > limit)
        size = limit;
    double seconds = atof(argv[3]);
    for (int i = 4; i < argc; i++) {
        struct test test = {.seed = 88172645463325252ULL};
        unsigned long bytes;
        check(sscanf(argv[i], "%15[^:]:%lu:%u", test.pattern, &bytes, &test.depth) == 3 &&
                  test.depth > 0 && test.depth <= DEPTH_MAX && bytes > 0 && bytes <= size,
              argv[i]);
        test.bytes = bytes;
        test.blocks = size / bytes;
        test.is_random = strncmp(test.pattern, "rand", 4) == 0;
        test.is_write = strstr(test.pattern, "write") != NULL;
        run(&test, fd, seconds / 5); /* warm up */
        printf("%s=%.1f\n", argv[i], run(&test, fd, seconds));
        fflush(stdout);
    }
    return 0;
}
