/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/boot_module.h"

#include <assert.h>
#include <errno.h>

#include "base/err.h"
#include "vm/boot_file.h"
#include "vm/layout.h"

/* The block takes the place of the information and of the command line in one. */
#define INFO_LEN 0x20000ULL

static_assert(LAYOUT_BOOT_INFO + INFO_LEN == LAYOUT_BOOT_CMDLINE + 64 * KIB,
              "the information block covers the places of the layout");

int boot_module_load(const struct boot_params *params, struct boot_space *space, const char *path,
                     const struct boot_window *window, const char *owner,
                     struct boot_module *module, struct err *err)
{
    struct boot_file file;
    int ret = boot_file_open(&file, path, mem_ram_bytes(params->mem), err);

    if (ret < 0)
        return ret;
    *module = (struct boot_module){.len = file.len, .path = path, .args = ""};
    ret = boot_space_place(space, file.len, window, owner, &module->gpa, err);
    if (ret < 0) {
        err_prefix(err, "%s", path);
        goto out;
    }
    void *dst = mem_ptr(params->mem, GPA(module->gpa), file.len, MEM_WRITE);
    if (dst)
        ret = boot_file_read(&file, dst, err);
    else
        ret = err_set(err, EFAULT, "%s: no RAM at 0x%llx", path, (unsigned long long)module->gpa);
out:
    boot_file_close(&file);
    return ret;
}

int boot_modules_load(const struct boot_params *params, struct boot_space *space,
                      const struct boot_window *window, struct boot_modules *modules,
                      struct err *err)
{
    modules->count = 0;
    if (params->initrd) {
        int ret = boot_module_load(params, space, params->initrd, window, "initrd",
                                   &modules->list[0], err);
        if (ret < 0)
            return ret;
        modules->count = 1;
    }
    for (unsigned i = 0; i < params->module_count; i++) {
        if (modules->count == BOOT_MODULES_MAX)
            return err_set(err, E2BIG, "more than %d modules", CONFIG_MODULES_MAX);
        struct boot_module *module = &modules->list[modules->count];
        const struct config_module *config = &params->modules[i];
        int ret = boot_module_load(params, space, config->path, window, "module", module, err);
        if (ret < 0)
            return ret;
        if (config->args)
            module->args = config->args;
        modules->count++;
    }
    return 0;
}

int boot_info_begin(struct boot_info *info, const struct boot_params *params,
                    struct boot_space *space, struct err *err)
{
    /* At its usual place unless the kernel lies there. */
    const struct boot_window window = {
        .min = LAYOUT_BOOT_INFO, .max = LAYOUT_EBDA, .align = PAGE_SIZE_BYTES};

    *info = (struct boot_info){.len = INFO_LEN};
    int ret = boot_space_place(space, info->len, &window, "boot information", &info->gpa, err);
    if (ret < 0)
        return err_set(err, ret,
                       "the kernel leaves no room below 640 KiB for the boot information");
    info->host = mem_ptr(params->mem, GPA(info->gpa), info->len, MEM_WRITE);
    if (!info->host)
        return err_set(err, EFAULT, "no RAM at the bottom of memory");
    memset(info->host, 0, info->len);
    return 0;
}

void *boot_info_alloc(struct boot_info *info, uint64_t len, uint64_t align, uint64_t *gpa,
                      struct err *err)
{
    uint64_t at = align_up(info->used, align);

    if (!range_fits(at, len, info->len)) {
        err_set(err, E2BIG, "the command lines of kernel and modules are longer than %llu KiB",
                (unsigned long long)(INFO_LEN / KIB));
        return NULL;
    }
    info->used = at + len;
    if (gpa)
        *gpa = info->gpa + at;
    return info->host + at;
}

int boot_info_string(struct boot_info *info, const char *text, uint64_t *gpa, struct err *err)
{
    size_t len = strlen(text) + 1;
    char *dst = boot_info_alloc(info, len, 1, gpa, err);

    if (!dst)
        return -E2BIG;
    memcpy(dst, text, len);
    return 0;
}

int boot_info_command(struct boot_info *info, const char *path, const char *args, uint64_t *gpa,
                      struct err *err)
{
    const char *slash = path ? strrchr(path, '/') : NULL;
    const char *name = slash ? slash + 1 : path ? path : "kernel";
    size_t name_len = strlen(name), args_len = args ? strlen(args) : 0;
    char *text = boot_info_alloc(info, name_len + args_len + 2, 1, gpa, err);

    if (!text)
        return -E2BIG;
    memcpy(text, name, name_len);
    for (size_t i = 0; i < name_len; i++)
        if (text[i] == ' ' || text[i] == '\t')
            text[i] = '_';
    if (args_len) {
        text[name_len] = ' ';
        memcpy(text + name_len + 1, args, args_len);
    }
    return 0; /* the block was zero: terminated */
}
