/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/mem.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/err.h"
#include "base/log.h"
#include "base/units.h"

/* Linux 5.14; the C library's headers may be older. */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/*
 * The host address of a region is congruent to its guest address modulo this: KVM maps a huge page
 * into the guest only where the two are aligned alike.
 */
#define HUGE_PAGE (2 * MIB)

/* No access, before and behind each region: an overrun of ours traps. */
#define GUARD (64 * KIB)

/* Prefault in threads of at least so much each; fewer bytes are not worth a thread. */
#define PREFAULT_MIN         (128 * MIB)
#define PREFAULT_THREADS_MAX 16

struct region_private {
    uint8_t *reserved; /* the address range including guards and alignment */
    uint64_t reserved_len;
    uint64_t *dirty; /* stays until mem_free(), since writers may hold it when logging stops */
};

struct mem {
    struct mem_options options;
    mem_written_fn written;
    void *written_ctx;
    size_t count;
    struct mem_region regions[MEM_REGIONS_MAX];
    struct region_private privates[MEM_REGIONS_MAX];
};

int mem_new(struct mem **out, const struct mem_options *options, struct err *err)
{
    struct mem *mem = calloc(1, sizeof(*mem));
    if (!mem)
        return err_errno(err, ENOMEM, "guest memory");
    mem->options = *options;
    *out = mem;
    return 0;
}

void mem_free(struct mem *mem)
{
    if (!mem)
        return;
    for (size_t i = mem->count; i-- > 0;) {
        munmap(mem->privates[i].reserved, mem->privates[i].reserved_len);
        if (mem->regions[i].fd >= 0)
            close(mem->regions[i].fd);
        free(mem->privates[i].dirty);
    }
    free(mem);
}

/* --- obtaining memory --- */

static int check_place(const struct mem *mem, const char *name, gpa_t base, uint64_t len,
                       struct err *err)
{
    if (len == 0 || len % PAGE_SIZE_BYTES != 0 || base.a % PAGE_SIZE_BYTES != 0)
        return err_set(err, EINVAL, "%s: guest memory is not a multiple of the page size", name);
    if (base.a + len < base.a)
        return err_set(err, EINVAL, "%s: guest memory exceeds the address space", name);
    if (mem->count == MEM_REGIONS_MAX)
        return err_set(err, EINVAL, "%s: more than %d regions of guest memory", name,
                       MEM_REGIONS_MAX);
    for (size_t i = 0; i < mem->count; i++) {
        const struct mem_region *r = &mem->regions[i];
        if (base.a < r->base.a + r->len_bytes && r->base.a < base.a + len)
            return err_set(err, EINVAL, "%s: overlaps %s at 0x%llx", name, r->name,
                           (unsigned long long)r->base.a);
    }
    return 0;
}

/*
 * Pages come when they are touched (MAP_NORESERVE), so a guest that is larger than the host would
 * start and be killed in the middle of its work. What can never fit is refused here.
 */
static int check_host(const struct mem *mem, uint64_t len, struct err *err)
{
    struct sysinfo info;
    if (sysinfo(&info) < 0)
        return 0;
    uint64_t unit = info.mem_unit ? info.mem_unit : 1;
    uint64_t host_ram = info.totalram * unit, host_swap = info.totalswap * unit;
    uint64_t wanted = len;
    for (size_t i = 0; i < mem->count; i++)
        wanted += mem->regions[i].len_bytes;
    if (wanted >= len && wanted <= host_ram + host_swap)
        return 0;

    char wanted_text[32], ram_text[32], swap_text[32];
    return err_set(err, ENOMEM,
                   "the guest would have %s of memory, this host has %s of RAM and %s of swap; "
                   "give the guest less",
                   size_format(wanted, wanted_text, sizeof(wanted_text)),
                   size_format(host_ram, ram_text, sizeof(ram_text)),
                   size_format(host_swap, swap_text, sizeof(swap_text)));
}

/* A memfd of len bytes whose size is sealed: who shares it cannot make our accesses fault. */
static int memfd_open(const char *name, uint64_t len, struct err *err)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return err_errno(err, errno, "%s: create a memfd for shared guest memory", name);
    if (ftruncate(fd, (off_t)len) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        int code = errno;
        close(fd);
        return err_errno(err, code, "%s: size a memfd for shared guest memory", name);
    }
    return fd;
}

static int map_failed(struct err *err, int code, const char *name, uint64_t len)
{
    char text[32];
    size_format(len, text, sizeof(text));
    if (code == ENOMEM)
        return err_set(err, code,
                       "%s: the host does not give %s of address space for guest memory; look at "
                       "`ulimit -v` and /proc/sys/vm/overcommit_memory",
                       name, text);
    return err_errno(err, code, "%s: map %s of guest memory", name, text);
}

/* Reserve addresses, then put the memory in their middle. Fills host, fd and the private part. */
static int region_map(const struct mem_options *options, struct mem_region *region,
                      struct region_private *private, struct err *err)
{
    uint64_t len = region->len_bytes;
    private->reserved_len = len + 2 * GUARD + HUGE_PAGE;
    if (private->reserved_len < len)
        return map_failed(err, ENOMEM, region->name, len);
    void *reserved = mmap(NULL, private->reserved_len, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED)
        return map_failed(err, errno, region->name, len);
    private->reserved = reserved;

    uintptr_t after_guard = (uintptr_t)reserved + GUARD;
    uint64_t shift = (region->base.a - after_guard) & (HUGE_PAGE - 1);
    uint8_t *host = private->reserved + GUARD + shift;

    int flags = MAP_FIXED | MAP_NORESERVE | MAP_PRIVATE | MAP_ANONYMOUS;
    int code;
    if (options->shared) {
        region->fd = memfd_open(region->name, len, err);
        if (region->fd < 0) {
            code = region->fd;
            goto unmap;
        }
        flags = MAP_FIXED | MAP_NORESERVE | MAP_SHARED;
    }
    if (mmap(host, len, PROT_READ | PROT_WRITE, flags, region->fd, 0) == MAP_FAILED) {
        code = map_failed(err, errno, region->name, len);
        goto close;
    }
    region->host = host;
    return 0;

close:
    if (region->fd >= 0)
        close(region->fd);
unmap:
    munmap(private->reserved, private->reserved_len);
    return code;
}

/*
 * Wishes: a kernel without the feature says EINVAL, and the guest runs as well without it. The
 * first 2 MiB of a PC get small pages: before the guest starts we write a few tables and structures
 * there, and clearing a huge page for those would be a good part of the whole start-up.
 */
static void region_advise(const struct mem_options *options, const struct mem_region *region)
{
    madvise(region->host, region->len_bytes, MADV_DONTDUMP);
    if (options->huge_pages) {
        uint64_t small = region->base.a < HUGE_PAGE ? HUGE_PAGE - region->base.a : 0;
        if (small > region->len_bytes)
            small = region->len_bytes;
        if (small > 0)
            madvise(region->host, small, MADV_NOHUGEPAGE);
        if (small < region->len_bytes &&
            madvise(region->host + small, region->len_bytes - small, MADV_HUGEPAGE) < 0)
            log_debug("mem", "%s: no transparent huge pages: %s", region->name, strerror(errno));
    }
    if (options->mergeable && madvise(region->host, region->len_bytes, MADV_MERGEABLE) < 0)
        log_warn("mem", "%s: cannot be offered to KSM: %s", region->name, strerror(errno));
}

/* --- prefault --- */

struct prefault_part {
    pthread_t thread;
    bool started;
    uint8_t *host;
    uint64_t len;
    int code; /* 0 or -errno */
};

static void *prefault_run(void *arg)
{
    struct prefault_part *part = arg;
    if (madvise(part->host, part->len, MADV_POPULATE_WRITE) == 0)
        return NULL;
    if (errno != EINVAL) {
        part->code = -errno;
        return NULL;
    }
    /* A kernel before 5.14. A store of the value that is there: other threads may write too. */
    for (uint64_t offset = 0; offset < part->len; offset += PAGE_SIZE_BYTES)
        __atomic_fetch_or(part->host + offset, 0, __ATOMIC_RELAXED);
    return NULL;
}

static int prefault(const struct mem_region *region, struct err *err)
{
    cpu_set_t cpus;
    uint64_t parts = 1;
    if (sched_getaffinity(0, sizeof(cpus), &cpus) == 0)
        parts = (uint64_t)CPU_COUNT(&cpus);
    if (parts > region->len_bytes / PREFAULT_MIN)
        parts = region->len_bytes / PREFAULT_MIN;
    if (parts > PREFAULT_THREADS_MAX)
        parts = PREFAULT_THREADS_MAX;
    if (parts == 0)
        parts = 1;

    struct prefault_part part[PREFAULT_THREADS_MAX] = {0};
    uint64_t step = align_up((region->len_bytes + parts - 1) / parts, HUGE_PAGE);
    for (uint64_t i = 0; i < parts; i++) {
        uint64_t start = i * step;
        if (start >= region->len_bytes)
            break;
        part[i].host = region->host + start;
        part[i].len = region->len_bytes - start < step ? region->len_bytes - start : step;
        part[i].started =
            parts > 1 && pthread_create(&part[i].thread, NULL, prefault_run, &part[i]) == 0;
        if (!part[i].started)
            prefault_run(&part[i]);
    }
    int code = 0;
    for (uint64_t i = 0; i < parts; i++) {
        if (part[i].started)
            pthread_join(part[i].thread, NULL);
        if (part[i].code < 0)
            code = part[i].code;
    }
    if (code < 0) {
        char text[32];
        return err_errno(err, code, "%s: the host has no %s of memory free for the guest now",
                         region->name, size_format(region->len_bytes, text, sizeof(text)));
    }
    return 0;
}

static int mem_add(struct mem *mem, const char *name, gpa_t base, uint64_t len, bool read_only,
                   struct err *err)
{
    int code = check_place(mem, name, base, len, err);
    if (code < 0)
        return code;
    code = check_host(mem, len, err);
    if (code < 0)
        return code;

    struct mem_region region = {
        .mem = mem, .name = name, .base = base, .len_bytes = len, .fd = -1, .read_only = read_only};
    struct region_private private = {0};
    code = region_map(&mem->options, &region, &private, err);
    if (code < 0)
        return code;
    region_advise(&mem->options, &region);
    if (mem->options.prefault) {
        code = prefault(&region, err);
        if (code < 0) {
            munmap(private.reserved, private.reserved_len);
            if (region.fd >= 0)
                close(region.fd);
            return code;
        }
    }
    mem->regions[mem->count] = region;
    mem->privates[mem->count] = private;
    mem->count++;
    return 0;
}

int mem_add_ram(struct mem *mem, const char *name, gpa_t base, uint64_t len_bytes, struct err *err)
{
    return mem_add(mem, name, base, len_bytes, false, err);
}

int mem_add_rom(struct mem *mem, const char *name, gpa_t base, uint64_t len_bytes, struct err *err)
{
    return mem_add(mem, name, base, len_bytes, true, err);
}

size_t mem_region_count(const struct mem *mem)
{
    return mem->count;
}

const struct mem_region *mem_region_at(const struct mem *mem, size_t index)
{
    assert(index < mem->count);
    return &mem->regions[index];
}

uint64_t mem_ram_bytes(const struct mem *mem)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < mem->count; i++) {
        if (!mem->regions[i].read_only)
            bytes += mem->regions[i].len_bytes;
    }
    return bytes;
}

/* --- access --- */

/* The region that wholly holds [gpa, gpa + len), with the offset in it; NULL when none does. */
static struct mem_region *region_find(struct mem *mem, gpa_t gpa, uint64_t len, uint64_t *offset)
{
    if (len == 0)
        return NULL;
    for (size_t i = 0; i < mem->count; i++) {
        struct mem_region *r = &mem->regions[i];
        uint64_t start = gpa.a - r->base.a; /* wraps to a huge value below the base */
        if (start < r->len_bytes) {
            *offset = start;
            return len <= r->len_bytes - start ? r : NULL;
        }
    }
    return NULL;
}

/*
 * The OR is a locked instruction, so a full barrier: the bytes written before are visible to
 * whoever sees the bit, and a bit that is collected at this moment is set again. A test before the
 * OR would be cheaper and wrong: the load may overtake the store of the data.
 */
static void region_mark(struct mem_region *region, uint64_t offset, uint64_t len)
{
    const struct mem *mem = region->mem;
    if (mem->written)
        mem->written(mem->written_ctx, region, offset, len);
    uint64_t *dirty = __atomic_load_n(&region->dirty, __ATOMIC_ACQUIRE);
    if (!dirty)
        return;
    uint64_t first = offset / PAGE_SIZE_BYTES, last = (offset + len - 1) / PAGE_SIZE_BYTES;
    for (uint64_t word = first / 64; word <= last / 64; word++) {
        uint64_t bits = ~0ULL;
        if (word == first / 64)
            bits &= ~0ULL << (first % 64);
        if (word == last / 64)
            bits &= ~0ULL >> (63 - last % 64);
        __atomic_fetch_or(&dirty[word], bits, __ATOMIC_SEQ_CST);
    }
}

void *mem_ptr(struct mem *mem, gpa_t gpa, uint64_t len, enum mem_access access)
{
    uint64_t offset;
    struct mem_region *region = region_find(mem, gpa, len, &offset);
    if (!region)
        return NULL;
    if (access == MEM_WRITE) {
        if (region->read_only)
            return NULL;
        region_mark(region, offset, len);
    }
    return region->host + offset;
}

void mem_mark_dirty_host(struct mem *mem, const void *host, uint64_t len)
{
    if (len == 0)
        return;
    for (size_t i = 0; i < mem->count; i++) {
        struct mem_region *r = &mem->regions[i];
        uint64_t start = (uintptr_t)host - (uintptr_t)r->host;
        if (start < r->len_bytes) {
            assert(len <= r->len_bytes - start);
            region_mark(r, start, len);
            return;
        }
    }
    assert(!"mem_mark_dirty_host: not a pointer into guest memory");
}

int mem_read(struct mem *mem, gpa_t gpa, void *buf, uint64_t len)
{
    uint64_t offset;
    const struct mem_region *region = region_find(mem, gpa, len, &offset);
    if (!region)
        return -EFAULT;
    memcpy(buf, region->host + offset, len);
    return 0;
}

int mem_write(struct mem *mem, gpa_t gpa, const void *buf, uint64_t len)
{
    uint64_t offset;
    struct mem_region *region = region_find(mem, gpa, len, &offset);
    if (!region || region->read_only)
        return -EFAULT;
    memcpy(region->host + offset, buf, len);
    region_mark(region, offset, len);
    return 0;
}

int mem_write_rom(struct mem *mem, gpa_t gpa, const void *buf, uint64_t len)
{
    uint64_t offset;
    struct mem_region *region = region_find(mem, gpa, len, &offset);
    if (!region)
        return -EFAULT;
    memcpy(region->host + offset, buf, len);
    region_mark(region, offset, len);
    return 0;
}

int mem_zero(struct mem *mem, gpa_t gpa, uint64_t len)
{
    uint64_t offset;
    struct mem_region *region = region_find(mem, gpa, len, &offset);
    if (!region || region->read_only)
        return -EFAULT;
    memset(region->host + offset, 0, len);
    region_mark(region, offset, len);
    return 0;
}

void mem_discard_all(struct mem *mem)
{
    for (size_t i = 0; i < mem->count; i++) {
        struct mem_region *r = &mem->regions[i];
        if (r->read_only)
            continue;
        /* A shared mapping's pages belong to the memfd: only a hole in it frees them. */
        int advice = r->fd >= 0 ? MADV_REMOVE : MADV_DONTNEED;
        if (madvise(r->host, r->len_bytes, advice) < 0)
            memset(r->host, 0, r->len_bytes);
        region_mark(r, 0, r->len_bytes);
        struct err err = ERR_INIT;
        if (mem->options.prefault && prefault(r, &err) < 0)
            log_warn("mem", "%s", err.text);
    }
}

void mem_on_write(struct mem *mem, mem_written_fn fn, void *ctx)
{
    mem->written_ctx = ctx;
    mem->written = fn;
}

/* --- dirty log --- */

int mem_dirty_start(struct mem *mem, struct err *err)
{
    for (size_t i = 0; i < mem->count; i++) {
        struct mem_region *r = &mem->regions[i];
        size_t words = bitmap_words(r->len_bytes / PAGE_SIZE_BYTES);
        if (!mem->privates[i].dirty) {
            mem->privates[i].dirty = calloc(words, sizeof(uint64_t));
            if (!mem->privates[i].dirty) {
                mem_dirty_stop(mem);
                return err_errno(err, ENOMEM, "%s: dirty bitmap", r->name);
            }
        }
        for (size_t word = 0; word < words; word++)
            __atomic_store_n(&mem->privates[i].dirty[word], 0, __ATOMIC_RELAXED);
        __atomic_store_n(&r->dirty, mem->privates[i].dirty, __ATOMIC_SEQ_CST);
    }
    return 0;
}

void mem_dirty_stop(struct mem *mem)
{
    for (size_t i = 0; i < mem->count; i++)
        __atomic_store_n(&mem->regions[i].dirty, NULL, __ATOMIC_SEQ_CST);
}

void mem_dirty_collect(struct mem *mem, size_t index, uint64_t *bitmap)
{
    assert(index < mem->count);
    uint64_t *dirty = __atomic_load_n(&mem->regions[index].dirty, __ATOMIC_ACQUIRE);
    if (!dirty)
        return;
    size_t words = bitmap_words(mem->regions[index].len_bytes / PAGE_SIZE_BYTES);
    for (size_t i = 0; i < words; i++) {
        /* Most words are clean: look before taking the cache line for writing. */
        if (__atomic_load_n(&dirty[i], __ATOMIC_RELAXED) != 0)
            bitmap[i] |= __atomic_exchange_n(&dirty[i], 0, __ATOMIC_SEQ_CST);
    }
}
