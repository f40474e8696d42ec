/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/boot_fixture.h"

#define MAGIC     0x1badb002u
#define ADDRESSES (1u << 16)
#define HEADER_AT 0x1000 /* in the image: the start of the ELF segment */

static uint8_t bytes[IMAGE_ELF_MAX];

static void put_header(uint8_t *at, uint32_t flags)
{
    store_le32(at, MAGIC);
    store_le32(at + 4, flags);
    store_le32(at + 8, -(MAGIC + flags));
}

static struct boot_image make_elf_kernel(bool is_64, uint32_t flags)
{
    struct elf_spec spec = {.paddr = MIB,
                            .vaddr = 0xc0100000,
                            .entry = 0xc0100020,
                            .text_len = 0x800,
                            .bss_len = 0x1000,
                            .is_64 = is_64};
    struct boot_image image = make_elf(bytes, &spec);
    put_header(bytes + HEADER_AT, flags);
    return image;
}

static void check_info(struct fixture *f, const char *module)
{
    uint64_t info = f->result.regs.gpr[CPU_RBX];
    uint32_t flags = guest32(f, info);

    is_int(flags, 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9, "info: flags");
    is_int(guest32(f, info + 4), 639, "mem_lower");
    is_int(guest32(f, info + 8), 63 * 1024, "mem_upper");
    is_str(guest_text(f, guest32(f, info + 16)), "my_kernel a=1", "command line");
    is_int(guest32(f, info + 20), 1, "modules");
    uint32_t mod = guest32(f, info + 24);
    uint32_t start = guest32(f, mod), end = guest32(f, mod + 4);
    ok(guest_has(f, start, "the module", 10) && end - start == 10, "module");
    is_int(start, MIB + 0x2000, "in the page behind the kernel");
    char string[64];
    snprintf(string, sizeof(string), "%s x y", strrchr(module, '/') + 1);
    is_str(guest_text(f, guest32(f, mod + 8)), string, "module string: name and arguments");
    is_str(guest_text(f, guest32(f, info + 64)), "Hull", "loader name");

    uint32_t len = guest32(f, info + 44);
    uint32_t map = guest32(f, info + 48);
    is_int(len, f->params.map_count * 24, "mmap_length");
    bool same = true;
    for (unsigned i = 0; i < f->params.map_count; i++) {
        uint32_t at = map + i * 24;
        same &= guest32(f, at) == 20 && guest64(f, at + 4) == f->map[i].base &&
                guest64(f, at + 12) == f->map[i].len && guest32(f, at + 20) == f->map[i].type;
    }
    ok(same, "mmap");
}

static void test_elf(bool is_64)
{
    struct fixture f;
    struct boot_image image = make_elf_kernel(is_64, 7);
    char path[32];
    struct config_module module = {.path = path, .args = (char[]){"x y"}};

    fixture_new(&f, 64 * MIB);
    fixture_dirty(&f);
    write_file(path, "the module", 10);
    f.params.kernel = "/boot/my kernel";
    f.params.cmdline = "a=1";
    f.params.modules = &module;
    f.params.module_count = 1;
    is_int(boot_load_multiboot(&f.params, &image, &f.result, &f.err), 0, "Multiboot ELF kernel");
    unlink(path);
    is_int(f.result.regs.rip, MIB + 0x20, "entry point, physical");
    is_int(f.result.regs.gpr[CPU_RAX], 0x2badb002, "EAX");
    is_int(f.result.sregs.cr0, CPU_CR0_PE | CPU_CR0_ET, "protected mode, no paging");
    ok(guest_has(&f, MIB, bytes + 0x1000, 0x800), "text");
    ok(guest_is_zero(&f, MIB + 0x800, 0x1000), "bss is zeroed");
    check_info(&f, path);
    fixture_free(&f);
}

/* A flat image whose header, at file offset 0x100, gives the addresses (the a.out kludge). */
static struct boot_image make_flat(uint32_t load, uint32_t load_end, uint32_t bss_end)
{
    memset(bytes, 0xcc, sizeof(bytes));
    put_header(bytes + 0x100, ADDRESSES);
    store_le32(bytes + 0x10c, MIB + 0x100 - 0x80); /* header: the first 0x80 bytes stay out */
    store_le32(bytes + 0x110, load);
    store_le32(bytes + 0x114, load_end);
    store_le32(bytes + 0x118, bss_end);
    store_le32(bytes + 0x11c, MIB + 0x40);
    return (struct boot_image){.bytes = bytes, .len = 0x1000};
}

static void test_addresses(void)
{
    struct fixture f;

    fixture_new(&f, 64 * MIB);
    fixture_dirty(&f);
    struct boot_image image = make_flat(MIB, 0, MIB + 0x2000);
    is_int(boot_load_multiboot(&f.params, &image, &f.result, &f.err), 0, "address fields");
    is_int(f.result.regs.rip, MIB + 0x40, "their entry point");
    ok(guest_has(&f, MIB, bytes + 0x80, 0xf80), "the file from load_addr on");
    ok(guest_is_zero(&f, MIB + 0xf80, 0x1080), "bss is zeroed");

    image = make_flat(MIB, MIB + 0x800, 0);
    is_int(boot_load_multiboot(&f.params, &image, &f.result, &f.err), 0, "with load_end");
    image = make_flat(MIB, MIB + 0x1800, 0);
    is_int(boot_load_multiboot(&f.params, &image, &f.result, &f.err), -EINVAL, "truncated");
    image = make_flat(MIB + 0x200, 0, 0);
    is_int(boot_load_multiboot(&f.params, &image, &f.result, &f.err), -EINVAL,
           "load_addr above header_addr");
    image = make_flat(0x8000, 0, 0);
    is_int(boot_load_multiboot(&f.params, &image, &f.result, &f.err), -EINVAL,
           "load_addr before the file");
    image = make_flat(MIB, 0, MIB + 0x10);
    is_int(boot_load_multiboot(&f.params, &image, &f.result, &f.err), -EINVAL, "bss in the data");
    image = make_flat(MIB, 0, 0xffffffff);
    is_int(boot_load_multiboot(&f.params, &image, &f.result, &f.err), -ENOSPC, "bss beyond RAM");
    fixture_free(&f);
}

static void test_refused(void)
{
    struct fixture f;

    fixture_new(&f, 64 * MIB);
    struct boot_image image = make_elf_kernel(false, 0);
    bytes[HEADER_AT + 8] ^= 1;
    is_int(boot_load_multiboot(&f.params, &image, &f.result, &f.err), -ENOEXEC, "wrong checksum");
    image = make_elf_kernel(false, 8);
    is_int(boot_load_multiboot(&f.params, &image, &f.result, &f.err), -ENOTSUP,
           "an unknown requirement");
    image = make_elf_kernel(false, 0);
    bytes[0] = 0;
    is_int(boot_load_multiboot(&f.params, &image, &f.result, &f.err), -ENOEXEC,
           "neither ELF nor addresses");
    memset(bytes, 0, sizeof(bytes));
    put_header(bytes + 8192 - 8, 0);
    image = (struct boot_image){.bytes = bytes, .len = sizeof(bytes)};
    is_int(boot_load_multiboot(&f.params, &image, &f.result, &f.err), -ENOEXEC,
           "a header across 8 KiB");
    /* All the way to the end of the image, with nothing behind it. */
    for (uint64_t len = 0; len < 32; len++) {
        uint8_t *end = malloc(40);
        put_header(end, ADDRESSES);
        memset(end + 12, 0, 28);
        uint8_t *copy = malloc(len ? len : 1);
        memcpy(copy, end, len);
        image = (struct boot_image){.bytes = copy, .len = len};
        if (boot_load_multiboot(&f.params, &image, &f.result, &f.err) == 0)
            ok(false, "a truncated header was accepted");
        free(copy);
        free(end);
    }
    fixture_free(&f);
}

int main(void)
{
    test_elf(false);
    test_elf(true);
    test_addresses();
    test_refused();
    return tap_done();
}
