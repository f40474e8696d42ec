/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernel images for direct boot. The first byte chooses the loader, or gzip; the rest is the image,
 * in a buffer of just its size. Whatever the image says, the loader may write to what the memory
 * map calls RAM only.
 */
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/units.h"
#include "vm/boot.h"
#include "vm/boot_file.h"
#include "vm/layout.h"

#define RAM_BYTES (64 * MIB)
#define HOLE_FILL 0xa5

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef int (*loader)(const struct boot_params *params, const struct boot_image *image,
                      struct boot_result *result, struct err *err);

static const loader loaders[] = {boot_load_bzimage, boot_load_pvh, boot_load_multiboot,
                                 boot_load_multiboot2};

static void check(bool good)
{
    if (!good)
        abort();
}

/* One guest for all runs. What lies between 640 KiB and 1 MiB is not RAM to a kernel. */
static struct mem *guest(void)
{
    static struct mem *mem;
    const struct mem_options options = {0};

    if (!mem) {
        check(mem_new(&mem, &options, NULL) == 0);
        check(mem_add_ram(mem, "ram-low", GPA(0), RAM_BYTES, NULL) == 0);
        uint64_t len = LAYOUT_KERNEL_MIN - LAYOUT_EBDA;
        memset(mem_ptr(mem, GPA(LAYOUT_EBDA), len, MEM_WRITE), HOLE_FILL, len);
    }
    return mem;
}

static bool hole_is_whole(struct mem *mem)
{
    uint64_t len = LAYOUT_KERNEL_MIN - LAYOUT_EBDA;
    const uint8_t *hole = mem_ptr(mem, GPA(LAYOUT_EBDA), len, MEM_READ);

    /* All bytes are like the first when each is like the next. */
    return hole[0] == HOLE_FILL && memcmp(hole, hole + 1, len - 1) == 0;
}

static void load(loader fn, const uint8_t *bytes, size_t size)
{
    struct boot_range map[BOOT_RANGES_MAX];
    struct mem *mem = guest();
    const struct boot_params params = {.mem = mem,
                                       .kernel = "kernel",
                                       .cmdline = "console=ttyS0",
                                       .rsdp_gpa = LAYOUT_BIOS_AREA,
                                       .map = map,
                                       .map_count = boot_memory_map(RAM_BYTES, map)};
    const struct boot_image image = {.bytes = bytes, .len = size};
    struct boot_result result = {0};
    struct err err = ERR_INIT;
    int ret = fn(&params, &image, &result, &err);

    check(ret <= 0);
    /* An error has a line of text; an entry point may be anywhere, but fits the CPU's mode. */
    check(ret == 0 || (err.code == ret && err.text[0] && !strchr(err.text, '\n')));
    check(ret != 0 || (result.protocol && result.regs.rip <= UINT32_MAX));
    check(hole_is_whole(mem));
}

static void unpack(const uint8_t *bytes, size_t size)
{
    uint8_t *out = NULL;
    uint64_t out_len = 0;

    if (boot_gunzip(bytes, size, MIB, &out, &out_len, NULL) == 0)
        check(out && out_len > 0 && out_len <= MIB);
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    unsigned choice = data[0] % (ARRAY_LEN(loaders) + 1);
    /* Of exactly this size, so that the sanitizer sees a read beyond it. */
    uint8_t *copy = malloc(size > 1 ? size - 1 : 1);
    memcpy(copy, data + 1, size - 1);
    if (choice < ARRAY_LEN(loaders))
        load(loaders[choice], copy, size - 1);
    else
        unpack(copy, size - 1);
    free(copy);
    return 0;
}
