/* SPDX-License-Identifier: Apache-2.0 */
/* Stage 7: the allow-list of the caller as a seccomp filter. */
#include <errno.h>
#include <seccomp.h>

#include "base/err.h"
#include "jail/stages.h"

static int add_rule(scmp_filter_ctx filter, const struct jail_syscall *line)
{
    uint32_t action = line->refuse ? SCMP_ACT_ERRNO((uint32_t)line->refuse) : SCMP_ACT_ALLOW;
    struct scmp_arg_cmp cmp = {
        .arg = line->arg,
        .op = SCMP_CMP_MASKED_EQ,
        .datum_a = line->mask,
        .datum_b = line->value,
    };

    return seccomp_rule_add_array(filter, action, line->number, line->mask ? 1 : 0, &cmp);
}

int jail_seccomp(const struct jail_options *options, struct err *err)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
    int ret;

    if (!filter)
        return err_set(err, ENOMEM, "cannot make a system call filter");
    /* A call made through another ABI (i386, x32) ends the process as well; no_new_privs is set
     * already; and the rules become a binary tree, since the filter runs a few times a packet. */
    ret = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    if (ret == 0)
        ret = seccomp_attr_set(filter, SCMP_FLTATR_CTL_NNP, 0);
    if (ret == 0)
        ret = seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    for (unsigned i = 0; ret == 0 && i < options->syscall_count; i++)
        ret = add_rule(filter, &options->syscalls[i]);
    if (ret == 0)
        ret = seccomp_load(filter);
    seccomp_release(filter);
    if (ret < 0)
        return err_errno(err, ret,
                         "the kernel takes no system call filter (is CONFIG_SECCOMP_FILTER on?)");
    return 0;
}
