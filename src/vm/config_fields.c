/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/config.h"

#include <limits.h>

static const char *const clock_names[] = {"host", "virtual", NULL};
static const char *const translate_names[] = {"on",    "off",    "exact", "slow",
                                              "flush", "single", NULL};
static const char *const tlb_names[] = {"full", "one", NULL};
static const char *const boot_names[] = {"auto", "bzimage", "pvh", "multiboot", "multiboot2", NULL};
static const char *const cache_names[] = {"auto", "direct", "writeback", NULL};
static const char *const net_names[] = {"user", "tap", NULL};
static const char *const restart_names[] = {"exit", "restart", NULL};
static const char *const panic_names[] = {"exit", "restart", "continue", NULL};

#define FIELD(type, name_, kind_, member)                                                          \
    .name = (name_), .kind = (kind_), .offset = offsetof(type, member)

static const struct config_field engine_fields[] = {
    {FIELD(struct vm_config, "name", CONFIG_STRING, engine)},
    {FIELD(struct vm_config,         "clock", CONFIG_ENUM, clock), .names = clock_names},
    {FIELD(struct vm_config,                      "translate", CONFIG_ENUM, translate), .names = translate_names},
    {FIELD(struct vm_config,       "trace", CONFIG_STRING, trace)},
    {FIELD(struct vm_config,                "tlb", CONFIG_ENUM, tlb), .names = tlb_names},
    {FIELD(struct vm_config,                      "code-cache", CONFIG_SIZE, code_bytes)},
    {FIELD(struct vm_config,"compare", CONFIG_STRING, compare)},
    {FIELD(struct vm_config,            "trace-every", CONFIG_UINT, trace_every), .max = UINT_MAX},
    {FIELD(struct vm_config,                      "trace-from", CONFIG_UINT, trace_from), .max = UINT_MAX},
    {0        },
};

static const struct config_field memory_fields[] = {
    {FIELD(struct vm_config, "size", CONFIG_SIZE, memory_bytes)},
    {FIELD(struct vm_config, "shared", CONFIG_FLAG, memory_shared)},
    {FIELD(struct vm_config, "prefault", CONFIG_FLAG, memory_prefault)},
    {FIELD(struct vm_config, "mergeable", CONFIG_FLAG, memory_mergeable)},
    {FIELD(struct vm_config, "thp", CONFIG_FLAG, memory_huge_pages)},
    {0},
};

static const struct config_field module_fields[] = {
    {FIELD(struct config_module, "path", CONFIG_STRING, path)},
    {FIELD(struct config_module, "args", CONFIG_STRING, args)},
    {0},
};

static const struct config_field disk_fields[] = {
    {FIELD(struct config_disk, "path", CONFIG_STRING, path)},
    {FIELD(struct config_disk,           "readonly", CONFIG_FLAG, read_only)},
    {FIELD(struct config_disk,                        "serial", CONFIG_STRING, serial)},
    {FIELD(struct config_disk,    "cache", CONFIG_ENUM, cache), .names = cache_names},
    {FIELD(struct config_disk,              "queues", CONFIG_UINT, queues), .min = 0, .max = 64},
    {0},
};

static const struct config_field net_fields[] = {
    {FIELD(struct config_net, "type", CONFIG_ENUM, kind), .names = net_names},
    {FIELD(struct config_net,            "name", CONFIG_STRING, tap_name)},
    {FIELD(struct config_net,     "mac", CONFIG_MAC, mac)},
    {FIELD(struct config_net, "queues", CONFIG_UINT, queues), .min = 0, .max = 32},
    {FIELD(struct config_net,          "forward", CONFIG_FORWARDS, forwards)},
    {FIELD(struct config_net,                       "restricted", CONFIG_FLAG, restricted)},
    {0             },
};

static const struct config_field gdb_fields[] = {
    {FIELD(struct vm_config, "listen", CONFIG_STRING, gdb)},
    {FIELD(struct vm_config, "wait", CONFIG_FLAG, gdb_wait)},
    {FIELD(struct vm_config, "i386", CONFIG_FLAG, gdb_i386)},
    {0},
};

#define OPTION(name_, kind_, member) FIELD(struct vm_config, name_, kind_, member)

const struct config_field config_options[] = {
    {OPTION("name",                                                 CONFIG_STRING, name), .section = "Machine", .value = "NAME",
     .help = "name of the VM (default: hull-PID; virtual clock: hull-0)"},
    {.name = "engine",
     .kind = CONFIG_GROUP,
     .offset = 0,
     .sub = engine_fields,
     .value = "auto|kvm|soft[,clock=virtual][,translate=off]",
     .help = "what runs the vCPUs (default: auto, by measurement)"},
    {OPTION("cpu",                                              CONFIG_STRING, cpu), .value = "host|x86-64-v2|x86-64-v3[,+FEATURE][,-FEATURE]",
     .help = "processor of the soft engine (default: host)"},
    {OPTION("cpus",                                                             CONFIG_UINT, cpus), .min = 1, .max = 4096, .value = "N",
     .help = "virtual CPUs (default: 1)"},
    {.name = "memory",
     .kind = CONFIG_GROUP,
     .offset = 0,
     .sub = memory_fields,
     .value = "SIZE[,shared][,prefault][,mergeable][,thp=off]",
     .help = "guest RAM: 512M (the default), 4G, ..."},

    {OPTION("kernel",                                          CONFIG_STRING, kernel), .section = "Boot", .value = "FILE",
     .help = "bzImage, ELF with a PVH note, or Multiboot image"},
    {OPTION("initrd", CONFIG_STRING, initrd), .value = "FILE", .help = "initial RAM disk"},
    {OPTION("append",                                                  CONFIG_STRING, append), .value = "STRING", .help = "kernel command line"},
    {OPTION("module",                                                         CONFIG_GROUP_LIST, modules), .sub = module_fields,
     .count_offset = offsetof(struct vm_config, module_count),
     .elem_bytes = sizeof(struct config_module), .count_max = CONFIG_MODULES_MAX,
     .value = "FILE[,args=STRING]", .help = "Multiboot or PVH module; may be repeated"},
    {OPTION("boot",        CONFIG_ENUM, boot), .names = boot_names,
     .value = "auto|bzimage|pvh|multiboot|multiboot2", .help = "boot protocol (default: auto)"},

    {OPTION("disk",                                                 CONFIG_GROUP_LIST, disks), .section = "Devices", .sub = disk_fields,
     .count_offset = offsetof(struct vm_config, disk_count),
     .elem_bytes = sizeof(struct config_disk), .count_max = CONFIG_DISKS_MAX,
     .value = "FILE[,readonly][,serial=S][,cache=auto|direct|writeback][,queues=N]",
     .help = "raw file or block device; may be repeated"},
    {OPTION("net",                                                        CONFIG_GROUP_LIST, nets), .sub = net_fields,
     .count_offset = offsetof(struct vm_config, net_count), .elem_bytes = sizeof(struct config_net),
     .count_max = CONFIG_NETS_MAX,
     .value = "user[,forward=tcp:ADDR:PORT-ADDR:PORT][,restricted] | tap[=NAME][,queues=N] | none",
     .help = "network card (default: user); also ,mac=ADDR; may be repeated"},
    {OPTION("serial",                                                  CONFIG_STRING_LIST, serials),
     .count_offset = offsetof(struct vm_config, serial_count), .count_max = CONFIG_SERIALS_MAX,
     .value = "stdio|pty|file:PATH|null", .help = "COM1, then COM2, ... (default: COM1 on stdio)"},
    {OPTION("console",                           CONFIG_STRING, console), .value = "stdio|pty|file:PATH|null",
     .help = "add a virtio console"},
    {OPTION("rng",                                              CONFIG_FLAG, rng), .value = "on|off", .help = "entropy device (default: on)"},
    {OPTION("hpet",                                                   CONFIG_FLAG, hpet), .value = "on|off",
     .help = "high precision event timer (default: off)"},
    {OPTION("exit-port",     CONFIG_FLAG, exit_port),
     .help = "port 0xf4 ends the VM with status (value << 1) | 1"},
    {OPTION("debugcon",                                                             CONFIG_FLAG, debugcon),
     .help = "write what comes on port 0x402 to the log"},

    {.name = "gdb",
     .kind = CONFIG_GROUP,
     .offset = 0,
     .sub = gdb_fields,
     .value = "[ADDR:]PORT|unix:PATH[,wait][,i386]",
     .help = "a debugger may connect there; wait: run when it says so"},

    {OPTION("on-reboot",                                            CONFIG_ENUM, on_reboot), .section = "Endings", .names = restart_names,
     .value = "restart|exit", .help = "when the guest resets (default: restart)"},
    {OPTION("on-panic",    CONFIG_ENUM, on_panic), .names = panic_names,
     .value = "exit|restart|continue", .help = "when it reports a panic (default: exit)"},
    {OPTION("on-triple-fault",                                               CONFIG_ENUM, on_triple_fault), .names = restart_names,
     .value = "exit|restart", .help = "when a vCPU triple-faults (default: exit)"},
    {OPTION("stats",                                                      CONFIG_FLAG, stats),
     .help = "when the VM ends, write what the engine has counted to standard error"},
    {0                                  },
};
