/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory: the only place that turns a guest-physical address into a pointer, and the place
 * where every write by the VMM to guest RAM is marked dirty. Regions are added while the machine is
 * built and stay until mem_free(): a pointer into RAM, once checked, is good for the life of the
 * machine.
 *
 * The guest runs while the VMM reads: whoever makes a decision on guest data copies it first
 * (mem_read(), or one mem_load_*) and decides on the copy.
 *
 * Threads: adding regions is the builder's alone; all else may be called from every thread.
 */
#ifndef HULL_MEM_MEM_H
#define HULL_MEM_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

/* A guest-physical and a guest-virtual address: types of their own, so that no one mixes them up.
 */
typedef struct {
    uint64_t a;
} gpa_t;

typedef struct {
    uint64_t a;
} gva_t;

#define GPA(value) ((gpa_t){(uint64_t)(value)})

static inline gpa_t gpa_add(gpa_t base, uint64_t offset)
{
    return GPA(base.a + offset);
}

enum mem_access {
    MEM_READ,
    MEM_WRITE,
};

/* How guest RAM is obtained from the host. */
struct mem_options {
    bool huge_pages; /* ask for transparent huge pages (default on in the configuration) */
    bool shared;     /* memfd MAP_SHARED: memory that another process (vhost-user) can map */
    bool prefault;   /* touch every page before the guest starts */
    bool mergeable;  /* MADV_MERGEABLE: offer to KSM */
};

struct mem;

struct mem_region {
    struct mem *mem;    /* whose region it is */
    const char *name;   /* "ram-low", "ram-high"; static string */
    gpa_t base;         /* page aligned */
    uint64_t len_bytes; /* multiple of the page size */
    uint8_t *host;      /* page-aligned host address */
    int fd;             /* memfd behind the region, or -1 */
    uint64_t fd_offset;
    bool read_only;  /* the guest may not write (ROM); the VMM may */
    uint64_t *dirty; /* a bit a page, set by the VMM's writes while logging; NULL otherwise */
};

#define MEM_REGIONS_MAX 16

int mem_new(struct mem **mem, const struct mem_options *options, struct err *err);
void mem_free(struct mem *mem);

/*
 * Map zeroed RAM at base. Fails with -EINVAL when it overlaps or is misaligned, -ENOMEM when the
 * host has not that much (err says how much there is and what to do).
 */
int mem_add_ram(struct mem *mem, const char *name, gpa_t base, uint64_t len_bytes, struct err *err);

/* As mem_add_ram, but the guest may only read it. */
int mem_add_rom(struct mem *mem, const char *name, gpa_t base, uint64_t len_bytes, struct err *err);

size_t mem_region_count(const struct mem *mem);
const struct mem_region *mem_region_at(const struct mem *mem, size_t index);

/* Bytes of RAM in all regions that are not ROM. */
uint64_t mem_ram_bytes(const struct mem *mem);

/*
 * The host address of [gpa, gpa + len), or NULL unless it lies wholly inside one region; NULL also
 * for MEM_WRITE to a ROM. len 0 is never valid. MEM_WRITE marks the range dirty now: whoever writes
 * later (a completion) calls mem_mark_dirty() again after the write.
 */
void *mem_ptr(struct mem *mem, gpa_t gpa, uint64_t len, enum mem_access access);

/* Mark [host, host + len), a pointer that mem_ptr() gave, as written. Cheap when not logging. */
void mem_mark_dirty_host(struct mem *mem, const void *host, uint64_t len);

/* Copy; 0, or -EFAULT without a byte copied when not wholly inside one region. The guest's ROM is
 * written only by mem_write_rom(), which is how the machine fills it. */
int mem_read(struct mem *mem, gpa_t gpa, void *buf, uint64_t len);
int mem_write(struct mem *mem, gpa_t gpa, const void *buf, uint64_t len);
int mem_write_rom(struct mem *mem, gpa_t gpa, const void *buf, uint64_t len);
int mem_zero(struct mem *mem, gpa_t gpa, uint64_t len);

/* Zero all RAM, giving the pages back to the host: guest RAM as after power-on. ROM is kept. */
void mem_discard_all(struct mem *mem);

/*
 * Be told of every write of the VMM to guest memory, after the bytes are there: for an engine that
 * keeps decoded code. offset and len are in bytes of the region, not empty. fn runs on the writer's
 * thread and must be quick. Set while the machine is built; at most one. Where a pointer from
 * mem_ptr(MEM_WRITE) is written to later, mem_mark_dirty_host() is what tells.
 */
typedef void (*mem_written_fn)(void *ctx, const struct mem_region *region, uint64_t offset,
                               uint64_t len);
void mem_on_write(struct mem *mem, mem_written_fn fn, void *ctx);

/*
 * Dirty logging of the VMM's own writes. mem_dirty_collect() ORs the pages of region `index`
 * written since the last call into bitmap (a bit a page) and clears them. The engine's log is ORed
 * into the same bitmap by engine_dirty_collect().
 */
int mem_dirty_start(struct mem *mem, struct err *err);
void mem_dirty_stop(struct mem *mem);
void mem_dirty_collect(struct mem *mem, size_t index, uint64_t *bitmap);

#endif
