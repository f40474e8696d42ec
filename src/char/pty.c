/* SPDX-License-Identifier: Apache-2.0 */
#include "char/pty.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "base/units.h"

#define LINGER_STEP_NS (2 * NS_PER_MS)

/* Open the other side once. It gives the pair its mode, which lasts, and from its close on the
 * master reports that nobody is there: before the first open it does not. */
static int peer_prepare(const struct pty *pty)
{
    struct termios mode;
    int r = 0;
    int peer = open(pty->name, O_RDWR | O_NOCTTY | O_CLOEXEC);

    if (peer < 0)
        return -errno;
    if (tcgetattr(peer, &mode) < 0) {
        r = -errno;
    } else {
        cfmakeraw(&mode);
        if (tcsetattr(peer, TCSANOW, &mode) < 0)
            r = -errno;
    }
    close(peer);
    return r;
}

int pty_open(struct pty *pty, struct err *err)
{
    int r;

    pty->watch = -1;
    pty->master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (pty->master < 0)
        return err_errno(err, errno, "cannot create a pseudo-terminal (is /dev/pts mounted?)");
    if (grantpt(pty->master) < 0 || unlockpt(pty->master) < 0 ||
        ptsname_r(pty->master, pty->name, sizeof(pty->name)) != 0) {
        r = err_errno(err, errno, "cannot set up a pseudo-terminal");
        goto fail;
    }
    r = peer_prepare(pty);
    if (r < 0) {
        err_errno(err, r, "cannot set up the pseudo-terminal %s", pty->name);
        goto fail;
    }
    if (fcntl(pty->master, F_SETFL, O_RDWR | O_NONBLOCK) < 0) {
        r = err_errno(err, errno, "cannot set up the pseudo-terminal %s", pty->name);
        goto fail;
    }
    pty->watch = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (pty->watch >= 0 && inotify_add_watch(pty->watch, pty->name, IN_OPEN) < 0) {
        close(pty->watch);
        pty->watch = -1;
    }
    if (pty->watch < 0)
        log_debug("char", "no inotify for %s: looking for its users twice a second", pty->name);
    return 0;

fail:
    close(pty->master);
    pty->master = -1;
    return r;
}

void pty_watch_clear(struct pty *pty)
{
    char events[1024] __attribute__((aligned(__alignof__(struct inotify_event))));

    while (read(pty->watch, events, sizeof(events)) > 0)
        ;
}

bool pty_in_use(const struct pty *pty)
{
    struct pollfd pfd = {.fd = pty->master, .events = POLLIN};

    return poll(&pfd, 1, 0) <= 0 || !(pfd.revents & POLLHUP) || (pfd.revents & POLLIN);
}

bool pty_linger(const struct pty *pty, unsigned long long deadline_ns)
{
    const struct timespec step = {.tv_nsec = LINGER_STEP_NS};
    bool unread;

    if (!pty_in_use(pty))
        return true;
    int peer = ioctl(pty->master, TIOCGPTPEER, O_RDONLY | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (peer < 0)
        return false;
    for (;;) {
        /* Unlike FIONREAD, poll() also counts what is still on its way between the two sides. */
        struct pollfd pfd = {.fd = peer, .events = POLLIN};
        unread = poll(&pfd, 1, 0) > 0 && (pfd.revents & POLLIN);
        if (!unread || clock_now_ns() >= deadline_ns)
            break;
        nanosleep(&step, NULL);
    }
    close(peer);
    return !unread;
}

void pty_close(struct pty *pty)
{
    if (pty->watch >= 0)
        close(pty->watch);
    if (pty->master >= 0)
        close(pty->master);
    pty->watch = pty->master = -1;
}
