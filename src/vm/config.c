/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/config.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/units.h"
#include "vm/config_field.h"

/* One vCPU and a kernel fit into less, but no stock kernel does. */
#define MEMORY_MIN_BYTES (4 * MIB)
/* What the architecture can address (SDM vol. 3, 4.1.4); the board asks this host. */
#define MEMORY_MAX_BYTES (1ULL << 52)

int config_init(struct vm_config *config, struct err *err)
{
    memset(config, 0, sizeof(*config));
    config->engine = strdup("auto");
    if (!config->engine)
        return err_set(err, ENOMEM, "out of memory");
    config->cpus = 1;
    config->memory_bytes = 512 * MIB;
    config->memory_huge_pages = true;
    config->rng = true;
    config->on_reboot = 1; /* restart */
    return 0;
}

/* --- freeing, by the table --- */

static void fields_free(const struct config_field *fields, void *base);

static void field_free(const struct config_field *field, void *base)
{
    char *at = (char *)base + field->offset;

    switch (field->kind) {
    case CONFIG_STRING:
        free(*(char **)(void *)at);
        *(char **)(void *)at = NULL;
        break;
    case CONFIG_STRING_LIST: {
        char **list = (char **)(void *)at;
        unsigned *count = (unsigned *)(void *)((char *)base + field->count_offset);
        for (unsigned i = 0; i < *count; i++) {
            free(list[i]);
            list[i] = NULL;
        }
        *count = 0;
        break;
    }
    case CONFIG_FORWARDS: {
        struct config_net *net = base;
        free(net->forwards);
        net->forwards = NULL;
        net->forward_count = 0;
        break;
    }
    case CONFIG_GROUP:
        fields_free(field->sub, at);
        break;
    case CONFIG_GROUP_LIST: {
        unsigned *count = (unsigned *)(void *)((char *)base + field->count_offset);
        for (unsigned i = 0; i < *count; i++)
            fields_free(field->sub, at + i * field->elem_bytes);
        memset(at, 0, *count * field->elem_bytes);
        *count = 0;
        break;
    }
    case CONFIG_FLAG:
    case CONFIG_UINT:
    case CONFIG_SIZE:
    case CONFIG_ENUM:
    case CONFIG_MAC:
        break;
    }
}

static void fields_free(const struct config_field *fields, void *base)
{
    for (; fields->name; fields++)
        field_free(fields, base);
}

void config_fini(struct vm_config *config)
{
    fields_free(config_options, config);
}

void config_list_clear(const struct config_field *field, struct vm_config *config)
{
    field_free(field, config);
}

/* --- "did you mean" --- */

#define NEAREST_LEN_MAX 40

/* Levenshtein distance, of names short enough; else a large number. */
static unsigned edit_distance(const char *a, const char *b)
{
    size_t a_len = strlen(a), b_len = strlen(b);
    unsigned row[NEAREST_LEN_MAX + 1];

    if (a_len > NEAREST_LEN_MAX || b_len > NEAREST_LEN_MAX)
        return UINT_MAX;
    for (size_t j = 0; j <= b_len; j++)
        row[j] = (unsigned)j;
    for (size_t i = 1; i <= a_len; i++) {
        unsigned diagonal = row[0];
        row[0] = (unsigned)i;
        for (size_t j = 1; j <= b_len; j++) {
            unsigned best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[b_len];
}

const char *config_nearest(const char *typed, const char *const *names)
{
    const char *nearest = NULL;
    unsigned best = 1 + (unsigned)strlen(typed) / 3; /* two slips in a word of six */

    for (; *names; names++) {
        unsigned distance = edit_distance(typed, *names);
        size_t typed_len = strlen(typed);
        /* What was typed is the beginning of a name: "mem" for "memory". */
        if (typed_len >= 2 && strncmp(typed, *names, typed_len) == 0)
            distance = 1;
        if (distance <= best) {
            best = distance - (distance > 0);
            nearest = *names;
        }
    }
    return nearest;
}

#define FIELD_NAMES_MAX 40

const struct config_field *config_field_find(const struct config_field *fields, const char *name,
                                             const char *where, struct err *err)
{
    const char *names[FIELD_NAMES_MAX + 1];
    unsigned count = 0;

    for (const struct config_field *field = fields; field->name; field++) {
        if (strcmp(field->name, name) == 0)
            return field;
        if (count < FIELD_NAMES_MAX)
            names[count++] = field->name;
    }
    names[count] = NULL;
    const char *nearest = config_nearest(name, names);
    if (nearest)
        err_set(err, ENOENT, "%s has no option '%s'; did you mean '%s'?", where, name, nearest);
    else
        err_set(err, ENOENT, "%s has no option '%s'", where, name);
    return NULL;
}

/* --- values from text --- */

static int parse_uint(const char *text, unsigned long min, unsigned long max, unsigned long *out)
{
    char *end;

    if (!isdigit((unsigned char)text[0]))
        return -EINVAL;
    errno = 0;
    *out = strtoul(text, &end, 10);
    if (errno || *end || *out < min || *out > max)
        return -EINVAL;
    return 0;
}

static int parse_mac(const char *text, uint8_t mac[6])
{
    unsigned byte[6];

    /* sscanf() alone would take signs and spaces for digits. */
    if (strlen(text) != 17 || strspn(text, "0123456789abcdefABCDEF:") != 17 ||
        sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x", &byte[0], &byte[1], &byte[2], &byte[3], &byte[4],
               &byte[5]) != 6 ||
        (byte[0] & 1))
        return -EINVAL;
    for (int i = 0; i < 6; i++)
        mac[i] = (uint8_t)byte[i];
    return 0;
}

/* "[ADDR:]PORT" of len bytes; an IPv6 ADDR stands in brackets. */
static int parse_endpoint(const char *text, size_t len, char addr[46], uint16_t *port)
{
    char buf[80];
    unsigned long number;
    unsigned char binary[16];

    if (len >= sizeof(buf))
        return -EINVAL;
    memcpy(buf, text, len);
    buf[len] = '\0';
    char *colon = strrchr(buf, ':');
    const char *port_text = colon ? colon + 1 : buf;
    if (parse_uint(port_text, 1, 65535, &number) != 0)
        return -EINVAL;
    *port = (uint16_t)number;
    addr[0] = '\0';
    if (!colon || colon == buf)
        return 0;
    *colon = '\0';
    char *host = buf;
    size_t host_len = strlen(host);
    if (host[0] == '[' && host[host_len - 1] == ']') {
        host[host_len - 1] = '\0';
        host++;
        if (inet_pton(AF_INET6, host, binary) != 1)
            return -EINVAL;
    } else if (inet_pton(AF_INET, host, binary) != 1) {
        return -EINVAL;
    }
    memcpy(addr, host, strlen(host) + 1);
    return 0;
}

/* "tcp:[ADDR:]PORT-[ADDR:]PORT" */
static int parse_forward(const char *text, struct net_forward *forward)
{
    memset(forward, 0, sizeof(*forward));
    if (strncmp(text, "udp:", 4) == 0)
        forward->udp = true;
    else if (strncmp(text, "tcp:", 4) != 0)
        return -EINVAL;
    text += 4;
    const char *dash = strchr(text, '-');
    if (!dash)
        return -EINVAL;
    if (parse_endpoint(text, (size_t)(dash - text), forward->host_addr, &forward->host_port) != 0)
        return -EINVAL;
    return parse_endpoint(dash + 1, strlen(dash + 1), forward->guest_addr, &forward->guest_port);
}

static int set_forward(struct config_net *net, const char *value, struct err *err)
{
    struct net_forward forward;

    if (parse_forward(value, &forward) != 0)
        return err_set(err, EINVAL,
                       "'%s' is no forward; write e.g. forward=tcp:127.0.0.1:2222-:22 "
                       "(host address and port, then the guest's)",
                       value);
    if (net->forward_count == NET_FORWARDS_MAX)
        return err_set(err, EINVAL, "more than %d forwards", NET_FORWARDS_MAX);
    struct net_forward *grown = reallocarray(net->forwards, net->forward_count + 1, sizeof(*grown));
    if (!grown)
        return err_set(err, ENOMEM, "out of memory");
    net->forwards = grown;
    net->forwards[net->forward_count++] = forward;
    return 0;
}

static int set_flag(bool *flag, const char *value, struct err *err)
{
    if (!value || strcmp(value, "on") == 0) {
        *flag = true;
        return 0;
    }
    if (strcmp(value, "off") == 0) {
        *flag = false;
        return 0;
    }
    return err_set(err, EINVAL, "'%s' is neither on nor off", value);
}

static int set_enum(unsigned *index, const char *const *names, const char *value, struct err *err)
{
    char all[256] = "";

    for (unsigned i = 0; names[i]; i++) {
        if (strcmp(names[i], value) == 0) {
            *index = i;
            return 0;
        }
        size_t len = strlen(all);
        snprintf(all + len, sizeof(all) - len, "%s%s", i ? ", " : "", names[i]);
    }
    return err_set(err, EINVAL, "'%s' is none of %s", value, all);
}

static int set_string(char **string, const char *value, struct err *err)
{
    char *copy = strdup(value);

    if (!copy)
        return err_set(err, ENOMEM, "out of memory");
    free(*string);
    *string = copy;
    return 0;
}

int config_field_set(const struct config_field *field, void *base, const char *value,
                     struct err *err)
{
    void *at = (char *)base + field->offset;
    unsigned long number;

    if (!value && field->kind != CONFIG_FLAG)
        return err_set(err, EINVAL, "%s needs a value", field->name);
    switch (field->kind) {
    case CONFIG_STRING:
        return set_string(at, value, err);
    case CONFIG_FLAG:
        return set_flag(at, value, err);
    case CONFIG_UINT:
        if (parse_uint(value, field->min, field->max, &number) != 0)
            return err_set(err, EINVAL, "%s: '%s' is not a number from %u to %u", field->name,
                           value, field->min, field->max);
        *(unsigned *)at = (unsigned)number;
        return 0;
    case CONFIG_SIZE:
        return size_parse(value, MIB, at, err);
    case CONFIG_ENUM:
        return set_enum(at, field->names, value, err);
    case CONFIG_MAC:
        if (parse_mac(value, at) != 0)
            return err_set(err, EINVAL,
                           "'%s' is no MAC address of a single card; write e.g. 52:54:00:12:34:56",
                           value);
        return 0;
    case CONFIG_FORWARDS:
        return set_forward(base, value, err);
    case CONFIG_STRING_LIST: {
        unsigned *count = (unsigned *)(void *)((char *)base + field->count_offset);
        if (*count == field->count_max)
            return err_set(err, EINVAL, "more than %u of %s", field->count_max, field->name);
        char **slot = (char **)at + *count;
        *slot = NULL;
        int ret = set_string(slot, value, err);
        *count += ret == 0;
        return ret;
    }
    case CONFIG_GROUP:
    case CONFIG_GROUP_LIST:
        break;
    }
    return config_group_set(field, base, value, err);
}

/* --- groups: "first,name=value,flag" --- */

int config_group_new(const struct config_field *field, void *base, void **elem, struct err *err)
{
    char *at = (char *)base + field->offset;

    if (field->kind == CONFIG_GROUP) {
        *elem = at;
        return 0;
    }
    unsigned *count = (unsigned *)(void *)((char *)base + field->count_offset);
    if (*count == field->count_max)
        return err_set(err, EINVAL, "more than %u of --%s", field->count_max, field->name);
    *elem = at + *count * field->elem_bytes;
    memset(*elem, 0, field->elem_bytes);
    (*count)++;
    return 0;
}

void config_group_drop(const struct config_field *field, void *base)
{
    if (field->kind != CONFIG_GROUP_LIST)
        return;
    unsigned *count = (unsigned *)(void *)((char *)base + field->count_offset);
    (*count)--;
    fields_free(field->sub, (char *)base + field->offset + *count * field->elem_bytes);
}

/* Cut the next part off *rest: up to a single comma; a double one becomes one. NULL at the end. */
static char *next_part(char **rest)
{
    char *part = *rest, *to = part, *from = part;

    if (!part)
        return NULL;
    for (; *from; from++) {
        if (*from == ',') {
            if (from[1] != ',')
                break;
            from++;
        }
        *to++ = *from;
    }
    *rest = *from ? from + 1 : NULL;
    *to = '\0';
    return part;
}

static int set_parts(const struct config_field *field, void *elem, char *text, struct err *err)
{
    char *rest = text;
    char *part = next_part(&rest);
    char where[64];

    snprintf(where, sizeof(where), "--%s", field->name);
    int ret = config_field_set(&field->sub[0], elem, part, err);
    while (ret == 0 && (part = next_part(&rest))) {
        char *equals = strchr(part, '=');
        if (equals)
            *equals = '\0';
        const struct config_field *sub = config_field_find(field->sub, part, where, err);
        if (!sub)
            return -EINVAL;
        ret = config_field_set(sub, elem, equals ? equals + 1 : NULL, err);
    }
    return ret;
}

int config_group_set(const struct config_field *field, void *base, const char *value,
                     struct err *err)
{
    void *elem;
    int ret;

    if (value[0] == '\0')
        return err_set(err, EINVAL, "--%s needs a value", field->name);
    char *text = strdup(value);
    if (!text)
        return err_set(err, ENOMEM, "out of memory");
    ret = config_group_new(field, base, &elem, err);
    if (ret == 0) {
        ret = set_parts(field, elem, text, err);
        if (ret != 0)
            config_group_drop(field, base);
    }
    free(text);
    return ret;
}

/* "none" takes all cards away; "tap=NAME" is the short form of "tap,name=NAME". */
static int set_net(const struct config_field *field, struct vm_config *config, const char *value,
                   struct err *err)
{
    if (strcmp(value, "none") == 0) {
        config_list_clear(field, config);
        config->net_none = true;
        return 0;
    }
    config->net_none = false;
    if (strncmp(value, "tap=", 4) != 0)
        return config_group_set(field, config, value, err);
    char *expanded;
    if (asprintf(&expanded, "tap,name=%s", value + 4) < 0)
        return err_set(err, ENOMEM, "out of memory");
    int ret = config_group_set(field, config, expanded, err);
    free(expanded);
    return ret;
}

int config_set(struct vm_config *config, const char *option, const char *value, struct err *err)
{
    const struct config_field *field = config_field_find(config_options, option, "hull run", err);

    if (!field)
        return -ENOENT;
    int ret;
    if (strcmp(option, "net") == 0 && value)
        ret = set_net(field, config, value, err);
    else
        ret = config_field_set(field, config, value, err);
    if (ret != 0)
        err_prefix(err, "--%s", option);
    return ret;
}

/* --- defaults and checks across options --- */

/* A locally administered address that is the same for the same VM name and card. */
static void derive_mac(uint8_t mac[6], const char *name, unsigned index)
{
    uint64_t hash = 0xcbf29ce484222325ULL; /* FNV-1a */

    for (; *name; name++)
        hash = (hash ^ (uint8_t)*name) * 0x100000001b3ULL;
    hash = (hash ^ index) * 0x100000001b3ULL;
    mac[0] = 0x02;
    for (int i = 1; i < 6; i++)
        mac[i] = (uint8_t)(hash >> (8 * i));
}

static int fill_defaults(struct vm_config *config, struct err *err)
{
    static const uint8_t no_mac[6];

    /* The guest sees what follows from the name, and two runs on a virtual clock are equal. */
    int number = config->clock == CONFIG_CLOCK_VIRTUAL ? 0 : (int)getpid();
    if (!config->name && asprintf(&config->name, "hull-%d", number) < 0) {
        config->name = NULL;
        return err_set(err, ENOMEM, "out of memory");
    }
    if (config->serial_count == 0) {
        config->serials[0] = strdup("stdio");
        if (!config->serials[0])
            return err_set(err, ENOMEM, "out of memory");
        config->serial_count = 1;
    }
    if (!config->append) {
        /* What one wants to see of a kernel comes on COM1, which Linux has to be told. */
        config->append = strdup(strcmp(config->serials[0], "null") == 0 ? "" : "console=ttyS0");
        if (!config->append)
            return err_set(err, ENOMEM, "out of memory");
    }
    if (config->net_count == 0 && !config->net_none)
        config->net_count = 1; /* all zero: a user network */
    for (unsigned i = 0; i < config->net_count; i++) {
        struct config_net *net = &config->nets[i];
        if (memcmp(net->mac, no_mac, 6) == 0)
            derive_mac(net->mac, config->name, i);
        if (net->queues == 0)
            net->queues = 1;
    }
    for (unsigned i = 0; i < config->disk_count; i++) {
        if (config->disks[i].queues == 0)
            config->disks[i].queues = config->cpus < 4 ? config->cpus : 4;
    }
    return 0;
}

static int check_name(const char *name, struct err *err)
{
    size_t len = strlen(name);

    if (len == 0 || len > 63)
        return err_set(err, EINVAL, "--name: a name has 1 to 63 characters");
    for (size_t i = 0; i < len; i++) {
        if (!isalnum((unsigned char)name[i]) && (i == 0 || !strchr("-_.", name[i])))
            return err_set(err, EINVAL,
                           "--name %s: a name holds letters, digits, '-', '_', '.', and begins "
                           "with a letter or digit",
                           name);
    }
    return 0;
}

static int check_nets(const struct vm_config *config, struct err *err)
{
    for (unsigned i = 0; i < config->net_count; i++) {
        const struct config_net *net = &config->nets[i];
        if (net->kind == CONFIG_NET_USER && (net->tap_name || net->queues > 1))
            return err_set(err, EINVAL, "--net user takes neither a name nor several queues");
        if (net->kind == CONFIG_NET_TAP && (net->forward_count || net->restricted))
            return err_set(err, EINVAL,
                           "--net tap takes no forward and no restriction: they are the host's "
                           "firewall's business");
        if (net->tap_name && strlen(net->tap_name) > 15)
            return err_set(err, EINVAL, "--net tap=%s: an interface name has at most 15 characters",
                           net->tap_name);
    }
    return 0;
}

static int check_stdio(const struct vm_config *config, struct err *err)
{
    unsigned users = config->console && strcmp(config->console, "stdio") == 0;

    for (unsigned i = 0; i < config->serial_count; i++)
        users += strcmp(config->serials[i], "stdio") == 0;
    if (users > 1)
        return err_set(err, EINVAL,
                       "stdio serves one port at a time; give the others pty, file:PATH or null "
                       "(for the virtio console on the terminal: --serial null --console stdio)");
    return 0;
}

int config_finish(struct vm_config *config, struct err *err)
{
    char size[32];
    int ret = fill_defaults(config, err);

    if (ret == 0)
        ret = check_name(config->name, err);
    if (ret != 0)
        return ret;
    if (!config->kernel)
        return err_set(err, EINVAL,
                       "no kernel: give one with --kernel FILE (firmware boot from a disk is not "
                       "in this version)");
    if (config->memory_bytes < MEMORY_MIN_BYTES)
        return err_set(err, EINVAL, "--memory: %s is too small for any guest; give at least 4M",
                       size_format(config->memory_bytes, size, sizeof(size)));
    if (config->memory_bytes > MEMORY_MAX_BYTES)
        return err_set(err, EINVAL, "--memory: more than the 4096 TiB that x86 can address");
    if (config->memory_bytes % PAGE_SIZE_BYTES)
        return err_set(err, EINVAL, "--memory: not a multiple of 4 KiB");
    for (unsigned i = 0; i < config->disk_count; i++) {
        const char *serial = config->disks[i].serial;
        if (serial && strlen(serial) > 20)
            return err_set(err, EINVAL, "--disk %s: a serial has at most 20 characters",
                           config->disks[i].path);
    }
    ret = check_nets(config, err);
    return ret != 0 ? ret : check_stdio(config, err);
}
