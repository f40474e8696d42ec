/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli.h"

#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/tap.h"

static char output[65536];

/* Run the command with standard output and error into `output`. */
static int run(int argc, char **argv)
{
    char path[] = "/tmp/hull-host-test-XXXXXX";
    int file = mkstemp(path);
    fflush(stdout);
    fflush(stderr);
    int saved_out = dup(1), saved_err = dup(2);
    dup2(file, 1);
    dup2(file, 2);
    int status = host_main(argc, argv);
    fflush(stdout);
    fflush(stderr);
    dup2(saved_out, 1);
    dup2(saved_err, 2);
    close(saved_out);
    close(saved_err);
    ssize_t n = pread(file, output, sizeof(output) - 1, 0);
    output[n > 0 ? n : 0] = '\0';
    close(file);
    unlink(path);
    return status;
}

static bool longest_line_fits(size_t limit)
{
    for (const char *line = output; *line;) {
        size_t len = strcspn(line, "\n");
        if (len > limit) {
            printf("# too long: %.*s\n", (int)len, line);
            return false;
        }
        line += len + (line[len] == '\n');
    }
    return true;
}

int main(void)
{
    char *text[] = {"host", NULL}, *json[] = {"host", "--json", NULL},
         *help[] = {"host", "--help", NULL}, *wrong[] = {"host", "--nonsense", NULL},
         *extra[] = {"host", "argument", NULL};

    is_int(run(2, help), 0, "--help");
    ok(strstr(output, "Examples:") != NULL, "has examples");
    is_int(run(2, wrong), 2, "an unknown option");
    is_int(run(2, extra), 2, "an argument");

    int status = run(1, text);
    ok(status == 0 || status == 1, "the text");
    ok(strstr(output, "\nKVM\n") && strstr(output, "\nIsolation\n"), "has its sections");
    ok(longest_line_fits(160), "in lines that fit");

    int json_status = run(2, json);
    is_int(json_status, status, "--json has the same exit status");
    json_error_t error;
    json_t *root = json_loads(output, 0, &error);
    ok(root != NULL, "and is JSON");
    is_int(json_is_true(json_object_get(root, "usable")), status == 0,
           "that says whether it is usable");
    ok(json_string_length(json_object_get(json_object_get(root, "kvm"), "why")) > 0, "and why");
    const json_t *items = json_object_get(root, "items");
    ok(json_array_size(items) > 15, "with the items");
    bool complete = true;
    for (size_t i = 0; i < json_array_size(items); i++) {
        const json_t *item = json_array_get(items, i);
        complete &= json_string_length(json_object_get(item, "name")) > 0 &&
                    json_string_length(json_object_get(item, "status")) > 0 &&
                    json_string_length(json_object_get(item, "value")) > 0;
    }
    ok(complete, "each with name, status and value");
    json_decref(root);
    return tap_done();
}
