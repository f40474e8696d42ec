/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <jansson.h>
#include <liburing.h>
#include <limits.h>
#include <linux/landlock.h>
#include <linux/magic.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/err.h"
#include "base/units.h"
#include "engine/engine.h"
#include "engine/kvm/host.h"

enum status {
    STATUS_OK,
    STATUS_LACK, /* something is missing that Hull would use */
    STATUS_NOTE, /* neither good nor bad */
};

struct item {
    const char *section;
    const char *name;
    enum status status;
    char value[400];
    char advice[500]; /* empty: nothing to do */
};

#define ITEMS_MAX 64

struct report {
    size_t count;
    struct item items[ITEMS_MAX];
    struct engine_probe kvm;
};

static const char *const status_names[] = {
    [STATUS_OK] = "ok", [STATUS_LACK] = "lack", [STATUS_NOTE] = "note"};

/* --- building blocks --- */

__attribute__((format(printf, 5, 6))) static struct item *add(struct report *report,
                                                              const char *section, const char *name,
                                                              enum status status, const char *fmt,
                                                              ...)
{
    static struct item overflow; /* the list of checks is fixed: ITEMS_MAX is more than it has */
    struct item *item = report->count < ITEMS_MAX ? &report->items[report->count++] : &overflow;
    *item = (struct item){.section = section, .name = name, .status = status};
    va_list args;
    va_start(args, fmt);
    vsnprintf(item->value, sizeof(item->value), fmt, args);
    va_end(args);
    return item;
}

__attribute__((format(printf, 2, 3))) static void advise(struct item *item, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(item->advice, sizeof(item->advice), fmt, args);
    va_end(args);
}

/* A small file of /proc or /sys without its last newline; false when it cannot be read. */
static bool read_text(const char *path, char *buf, size_t len)
{
    buf[0] = '\0';
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    size_t n = fread(buf, 1, len - 1, f);
    fclose(f);
    while (n > 0 && isspace((unsigned char)buf[n - 1]))
        n--;
    buf[n] = '\0';
    return true;
}

/* The value behind "key" and a colon in a file of such lines; false when there is none. */
static bool read_field(const char *path, const char *key, char *buf, size_t len)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    char *line = NULL;
    size_t line_len = 0, key_len = strlen(key);
    bool found = false;
    while (!found && getline(&line, &line_len, f) >= 0) {
        char *colon = strchr(line, ':');
        if (!colon || strncmp(line, key, key_len) != 0)
            continue;
        /* Between key and colon /proc/cpuinfo has tabs. */
        if (strspn(line + key_len, " \t") != (size_t)(colon - line) - key_len)
            continue;
        colon++;
        colon += strspn(colon, " \t");
        colon[strcspn(colon, "\n")] = '\0';
        snprintf(buf, len, "%s", colon);
        found = true;
    }
    free(line);
    fclose(f);
    return found;
}

/* A field of /proc/meminfo in bytes (or as a bare number); 0 when there is none. */
static uint64_t meminfo(const char *key)
{
    char text[64];
    if (!read_field("/proc/meminfo", key, text, sizeof(text)))
        return 0;
    uint64_t value = strtoull(text, NULL, 10);
    return strstr(text, "kB") ? value * KIB : value;
}

static bool has_word(const char *list, const char *word)
{
    size_t len = strlen(word);
    for (const char *at = strstr(list, word); at; at = strstr(at + 1, word)) {
        if ((at == list || at[-1] == ' ') && (at[len] == ' ' || at[len] == '\0'))
            return true;
    }
    return false;
}

/* --- host --- */

static void check_kernel(struct report *report)
{
    struct utsname uts;
    if (uname(&uts) == 0)
        add(report, "host", "kernel", STATUS_NOTE, "%s %s", uts.sysname, uts.release);
}

static unsigned count_numa_nodes(void)
{
    DIR *dir = opendir("/sys/devices/system/node");
    if (!dir)
        return 1;
    unsigned nodes = 0;
    const struct dirent *entry;
    while ((entry = readdir(dir)) != NULL)
        nodes += strncmp(entry->d_name, "node", 4) == 0 && isdigit((unsigned char)entry->d_name[4]);
    closedir(dir);
    return nodes ? nodes : 1;
}

static void check_size(struct report *report)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    cpu_set_t set;
    int usable = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : (int)cores;
    add(report, "host", "processors", STATUS_NOTE, "%ld online, %d usable by this process", cores,
        usable);
    unsigned nodes = count_numa_nodes();
    add(report, "host", "NUMA nodes", STATUS_NOTE, "%u", nodes);

    char total[32], available[32], swap[32];
    add(report, "host", "memory", STATUS_NOTE, "%s, %s of it available; swap %s",
        size_format(meminfo("MemTotal"), total, sizeof(total)),
        size_format(meminfo("MemAvailable"), available, sizeof(available)),
        size_format(meminfo("SwapTotal"), swap, sizeof(swap)));
}

/* --- processor and KVM --- */

static void check_processor(struct report *report)
{
    char model[128] = "unknown", flags[4096] = "";
    read_field("/proc/cpuinfo", "model name", model, sizeof(model));
    read_field("/proc/cpuinfo", "flags", flags, sizeof(flags));
    bool vmx = has_word(flags, "vmx"), svm = has_word(flags, "svm");
    if (vmx || svm) {
        add(report, "kvm", "virtualization", STATUS_OK, "%s (%s)", vmx ? "Intel VT-x" : "AMD-V",
            model);
        return;
    }
    bool guest = has_word(flags, "hypervisor");
    struct item *item = add(report, "kvm", "virtualization", STATUS_LACK,
                            "neither vmx nor svm in the flags of %s%s", model,
                            guest ? ", which is itself virtual" : "");
    if (guest)
        advise(item, "have nested virtualization switched on by whoever runs this machine");
    else
        advise(item, "switch VT-x or SVM on in the firmware's setup");
}

/* Parameters of the module that is loaded: nested guests, nested paging. */
static void check_module(struct report *report)
{
    static const struct {
        const char *module, *paging;
    } modules[] = {
        {"kvm_intel", "ept"},
        {"kvm_amd",   "npt"}
    };
    for (size_t i = 0; i < ARRAY_LEN(modules); i++) {
        char path[128], value[16];
        snprintf(path, sizeof(path), "/sys/module/%s/parameters/%s", modules[i].module,
                 modules[i].paging);
        if (!read_text(path, value, sizeof(value)))
            continue;
        bool on = value[0] == 'Y' || value[0] == '1';
        struct item *item = add(report, "kvm", "nested paging", on ? STATUS_OK : STATUS_LACK,
                                "%s %s", modules[i].paging, on ? "on" : "off");
        if (!on)
            advise(item, "load %s with %s=1; without it guests are slow", modules[i].module,
                   modules[i].paging);
        snprintf(path, sizeof(path), "/sys/module/%s/parameters/nested", modules[i].module);
        if (read_text(path, value, sizeof(value)))
            add(report, "kvm", "nested guests", STATUS_NOTE, "%s in %s; Hull does not offer it",
                value[0] == 'Y' || value[0] == '1' ? "on" : "off", modules[i].module);
    }
}

static void check_capabilities(struct report *report, const struct kvm_host *host)
{
    size_t optional = 0, there = 0;
    for (size_t i = 0; i < kvm_capability_count; i++) {
        const struct kvm_capability *c = &kvm_capabilities[i];
        if (c->required)
            continue;
        optional++;
        if (kvm_host_check(host, c->number)) {
            there++;
            continue;
        }
        add(report, "kvm", "capability", STATUS_NOTE, "KVM_CAP_%s is not offered: %s", c->name,
            c->why);
    }
    add(report, "kvm", "capabilities", STATUS_OK, "all that are required, %zu of %zu optional",
        there, optional);
    add(report, "kvm", "vCPUs", STATUS_OK, "up to %d in a VM", host->vcpus_max);
}

static void check_kvm(struct report *report)
{
    check_processor(report);
    if (access("/dev/kvm", F_OK) == 0) {
        bool open = access("/dev/kvm", R_OK | W_OK) == 0;
        add(report, "kvm", "/dev/kvm", open ? STATUS_OK : STATUS_LACK, "there, %s",
            open ? "and open to this user" : "but not open to this user");
    }
    struct kvm_host host;
    struct err err = ERR_INIT;
    if (kvm_host_open(&host, &err) < 0) {
        add(report, "kvm", "KVM", STATUS_LACK, "%s", err.text);
        report->kvm.quality = ENGINE_UNUSABLE;
        snprintf(report->kvm.why, sizeof(report->kvm.why), "%.500s", err.text);
        return;
    }
    check_module(report);
    check_capabilities(report, &host);
    kvm_host_close(&host);
    engine_kvm.probe(&report->kvm);
    add(report, "kvm", "speed", report->kvm.quality == ENGINE_GOOD ? STATUS_OK : STATUS_LACK, "%s",
        report->kvm.why);
}

/* --- memory --- */

/* The word in brackets: "always [madvise] never". */
static bool selected(const char *text, char *buf, size_t len)
{
    const char *open = strchr(text, '['), *close = open ? strchr(open, ']') : NULL;
    if (!close)
        return false;
    snprintf(buf, len, "%.*s", (int)(close - open - 1), open + 1);
    return true;
}

static void check_memory(struct report *report)
{
    char text[128], mode[32];
    const char *thp = "/sys/kernel/mm/transparent_hugepage/enabled";
    if (read_text(thp, text, sizeof(text)) && selected(text, mode, sizeof(mode))) {
        bool on = strcmp(mode, "never") != 0;
        struct item *item = add(report, "memory", "huge pages", on ? STATUS_OK : STATUS_LACK,
                                "transparent huge pages: %s", mode);
        if (!on)
            advise(item, "echo madvise | sudo tee %s", thp);
    } else {
        add(report, "memory", "huge pages", STATUS_LACK,
            "this kernel has no transparent huge pages");
    }
    char size[32];
    add(report, "memory", "hugetlb", STATUS_NOTE, "%llu of %llu pages of %s free",
        (unsigned long long)meminfo("HugePages_Free"),
        (unsigned long long)meminfo("HugePages_Total"),
        size_format(meminfo("Hugepagesize"), size, sizeof(size)));
    if (!read_text("/sys/kernel/mm/ksm/run", text, sizeof(text))) {
        add(report, "memory", "KSM", STATUS_NOTE, "not in this kernel");
    } else {
        bool on = strcmp(text, "1") == 0;
        struct item *item = add(report, "memory", "KSM", STATUS_NOTE, "%s", on ? "on" : "off");
        if (!on)
            advise(item, "to share equal pages of many VMs: echo 1 | sudo tee "
                         "/sys/kernel/mm/ksm/run");
    }
}

/* --- devices --- */

static void check_device(struct report *report, const char *name, const char *path, const char *use,
                         const char *absent_advice)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd >= 0) {
        close(fd);
        add(report, "network", name, STATUS_OK, "%s, for %s", path, use);
        return;
    }
    int code = errno;
    struct item *item = add(report, "network", name, STATUS_LACK, "%s: %s (it is for %s)", path,
                            strerror(code), use);
    if (code == EACCES || code == EPERM)
        advise(item, "sudo setfacl -m u:$USER:rw %s", path);
    else
        advise(item, "%s", absent_advice);
}

/* The user network's process is looked for where this program lies. */
static void check_slirp(struct report *report)
{
    char path[PATH_MAX];
    ssize_t len = readlink("/proc/self/exe", path, sizeof(path) - sizeof("hull-slirp"));
    if (len <= 0)
        return;
    path[len] = '\0';
    char *slash = strrchr(path, '/');
    if (!slash)
        return;
    snprintf(slash + 1, sizeof(path) - (size_t)(slash + 1 - path), "hull-slirp");
    if (access(path, X_OK) == 0)
        add(report, "network", "user network", STATUS_OK, "%s", path);
    else
        advise(add(report, "network", "user network", STATUS_LACK, "%.300s: %s", path,
                   strerror(errno)),
               "install hull-slirp beside hull; without it, VMs of ordinary users have no network");
}

static void check_network(struct report *report)
{
    check_device(report, "tap", "/dev/net/tun", "bridged networks", "sudo modprobe tun");
    check_device(report, "vhost-net", "/dev/vhost-net", "packets handled in the kernel",
                 "sudo modprobe vhost_net");
    check_slirp(report);
}

/* --- isolation --- */

/* In a child: a user namespace, and in it one of another kind, which some systems forbid. 0 or
 * errno. */
static int try_namespaces(void)
{
    fflush(stdout);
    pid_t pid = fork();
    if (pid < 0)
        return errno;
    if (pid == 0) {
        int code = 0;
        if (unshare(CLONE_NEWUSER) < 0 || unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC) < 0)
            code = errno;
        _exit(code & 0xff);
    }
    int status;
    while (waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR)
            return errno;
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : EPERM;
}

static void check_namespaces(struct report *report)
{
    int code = try_namespaces();
    if (code == 0) {
        add(report, "isolation", "user namespaces", STATUS_OK, "can be created");
        return;
    }
    struct item *item = add(report, "isolation", "user namespaces", STATUS_LACK,
                            "cannot be created: %s", strerror(code));
    char value[16];
    if (read_text("/proc/sys/kernel/unprivileged_userns_clone", value, sizeof(value)) &&
        value[0] == '0')
        advise(item, "sudo sysctl kernel.unprivileged_userns_clone=1");
    else if (read_text("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", value,
                       sizeof(value)) &&
             value[0] == '1')
        advise(item, "give hull an AppArmor profile with `userns`, or sudo sysctl "
                     "kernel.apparmor_restrict_unprivileged_userns=0");
    else
        advise(item, "look at /proc/sys/user/max_user_namespaces, and at the seccomp filter of "
                     "the container, if this is one");
}

static void check_cgroup(struct report *report)
{
    struct statfs fs;
    if (statfs("/sys/fs/cgroup", &fs) < 0 || fs.f_type != CGROUP2_SUPER_MAGIC) {
        advise(add(report, "isolation", "cgroup v2", STATUS_LACK, "not mounted at /sys/fs/cgroup"),
               "boot with systemd.unified_cgroup_hierarchy=1");
        return;
    }
    /* "0::/path": where this process is. A delegated group may be written by its user. */
    char own[512] = "", path[600], controllers[256] = "";
    FILE *f = fopen("/proc/self/cgroup", "re");
    char *line = NULL;
    size_t line_len = 0;
    while (f && getline(&line, &line_len, f) >= 0) {
        if (strncmp(line, "0::", 3) == 0) {
            line[strcspn(line, "\n")] = '\0';
            snprintf(own, sizeof(own), "%s", line + 3);
        }
    }
    free(line);
    if (f)
        fclose(f);
    snprintf(path, sizeof(path), "/sys/fs/cgroup%s/cgroup.controllers", own);
    read_text(path, controllers, sizeof(controllers));
    snprintf(path, sizeof(path), "/sys/fs/cgroup%s/cgroup.procs", own);
    bool delegated = access(path, W_OK) == 0;
    struct item *item = add(report, "isolation", "cgroup v2", delegated ? STATUS_OK : STATUS_LACK,
                            "%s; controllers: %s",
                            delegated ? "may be used by this user" : "not delegated to this user",
                            controllers[0] ? controllers : "none");
    if (!delegated)
        advise(item, "start with `systemd-run --user --scope -p Delegate=yes hull ...`");
}

static void check_landlock(struct report *report)
{
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    if (abi > 0)
        add(report, "isolation", "Landlock", STATUS_OK, "ABI %ld", abi);
    else
        advise(add(report, "isolation", "Landlock", STATUS_LACK, "%s", strerror(errno)),
               "a kernel of 5.13 or later with landlock in its lsm= list");
}

static void check_seccomp(struct report *report)
{
    uint32_t action = SECCOMP_RET_KILL_PROCESS;
    if (syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) == 0)
        add(report, "isolation", "seccomp", STATUS_OK, "filters work");
    else
        add(report, "isolation", "seccomp", STATUS_LACK, "%s", strerror(errno));
}

static void check_selinux(struct report *report)
{
    char value[8];
    if (!read_text("/sys/fs/selinux/enforce", value, sizeof(value)))
        add(report, "isolation", "SELinux", STATUS_NOTE, "off");
    else
        add(report, "isolation", "SELinux", STATUS_NOTE, "%s",
            value[0] == '1' ? "enforcing" : "permissive");
}

static void check_uring(struct report *report)
{
    struct io_uring ring;
    int rc = io_uring_queue_init(4, &ring, 0);
    if (rc == 0) {
        io_uring_queue_exit(&ring);
        add(report, "host", "io_uring", STATUS_OK, "works");
        return;
    }
    struct item *item = add(report, "host", "io_uring", STATUS_LACK,
                            "%s: disks and network go through slower calls", strerror(-rc));
    char value[8];
    if (read_text("/proc/sys/kernel/io_uring_disabled", value, sizeof(value)) && value[0] != '0')
        advise(item, "sudo sysctl kernel.io_uring_disabled=0");
    else
        advise(item, "a kernel with io_uring, not forbidden by a container's seccomp filter");
}

/* --- output --- */

static const struct {
    const char *key, *title;
} sections[] = {
    {"host",      "Host"     },
    {"kvm",       "KVM"      },
    {"memory",    "Memory"   },
    {"network",   "Network"  },
    {"isolation", "Isolation"},
};

static void collect(struct report *report)
{
    check_kernel(report);
    check_size(report);
    check_uring(report);
    check_kvm(report);
    check_memory(report);
    check_network(report);
    check_namespaces(report);
    check_cgroup(report);
    check_landlock(report);
    check_seccomp(report);
    check_selinux(report);
}

/* Words of text from column `indent` on, broken before column 100; the first line is begun. */
static void print_wrapped(const char *text, int indent)
{
    const int width = 100;
    int column = indent;
    while (*text) {
        int len = (int)strcspn(text, " ");
        if (column > indent && column + 1 + len > width) {
            printf("\n%*s", indent, "");
            column = indent;
        } else if (column > indent) {
            putchar(' ');
            column++;
        }
        printf("%.*s", len, text);
        column += len;
        text += len;
        text += strspn(text, " ");
    }
    putchar('\n');
}

static void print_text(const struct report *report)
{
    for (size_t s = 0; s < ARRAY_LEN(sections); s++) {
        printf("%s%s\n", s ? "\n" : "", sections[s].title);
        for (size_t i = 0; i < report->count; i++) {
            const struct item *item = &report->items[i];
            if (strcmp(item->section, sections[s].key) != 0)
                continue;
            printf("  %-4s  %-15s  ", status_names[item->status], item->name);
            print_wrapped(item->value, 25);
            if (item->advice[0]) {
                printf("%23s> ", "");
                print_wrapped(item->advice, 25);
            }
        }
    }
    printf("\n%s\n",
           report->kvm.quality == ENGINE_GOOD
               ? "VMs run well here, by KVM."
               : "VMs run here on Hull's own processor (--engine soft), two to four times\n"
                 "slower than by KVM: see the lines marked \"lack\" under KVM.");
}

static bool print_json(const struct report *report)
{
    static const char *const qualities[] = {
        [ENGINE_UNUSABLE] = "unusable", [ENGINE_SLOW] = "slow", [ENGINE_GOOD] = "good"};
    json_t *items = json_array();
    for (size_t i = 0; i < report->count; i++) {
        const struct item *item = &report->items[i];
        json_t *object =
            json_pack("{s:s, s:s, s:s, s:s}", "section", item->section, "name", item->name,
                      "status", status_names[item->status], "value", item->value);
        if (object && item->advice[0])
            json_object_set_new(object, "advice", json_string(item->advice));
        json_array_append_new(items, object);
    }
    json_t *root =
        json_pack("{s:b, s:{s:s, s:f, s:s}, s:o}", "usable", report->kvm.quality == ENGINE_GOOD,
                  "kvm", "quality", qualities[report->kvm.quality], "guest_kernel_mips",
                  report->kvm.guest_kernel_mips, "why", report->kvm.why, "items", items);
    bool printed = root && json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6)) == 0;
    if (printed)
        putchar('\n');
    json_decref(root);
    return printed;
}

static const char usage[] =
    "Usage: hull host [--json]\n"
    "\n"
    "Look at this host: what it offers to VMs, what it lacks, and what to do about it.\n"
    "The exit status is 0 when VMs run by KVM here, 1 when only by --engine soft.\n"
    "\n"
    "  --json      one JSON object instead of text\n"
    "  --help      this text\n"
    "\n"
    "Examples:\n"
    "  hull host\n"
    "  hull host --json | jq '.items[] | select(.status == \"lack\")'\n"
    "  hull host >/dev/null && hull run disk.qcow2\n";

int host_main(int argc, char **argv)
{
    static const struct option options[] = {
        {"json", no_argument, NULL, 'j'},
        {"help",  no_argument, NULL, 'h'},
        {0     }
    };
    bool json = false;
    optind = 0; /* starts getopt afresh: another command's parse may have come before */
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        if (c == 'h') {
            fputs(usage, stdout);
            return 0;
        }
        if (c != 'j') {
            fputs("hull: try `hull host --help`\n", stderr);
            return 2;
        }
        json = true;
    }
    if (optind < argc) {
        fprintf(stderr, "hull: host: unexpected argument %s; try `hull host --help`\n",
                argv[optind]);
        return 2;
    }
    struct report *report = calloc(1, sizeof(*report));
    if (!report) {
        fputs("hull: host: out of memory\n", stderr);
        return 1;
    }
    collect(report);
    bool good = report->kvm.quality == ENGINE_GOOD;
    if (!json)
        print_text(report);
    else if (!print_json(report))
        good = false;
    free(report);
    return good ? 0 : 1;
}
