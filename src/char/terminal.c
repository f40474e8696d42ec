/* SPDX-License-Identifier: Apache-2.0 */
#include "char/terminal.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

#include "base/log.h"
#include "char/char.h"

static struct {
    int raw; /* atomic; the rest is valid while it is set */
    int fd;
    struct termios before;
    bool claimed; /* atomic */
    bool at_exit; /* char_restore_terminal() is registered */
} terminal;

/* A background process is stopped by SIGTTOU when it touches the terminal, unless that is blocked.
 * Async-signal-safe. */
static int attributes_set(int fd, const struct termios *mode)
{
    sigset_t block, old;
    int r;

    sigemptyset(&block);
    sigaddset(&block, SIGTTOU);
    pthread_sigmask(SIG_BLOCK, &block, &old);
    do
        r = tcsetattr(fd, TCSANOW, mode);
    while (r < 0 && errno == EINTR);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return r;
}

bool terminal_claim(void)
{
    return !__atomic_exchange_n(&terminal.claimed, true, __ATOMIC_ACQ_REL);
}

void terminal_release(void)
{
    char_restore_terminal();
    log_set_raw_terminal(false);
    __atomic_store_n(&terminal.claimed, false, __ATOMIC_RELEASE);
}

bool terminal_raw(int fd)
{
    struct termios mode;

    if (tcgetattr(fd, &mode) < 0)
        return false;
    /* -1 (ENOTTY): it is a terminal, but no controlling one, and nobody arbitrates it. */
    pid_t foreground = tcgetpgrp(fd);
    if (foreground >= 0 && foreground != getpgrp())
        return false;
    if (__atomic_load_n(&terminal.raw, __ATOMIC_ACQUIRE))
        return false;
    terminal.fd = fd;
    terminal.before = mode;
    cfmakeraw(&mode);
    mode.c_cc[VMIN] = 1;
    mode.c_cc[VTIME] = 0;
    if (!terminal.at_exit)
        terminal.at_exit = atexit(char_restore_terminal) == 0;
    /* Before the change: a signal right behind it must find what to restore. */
    __atomic_store_n(&terminal.raw, 1, __ATOMIC_RELEASE);
    if (attributes_set(fd, &mode) < 0) {
        char_restore_terminal();
        return false;
    }
    log_set_raw_terminal(isatty(STDERR_FILENO));
    return true;
}

/* Leaves the log's line ends alone: its lock is not for signal handlers. */
void char_restore_terminal(void)
{
    int saved_errno = errno;

    if (__atomic_exchange_n(&terminal.raw, 0, __ATOMIC_ACQ_REL))
        attributes_set(terminal.fd, &terminal.before);
    errno = saved_errno;
}
