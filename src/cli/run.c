/* SPDX-License-Identifier: Apache-2.0 */
/* hull run: the command line to a configuration, the configuration to a VM, and its exit status. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"
#include "cli/cli.h"
#include "vm/config.h"
#include "vm/vm.h"

/* Where the value of an option begins to be explained, as in "      --cpus N". */
#define HELP_INDENT 6

static void print_help(void)
{
    printf("Usage: hull run --kernel FILE [OPTION...]\n\n"
           "Runs a virtual machine in this process until the guest powers off. The guest's first\n"
           "serial port is the terminal: Ctrl-A x ends the VM, Ctrl-A h lists the other keys.\n");
    for (const struct config_field *option = config_options; option->name; option++) {
        if (option->section)
            printf("\n%s:\n", option->section);
        printf("  --%s%s%s\n%*s%s\n", option->name, option->value ? " " : "",
               option->value ? option->value : "", HELP_INDENT, "", option->help);
    }
    printf("\nGeneral:\n"
           "  --config FILE\n      read the machine from a JSON file; later options change it\n"
           "  --print-config\n      write the machine as such a file, and do not run it\n"
           "  --log LEVEL[,file=PATH]\n      error, warn (the default), info, debug or trace\n\n"
           "Exit status: 0 the guest powered off, 1 the VM could not start, 2 wrong usage,\n"
           "3 guest panic, 4 triple fault, 5 the engine failed, 6 reboot with --on-reboot exit,\n"
           "7 Ctrl-A x, 128+N ended by signal N.\n\n"
           "Examples:\n"
           "  hull run --kernel vmlinuz --initrd initrd.img --disk disk.img --append "
           "'console=ttyS0 root=/dev/vda'\n"
           "  hull run --cpus 4 --memory 4G --kernel vmlinux --disk a.raw --disk b.raw,readonly\n"
           "  hull run --kernel vmlinuz --net user,forward=tcp:127.0.0.1:2222-:22\n"
           "  hull run --kernel xen.gz --boot multiboot2 --module vmlinuz,args=console=hvc0 "
           "--module initrd.img\n");
}

/* What the command line asks for besides the machine. */
struct run_request {
    bool help;
    bool print_config;
};

/* Is name an option that stands alone? */
static bool is_flag(const char *name)
{
    for (const struct config_field *option = config_options; option->name; option++) {
        if (strcmp(option->name, name) == 0)
            return option->kind == CONFIG_FLAG && !option->value;
    }
    return strcmp(name, "help") == 0 || strcmp(name, "print-config") == 0;
}

static int apply_option(struct vm_config *config, struct run_request *request, const char *name,
                        const char *value, struct err *err)
{
    if (strcmp(name, "help") == 0) {
        request->help = true;
        return 0;
    }
    if (strcmp(name, "print-config") == 0) {
        request->print_config = true;
        return 0;
    }
    bool is_config = strcmp(name, "config") == 0;
    if (is_config || strcmp(name, "log") == 0) {
        if (!value)
            return err_set(err, EINVAL, "--%s needs a value", name);
        return is_config ? config_load(config, value, err) : log_configure(value, err);
    }
    return config_set(config, name, value, err);
}

/* One word of the command line, and its value, which may be the next word. *i is moved past both.
 */
static int parse_word(struct vm_config *config, struct run_request *request, int argc, char **argv,
                      int *i, struct err *err)
{
    const char *word = strcmp(argv[*i], "-h") == 0 ? "--help" : argv[*i];
    char name[64];

    if (strncmp(word, "--", 2) != 0 || !word[2])
        return err_set(err, EINVAL,
                       "unexpected '%s': every option begins with '--' (a disk is --disk FILE, a "
                       "kernel --kernel FILE)",
                       word);
    const char *equals = strchr(word, '=');
    size_t len = equals ? (size_t)(equals - word) - 2 : strlen(word) - 2;
    if (len >= sizeof(name))
        return err_set(err, EINVAL, "no option '%.40s...'", word);
    memcpy(name, word + 2, len);
    name[len] = '\0';
    const char *value = equals ? equals + 1 : NULL;
    if (!equals && !is_flag(name) && *i + 1 < argc)
        value = argv[++*i];
    (*i)++;
    return apply_option(config, request, name, value, err);
}

static int run_config(struct vm_config *config, struct err *err)
{
    struct vm *vm;

    if (vm_new(&vm, config, err) != 0)
        return VM_END_ERROR;
    *err = (struct err)ERR_INIT; /* of what vm_new() tried and did without */
    int status = vm_run(vm);
    vm_free(vm);
    return status;
}

static int run(struct vm_config *config, int argc, char **argv, struct err *err)
{
    struct run_request request = {0};

    for (int i = 1; i < argc;) {
        if (parse_word(config, &request, argc, argv, &i, err) != 0)
            return VM_END_USAGE;
    }
    if (request.help) {
        print_help();
        return 0;
    }
    if (config_finish(config, err) != 0)
        return VM_END_USAGE;
    if (request.print_config)
        return config_print(config, stdout, err) == 0 ? 0 : VM_END_ERROR;
    return run_config(config, err);
}

int run_main(int argc, char **argv)
{
    struct vm_config config;
    struct err err = ERR_INIT;
    int status = VM_END_ERROR;

    if (config_init(&config, &err) == 0)
        status = run(&config, argc, argv, &err);
    if (err.code != 0)
        fprintf(stderr, "hull: %s\n", err.text);
    config_fini(&config);
    return status;
}
