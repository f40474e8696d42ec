/* SPDX-License-Identifier: Apache-2.0 */
/* The smallest program: it ends. Static, without a C library. */

void _start(void);

void _start(void)
{
    __asm__ volatile("syscall" : : "a"(60 /* exit */), "D"(0));
    __builtin_unreachable();
}
