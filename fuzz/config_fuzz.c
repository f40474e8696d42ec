/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Configurations. An input that begins with '{' is a JSON file; any other is a list of lines
 * "option=value" or "option", as on the command line. What is accepted is written, read back and
 * written again: the two must be the same, byte by byte.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "vm/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool good)
{
    if (!good)
        abort();
}

/* An error is one line of text with its code. */
static void check_error(int ret, const struct err *err)
{
    check(ret <= 0);
    check(ret == 0 || (err->code < 0 && err->text[0]));
}

static int set_lines(struct vm_config *config, char *text, struct err *err)
{
    char *save = NULL;
    int ret = 0;

    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *equals = strchr(line, '=');
        if (equals)
            *equals = '\0';
        ret = config_set(config, line, equals ? equals + 1 : NULL, err);
        check_error(ret, err);
        /* A refused option leaves the rest as it was: go on. */
    }
    return 0;
}

/* NULL: it cannot be written. */
static char *written(const struct vm_config *config)
{
    char *text = NULL;
    size_t len;
    struct err err = ERR_INIT;
    FILE *out = open_memstream(&text, &len);

    check(out != NULL);
    int ret = config_print(config, out, &err);
    fclose(out);
    check_error(ret, &err);
    if (ret == 0)
        return text;
    check(ret == -EILSEQ);
    free(text);
    return NULL;
}

static void round_trip(const struct vm_config *config)
{
    char *first = written(config);
    struct vm_config again;
    struct err err = ERR_INIT;

    if (!first)
        return;
    check(config_init(&again, &err) == 0);
    check(config_parse(&again, first, strlen(first), "again", &err) == 0);
    check(config_finish(&again, &err) == 0);
    char *second = written(&again);
    check(second && strcmp(first, second) == 0);
    config_fini(&again);
    free(second);
    free(first);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct vm_config config;
    struct err err = ERR_INIT;
    /* Of exactly this size, so that the sanitizer sees a read beyond it. */
    char *text = malloc(size + 1);

    check(text && config_init(&config, &err) == 0);
    if (size > 0)
        memcpy(text, data, size);
    text[size] = '\0';
    int ret;
    if (size > 0 && data[0] == '{') {
        char *exact = malloc(size);
        check(exact != NULL);
        memcpy(exact, data, size);
        ret = config_parse(&config, exact, size, "input", &err);
        free(exact);
    } else {
        ret = set_lines(&config, text, &err);
    }
    check_error(ret, &err);
    if (ret == 0) {
        ret = config_finish(&config, &err);
        check_error(ret, &err);
    }
    if (ret == 0)
        round_trip(&config);
    config_fini(&config);
    free(text);
    return 0;
}
