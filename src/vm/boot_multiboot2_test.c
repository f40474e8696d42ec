/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/boot_fixture.h"

#define MAGIC     0xe85250d6u
#define HEADER_AT 0x1000

static uint8_t bytes[IMAGE_ELF_MAX];
static uint32_t header_len;

/* --- the header, a tag at a time --- */

static void seal(void)
{
    uint8_t *h = bytes + HEADER_AT;
    store_le32(h, MAGIC);
    store_le32(h + 4, 0);
    store_le32(h + 8, header_len);
    store_le32(h + 12, -(MAGIC + header_len));
}

static void add_tag(uint16_t type, uint16_t flags, const uint32_t *words, unsigned count)
{
    uint8_t *t = bytes + HEADER_AT + header_len;
    store_le16(t, type);
    store_le16(t + 2, flags);
    store_le32(t + 4, 8 + count * 4);
    if (count)
        memcpy(t + 8, words, count * 4);
    header_len += (uint32_t)align_up(8 + count * 4, 8);
    seal();
}

static struct boot_image make_kernel(uint64_t paddr)
{
    struct elf_spec spec = {.paddr = paddr,
                            .vaddr = paddr,
                            .entry = paddr + 0x400,
                            .text_len = 0x800,
                            .bss_len = 0x800};
    struct boot_image image = make_elf(bytes, &spec);
    memset(bytes + HEADER_AT, 0, 0x400);
    header_len = 16;
    seal();
    return image;
}

static int load(struct fixture *f, const struct boot_image *image)
{
    return boot_load_multiboot2(&f->params, image, &f->result, &f->err);
}

/* --- the information --- */

/* Address of the n-th tag of this type; 0: there is none. */
static uint64_t find_tag(struct fixture *f, uint32_t type, unsigned n)
{
    uint64_t info = f->result.regs.gpr[CPU_RBX];
    uint64_t end = info + guest32(f, info);

    for (uint64_t at = info + 8; at + 8 <= end;) {
        if (guest32(f, at) == type && n-- == 0)
            return at;
        if (guest32(f, at) == 0)
            return 0;
        at += align_up(guest32(f, at + 4), 8);
    }
    return 0;
}

static void check_map(struct fixture *f)
{
    uint64_t at = find_tag(f, 6, 0);
    bool same = guest32(f, at + 8) == 24 && guest32(f, at + 12) == 0;

    is_int(guest32(f, at + 4), 16 + f->params.map_count * 24, "memory map");
    for (unsigned i = 0; i < f->params.map_count; i++) {
        uint64_t e = at + 16 + i * 24;
        same &= guest64(f, e) == f->map[i].base && guest64(f, e + 8) == f->map[i].len &&
                guest32(f, e + 16) == f->map[i].type;
    }
    ok(same, "its entries");
}

static void test_load(void)
{
    static const uint32_t request[] = {1, 2, 3, 4, 6, 14, 15};
    struct fixture f;
    struct boot_image image = make_kernel(MIB);
    char initrd[32], path[32], string[64];
    struct config_module module = {.path = path};

    add_tag(1, 0, request, ARRAY_LEN(request));
    add_tag(6, 0, NULL, 0);
    add_tag(9, 0, (const uint32_t[]){0x1234}, 1); /* EFI entry point: not for us */
    add_tag(0, 0, NULL, 0);
    fixture_new(&f, 64 * MIB);
    fixture_dirty(&f);
    mem_write(f.mem, GPA(LAYOUT_BIOS_AREA), "RSD PTR 0123456789abcdefghijklmnopqr", 36);
    write_file(initrd, "the initrd", 10);
    write_file(path, "the module", 10);
    f.params.kernel = "xen.gz";
    f.params.cmdline = "com1=115200";
    f.params.initrd = initrd;
    f.params.modules = &module;
    f.params.module_count = 1;
    is_int(load(&f, &image), 0, "Multiboot2 kernel");
    unlink(initrd);
    unlink(path);
    is_int(f.result.regs.rip, MIB + 0x400, "EIP");
    is_int(f.result.regs.gpr[CPU_RAX], 0x36d76289, "EAX");
    is_int(f.result.regs.gpr[CPU_RBX] % 8, 0, "EBX is aligned");
    is_str(guest_text(&f, find_tag(&f, 1, 0) + 8), "xen.gz com1=115200", "command line");
    is_int(guest32(&f, find_tag(&f, 1, 0) + 4), 8 + 19, "length of that tag");
    is_str(guest_text(&f, find_tag(&f, 2, 0) + 8), "Hull", "loader name");
    uint64_t mod = find_tag(&f, 3, 0);
    ok(guest_has(&f, guest32(&f, mod + 8), "the initrd", 10), "the initrd first");
    mod = find_tag(&f, 3, 1);
    uint32_t start = guest32(&f, mod + 8);
    ok(guest_has(&f, start, "the module", 10), "then the module");
    is_int(guest32(&f, mod + 12) - start, 10, "module end");
    snprintf(string, sizeof(string), "%s", strrchr(path, '/') + 1);
    is_str(guest_text(&f, mod + 16), string, "module string");
    is_int(guest32(&f, find_tag(&f, 4, 0) + 12), 63 * 1024, "mem_upper");
    check_map(&f);
    ok(guest_has(&f, find_tag(&f, 14, 0) + 8, "RSD PTR 0123456789ab", 20), "old RSDP");
    ok(guest_has(&f, find_tag(&f, 15, 0) + 8, "RSD PTR 0123456789abcdefghijklmnopqr", 36),
       "new RSDP");
    is_int(find_tag(&f, 21, 0), 0, "no load base: not relocatable");
    fixture_free(&f);
}

static void test_relocatable(void)
{
    struct fixture f;
    fixture_new(&f, 64 * MIB);

    struct boot_image image = make_kernel(2 * MIB);
    add_tag(10, 0, (const uint32_t[]){0, 0xffffffff, 2 * MIB, 1}, 4);
    add_tag(0, 0, NULL, 0);
    is_int(load(&f, &image), 0, "relocatable, linked address is free");
    is_int(f.result.regs.rip, 2 * MIB + 0x400, "stays there");
    is_int(guest32(&f, find_tag(&f, 21, 0) + 8), 2 * MIB, "load base");

    image = make_kernel(GIB);
    add_tag(10, 0, (const uint32_t[]){3 * MIB, 0xffffffff, 2 * MIB, 1}, 4);
    add_tag(0, 0, NULL, 0);
    is_int(load(&f, &image), 0, "linked beyond RAM");
    is_int(f.result.regs.rip, 4 * MIB + 0x400, "goes to the lowest place");
    ok(guest_has(&f, 4 * MIB, bytes + 0x1000, 0x800), "with its text");
    is_int(guest32(&f, find_tag(&f, 21, 0) + 8), 4 * MIB, "load base");

    image = make_kernel(GIB);
    add_tag(10, 0, (const uint32_t[]){3 * MIB, 0xffffffff, 2 * MIB, 2}, 4);
    add_tag(0, 0, NULL, 0);
    is_int(load(&f, &image), 0, "preference high");
    is_int(f.result.regs.rip, 62 * MIB + 0x400, "goes to the highest place");

    image = make_kernel(GIB);
    add_tag(10, 0, (const uint32_t[]){3 * MIB, 0xffffffff, 3, 0}, 4);
    add_tag(0, 0, NULL, 0);
    is_int(load(&f, &image), -EINVAL, "an alignment of 3");
    fixture_free(&f);
}

static void test_addresses(void)
{
    struct fixture f;
    fixture_new(&f, 64 * MIB);
    fixture_dirty(&f);

    struct boot_image image = make_kernel(MIB);
    bytes[0] = 0; /* no ELF any more */
    add_tag(2, 0, (const uint32_t[]){3 * MIB, 3 * MIB, 0, 3 * MIB + 0x1000}, 4);
    add_tag(3, 0, (const uint32_t[]){3 * MIB + 0x300}, 1);
    add_tag(0, 0, NULL, 0);
    is_int(load(&f, &image), 0, "address tags");
    is_int(f.result.regs.rip, 3 * MIB + 0x300, "entry address tag");
    ok(guest_has(&f, 3 * MIB, bytes + HEADER_AT, 0x800), "from the header on");
    ok(guest_is_zero(&f, 3 * MIB + 0x800, 0x800), "bss");

    image = make_kernel(MIB);
    add_tag(2, 0, (const uint32_t[]){3 * MIB + HEADER_AT, 0xffffffff, 0, 0}, 4);
    add_tag(3, 0, (const uint32_t[]){3 * MIB}, 1);
    add_tag(0, 0, NULL, 0);
    is_int(load(&f, &image), 0, "load address -1");
    ok(guest_has(&f, 3 * MIB, bytes, 0x1800), "loads the whole file");

    image = make_kernel(MIB);
    add_tag(2, 0, (const uint32_t[]){3 * MIB, 3 * MIB, 0, 0}, 4);
    add_tag(0, 0, NULL, 0);
    is_int(load(&f, &image), -EINVAL, "addresses without an entry point");
    fixture_free(&f);
}

static void test_tags(void)
{
    static const struct {
        uint16_t type;
        uint32_t word;
        int ret, ret_optional;
        const char *says;
    } cases[] = {
        {1,  12, -ENOTSUP, 0, "EFI"         },
        {1,  8,  -ENOTSUP, 0, "framebuffer" },
        {1,  99, -ENOTSUP, 0, "unknown type"},
        {4,  1,  -ENOTSUP, 0, "text console"},
        {4,  2,  0,        0, ""            },
        {5,  80, -ENOTSUP, 0, "framebuffer" },
        {7,  0,  -ENOTSUP, 0, "EFI"         },
        {99, 0,  -ENOTSUP, 0, "do not know" },
    };
    struct fixture f;

    fixture_new(&f, 64 * MIB);
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        for (uint16_t optional = 0; optional < 2; optional++) {
            struct boot_image image = make_kernel(MIB);
            f.err.text[0] = '\0';
            add_tag(cases[i].type, optional, &cases[i].word, 1);
            add_tag(0, 0, NULL, 0);
            is_int(load(&f, &image), optional ? cases[i].ret_optional : cases[i].ret,
                   optional ? "optional tag" : "required tag");
            ok(optional || strstr(f.err.text, cases[i].says), "the error names it");
        }
    }
    struct boot_image image = make_kernel(MIB);
    is_int(load(&f, &image), -EINVAL, "no end tag");
    image = make_kernel(MIB);
    add_tag(0, 0, NULL, 0);
    store_le32(bytes + HEADER_AT + 16 + 4, 4);
    is_int(load(&f, &image), -EINVAL, "a tag of size 4");
    image = make_kernel(MIB);
    add_tag(2, 0, (const uint32_t[]){1}, 1);
    add_tag(0, 0, NULL, 0);
    is_int(load(&f, &image), -EINVAL, "an address tag of 12 bytes");
    bytes[HEADER_AT + 12] ^= 1;
    is_int(load(&f, &image), -ENOEXEC, "wrong checksum");
    fixture_free(&f);
}

int main(void)
{
    test_load();
    test_relocatable();
    test_addresses();
    test_tags();
    return tap_done();
}
