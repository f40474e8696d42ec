/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/boot_file.h"

#include <errno.h>
#include <pthread.h>
#include <zlib.h>

#include "vm/boot_fixture.h"

static void test_files(void)
{
    struct boot_file file;
    struct err err = ERR_INIT;
    char path[32], got[5];

    write_file(path, "hello", 5);
    is_int(boot_file_open(&file, path, 5, &err), 0, "open");
    is_int(file.len, 5, "length");
    is_int(boot_file_read(&file, got, &err), 0, "read");
    ok(memcmp(got, "hello", 5) == 0, "contents");
    is_int(boot_file_map(&file, &err), 0, "map");
    ok(memcmp(file.bytes, "hello", 5) == 0, "contents again");
    is_int(truncate(path, 3), 0, "the file is shortened");
    boot_file_close(&file);
    is_int(boot_file_open(&file, path, 5, &err), 0, "open again");
    is_int(truncate(path, 1), 0, "the file is shortened while open");
    is_int(boot_file_read(&file, got, &err), -EIO, "that is noticed");
    boot_file_close(&file);
    is_int(boot_file_open(&file, path, 0, &err), -EFBIG, "larger than the limit");
    ok(strstr(err.text, "--memory"), "says what to do");
    is_int(truncate(path, 0), 0, "the file is emptied");
    is_int(boot_file_open(&file, path, 5, &err), -EINVAL, "an empty file");
    unlink(path);
    is_int(boot_file_open(&file, path, 5, &err), -ENOENT, "no file");
    ok(strstr(err.text, path), "names it");
    is_int(boot_file_open(&file, "/tmp", 5, &err), -EISDIR, "a directory");
}

static void *feed(void *arg)
{
    static const char block[3000] = {'x'};
    int fd = *(int *)arg;
    for (unsigned i = 0; i < 1000; i++)
        if (write(fd, block, sizeof(block)) < 0)
            break;
    close(fd);
    return NULL;
}

static void test_pipe(uint64_t limit, int want)
{
    struct boot_file file;
    struct err err = ERR_INIT;
    int fds[2];
    char path[32];
    pthread_t thread;

    if (pipe(fds) < 0 || pthread_create(&thread, NULL, feed, &fds[1]) != 0) {
        ok(false, "pipe");
        return;
    }
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fds[0]);
    int ret = boot_file_open(&file, path, limit, &err);
    is_int(ret, want, "a pipe is read");
    if (ret == 0) {
        is_int(file.len, 3000000, "to its end");
        is_int(boot_file_map(&file, &err), 0, "map is nothing to do");
        ok(file.bytes[2997000] == 'x', "contents");
        boot_file_close(&file);
    }
    /* The writer's end is open in this process: let it finish. */
    char drain[4096];
    while (read(fds[0], drain, sizeof(drain)) > 0)
        continue;
    pthread_join(thread, NULL);
    close(fds[0]);
}

static uint8_t *pack(const void *bytes, size_t len, size_t *packed_len)
{
    uint8_t *out = malloc(len + 1000);
    z_stream z = {.next_in = (z_const Bytef *)(uintptr_t)bytes,
                  .avail_in = (uInt)len,
                  .next_out = out,
                  .avail_out = (uInt)(len + 1000)};
    deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
    deflate(&z, Z_FINISH);
    *packed_len = z.total_out;
    deflateEnd(&z);
    return out;
}

static int unpack(const uint8_t *packed, uint64_t len, uint64_t limit, const void *want,
                  uint64_t want_len)
{
    uint8_t *out = NULL;
    uint64_t out_len = 0;
    struct err err = ERR_INIT;
    int ret = boot_gunzip(packed, len, limit, &out, &out_len, &err);

    if (ret == 0 && (out_len != want_len || memcmp(out, want, want_len) != 0))
        ret = 1;
    free(out);
    return ret;
}

static void test_gunzip(void)
{
    const size_t len = 300000;
    uint8_t *text = malloc(2 * len);
    size_t packed_len;

    for (size_t i = 0; i < 2 * len; i++)
        text[i] = (uint8_t)(i % len * (i % len) >> 7);
    uint8_t *packed = pack(text, len, &packed_len);
    ok(boot_is_gzip(packed, packed_len), "is gzip");
    ok(!boot_is_gzip(packed, 17) && !boot_is_gzip(text, len), "is not");
    is_int(unpack(packed, packed_len, MIB, text, len), 0, "unpack");
    is_int(unpack(packed, packed_len, len - 1, text, len), -E2BIG, "not more than the limit");
    is_int(unpack(packed, packed_len - 9, MIB, text, len), -EINVAL, "truncated");
    is_int(unpack(packed, 20, MIB, text, len), -EINVAL, "truncated early");

    uint8_t *twice = calloc(1, 2 * packed_len + 100);
    memcpy(twice, packed, packed_len);
    memcpy(twice + packed_len, packed, packed_len);
    is_int(unpack(twice, 2 * packed_len, MIB, text, 2 * len), 0, "two members");
    is_int(unpack(twice, 2 * packed_len + 100, MIB, text, 2 * len), 0, "zero padding behind them");
    packed[packed_len - 8] ^= 1;
    is_int(unpack(packed, packed_len, MIB, text, len), -EINVAL, "wrong CRC");
    packed[packed_len - 8] ^= 1;
    packed[packed_len / 2] ^= 0xff;
    is_int(unpack(packed, packed_len, MIB, text, len), -EINVAL, "damaged");
    free(twice);
    free(packed);

    /* A bomb: 64 MiB of zeros in 64 KiB. */
    uint8_t *zeros = calloc(1, 64 * MIB);
    packed = pack(zeros, 64 * MIB, &packed_len);
    is_int(unpack(packed, packed_len, MIB, zeros, 0), -E2BIG, "a bomb");
    free(zeros);
    free(packed);
    free(text);
}

int main(void)
{
    test_files();
    test_pipe(4 * MIB, 0);
    test_pipe(MIB, -EFBIG);
    test_gunzip();
    return tap_done();
}
