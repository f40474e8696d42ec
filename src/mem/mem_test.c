/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/mem.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bitmap.h"
#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"

static struct mem *new_mem(const struct mem_options *options)
{
    struct mem *mem = NULL;
    struct err err = ERR_INIT;
    if (mem_new(&mem, options, &err) < 0)
        abort();
    return mem;
}

static void test_regions(void)
{
    struct mem *mem = new_mem(&(struct mem_options){.huge_pages = true});
    struct err err = ERR_INIT;
    is_int(mem_add_ram(mem, "ram-low", GPA(0), 4 * MIB, &err), 0, "RAM at 0");
    is_int(mem_add_ram(mem, "ram-high", GPA(4 * GIB), 6 * MIB, &err), 0, "RAM at 4 GiB");
    is_int(mem_add_rom(mem, "rom", GPA(0xfffc0000), 256 * KIB, &err), 0, "ROM below 4 GiB");
    is_int(mem_region_count(mem), 3, "three regions");
    is_int(mem_ram_bytes(mem), 10 * MIB, "the ROM is not counted as RAM");

    is_int(mem_add_ram(mem, "x", GPA(4 * MIB - 4096), 4096, &err), -EINVAL, "an overlap fails");
    ok(strstr(err.text, "ram-low") != NULL, "... and says with what");
    is_int(mem_add_ram(mem, "x", GPA(4 * MIB), 100, &err), -EINVAL, "a part of a page fails");
    is_int(mem_add_ram(mem, "x", GPA(4 * MIB + 1), 4096, &err), -EINVAL, "misaligned fails");
    is_int(mem_add_ram(mem, "x", GPA(4 * MIB), 0, &err), -EINVAL, "nothing fails");
    is_int(mem_add_ram(mem, "x", GPA(-4096), 8192, &err), -EINVAL, "a wrap of the address fails");
    is_int(mem_add_ram(mem, "x", GPA(1ULL << 52), 1ULL << 50, &err), -ENOMEM,
           "more than the host has fails");
    ok(strstr(err.text, "1024 TiB") || strstr(err.text, "1 PiB"), "... and says how much it was");
    ok(strstr(err.text, "of RAM") != NULL, "... and how much there is");
    is_int(mem_region_count(mem), 3, "a failure adds nothing");

    for (size_t i = 0; i < 3; i++) {
        const struct mem_region *r = mem_region_at(mem, i);
        ok(((uintptr_t)r->host - r->base.a) % (2 * MIB) == 0, "aligned like the guest address");
        is_int(r->fd, -1, "private memory has no descriptor");
    }
    for (int i = 3; i < MEM_REGIONS_MAX; i++)
        mem_add_ram(mem, "more", GPA((uint64_t)i * GIB * 8), 4096, &err);
    is_int(mem_add_ram(mem, "x", GPA(1ULL << 40), 4096, &err), -EINVAL, "too many regions fail");
    mem_free(mem);
    mem_free(NULL);
}

/* One table in the first 2 MiB costs one small page there. */
static void test_small_pages(void)
{
    struct mem *mem = new_mem(&(struct mem_options){.huge_pages = true});
    struct err err = ERR_INIT;
    unsigned char resident[1024];
    int count = 0;

    is_int(mem_add_ram(mem, "ram", GPA(0), 4 * MIB, &err), 0, "RAM at 0");
    const struct mem_region *r = mem_region_at(mem, 0);
    is_int(mem_write(mem, GPA(0xe0000), "x", 1), 0, "a write below 2 MiB");
    is_int(mincore(r->host, 4 * MIB, resident), 0, "mincore");
    for (size_t i = 0; i < ARRAY_LEN(resident); i++)
        count += resident[i] & 1;
    is_int(count, 1, "... makes one page resident");
    mem_free(mem);
}

static void test_access(void)
{
    struct mem *mem = new_mem(&(struct mem_options){0});
    struct err err = ERR_INIT;
    mem_add_ram(mem, "low", GPA(0), 64 * KIB, &err);
    mem_add_ram(mem, "next", GPA(64 * KIB), 64 * KIB, &err);
    mem_add_rom(mem, "rom", GPA(MIB), 64 * KIB, &err);

    uint8_t buf[8] = {1, 2, 3, 4, 5, 6, 7, 8}, got[8] = {0};
    is_int(mem_write(mem, GPA(64 * KIB - 8), buf, 8), 0, "a write to the last bytes");
    is_int(mem_read(mem, GPA(64 * KIB - 8), got, 8), 0, "a read of them");
    ok(memcmp(buf, got, 8) == 0, "... gives what was written");
    is_int(mem_write(mem, GPA(64 * KIB - 4), buf, 8), -EFAULT, "a write across regions fails");
    is_int(mem_read(mem, GPA(64 * KIB - 8), got, 8), 0, "a read again");
    ok(memcmp(buf, got, 8) == 0, "... shows that not a byte was written");
    is_int(mem_read(mem, GPA(2 * MIB), got, 1), -EFAULT, "a read outside fails");
    is_int(mem_read(mem, GPA(-1), got, 4), -EFAULT, "a read that wraps fails");
    is_int(mem_read(mem, GPA(0), got, UINT64_MAX), -EFAULT, "a read of everything fails");
    is_int(mem_read(mem, GPA(0), got, 0), -EFAULT, "a read of nothing fails");

    ok(mem_ptr(mem, GPA(0), 64 * KIB, MEM_WRITE) == mem_region_at(mem, 0)->host, "a whole region");
    ok(mem_ptr(mem, GPA(0), 64 * KIB + 1, MEM_READ) == NULL, "a byte more is no pointer");
    ok(mem_ptr(mem, GPA(0), 0, MEM_READ) == NULL, "length 0 is no pointer");
    ok(mem_ptr(mem, GPA(1), UINT64_MAX, MEM_READ) == NULL, "a length that overflows is no pointer");
    ok(mem_ptr(mem, GPA(MIB), 1, MEM_READ) != NULL, "ROM may be read");
    ok(mem_ptr(mem, GPA(MIB), 1, MEM_WRITE) == NULL, "ROM gives no pointer to write");
    is_int(mem_write(mem, GPA(MIB), buf, 8), -EFAULT, "ROM is not written");
    is_int(mem_zero(mem, GPA(MIB), 8), -EFAULT, "ROM is not zeroed");
    is_int(mem_write_rom(mem, GPA(MIB), buf, 8), 0, "but filled by its own function");

    is_int(mem_zero(mem, GPA(64 * KIB - 6), 2), 0, "zero two bytes");
    mem_read(mem, GPA(64 * KIB - 8), got, 8);
    ok(memcmp(got, (uint8_t[]){1, 2, 0, 0, 5, 6, 7, 8}, 8) == 0, "... and only those");

    mem_discard_all(mem);
    mem_read(mem, GPA(64 * KIB - 8), got, 8);
    ok(memcmp(got, (uint8_t[8]){0}, 8) == 0, "discarded RAM reads zero");
    mem_read(mem, GPA(MIB), got, 8);
    ok(memcmp(got, buf, 8) == 0, "discarding keeps the ROM");
    mem_free(mem);
}

static void test_shared(void)
{
    struct mem *mem = new_mem(&(struct mem_options){.shared = true, .prefault = true});
    struct err err = ERR_INIT;
    is_int(mem_add_ram(mem, "ram-low", GPA(0), 4 * MIB, &err), 0, "shared RAM");
    const struct mem_region *r = mem_region_at(mem, 0);
    ok(r->fd >= 0, "has a descriptor");
    uint8_t *other = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
    ok(other != MAP_FAILED, "that another can map");
    mem_write(mem, GPA(12345), "x", 1);
    is_int(other[12345], 'x', "it is the same memory");
    ok(ftruncate(r->fd, 4096) < 0, "its size is sealed");
    struct stat st;
    fstat(r->fd, &st);
    is_int(st.st_blocks * 512, 4 * MIB, "prefaulting took every page");
    mem_discard_all(mem);
    is_int(other[12345], 0, "discarding zeroes it for all");
    munmap(other, 4 * MIB);
    mem_free(mem);

    mem = new_mem(&(struct mem_options){.shared = true});
    mem_add_ram(mem, "ram-low", GPA(0), 4 * MIB, &err);
    mem_zero(mem, GPA(0), 4 * MIB);
    mem_discard_all(mem);
    fstat(mem_region_at(mem, 0)->fd, &st);
    is_int(st.st_blocks, 0, "discarding gives the pages back");
    mem_free(mem);
}

static void test_prefault(void)
{
    struct mem *mem = new_mem(&(struct mem_options){.prefault = true});
    struct err err = ERR_INIT;
    /* Large enough for two threads. */
    is_int(mem_add_ram(mem, "ram-low", GPA(0), 260 * MIB, &err), 0, "prefaulted RAM");
    const struct mem_region *r = mem_region_at(mem, 0);
    static unsigned char resident[260 * 256];
    is_int(mincore(r->host, r->len_bytes, resident), 0, "mincore");
    size_t pages = 0;
    for (size_t i = 0; i < sizeof(resident); i++)
        pages += resident[i] & 1;
    is_int(pages, sizeof(resident), "every page is there");
    mem_free(mem);
}

static void test_guard(void)
{
    struct mem *mem = new_mem(&(struct mem_options){0});
    struct err err = ERR_INIT;
    mem_add_ram(mem, "ram-low", GPA(0), 64 * KIB, &err);
    const struct mem_region *r = mem_region_at(mem, 0);
    const uint8_t *at[] = {r->host - 1, r->host + r->len_bytes};
    for (size_t i = 0; i < ARRAY_LEN(at); i++) {
        int pipe_fds[2];
        /* The kernel reads from it in our place: EFAULT instead of a signal. */
        bool fault = pipe(pipe_fds) == 0 && write(pipe_fds[1], at[i], 1) < 0 && errno == EFAULT;
        ok(fault, i == 0 ? "the byte before is guarded" : "the byte behind is guarded");
        close(pipe_fds[0]);
        close(pipe_fds[1]);
    }
    mem_free(mem);
}

static size_t bits_set(const uint64_t *map, size_t words)
{
    size_t n = 0;
    for (size_t i = 0; i < words; i++)
        n += (size_t)__builtin_popcountll(map[i]);
    return n;
}

static void test_dirty(void)
{
    struct mem *mem = new_mem(&(struct mem_options){0});
    struct err err = ERR_INIT;
    mem_add_ram(mem, "a", GPA(0), 200 * 4096, &err);
    mem_add_ram(mem, "b", GPA(GIB), 200 * 4096, &err);
    uint64_t map[4] = {0};

    mem_write(mem, GPA(0), "x", 1);
    mem_dirty_collect(mem, 0, map);
    is_int(bits_set(map, 4), 0, "nothing is logged before the start");

    is_int(mem_dirty_start(mem, &err), 0, "start");
    mem_dirty_collect(mem, 0, map);
    is_int(bits_set(map, 4), 0, "a fresh log is clean");
    mem_write(mem, GPA(4095), "xy", 2);
    mem_dirty_collect(mem, 0, map);
    is_int(map[0], 3, "a write across a page boundary marks both pages");
    is_int(bits_set(map, 4), 2, "... and no other");
    mem_dirty_collect(mem, 1, map);
    is_int(bits_set(map, 4), 2, "the other region is clean; collecting ORs");
    memset(map, 0, sizeof(map));
    mem_dirty_collect(mem, 0, map);
    is_int(bits_set(map, 4), 0, "collecting clears");

    mem_ptr(mem, GPA(GIB + 60 * 4096), 80 * 4096, MEM_READ);
    mem_dirty_collect(mem, 1, map);
    is_int(bits_set(map, 4), 0, "a pointer to read marks nothing");
    uint8_t *p = mem_ptr(mem, GPA(GIB + 60 * 4096), 80 * 4096, MEM_WRITE);
    mem_dirty_collect(mem, 1, map);
    is_int(bits_set(map, 4), 80, "a pointer to write marks its range");
    ok(bitmap_test(map, 60) && bitmap_test(map, 139) && !bitmap_test(map, 59) &&
           !bitmap_test(map, 140),
       "... over several words, exactly");
    memset(map, 0, sizeof(map));
    mem_mark_dirty_host(mem, p + 4096 * 3, 1);
    mem_dirty_collect(mem, 1, map);
    ok(bits_set(map, 4) == 1 && bitmap_test(map, 63), "a host pointer marks its page");

    memset(map, 0, sizeof(map));
    mem_discard_all(mem);
    mem_dirty_collect(mem, 0, map);
    is_int(bits_set(map, 4), 200, "discarding marks everything");

    mem_dirty_stop(mem);
    memset(map, 0, sizeof(map));
    mem_write(mem, GPA(0), "x", 1);
    mem_dirty_collect(mem, 0, map);
    is_int(bits_set(map, 4), 0, "nothing is logged after the stop");
    mem_write(mem, GPA(0), "x", 1);
    mem_dirty_start(mem, &err);
    mem_dirty_collect(mem, 0, map);
    is_int(bits_set(map, 4), 0, "a second start is clean");
    mem_free(mem);
}

/* Two writers against a collector: the last value of each page is seen by a collection. */
struct writer {
    pthread_t thread;
    struct mem *mem;
    uint64_t page;
    int done;
};

#define WRITER_ROUNDS 20000

static void *writer_run(void *arg)
{
    struct writer *w = arg;
    for (uint32_t i = 1; i <= WRITER_ROUNDS; i++) {
        uint32_t *p = mem_ptr(w->mem, GPA(w->page * 4096), 4, MEM_READ);
        __atomic_store_n(p, i, __ATOMIC_RELAXED);
        mem_mark_dirty_host(w->mem, p, 4);
    }
    __atomic_store_n(&w->done, 1, __ATOMIC_RELEASE);
    return NULL;
}

static void test_dirty_race(void)
{
    struct mem *mem = new_mem(&(struct mem_options){0});
    struct err err = ERR_INIT;
    mem_add_ram(mem, "a", GPA(0), 64 * 4096, &err);
    mem_dirty_start(mem, &err);
    struct writer writers[2] = {
        {.mem = mem, .page = 3},
        {.mem = mem, .page = 4}
    };
    for (int i = 0; i < 2; i++)
        pthread_create(&writers[i].thread, NULL, writer_run, &writers[i]);
    uint32_t copy[2] = {0};
    for (bool last = false; !last;) {
        last = __atomic_load_n(&writers[0].done, __ATOMIC_ACQUIRE) &&
               __atomic_load_n(&writers[1].done, __ATOMIC_ACQUIRE);
        uint64_t map = 0;
        mem_dirty_collect(mem, 0, &map);
        for (int i = 0; i < 2; i++) {
            const uint32_t *p = mem_ptr(mem, GPA(writers[i].page * 4096), 4, MEM_READ);
            if (bitmap_test(&map, writers[i].page))
                copy[i] = __atomic_load_n(p, __ATOMIC_RELAXED);
        }
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(writers[i].thread, NULL);
        is_int(copy[i], WRITER_ROUNDS, "the last write was collected");
    }
    mem_free(mem);
}

int main(void)
{
    test_regions();
    test_small_pages();
    test_access();
    test_shared();
    test_prefault();
    test_guard();
    test_dirty();
    test_dirty_race();
    return tap_done();
}
