/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/boot_file.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "base/err.h"
#include "base/units.h"

/* read(2) moves at most this much in one call. */
#define READ_MAX   0x7ffff000ULL
#define SLURP_STEP (1 * MIB)

/* Read everything that a descriptor without a size gives. */
static int slurp(struct boot_file *file, uint64_t limit_bytes, struct err *err)
{
    uint64_t cap = 0;

    file->on_heap = true;
    for (;;) {
        if (file->len == cap) {
            cap = cap ? cap * 2 : SLURP_STEP;
            uint8_t *grown = realloc(file->bytes, cap);
            if (!grown)
                return err_errno(err, ENOMEM, "%s", file->path);
            file->bytes = grown;
        }
        uint64_t room = cap - file->len;
        ssize_t n = read(file->fd, file->bytes + file->len, room < READ_MAX ? room : READ_MAX);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(err, errno, "%s: cannot read", file->path);
        if (n == 0)
            return 0;
        file->len += (uint64_t)n;
        if (file->len > limit_bytes)
            return 0; /* the caller's check says so */
    }
}

static int check_length(const struct boot_file *file, uint64_t limit_bytes, struct err *err)
{
    char size[32], limit[32];

    if (file->len == 0)
        return err_set(err, EINVAL, "%s: the file is empty", file->path);
    if (file->len > limit_bytes)
        return err_set(err, EFBIG,
                       "%s: the file (%s or more) is larger than the guest's memory (%s): give "
                       "more with --memory",
                       file->path, size_format(file->len, size, sizeof(size)),
                       size_format(limit_bytes, limit, sizeof(limit)));
    return 0;
}

int boot_file_open(struct boot_file *file, const char *path, uint64_t limit_bytes, struct err *err)
{
    struct stat st;
    int ret;

    *file = (struct boot_file){.path = path, .fd = open(path, O_RDONLY | O_CLOEXEC)};
    if (file->fd < 0)
        return err_errno(err, errno, "%s: cannot open", path);
    if (fstat(file->fd, &st) < 0)
        ret = err_errno(err, errno, "%s: cannot stat", path);
    else if (S_ISDIR(st.st_mode))
        ret = err_set(err, EISDIR, "%s: is a directory, not a file to boot", path);
    else if (S_ISREG(st.st_mode)) {
        file->len = (uint64_t)st.st_size;
        ret = check_length(file, limit_bytes, err);
    } else {
        ret = slurp(file, limit_bytes, err);
        if (ret == 0)
            ret = check_length(file, limit_bytes, err);
    }
    if (ret < 0)
        boot_file_close(file);
    return ret;
}

void boot_file_close(struct boot_file *file)
{
    if (file->on_heap)
        free(file->bytes);
    else if (file->bytes)
        munmap(file->bytes, file->len);
    if (file->fd >= 0)
        close(file->fd);
    *file = (struct boot_file){.fd = -1};
}

int boot_file_map(struct boot_file *file, struct err *err)
{
    if (file->bytes)
        return 0;
    void *map = mmap(NULL, file->len, PROT_READ, MAP_PRIVATE, file->fd, 0);
    if (map == MAP_FAILED)
        return err_errno(err, errno, "%s: cannot map", file->path);
    file->bytes = map;
    return 0;
}

int boot_file_read(struct boot_file *file, void *dst, struct err *err)
{
    if (file->bytes) {
        memcpy(dst, file->bytes, file->len);
        return 0;
    }
    for (uint64_t done = 0; done < file->len;) {
        uint64_t rest = file->len - done;
        ssize_t n =
            pread(file->fd, (uint8_t *)dst + done, rest < READ_MAX ? rest : READ_MAX, (off_t)done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(err, errno, "%s: cannot read", file->path);
        if (n == 0)
            return err_set(err, EIO, "%s: the file became shorter while it was read", file->path);
        done += (uint64_t)n;
    }
    return 0;
}

bool boot_is_gzip(const uint8_t *bytes, uint64_t len)
{
    /* RFC 1952, 2.3.1: ID1, ID2, CM = deflate; a header and trailer take 18 bytes. */
    return len >= 18 && bytes[0] == 0x1f && bytes[1] == 0x8b && bytes[2] == 8;
}

/* The buffer that a stream is unpacked into; grows up to limit. */
struct unpacked {
    uint8_t *bytes;
    uint64_t len, cap, limit;
};

static int unpacked_grow(struct unpacked *u, struct err *err)
{
    char limit[32];

    if (u->cap == u->limit)
        return err_set(err, E2BIG, "unpacked it is larger than the guest's memory (%s)",
                       size_format(u->limit, limit, sizeof(limit)));
    uint64_t cap = u->cap > u->limit / 2 ? u->limit : u->cap * 2;
    assert(cap > u->cap);
    uint8_t *grown = realloc(u->bytes, cap);
    if (!grown)
        return err_errno(err, ENOMEM, "cannot unpack");
    u->bytes = grown;
    u->cap = cap;
    return 0;
}

/* Inflate one member after another until the input ends or is no gzip any more. */
static int inflate_members(z_stream *z, const uint8_t *bytes, uint64_t len, struct unpacked *u,
                           struct err *err)
{
    uint64_t at = 0;

    for (;;) {
        if (u->len == u->cap) {
            int ret = unpacked_grow(u, err);
            if (ret < 0)
                return ret;
        }
        uint64_t in = len - at < UINT32_MAX ? len - at : UINT32_MAX;
        uint64_t room = u->cap - u->len < UINT32_MAX ? u->cap - u->len : UINT32_MAX;
        z->next_in = (z_const Bytef *)(uintptr_t)(bytes + at);
        z->avail_in = (uInt)in;
        z->next_out = u->bytes + u->len;
        z->avail_out = (uInt)room;
        int status = inflate(z, Z_NO_FLUSH);
        uint64_t taken = in - z->avail_in, given = room - z->avail_out;
        at += taken;
        u->len += given;
        if (status == Z_STREAM_END) {
            /* Zero padding or a signature may follow the last member; gzip(1) ignores it too. */
            if (!boot_is_gzip(bytes + at, len - at))
                return 0;
            inflateReset(z);
        } else if (status == Z_MEM_ERROR) {
            return err_errno(err, ENOMEM, "cannot unpack");
        } else if ((status != Z_OK && status != Z_BUF_ERROR) || (taken == 0 && given == 0)) {
            return err_set(err, EINVAL, "the gzip data is %s", at == len ? "truncated" : "damaged");
        }
    }
}

int boot_gunzip(const uint8_t *bytes, uint64_t len, uint64_t limit_bytes, uint8_t **out,
                uint64_t *out_len, struct err *err)
{
    z_stream z = {0};

    if (!boot_is_gzip(bytes, len) || limit_bytes == 0)
        return err_set(err, EINVAL, "not gzip data");
    /* The last four bytes say the size modulo 2^32, if nothing follows the stream: a hint. */
    uint64_t cap = load_le32(bytes + len - 4);
    if (cap / 1024 > len)
        cap = len * 4; /* deflate reaches about 1:1000: not a size */
    cap = cap < 64 * KIB ? 64 * KIB : cap + 1;
    struct unpacked u = {.cap = cap < limit_bytes ? cap : limit_bytes, .limit = limit_bytes};
    u.bytes = malloc(u.cap);
    if (!u.bytes)
        return err_errno(err, ENOMEM, "cannot unpack");
    if (inflateInit2(&z, 15 + 16) != Z_OK) { /* window of 32 KiB, gzip wrapper */
        free(u.bytes);
        return err_errno(err, ENOMEM, "cannot unpack");
    }
    int ret = inflate_members(&z, bytes, len, &u, err);
    inflateEnd(&z);
    if (ret == 0 && u.len == 0)
        ret = err_set(err, EINVAL, "the gzip data is empty");
    if (ret < 0) {
        free(u.bytes);
        return ret;
    }
    *out = u.bytes;
    *out_len = u.len;
    return 0;
}
