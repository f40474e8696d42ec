/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a VM is made of: one struct that the command line or a JSON file fills, `--print-config`
 * writes, and the board reads. Strings are owned by the struct.
 *
 * One table (config_fields.c) describes every option once: it drives the command line, JSON in both
 * directions, the help text, and "did you mean".
 */
#ifndef HULL_VM_CONFIG_H
#define HULL_VM_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "block/block.h"
#include "net/net.h"

#define CONFIG_DISKS_MAX   16
#define CONFIG_NETS_MAX    8
#define CONFIG_MODULES_MAX 16
#define CONFIG_SERIALS_MAX 4

struct err;

struct config_disk {
    char *path;
    char *serial; /* at most 20 bytes; NULL: none */
    bool read_only;
    unsigned cache;  /* enum block_cache */
    unsigned queues; /* 0: one a vCPU, at most 4 */
};

enum config_net_kind {
    CONFIG_NET_USER,
    CONFIG_NET_TAP,
};

struct config_net {
    unsigned kind;   /* enum config_net_kind */
    char *tap_name;  /* NULL: the kernel chooses */
    uint8_t mac[6];  /* all zero: derived from the VM's name and the card's index */
    unsigned queues; /* queue pairs, tap only; 0: 1 */
    struct net_forward *forwards;
    unsigned forward_count;
    bool restricted; /* user only: no way out but the forwards */
};

struct config_module {
    char *path;
    char *args; /* NULL: none */
};

enum config_boot {
    CONFIG_BOOT_AUTO,
    CONFIG_BOOT_BZIMAGE,
    CONFIG_BOOT_PVH,
    CONFIG_BOOT_MULTIBOOT,
    CONFIG_BOOT_MULTIBOOT2,
};

enum config_clock {
    CONFIG_CLOCK_HOST,
    CONFIG_CLOCK_VIRTUAL,
};

enum config_tlb {
    CONFIG_TLB_FULL,
    CONFIG_TLB_ONE, /* for tests: one entry */
};

/* What happens when the guest asks for a reset, panics, or triple-faults. */
enum config_action {
    CONFIG_ACTION_EXIT,
    CONFIG_ACTION_RESTART,
    CONFIG_ACTION_CONTINUE, /* panic only: let the guest go on */
};

struct vm_config {
    char *name;          /* NULL: "hull-<pid>" */
    char *engine;        /* "auto", "kvm", "soft" */
    unsigned clock;      /* enum config_clock */
    unsigned translate;  /* enum engine_translate */
    unsigned tlb;        /* enum config_tlb */
    uint64_t code_bytes; /* soft: a vCPU's code cache; 0: its default */
    char *trace;         /* soft: engine_vm_config; NULL: none */
    char *compare;
    unsigned trace_every, trace_from;
    char *cpu; /* model; NULL: the engine's best */
    unsigned cpus;

    uint64_t memory_bytes;
    bool memory_huge_pages; /* transparent huge pages */
    bool memory_shared;
    bool memory_prefault;
    bool memory_mergeable;

    char *kernel;
    char *initrd;  /* NULL: none */
    char *append;  /* NULL: none */
    unsigned boot; /* enum config_boot */
    struct config_module modules[CONFIG_MODULES_MAX];
    unsigned module_count;

    struct config_disk disks[CONFIG_DISKS_MAX];
    unsigned disk_count;
    struct config_net nets[CONFIG_NETS_MAX];
    unsigned net_count;
    bool net_none; /* no card was asked for; without it and without cards there is a user network */

    char *serials[CONFIG_SERIALS_MAX]; /* char_open() specs of COM1-4 */
    unsigned serial_count;             /* 0: COM1 on stdio */
    char *console;                     /* virtio console: char_open() spec; NULL: no device */
    bool rng;
    bool hpet;
    bool exit_port; /* isa-debug-exit at 0xf4 */
    bool debugcon;  /* port 0x402 to the log */
    bool stats;     /* the engine's counters to standard error at the end */

    char *gdb;     /* where a debugger can connect: gdb_config.where; NULL: nowhere */
    bool gdb_wait; /* do not run before it says so */
    bool gdb_i386;

    /* enum config_action */
    unsigned on_reboot;
    unsigned on_panic;
    unsigned on_triple_fault;
};

/* Defaults: 1 CPU, 512 MiB, engine auto, COM1 on stdio, a user network, an entropy device. -ENOMEM.
 */
int config_init(struct vm_config *config, struct err *err);
void config_fini(struct vm_config *config);

/*
 * One option of `hull run`, by its long name without dashes: "disk", "a.raw,readonly". value is
 * NULL for a flag. Replaces or, for repeatable options, adds. A comma inside a value is written
 * twice. -EINVAL with err; -ENOENT: no such option.
 */
int config_set(struct vm_config *config, const char *option, const char *value, struct err *err);

/* Read a JSON file, or a pipe, on top of what config holds; an unknown key is an error that names
 * the nearest. */
int config_load(struct vm_config *config, const char *path, struct err *err);
/* As config_load() of text already in memory; source is its name in errors. */
int config_parse(struct vm_config *config, const char *text, size_t len, const char *source,
                 struct err *err);
/* Write it, after config_finish(), as JSON; config_load() of that gives the same machine. -EILSEQ:
 * a string (a file's name) is not UTF-8. */
int config_print(const struct vm_config *config, FILE *out, struct err *err);

/* Checks across options (a kernel is given, memory is enough, ...), and fills what was left to
 * default (name, network, serial port, addresses). Once, after all options. */
int config_finish(struct vm_config *config, struct err *err);

enum config_kind {
    CONFIG_STRING,
    CONFIG_FLAG,        /* bool: `option`, option=on|off, JSON true/false */
    CONFIG_UINT,        /* unsigned, min..max */
    CONFIG_SIZE,        /* uint64_t bytes; a bare number is MiB */
    CONFIG_ENUM,        /* unsigned index into names */
    CONFIG_MAC,         /* uint8_t[6] */
    CONFIG_FORWARDS,    /* struct config_net: forwards and their count */
    CONFIG_STRING_LIST, /* char *[count_max], repeatable; count at count_offset */
    CONFIG_GROUP,       /* a value of several fields in the struct at offset */
    CONFIG_GROUP_LIST,  /* repeatable; array of count_max structs of elem_bytes, count at
                           count_offset */
};

struct config_field {
    const char *name;
    enum config_kind kind;
    size_t offset;
    unsigned min, max;              /* UINT */
    const char *const *names;       /* ENUM; NULL-terminated */
    const struct config_field *sub; /* GROUP*: NULL-name-terminated; [0] takes the value before the
                                     * first comma */
    size_t count_offset, elem_bytes;
    unsigned count_max;
    const char *value;   /* options: placeholder for the help */
    const char *help;    /* options: one line */
    const char *section; /* options: heading that starts here, or NULL */
};

/* The options of `hull run` that describe the machine; ends with a NULL name. */
extern const struct config_field config_options[];

/* The nearest of NULL-terminated names to what was typed, or NULL when none is near. */
const char *config_nearest(const char *typed, const char *const *names);

#endif
