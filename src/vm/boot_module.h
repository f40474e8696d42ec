/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What goes to the guest beside the kernel (initrd, modules), and the block of information about it
 * that PVH and Multiboot kernels are given.
 */
#ifndef HULL_VM_BOOT_MODULE_H
#define HULL_VM_BOOT_MODULE_H

#include "vm/boot.h"
#include "vm/boot_space.h"

/* The initrd is a module too, the first. */
#define BOOT_MODULES_MAX (CONFIG_MODULES_MAX + 1)

struct boot_module {
    uint64_t gpa, len;
    const char *path;
    const char *args; /* "" none */
};

struct boot_modules {
    struct boot_module list[BOOT_MODULES_MAX];
    unsigned count;
};

/* Read one file as it is (never unpacked) into a place found in window. */
int boot_module_load(const struct boot_params *params, struct boot_space *space, const char *path,
                     const struct boot_window *window, const char *owner,
                     struct boot_module *module, struct err *err);

/* The initrd, if any, and then the modules. */
int boot_modules_load(const struct boot_params *params, struct boot_space *space,
                      const struct boot_window *window, struct boot_modules *modules,
                      struct err *err);

/*
 * The information block: guest memory, handed out from its start; zero at first.
 */
struct boot_info {
    uint8_t *host;
    uint64_t gpa, len, used;
};

int boot_info_begin(struct boot_info *info, const struct boot_params *params,
                    struct boot_space *space, struct err *err);
/* Pointer to len bytes at a multiple of align (power of two, at most a page), or NULL with err when
 * the block is full. gpa may be NULL. */
void *boot_info_alloc(struct boot_info *info, uint64_t len, uint64_t align, uint64_t *gpa,
                      struct err *err);
/* Copies text. */
int boot_info_string(struct boot_info *info, const char *text, uint64_t *gpa, struct err *err);

/*
 * A command line in the form that Multiboot kernels know: the file's name (without folders: the
 * host's paths are not the guest's business; blanks in it as '_'), then the arguments. Kernels skip
 * the first word. path and args may be NULL.
 */
int boot_info_command(struct boot_info *info, const char *path, const char *args, uint64_t *gpa,
                      struct err *err);

#endif
