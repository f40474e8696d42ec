/* SPDX-License-Identifier: Apache-2.0 */
/* Dispatch of subcommands, and the only exit. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "vm/config.h"
#include "vm/vm.h"

struct command {
    const char *name;
    const char *help;
    int (*main)(int argc, char **argv);
};

static const struct command commands[] = {
    {"run",  "run a virtual machine until it ends",               run_main },
    {"host", "say whether this machine can run VMs and how well", host_main},
};

#define COMMAND_COUNT (sizeof(commands) / sizeof(commands[0]))

static void print_help(FILE *out)
{
    fprintf(out, "hull " HULL_VERSION " - runs virtual machines\n\n"
                 "Usage: hull COMMAND [OPTION...]\n\n"
                 "Commands:\n");
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        fprintf(out, "  %-8s %s\n", commands[i].name, commands[i].help);
    fprintf(out, "\nExamples:\n"
                 "  hull run --kernel vmlinuz --initrd initrd.img --disk disk.img\n"
                 "  hull host\n\n"
                 "'hull COMMAND --help' explains a command; 'man hull' explains everything.\n");
}

static int unknown_command(const char *name)
{
    const char *names[COMMAND_COUNT + 1];

    for (size_t i = 0; i < COMMAND_COUNT; i++)
        names[i] = commands[i].name;
    names[COMMAND_COUNT] = NULL;
    const char *nearest = config_nearest(name, names);
    if (nearest)
        fprintf(stderr, "hull: no command '%s'; did you mean 'hull %s'?\n", name, nearest);
    else
        fprintf(stderr, "hull: no command '%s'; 'hull --help' lists them\n", name);
    return VM_END_USAGE;
}

static int dispatch(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";

    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        print_help(stdout);
        return 0;
    }
    if (strcmp(name, "--version") == 0 || strcmp(name, "version") == 0) {
        printf("hull " HULL_VERSION "\n");
        return 0;
    }
    if (argc < 2) {
        print_help(stderr);
        return VM_END_USAGE;
    }
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(name, commands[i].name) == 0)
            return commands[i].main(argc - 1, argv + 1);
    }
    return unknown_command(name);
}

/*
 * A standard descriptor that our parent closed would be given to the next file opened: a disk that
 * takes the log, or a kernel that takes the console. Hold its place with one that fails on use.
 */
static bool hold_standard_fds(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF &&
            open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd)
            return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    if (!hold_standard_fds())
        return VM_END_ERROR;
    int status = dispatch(argc, argv);

    if (fflush(stdout) != 0 && status == 0) {
        fprintf(stderr, "hull: cannot write to standard output\n");
        status = VM_END_ERROR;
    }
    return status;
}
