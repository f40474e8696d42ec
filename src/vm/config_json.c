/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configuration as JSON: an object with the names of the command line's options as keys. A
 * value may be what the command line takes, as a string ("disk": ["a.raw,readonly"]), or spelled
 * out
 * ("disk": [{"path": "a.raw", "readonly": true}]), which is how it is written.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/units.h"
#include "vm/config_field.h"

#define CONFIG_FILE_MAX_BYTES (1 * MIB)

/* --- reading --- */

static int load_fields(const struct config_field *fields, void *base, const json_t *object,
                       const char *where, struct err *err);

static int load_scalar(const struct config_field *field, void *base, const json_t *value,
                       struct err *err)
{
    char number[32];

    if (json_is_string(value))
        return config_field_set(field, base, json_string_value(value), err);
    if (json_is_boolean(value) && field->kind == CONFIG_FLAG)
        return config_field_set(field, base, json_is_true(value) ? "on" : "off", err);
    if (json_is_integer(value) && (field->kind == CONFIG_UINT || field->kind == CONFIG_SIZE)) {
        /* A size written as a number is in bytes: JSON has no units to mistake it for. */
        snprintf(number, sizeof(number), "%lld%s", (long long)json_integer_value(value),
                 field->kind == CONFIG_SIZE ? "B" : "");
        return config_field_set(field, base, number, err);
    }
    return err_set(err, EINVAL, "the value of '%s' is of the wrong type", field->name);
}

static int load_group(const struct config_field *field, void *base, const json_t *value,
                      struct err *err)
{
    void *elem;

    if (!json_is_object(value))
        return load_scalar(field, base, value, err);
    int ret = config_group_new(field, base, &elem, err);
    if (ret == 0) {
        ret = load_fields(field->sub, elem, value, field->name, err);
        if (ret != 0)
            config_group_drop(field, base);
    }
    return ret;
}

static int load_value(const struct config_field *field, void *base, const json_t *value,
                      struct err *err)
{
    bool list = field->kind == CONFIG_GROUP_LIST || field->kind == CONFIG_STRING_LIST ||
                field->kind == CONFIG_FORWARDS;
    size_t i;
    const json_t *item;

    if (!list || !json_is_array(value))
        return field->kind == CONFIG_GROUP || field->kind == CONFIG_GROUP_LIST
                   ? load_group(field, base, value, err)
                   : load_scalar(field, base, value, err);
    json_array_foreach(value, i, item)
    {
        int ret = field->kind == CONFIG_GROUP_LIST ? load_group(field, base, item, err)
                                                   : load_scalar(field, base, item, err);
        if (ret != 0)
            return ret;
    }
    return 0;
}

static int load_fields(const struct config_field *fields, void *base, const json_t *object,
                       const char *where, struct err *err)
{
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        const struct config_field *field = config_field_find(fields, key, where, err);
        if (!field)
            return -EINVAL;
        int ret = load_value(field, base, value, err);
        if (ret != 0)
            return ret;
    }
    /* The first field of a group is the one that it cannot do without. */
    if (fields != config_options && fields[0].kind == CONFIG_STRING &&
        !json_object_get(object, fields[0].name))
        return err_set(err, EINVAL, "%s needs '%s'", where, fields[0].name);
    return 0;
}

/* "net": "none" and "net": [] take the network away; "tap=NAME" is for the command line's form. */
static int load_net(struct vm_config *config, const json_t *net, struct err *err)
{
    size_t i;
    const json_t *item;

    if (json_is_string(net))
        return config_set(config, "net", json_string_value(net), err);
    if (!json_is_array(net))
        return err_set(err, EINVAL, "'net' is neither a list nor a string");
    if (json_array_size(net) == 0)
        return config_set(config, "net", "none", err);
    const struct config_field *field = config_field_find(config_options, "net", "hull run", err);
    json_array_foreach(net, i, item)
    {
        int ret = json_is_string(item) ? config_set(config, "net", json_string_value(item), err)
                                       : load_group(field, config, item, err);
        if (ret != 0)
            return ret;
        if (!json_is_string(item))
            config->net_none = false;
    }
    return 0;
}

int config_parse(struct vm_config *config, const char *text, size_t len, const char *source,
                 struct err *err)
{
    json_error_t json_err;
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &json_err);

    if (!root)
        return err_set(err, EINVAL, "%s: line %d: %s", source, json_err.line, json_err.text);
    int ret = 0;
    if (!json_is_object(root)) {
        ret = err_set(err, EINVAL, "%s: not a JSON object", source);
    } else {
        json_t *net = json_incref(json_object_get(root, "net"));
        if (net) {
            json_object_del(root, "net");
            ret = load_net(config, net, err);
            json_decref(net);
        }
        if (ret == 0)
            ret = load_fields(config_options, config, root, "the configuration", err);
        if (ret != 0)
            err_prefix(err, "%s", source);
    }
    json_decref(root);
    return ret;
}

/* To the end of the file, which may be a pipe; at most CONFIG_FILE_MAX_BYTES. */
static int read_whole(int fd, const char *path, char *text, size_t *len, struct err *err)
{
    for (*len = 0;;) {
        ssize_t got = read(fd, text + *len, CONFIG_FILE_MAX_BYTES + 1 - *len);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_errno(err, errno, "--config %s", path);
        *len += (size_t)got;
        if (got == 0)
            return 0;
        if (*len > CONFIG_FILE_MAX_BYTES)
            return err_set(err, EFBIG, "--config %s: larger than 1 MiB", path);
    }
}

int config_load(struct vm_config *config, const char *path, struct err *err)
{
    size_t len = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);

    if (fd < 0)
        return err_errno(err, errno, "--config %s", path);
    char *text = malloc(CONFIG_FILE_MAX_BYTES + 1);
    int ret = text ? read_whole(fd, path, text, &len, err) : err_set(err, ENOMEM, "out of memory");
    if (ret == 0)
        ret = config_parse(config, text, len, path, err);
    free(text);
    close(fd);
    return ret;
}

/* --- writing --- */

static json_t *forward_json(const struct net_forward *forward)
{
    const char *open_host = strchr(forward->host_addr, ':') ? "[" : "";
    const char *close_host = *open_host ? "]" : "";
    const char *open_guest = strchr(forward->guest_addr, ':') ? "[" : "";
    const char *close_guest = *open_guest ? "]" : "";

    return json_sprintf("%s:%s%s%s:%u-%s%s%s:%u", forward->udp ? "udp" : "tcp", open_host,
                        forward->host_addr, close_host, forward->host_port, open_guest,
                        forward->guest_addr, close_guest, forward->guest_port);
}

static json_t *fields_json(const struct config_field *fields, const void *base);

static json_t *list_json(const struct config_field *field, const void *base)
{
    const char *at = (const char *)base + field->offset;
    const struct config_net *net = base; /* FORWARDS */
    bool forwards = field->kind == CONFIG_FORWARDS;
    unsigned count =
        forwards ? net->forward_count
                 : *(const unsigned *)(const void *)((const char *)base + field->count_offset);
    json_t *list = json_array();

    for (unsigned i = 0; i < count; i++) {
        json_t *item;
        if (forwards)
            item = forward_json(&net->forwards[i]);
        else if (field->kind == CONFIG_STRING_LIST)
            item = json_string(((const char *const *)(const void *)at)[i]);
        else
            item = fields_json(field->sub, at + i * field->elem_bytes);
        if (json_array_append_new(list, item) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

/* Is there nothing to say of it? A group is not there when its first field, which it cannot do
 * without, is not. */
static bool field_absent(const struct config_field *field, const void *base)
{
    const void *at = (const char *)base + field->offset;

    if (field->kind == CONFIG_GROUP && field->sub[0].kind == CONFIG_STRING)
        return field_absent(&field->sub[0], at);
    return (field->kind == CONFIG_STRING && !*(char *const *)at) ||
           (field->kind == CONFIG_FORWARDS &&
            ((const struct config_net *)base)->forward_count == 0);
}

/* NULL: out of memory, or a string that JSON cannot hold. */
static json_t *field_json(const struct config_field *field, const void *base)
{
    const void *at = (const char *)base + field->offset;
    const uint8_t *mac = at;

    switch (field->kind) {
    case CONFIG_STRING:
        return json_string(*(char *const *)at);
    case CONFIG_FLAG:
        return json_boolean(*(const bool *)at);
    case CONFIG_UINT:
        return json_integer(*(const unsigned *)at);
    case CONFIG_SIZE:
        return json_integer((json_int_t) * (const uint64_t *)at);
    case CONFIG_ENUM:
        return json_string(field->names[*(const unsigned *)at]);
    case CONFIG_MAC:
        return json_sprintf("%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4],
                            mac[5]);
    case CONFIG_GROUP:
        return fields_json(field->sub, at);
    case CONFIG_FORWARDS:
    case CONFIG_STRING_LIST:
    case CONFIG_GROUP_LIST:
        break;
    }
    return list_json(field, base);
}

static json_t *fields_json(const struct config_field *fields, const void *base)
{
    json_t *object = json_object();

    for (; fields->name; fields++) {
        if (field_absent(fields, base))
            continue;
        if (json_object_set_new(object, fields->name, field_json(fields, base)) != 0) {
            json_decref(object);
            return NULL;
        }
    }
    return object;
}

int config_print(const struct vm_config *config, FILE *out, struct err *err)
{
    json_t *root = fields_json(config_options, config);

    if (!root)
        return err_set(err, EILSEQ, "a value is not UTF-8, which JSON cannot hold");
    int ret = json_dumpf(root, out, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    json_decref(root);
    if (ret != 0 || fputc('\n', out) == EOF)
        return err_set(err, EIO, "cannot write the configuration");
    return 0;
}
