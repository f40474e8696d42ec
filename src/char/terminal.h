/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The controlling terminal's mode. A terminal must never be left raw, so there is one place for the
 * process that remembers how it was: the exception to "no globals", since a signal handler needs
 * it.
 *
 * Threads: raw by one at a time; char_restore_terminal(), declared in char.h and defined here, by
 * anyone.
 */
#ifndef HULL_CHAR_TERMINAL_H
#define HULL_CHAR_TERMINAL_H

#include <stdbool.h>

/* Standard input and output have one user at a time: false while there is one. */
bool terminal_claim(void);
/* Gives them back, and the terminal its mode. */
void terminal_release(void);

/*
 * Make the terminal fd raw, until char_restore_terminal() or exit(). False: it is none, or we are
 * in the background and it is not ours.
 */
bool terminal_raw(int fd);

#endif
