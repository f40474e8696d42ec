/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/boot_module.h"

#include "vm/boot_fixture.h"

static void test_modules(void)
{
    struct fixture f;
    struct boot_space space;
    struct boot_modules modules;
    char a[32], b[32];
    struct config_module config[CONFIG_MODULES_MAX + 1];
    const struct boot_window window = {.min = MIB, .max = 4 * GIB, .align = PAGE_SIZE_BYTES};

    fixture_new(&f, 16 * MIB);
    write_file(a, "first", 5);
    write_file(b, "second", 6);
    for (unsigned i = 0; i <= CONFIG_MODULES_MAX; i++)
        config[i] = (struct config_module){.path = b};
    f.params.initrd = a;
    f.params.modules = config;
    f.params.module_count = CONFIG_MODULES_MAX;
    boot_space_init(&space, &f.params);
    is_int(boot_modules_load(&f.params, &space, &window, &modules, &f.err), 0, "initrd, modules");
    is_int(modules.count, CONFIG_MODULES_MAX + 1, "all of them");
    bool good = true;
    for (unsigned i = 0; i < modules.count; i++)
        good &= modules.list[i].gpa == MIB + i * PAGE_SIZE_BYTES &&
                guest_has(&f, modules.list[i].gpa, i ? "second" : "first", i ? 6 : 5) &&
                modules.list[i].args[0] == '\0';
    ok(good, "a page each, in order");
    f.params.module_count++;
    boot_space_init(&space, &f.params);
    is_int(boot_modules_load(&f.params, &space, &window, &modules, &f.err), -E2BIG, "one too many");
    boot_space_init(&space, &f.params);
    boot_space_claim(&space, MIB, 15 * MIB, "kernel", &f.err);
    is_int(boot_modules_load(&f.params, &space, &window, &modules, &f.err), -ENOSPC, "no room");
    ok(strncmp(f.err.text, a, strlen(a)) == 0, "the error names the file");
    unlink(a);
    unlink(b);
    fixture_free(&f);
}

static void test_info(void)
{
    struct fixture f;
    struct boot_space space;
    struct boot_info info;
    uint64_t gpa;

    fixture_new(&f, 16 * MIB);
    fixture_dirty(&f);
    boot_space_init(&space, &f.params);
    is_int(boot_info_begin(&info, &f.params, &space, &f.err), 0, "information block");
    is_int(info.gpa, LAYOUT_BOOT_INFO, "at its place");
    ok(guest_is_zero(&f, info.gpa, info.len), "zero");
    boot_info_string(&info, "abc", &gpa, &f.err);
    is_str(guest_text(&f, gpa), "abc", "a string");
    ok(boot_info_alloc(&info, 10, 8, &gpa, &f.err) && gpa == info.gpa + 8, "aligned");
    boot_info_command(&info, "/a/b c", "d e", &gpa, &f.err);
    is_str(guest_text(&f, gpa), "b_c d e", "a command line");
    boot_info_command(&info, "name", NULL, &gpa, &f.err);
    is_str(guest_text(&f, gpa), "name", "without arguments");
    boot_info_command(&info, NULL, "x", &gpa, &f.err);
    is_str(guest_text(&f, gpa), "kernel x", "without a name");

    char *text = malloc(info.len);
    memset(text, 'y', info.len);
    text[info.len - 1] = '\0';
    is_int(boot_info_string(&info, text, &gpa, &f.err), -E2BIG, "full");
    is_int(boot_info_command(&info, "k", text, &gpa, &f.err), -E2BIG, "full for a command too");
    free(text);
    ok(boot_info_alloc(&info, info.len - info.used, 1, &gpa, &f.err), "to the last byte");
    ok(!boot_info_alloc(&info, 1, 1, &gpa, &f.err), "and not beyond");

    boot_space_init(&space, &f.params);
    boot_space_claim(&space, 0, LAYOUT_EBDA, "kernel", &f.err);
    is_int(boot_info_begin(&info, &f.params, &space, &f.err), -ENOSPC, "no room below 640 KiB");
    fixture_free(&f);
}

int main(void)
{
    test_modules();
    test_info();
    return tap_done();
}
