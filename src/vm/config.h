/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a VM is made of: one struct that the command line or a JSON file fills, `--print-config`
 * writes, and the board reads. Strings are owned by the struct.
 */
#ifndef HULL_VM_CONFIG_H
#define HULL_VM_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "block/block.h"
#include "net/net.h"

#define CONFIG_DISKS_MAX   16
#define CONFIG_NETS_MAX    8
#define CONFIG_MODULES_MAX 16
#define CONFIG_SERIALS_MAX 4
#define CONFIG_NAME_MAX    64

struct config_disk {
    char *path;
    char *serial; /* at most 20 bytes; "" none */
    bool read_only;
    enum block_cache cache;
    unsigned queues; /* 0: one a vCPU, at most 4 */
};

enum config_net_kind {
    CONFIG_NET_USER,
    CONFIG_NET_TAP,
};

struct config_net {
    enum config_net_kind kind;
    char *tap_name;  /* NULL: the kernel chooses */
    uint8_t mac[6];  /* all zero: derived from the VM's name and the card's index */
    unsigned queues; /* tap: queue pairs */
    struct net_forward *forwards;
    unsigned forward_count;
    bool restricted;
};

struct config_module {
    char *path;
    char *args; /* "" none */
};

enum config_boot {
    CONFIG_BOOT_AUTO,
    CONFIG_BOOT_BZIMAGE,
    CONFIG_BOOT_PVH,
    CONFIG_BOOT_MULTIBOOT,
    CONFIG_BOOT_MULTIBOOT2,
};

/* What happens when the guest asks for a reset, panics, or triple-faults. */
enum config_action {
    CONFIG_ACTION_EXIT,
    CONFIG_ACTION_RESTART,
    CONFIG_ACTION_CONTINUE, /* panic only: let the guest go on */
};

struct vm_config {
    char *name;   /* default "hull-<pid>" */
    char *engine; /* "auto", "kvm", ... */
    unsigned cpus;
    uint64_t memory_bytes;
    bool memory_huge_pages; /* transparent */
    bool memory_shared;
    bool memory_prefault;
    bool memory_mergeable;

    char *kernel;
    char *initrd; /* NULL: none */
    char *append; /* "" none */
    enum config_boot boot;
    struct config_module modules[CONFIG_MODULES_MAX];
    unsigned module_count;

    struct config_disk disks[CONFIG_DISKS_MAX];
    unsigned disk_count;
    struct config_net nets[CONFIG_NETS_MAX];
    unsigned net_count;

    char *serials[CONFIG_SERIALS_MAX]; /* char_open() specs of COM1-4; NULL: "null" */
    char *console;                     /* virtio console: char_open() spec; NULL: no device */
    bool rng;
    bool exit_port; /* isa-debug-exit at 0xf4 */
    bool debugcon;  /* port 0x402 to the log */

    enum config_action on_reboot;       /* RESTART by default */
    enum config_action on_panic;        /* EXIT */
    enum config_action on_triple_fault; /* EXIT */
};

/* Defaults: 1 CPU, 512 MiB, engine auto, COM1 on stdio, an entropy device. -ENOMEM. */
int config_init(struct vm_config *config, struct err *err);
void config_fini(struct vm_config *config);

/*
 * One option of `hull run`, by its long name without dashes: "disk", "a.raw,readonly". Replaces or,
 * for repeatable options, adds. -EINVAL with err; -ENOENT: no such option.
 */
int config_set(struct vm_config *config, const char *option, const char *value, struct err *err);

/* Read a JSON file on top of what config holds; an unknown key is an error that names the nearest.
 */
int config_load(struct vm_config *config, const char *path, struct err *err);
/* As config_load() of text already in memory; source is its name in errors. */
int config_parse(struct vm_config *config, const char *text, size_t len, const char *source,
                 struct err *err);
/* Write it as JSON; config_load() of that gives the same machine. */
int config_print(const struct vm_config *config, FILE *out);

/* Checks across options (a kernel is given, memory is enough, ...). */
int config_check(const struct vm_config *config, struct err *err);

/*
 * The options as a table: drives config_set(), the help text, "did you mean", and the man page.
 */
struct config_option {
    const char *name;
    const char *value;   /* placeholder "N", "FILE[,readonly]"; NULL: a flag */
    const char *help;    /* one line */
    const char *section; /* heading in the help: "Machine", "Boot", "Devices", ... */
    bool repeatable;
    int (*set)(struct vm_config *config, const char *value, struct err *err);
};

const struct config_option *config_options(unsigned *count);

/* The nearest of `count` names to what was typed, or NULL when none is near. */
const char *config_nearest(const char *typed, const char *const *names, unsigned count);

#endif
