/* SPDX-License-Identifier: Apache-2.0 */
/* Real files (in TMPDIR and on tmpfs) and a loop device, with io_uring and without, direct and
 * through the page cache. What was done is looked at with plain system calls. */
#include "block/block.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"
#include "block/lock.h"

#define DISK_BYTES (8 * MIB)
#define BATCH      48

static char folder[256];
static struct loop *loop;

/* --- requests --- */

struct test_request {
    struct block_request req;
    unsigned *left;
    int res;
};

static void done(struct block_request *req, int res)
{
    struct test_request *t = CONTAINER_OF(req, struct test_request, req);
    t->res = res;
    if (--*t->left == 0)
        loop_stop(loop);
}

/* Submit all, run the loop until the last is done; the first error, or 1 for one that completed
 * inside submit. */
static int run(struct block_dev *dev, struct test_request *requests, unsigned count)
{
    unsigned left = count;
    for (unsigned i = 0; i < count; i++) {
        requests[i].left = &left;
        requests[i].req.done = done;
        requests[i].res = 1;
    }
    for (unsigned i = 0; i < count; i++) {
        block_submit(dev, &requests[i].req);
        if (left != count)
            return 1;
    }
    loop_run(loop);
    for (unsigned i = 0; i < count; i++)
        if (requests[i].res != 0)
            return requests[i].res;
    return 0;
}

static int run_iov(struct block_dev *dev, enum block_op op, uint64_t offset,
                   const struct iovec *iov, unsigned count)
{
    struct test_request t = {
        .req = {.op = op, .offset_bytes = offset, .iov = iov, .iov_count = count}
    };
    for (unsigned i = 0; i < count; i++)
        t.req.len_bytes += iov[i].iov_len;
    return run(dev, &t, 1);
}

static int run_range(struct block_dev *dev, enum block_op op, uint64_t offset, uint64_t len,
                     bool may_unmap)
{
    struct test_request t = {
        .req = {.op = op, .offset_bytes = offset, .len_bytes = len, .may_unmap = may_unmap}
    };
    return run(dev, &t, 1);
}

/* --- files --- */

static const char *path_of(const char *base, const char *name)
{
    static char path[2][512];
    static unsigned next;
    next = !next;
    snprintf(path[next], sizeof(path[next]), "%s/%s", base, name);
    return path[next];
}

static void fill(uint8_t *buf, size_t len, uint64_t seed)
{
    for (size_t i = 0; i < len; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        buf[i] = (uint8_t)(seed >> 56) | 1; /* never zero */
    }
}

/* A file of DISK_BYTES whose content is fill(.., 1); content keeps a copy. */
static uint8_t *content;

static void make_file(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    fill(content, DISK_BYTES, 1);
    if (fd < 0 || pwrite(fd, content, DISK_BYTES, 0) != (ssize_t)DISK_BYTES || fsync(fd) < 0)
        ok(false, "make the test's disk");
    close(fd);
}

/* Is what lies on the disk what content says? */
static bool content_matches(const char *path)
{
    uint8_t *buf = malloc(DISK_BYTES);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool same = fd >= 0 && pread(fd, buf, DISK_BYTES, 0) == (ssize_t)DISK_BYTES &&
                memcmp(buf, content, DISK_BYTES) == 0;
    close(fd);
    free(buf);
    return same;
}

static struct block_dev *open_disk(const char *path, enum block_cache cache)
{
    struct err err = ERR_INIT;
    struct block_dev *dev = NULL;
    struct block_options options = {.path = path, .cache = cache};
    if (block_open(&dev, &options, &err) < 0 || block_attach(dev, loop, &err) < 0) {
        ok(false, err.text);
        exit(1);
    }
    return dev;
}

/* --- reading and writing --- */

/* Buffers that O_DIRECT takes, in one piece and in several. */
static void test_aligned(struct block_dev *dev, const char *path)
{
    uint8_t *buf;
    if (posix_memalign((void **)&buf, 4096, 64 * KIB))
        abort();
    fill(buf, 64 * KIB, 2);
    struct iovec one = {buf, 64 * KIB};
    is_int(run_iov(dev, BLOCK_WRITE, 4096, &one, 1), 0, "write 64 KiB");
    memcpy(content + 4096, buf, 64 * KIB);

    struct iovec three[3] = {
        {buf + 8192,  4096},
        {buf,         4096},
        {buf + 32768, 8192}
    };
    is_int(run_iov(dev, BLOCK_WRITE, MIB, three, 3), 0, "write three pieces");
    memcpy(content + MIB, buf + 8192, 4096);
    memcpy(content + MIB + 4096, buf, 4096);
    memcpy(content + MIB + 8192, buf + 32768, 8192);
    ok(content_matches(path), "both are on the disk, and nothing else");

    memset(buf, 0, 64 * KIB);
    is_int(run_iov(dev, BLOCK_READ, MIB, three, 3), 0, "read three pieces");
    ok(memcmp(buf + 8192, content + MIB, 4096) == 0 &&
           memcmp(buf, content + MIB + 4096, 4096) == 0 &&
           memcmp(buf + 32768, content + MIB + 8192, 8192) == 0,
       "each has its own");
    is_int(run_iov(dev, BLOCK_READ, DISK_BYTES - 64 * KIB, &one, 1), 0, "read the end");
    ok(memcmp(buf, content + DISK_BYTES - 64 * KIB, 64 * KIB) == 0, "it is the end");
    free(buf);
}

/* Many at once, in buffers of odd address and length: more than there are bounce buffers, and
 * longer than one. */
static void test_unaligned(struct block_dev *dev, const char *path, unsigned block)
{
    const size_t len = 160 * KIB - block;
    struct test_request *t = calloc(BATCH, sizeof(*t));
    struct iovec(*iov)[3] = calloc(BATCH, sizeof(*iov));
    uint8_t *buf = malloc(BATCH * (len + 1));
    for (unsigned i = 0; i < BATCH; i++) {
        uint8_t *at = buf + i * (len + 1) + 1;
        fill(at, len, 100 + i);
        iov[i][0] = (struct iovec){at, 13};
        iov[i][1] = (struct iovec){at + 13, 100000};
        iov[i][2] = (struct iovec){at + 100013, len - 100013};
        t[i].req = (struct block_request){.op = BLOCK_WRITE,
                                          .offset_bytes = i * 160 * KIB + block,
                                          .len_bytes = len,
                                          .iov = iov[i],
                                          .iov_count = 3,
                                          .fua = i % 4 == 0};
        memcpy(content + t[i].req.offset_bytes, at, len);
    }
    is_int(run(dev, t, BATCH), 0, "48 writes from odd buffers");
    ok(content_matches(path), "all are on the disk, and nothing else");

    memset(buf, 0, BATCH * (len + 1));
    for (unsigned i = 0; i < BATCH; i++)
        t[i].req.op = BLOCK_READ;
    is_int(run(dev, t, BATCH), 0, "48 reads to odd buffers");
    bool same = true;
    for (unsigned i = 0; i < BATCH; i++)
        same &= memcmp(buf + i * (len + 1) + 1, content + t[i].req.offset_bytes, len) == 0;
    ok(same, "each has its own");

    struct iovec single = {buf + 1, 64 * KIB};
    is_int(run_iov(dev, BLOCK_READ, 0, &single, 1), 0, "one odd buffer");
    ok(memcmp(buf + 1, content, 64 * KIB) == 0, "has its own");
    free(t);
    free(iov);
    free(buf);
}

static void test_ranges(struct block_dev *dev, const char *path)
{
    is_int(run_range(dev, BLOCK_FLUSH, 0, 0, false), 0, "flush");

    is_int(run_range(dev, BLOCK_WRITE_ZEROES, 4096, 2 * MIB, false), 0, "write zeroes");
    memset(content + 4096, 0, 2 * MIB);
    ok(content_matches(path), "they are zero, and nothing else");
    uint64_t block = block_get_info(dev)->logical_block_bytes;
    is_int(run_range(dev, BLOCK_WRITE_ZEROES, 3 * MIB + block, MIB + 3 * block, true), 0,
           "write zeroes that may unmap, at odd blocks");
    memset(content + 3 * MIB + block, 0, MIB + 3 * block);
    ok(content_matches(path), "they are zero, and nothing else");

    if (block_get_info(dev)->discard_granularity_bytes == 0) {
        tap_skip("discard", "the file system has none");
        return;
    }
    struct stat before, after;
    stat(path, &before);
    is_int(run_range(dev, BLOCK_DISCARD, 5 * MIB, MIB, false), 0, "discard");
    stat(path, &after);
    if (S_ISREG(after.st_mode))
        /* less a few blocks, which the file system may need to remember the hole */
        ok(after.st_blocks <= before.st_blocks - (blkcnt_t)(MIB / 512) + 64,
           "gives the space back");
    memset(content + 5 * MIB, 0, MIB);
    ok(content_matches(path), "what is left around it is unharmed");
}

static void test_disk(const char *path, enum block_cache cache)
{
    struct block_dev *dev = open_disk(path, cache);
    if (!dev)
        return;
    const struct block_info *info = block_get_info(dev);
    printf("# direct %d, logical %u, physical %u, discard %u, rotational %d\n", info->direct,
           info->logical_block_bytes, info->physical_block_bytes, info->discard_granularity_bytes,
           info->rotational);
    is_int(info->size_bytes, DISK_BYTES, "size");
    ok(!info->read_only, "writable");
    if (cache == BLOCK_CACHE_WRITEBACK)
        ok(!info->direct, "not direct when told so");
    test_aligned(dev, path);
    test_unaligned(dev, path, info->logical_block_bytes);
    test_ranges(dev, path);
    block_close(dev);
}

static void test_cut(const char *path)
{
    struct block_dev *dev = open_disk(path, BLOCK_CACHE_AUTO);
    uint8_t *buf = malloc(64 * KIB);
    struct iovec iov[2] = {
        {buf,        4096    },
        {buf + 4096, 60 * KIB}
    };
    if (truncate(path, 5 * MIB + 8192) < 0)
        ok(false, "truncate");
    is_int(run_iov(dev, BLOCK_READ, 6 * MIB, iov, 2), -EIO, "read where the file was cut");
    is_int(run_iov(dev, BLOCK_READ, 5 * MIB, iov, 2), -EIO, "read across the cut");
    is_int(run_iov(dev, BLOCK_READ, 4 * MIB, iov, 2), 0, "read before it");
    block_close(dev);
    free(buf);
}

/* --- open --- */

static void test_open_errors(void)
{
    struct err err = ERR_INIT;
    struct block_dev *dev;
    struct block_options options = {.path = path_of(folder, "none")};
    is_int(block_open(&dev, &options, &err), -ENOENT, "no such file");
    ok(strstr(err.text, "/none") != NULL, "the error names it");
    options.path = folder;
    is_int(block_open(&dev, &options, &err), -EISDIR, "a folder");
    options.path = "/dev/null";
    is_int(block_open(&dev, &options, &err), -EINVAL, "a character device");
    options.path = path_of(folder, "fifo");
    mkfifo(options.path, 0600);
    is_int(block_open(&dev, &options, &err), -EINVAL, "a FIFO, without waiting for it");
    unlink(options.path);
    options.path = path_of(folder, "odd");
    int fd = open(options.path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (ftruncate(fd, 1000) < 0)
        ok(false, "truncate");
    is_int(block_open(&dev, &options, &err), -EINVAL, "a size that is no multiple of 512");
    if (ftruncate(fd, 0) < 0)
        ok(false, "truncate");
    is_int(block_open(&dev, &options, &err), 0, "an empty file");
    is_int(block_get_info(dev)->size_bytes, 0, "has no bytes");
    block_close(dev);
    close(fd);
    unlink(options.path);
}

static void test_read_only(const char *path)
{
    struct err err = ERR_INIT;
    struct block_dev *dev = NULL;
    struct block_options options = {.path = path, .read_only = true};
    is_int(block_open(&dev, &options, &err), 0, "open read-only");
    is_int(block_attach(dev, loop, &err), 0, "attach");
    ok(block_get_info(dev)->read_only, "info says read-only");
    uint8_t buf[512];
    struct iovec iov = {buf, sizeof(buf)};
    is_int(run_iov(dev, BLOCK_WRITE, 0, &iov, 1), -EROFS, "a write is refused");
    is_int(run_iov(dev, BLOCK_READ, 0, &iov, 1), 0, "a read is served");
    block_close(dev);
}

/* --- locks --- */

static int try_open(const char *path, bool read_only, bool share, struct err *err)
{
    struct block_dev *dev;
    struct block_options options = {.path = path, .read_only = read_only, .share = share};
    *err = (struct err)ERR_INIT;
    int rc = block_open(&dev, &options, err);
    if (rc == 0)
        block_close(dev);
    return rc;
}

static void test_locks_between(const char *path)
{
    struct err err;
    struct block_dev *dev;
    struct block_options options = {.path = path};
    is_int(block_open(&dev, &options, &err), 0, "open for writing");
    is_int(try_open(path, false, false, &err), -EAGAIN, "a second writer is refused");
    ok(strstr(err.text, "this process") != NULL, "the error says by whom");
    is_int(try_open(path, true, false, &err), -EAGAIN, "so is a reader");
    is_int(try_open(path, false, true, &err), -EAGAIN, "so is one that would share");
    block_close(dev);

    options.read_only = true;
    is_int(block_open(&dev, &options, &err), 0, "open for reading");
    is_int(try_open(path, true, false, &err), 0, "a second reader is let in");
    is_int(try_open(path, false, false, &err), -EAGAIN, "a writer is refused");
    block_close(dev);

    options = (struct block_options){.path = path, .share = true};
    is_int(block_open(&dev, &options, &err), 0, "open shared");
    is_int(try_open(path, false, true, &err), 0, "a second that shares is let in");
    is_int(try_open(path, false, false, &err), -EAGAIN, "one that does not is refused");
    block_close(dev);
    is_int(try_open(path, false, false, &err), 0, "close gives the lock back");
}

static void test_lock_names_process(const char *path)
{
    int ready[2], end[2];
    if (pipe(ready) < 0 || pipe(end) < 0)
        abort();
    pid_t pid = fork();
    if (pid == 0) {
        struct err err;
        struct block_dev *dev;
        struct block_options options = {.path = path};
        char byte = block_open(&dev, &options, &err) == 0;
        close(end[1]);
        if (write(ready[1], &byte, 1) == 1 && read(end[0], &byte, 1) < 0)
            _exit(1);
        _exit(0);
    }
    char byte = 0, want[32];
    struct err err;
    ok(read(ready[0], &byte, 1) == 1 && byte == 1, "another process opens it");
    is_int(try_open(path, false, false, &err), -EAGAIN, "we are refused");
    snprintf(want, sizeof(want), "process %d (", (int)pid);
    if (!ok(strstr(err.text, want) != NULL, "the error has its PID"))
        printf("# %s\n", err.text);
    close(end[1]);
    waitpid(pid, NULL, 0);
    is_int(try_open(path, false, false, &err), 0, "its end gives the lock back");
    close(ready[0]), close(ready[1]), close(end[0]);
}

static bool have_program(const char *name)
{
    char command[128];
    snprintf(command, sizeof(command), "command -v %s >/dev/null 2>&1", name);
    return system(command) == 0;
}

static int shell(const char *format, const char *path)
{
    char command[1024];
    snprintf(command, sizeof(command), format, path);
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* An open file with a lock goes into a message: no process has it until it is received. */
static bool send_file(int socket, int fd)
{
    char byte = 0;
    struct iovec iov = {&byte, 1};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    control.header = (struct cmsghdr){
        .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
    memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
    return sendmsg(socket, &message, 0) == 1;
}

static void *close_soon(void *socket)
{
    usleep(200000);
    close(*(int *)socket); /* and the message with it */
    return NULL;
}

/* io_uring's files are open a little longer than the process that had them. */
static void test_lock_lingers(const char *path)
{
    struct err err;
    pthread_t thread;
    int sockets[2], fd = open(path, O_RDWR | O_CLOEXEC);
    is_int(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), 0, "sockets");
    is_int(block_lock(fd, path, true, false, &err), 0, "a lock");
    ok(send_file(sockets[0], fd), "that no process holds");
    close(fd);
    close(sockets[0]);
    is_int(try_open(path, false, false, &err), -EAGAIN, "is one");
    ok(strstr(err.text, "another process") != NULL, "the error names no process");
    pthread_create(&thread, NULL, close_soon, &sockets[1]);
    is_int(try_open(path, false, false, &err), 0, "one that goes soon is waited for");
    pthread_join(thread, NULL);
}

static void test_lock_qemu(const char *path)
{
    if (!have_program("qemu-io") || !have_program("qemu-img")) {
        tap_skip("locks against QEMU's tools", "qemu-io and qemu-img are not installed");
        return;
    }
    struct err err;
    struct block_dev *dev;
    struct block_options options = {.path = path};
    is_int(block_open(&dev, &options, &err), 0, "open for writing");
    ok(shell("F=%s; qemu-img convert -f raw -O raw $F $F.out >/dev/null 2>&1", path) != 0,
       "qemu-img is refused");
    ok(shell("qemu-io -f raw -c 'write 0 512' %s >/dev/null 2>&1", path) != 0,
       "qemu-io is refused");
    block_close(dev);
    ok(shell("F=%s; qemu-img convert -f raw -O raw $F $F.out >/dev/null 2>&1", path) == 0,
       "and is not afterwards");
    options.read_only = true;
    is_int(block_open(&dev, &options, &err), 0, "open for reading");
    ok(shell("F=%s; qemu-img convert -f raw -O raw $F $F.out >/dev/null 2>&1", path) == 0,
       "qemu-img is let in");
    ok(shell("qemu-io -f raw -c 'write 0 512' %s >/dev/null 2>&1", path) != 0,
       "a writing qemu-io is refused");
    block_close(dev);
    unlink(path_of(folder, "disk.out"));

    /* qemu-io says it is there, and waits for its input's end. */
    char command[1024];
    snprintf(command, sizeof(command), "qemu-io -f raw %s >/dev/null 2>&1", path);
    FILE *qemu = popen(command, "we");
    int rc = 0;
    for (unsigned i = 0; qemu && i < 100 && rc != -EAGAIN; i++) {
        usleep(20000);
        rc = try_open(path, false, false, &err);
    }
    is_int(rc, -EAGAIN, "an image that qemu-io has open is refused");
    if (!ok(strstr(err.text, "qemu-io") != NULL, "the error names it"))
        printf("# %s\n", err.text);
    if (qemu)
        pclose(qemu);
    is_int(try_open(path, false, false, &err), 0, "and is not afterwards");
}

/* --- a block device --- */

/* Attach file to a free loop device, whose path is stored. The descriptor, or -1 with why. */
static int loop_device_open(const char *file, char *path, size_t path_len, const char **why)
{
    *why = "no access to /dev/loop-control";
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    if (control < 0)
        return -1;
    int number = ioctl(control, LOOP_CTL_GET_FREE);
    close(control);
    snprintf(path, path_len, "/dev/loop%d", number);
    int fd = number < 0 ? -1 : open(path, O_RDWR | O_CLOEXEC);
    int backing = open(file, O_RDWR | O_CLOEXEC);
    struct loop_config config = {.fd = (unsigned)backing, .info = {.lo_flags = LO_FLAGS_AUTOCLEAR}};
    if (fd >= 0 && ioctl(fd, LOOP_CONFIGURE, &config) < 0) {
        close(fd);
        fd = -1;
    }
    close(backing);
    *why = "no loop device can be set up";
    return fd;
}

static void test_block_device(const char *file)
{
    char path[64];
    const char *why;
    make_file(file);
    int fd = loop_device_open(file, path, sizeof(path), &why);
    if (fd < 0) {
        tap_skip("block device", why);
        return;
    }
    struct err err;
    struct block_dev *dev;
    struct block_options options = {.path = path};
    is_int(block_open(&dev, &options, &err), 0, "open a block device");
    is_int(try_open(path, false, false, &err), -EAGAIN, "a second writer is refused");
    block_close(dev);
    test_disk(path, BLOCK_CACHE_AUTO);
    /* A claim of the kernel's own, as a mount has one. */
    int claim = open(path, O_RDWR | O_EXCL | O_CLOEXEC);
    is_int(try_open(path, false, false, &err), -EAGAIN, "a device with a claim is refused");
    is_int(try_open(path, true, false, &err), 0, "but for reading");
    close(claim);
    close(fd);
}

static void test_all(const char *name)
{
    const char *file = strdup(path_of(folder, "disk"));
    printf("# %s: %s, as AUTO says\n", name, folder);
    make_file(file);
    test_disk(file, BLOCK_CACHE_AUTO);
    printf("# %s: page cache\n", name);
    make_file(file);
    test_disk(file, BLOCK_CACHE_WRITEBACK);
    test_cut(file);
    if (access("/dev/shm", W_OK) == 0) {
        char *shm = strdup("/dev/shm/hull-test-XXXXXX");
        close(mkstemp(shm));
        printf("# %s: /dev/shm, without FALLOC_FL_ZERO_RANGE\n", name);
        make_file(shm);
        test_disk(shm, BLOCK_CACHE_AUTO);
        unlink(shm);
        free(shm);
    } else {
        tap_skip("a file system without FALLOC_FL_ZERO_RANGE", "no /dev/shm");
    }
    printf("# %s: block device\n", name);
    test_block_device(file);
    free((char *)file);
}

int main(void)
{
    struct err err = ERR_INIT;
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof(folder), "%s/hull-file-test-XXXXXX", tmp ? tmp : "/tmp");
    content = malloc(DISK_BYTES);
    if (!mkdtemp(folder) || !content)
        return 1;

    static const unsigned flags[] = {0, LOOP_NO_URING};
    for (unsigned i = 0; i < ARRAY_LEN(flags); i++) {
        if (loop_new(&loop, flags[i], &err) < 0) {
            ok(false, err.text);
            continue;
        }
        if (flags[i] == 0 && !loop_has_uring(loop))
            tap_skip("with io_uring", "this host has none");
        else
            test_all(flags[i] ? "threads" : "io_uring");
        loop_free(loop);
    }

    if (loop_new(&loop, 0, &err) == 0) {
        char *file = strdup(path_of(folder, "disk"));
        make_file(file);
        test_open_errors();
        test_read_only(file);
        test_locks_between(file);
        test_lock_names_process(file);
        test_lock_lingers(file);
        test_lock_qemu(file);
        unlink(file);
        free(file);
        loop_free(loop);
    }
    ok(rmdir(folder) == 0, "nothing is left behind");
    free(content);
    return tap_done();
}
