/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/boot_fixture.h"

#define SETUP_LEN   (2 * 512)
#define PAYLOAD_LEN 4096
#define IMAGE_LEN   (SETUP_LEN + PAYLOAD_LEN)
#define ZP          LAYOUT_BOOT_PARAMS

/* A bzImage of protocol 2.15 with one setup sector and a recognisable payload. */
static struct boot_image make_bzimage(uint8_t image[IMAGE_LEN])
{
    memset(image, 0, IMAGE_LEN);
    image[0x1f1] = 1;
    store_le32(image + 0x1f4, PAYLOAD_LEN / 16);
    store_le16(image + 0x1fe, 0xaa55);
    image[0x200] = 0xeb;
    image[0x201] = 0x6a; /* header ends at 0x26c */
    memcpy(image + 0x202, "HdrS", 4);
    store_le16(image + 0x206, 0x20f);
    image[0x211] = 1; /* LOADED_HIGH */
    store_le32(image + 0x22c, 0x7fffffff);
    store_le32(image + 0x230, 2 * MIB);
    image[0x234] = 1;
    store_le16(image + 0x236, 3); /* 64-bit entry, can be above 4G */
    store_le32(image + 0x238, 2047);
    store_le64(image + 0x258, 16 * MIB);
    store_le32(image + 0x260, 8 * MIB);
    for (unsigned i = 0; i < PAYLOAD_LEN; i++)
        image[SETUP_LEN + i] = (uint8_t)(i * 7 + 1);
    return (struct boot_image){.bytes = image, .len = IMAGE_LEN};
}

static void test_64(void)
{
    struct fixture f;
    uint8_t bytes[IMAGE_LEN];
    struct boot_image image = make_bzimage(bytes);
    struct cpu_sregs *s = &f.result.sregs;

    fixture_new(&f, 64 * MIB);
    fixture_dirty(&f);
    f.params.cmdline = "console=ttyS0 quiet";
    is_int(boot_load_bzimage(&f.params, &image, &f.result, &f.err), 0, "bzImage is loaded");
    is_str(f.result.protocol, "bzImage, 64-bit entry", "at the 64-bit entry");
    is_int(f.result.regs.rip, 16 * MIB + 0x200, "RIP is pref_address + 0x200");
    is_int(f.result.regs.gpr[CPU_RSI], ZP, "RSI is the zero page");
    ok(guest_has(&f, 16 * MIB, bytes + SETUP_LEN, PAYLOAD_LEN), "payload is at pref_address");
    is_int(guest32(&f, ZP + 0x202), 0x53726448, "zero page has the header");
    is_int(guest32(&f, ZP + 0x260), 8 * MIB, "... whole");
    is_int(guest32(&f, ZP + 0x210) & 0xff, 0xff, "type_of_loader");
    is_int(guest64(&f, ZP + 0x70), LAYOUT_BIOS_AREA, "acpi_rsdp_addr");
    is_int(guest32(&f, ZP + 0x1ec) >> 24, 0, "sentinel is zero");
    is_str(guest_text(&f, guest32(&f, ZP + 0x228)), "console=ttyS0 quiet", "command line");
    is_int(guest32(&f, ZP + 0x218) | guest32(&f, ZP + 0x21c), 0, "no initrd");
    is_int(guest32(&f, ZP + 0x1e8) & 0xff, f.params.map_count, "E820 entries");
    is_int(guest64(&f, ZP + 0x2d0 + 3 * 20), LAYOUT_KERNEL_MIN, "E820: RAM from 1 MiB");
    is_int(guest64(&f, ZP + 0x2d0 + 3 * 20 + 8), 63 * MIB, "E820: ... of 63 MiB");
    ok(guest_is_zero(&f, ZP + 0x26c, 0x2d0 - 0x26c), "zero page is zero behind the header");

    ok(s->cr0 == (CPU_CR0_PE | CPU_CR0_ET | CPU_CR0_PG) && s->cr4 == CPU_CR4_PAE, "CR0, CR4");
    is_int(s->efer, CPU_EFER_LME | CPU_EFER_LMA, "EFER");
    ok(s->cs.selector == 0x10 && s->cs.attr == CPU_SEG_CODE64, "CS");
    ok(s->ds.selector == 0x18 && s->ss.selector == 0x18 && s->es.attr == CPU_SEG_DATA, "DS, SS");
    is_int(guest64(&f, LAYOUT_BOOT_GDT + 0x10), 0x00af9b000000ffff, "GDT: code");
    is_int(guest64(&f, LAYOUT_BOOT_GDT + 0x18), 0x00cf93000000ffff, "GDT: data");
    is_int(f.result.regs.rflags, 2, "interrupts are off");
    uint64_t pdpt = guest64(&f, s->cr3) & ~0xfffULL;
    bool identity = true;
    for (uint64_t at = 0; at < 4 * GIB; at += 2 * MIB) {
        uint64_t pd = guest64(&f, pdpt + (at >> 30) * 8) & ~0xfffULL;
        uint64_t pde = guest64(&f, pd + ((at >> 21) & 511) * 8);
        identity &= (pde & ~0xfffULL) == at && (pde & 0x83) == 0x83;
    }
    ok(identity, "4 GiB are identity-mapped");
    ok(guest64(&f, s->cr3 + 8) == 0 && guest64(&f, pdpt + 32) == 0, "and nothing else");
    fixture_free(&f);
}

static void test_32(void)
{
    struct fixture f;
    uint8_t bytes[IMAGE_LEN];
    struct boot_image image = make_bzimage(bytes);

    fixture_new(&f, 64 * MIB);
    store_le16(bytes + 0x236, 0);
    is_int(boot_load_bzimage(&f.params, &image, &f.result, &f.err), 0, "without XLF_KERNEL_64");
    is_str(f.result.protocol, "bzImage, 32-bit entry", "the 32-bit entry is taken");
    is_int(f.result.regs.rip, 16 * MIB, "EIP is pref_address");
    is_int(f.result.sregs.cr0, CPU_CR0_PE | CPU_CR0_ET, "no paging");
    is_int(f.result.sregs.cs.attr, CPU_SEG_CODE32, "32-bit CS");
    is_int(guest32(&f, ZP + 0x214), 16 * MIB, "code32_start");

    make_bzimage(bytes);
    store_le16(bytes + 0x206, 0x204);
    memset(bytes + 0x230, 0, SETUP_LEN - 0x230);
    is_int(boot_load_bzimage(&f.params, &image, &f.result, &f.err), 0, "protocol 2.04");
    is_int(f.result.regs.rip, MIB, "is loaded at 1 MiB");
    fixture_free(&f);
}

static void test_initrd(void)
{
    struct fixture f;
    uint8_t bytes[IMAGE_LEN], initrd[5000];
    char path[32];
    struct boot_image image = make_bzimage(bytes);

    fixture_new(&f, 64 * MIB);
    memset(initrd, 0x5a, sizeof(initrd));
    write_file(path, initrd, sizeof(initrd));
    f.params.initrd = path;
    is_int(boot_load_bzimage(&f.params, &image, &f.result, &f.err), 0, "initrd is loaded");
    is_int(guest32(&f, ZP + 0x218), 64 * MIB - 8192, "at the top of RAM, page aligned");
    is_int(guest32(&f, ZP + 0x21c), sizeof(initrd), "with its length");
    ok(guest_has(&f, 64 * MIB - 8192, initrd, sizeof(initrd)), "and its contents");

    store_le32(bytes + 0x22c, 32 * MIB - 1);
    boot_load_bzimage(&f.params, &image, &f.result, &f.err);
    is_int(guest32(&f, ZP + 0x218), 32 * MIB - 8192, "initrd_addr_max is respected");
    store_le32(bytes + 0x22c, 20 * MIB - 1);
    boot_load_bzimage(&f.params, &image, &f.result, &f.err);
    is_int(guest32(&f, ZP + 0x218), 16 * MIB - 8192, "below the kernel when that is in the way");
    unlink(path);
    is_int(boot_load_bzimage(&f.params, &image, &f.result, &f.err), -ENOENT, "initrd is missing");
    ok(strncmp(f.err.text, path, strlen(path)) == 0, "the error names it");
    fixture_free(&f);
}

static void test_initrd_high(void)
{
    struct fixture f;
    uint8_t bytes[IMAGE_LEN], initrd[5000] = {1, 2, 3};
    char path[32];
    struct boot_image image = make_bzimage(bytes);

    fixture_new(&f, 4 * GIB);
    write_file(path, initrd, sizeof(initrd));
    f.params.initrd = path;
    store_le32(bytes + 0x22c, MIB); /* leaves no room */
    is_int(boot_load_bzimage(&f.params, &image, &f.result, &f.err), 0, "initrd above 4 GiB");
    is_int(guest32(&f, ZP + 0xc0), 1, "ext_ramdisk_image");
    is_int(guest32(&f, ZP + 0x218), 2 * GIB - 8192, "ramdisk_image");
    ok(guest_has(&f, 6 * GIB - 8192, initrd, sizeof(initrd)), "its contents");
    store_le16(bytes + 0x236, 1);
    is_int(boot_load_bzimage(&f.params, &image, &f.result, &f.err), -ENOSPC,
           "not for a kernel that cannot do it");
    unlink(path);
    fixture_free(&f);
}

/* What each change to a good image leads to. */
static void test_refused(void)
{
    static const struct {
        unsigned offset, size;
        uint64_t value;
        int ret;
        const char *what;
    } cases[] = {
        {0x1fe, 2, 0x1234,     -ENOEXEC, "no boot flag"                  },
        {0x202, 4, 0,          -ENOEXEC, "no HdrS"                       },
        {0x206, 2, 0x201,      -ENOTSUP, "protocol too old"              },
        {0x211, 1, 0,          -ENOTSUP, "a zImage"                      },
        {0x1f1, 1, 200,        -EINVAL,  "setup longer than the file"    },
        {0x1f4, 4, 0xffffff,   -EINVAL,  "payload longer than the file"  },
        {0x230, 4, 3,          -EINVAL,  "bad alignment"                 },
        {0x258, 8, 0x7000,     -EINVAL,  "load address below 1 MiB"      },
        {0x258, 8, ~0ULL,      -EINVAL,  "load address out of this world"},
        {0x260, 4, 0x7fffffff, -ENOSPC,  "more memory than there is"     },
        {0x201, 1, 0,          -EINVAL,  "header too short"              },
    };
    struct fixture f;
    uint8_t bytes[IMAGE_LEN];

    fixture_new(&f, 64 * MIB);
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        struct boot_image image = make_bzimage(bytes);
        store_le(bytes + cases[i].offset, cases[i].value, cases[i].size);
        f.err.text[0] = '\0';
        is_int(boot_load_bzimage(&f.params, &image, &f.result, &f.err), cases[i].ret,
               cases[i].what);
        ok(f.err.text[0] != '\0', "... and says so");
    }
    for (uint64_t len = 0; len < IMAGE_LEN - 16; len += 61) {
        struct boot_image image = make_bzimage(bytes);
        uint8_t *copy = malloc(len ? len : 1); /* exact, for the address sanitizer */
        memcpy(copy, bytes, len);
        image = (struct boot_image){.bytes = copy, .len = len};
        if (boot_load_bzimage(&f.params, &image, &f.result, &f.err) == 0)
            ok(false, "a truncated image was accepted");
        free(copy);
    }
    fixture_free(&f);
}

static void test_cmdline(void)
{
    struct fixture f;
    uint8_t bytes[IMAGE_LEN];
    struct boot_image image = make_bzimage(bytes);
    char text[2050];

    fixture_new(&f, 64 * MIB);
    memset(text, 'x', sizeof(text));
    text[2047] = '\0';
    f.params.cmdline = text;
    is_int(boot_load_bzimage(&f.params, &image, &f.result, &f.err), 0, "2047 characters");
    text[2047] = 'x';
    text[2048] = '\0';
    is_int(boot_load_bzimage(&f.params, &image, &f.result, &f.err), -E2BIG, "2048 are too many");
    store_le16(bytes + 0x206, 0x205);
    text[255] = '\0';
    is_int(boot_load_bzimage(&f.params, &image, &f.result, &f.err), 0, "255 before protocol 2.06");
    text[255] = 'x';
    text[256] = '\0';
    is_int(boot_load_bzimage(&f.params, &image, &f.result, &f.err), -E2BIG, "256 are too many");
    fixture_free(&f);
}

static void test_places(void)
{
    struct fixture f;
    uint8_t bytes[IMAGE_LEN];
    struct boot_image image = make_bzimage(bytes);

    fixture_new(&f, 64 * MIB);
    /* A hole where the kernel wants to be. */
    f.map[3].len = 10 * MIB - LAYOUT_KERNEL_MIN;
    f.map[4] = (struct boot_range){.base = 21 * MIB, .len = 43 * MIB, .type = 1};
    is_int(boot_load_bzimage(&f.params, &image, &f.result, &f.err), 0, "a kernel is relocated");
    is_int(f.result.regs.rip, 22 * MIB + 0x200, "to the next aligned place");
    bytes[0x234] = 0;
    is_int(boot_load_bzimage(&f.params, &image, &f.result, &f.err), -ENOSPC,
           "but only a relocatable one");
    const struct config_module module = {.path = (char[]){"x"}};
    f.params.modules = &module;
    f.params.module_count = 1;
    is_int(boot_load_bzimage(&f.params, &image, &f.result, &f.err), -EINVAL, "modules are refused");
    fixture_free(&f);
}

static void test_vmlinux(void)
{
    struct fixture f;
    static uint8_t bytes[IMAGE_ELF_MAX];
    struct elf_spec spec = {.paddr = MIB,
                            .vaddr = 0xffffffff80100000,
                            .entry = MIB + 0x10,
                            .text_len = 0x800,
                            .bss_len = 0x2000,
                            .is_64 = true};
    struct boot_image image = make_elf(bytes, &spec);

    fixture_new(&f, 64 * MIB);
    fixture_dirty(&f);
    is_int(boot_load_bzimage(&f.params, &image, &f.result, &f.err), 0, "a vmlinux is loaded");
    is_int(f.result.regs.rip, MIB + 0x10, "enters at e_entry");
    is_int(f.result.regs.gpr[CPU_RSI], ZP, "with the zero page");
    is_int(guest32(&f, ZP + 0x202), 0x53726448, "which has a header");
    ok(guest_has(&f, MIB, bytes + 0x1000, 0x800), "text");
    ok(guest_is_zero(&f, MIB + 0x800, 0x2000), "bss is zeroed");
    spec.vaddr = 0x400000;
    image = make_elf(bytes, &spec);
    is_int(boot_load_bzimage(&f.params, &image, &f.result, &f.err), -ENOEXEC,
           "another ELF file is not Linux");
    fixture_free(&f);
}

int main(void)
{
    test_64();
    test_32();
    test_initrd();
    test_initrd_high();
    test_refused();
    test_cmdline();
    test_places();
    test_vmlinux();
    return tap_done();
}
