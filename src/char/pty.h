/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pseudo-terminal (pty(7)): we hold the master, people open the other side by its name, come and
 * go. While nobody has it open, poll(2) reports POLLHUP on the master without end; that somebody
 * opened it is learnt from inotify(7), so that an idle console costs nothing.
 *
 * Threads: belongs to its caller; no locking.
 */
#ifndef HULL_CHAR_PTY_H
#define HULL_CHAR_PTY_H

#include <stdbool.h>

struct err;

struct pty {
    int master; /* O_NONBLOCK */
    int watch;  /* inotify: readable when the other side was opened; -1: look now and then */
    char name[64];
};

/* The other side starts raw: no echo, no line editing. Returns 0 or -errno with err filled. */
int pty_open(struct pty *pty, struct err *err);

/* Forget what the watch told so far. */
void pty_watch_clear(struct pty *pty);

/* Has somebody the other side open, or left input behind? */
bool pty_in_use(const struct pty *pty);

/* Wait until the reader took what was written to the master: closing it would destroy that. False:
 * not until deadline_ns. */
bool pty_linger(const struct pty *pty, unsigned long long deadline_ns);

void pty_close(struct pty *pty);

#endif
