/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"

#define THREADS          4
#define LINES_PER_THREAD 50

static char path[] = "/tmp/hull-log-test-XXXXXX";
static char text[65536];

static void configure(const char *level)
{
    char spec[128];
    struct err err = ERR_INIT;

    if (truncate(path, 0) < 0)
        perror(path);
    snprintf(spec, sizeof(spec), "%s,file=%s", level, path);
    is_int(log_configure(spec, &err), 0, spec);
}

/* What is in the log file now. */
static const char *slurp(int fd)
{
    ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
    text[n > 0 ? n : 0] = '\0';
    return text;
}

static unsigned count_lines(const char *s)
{
    unsigned n = 0;
    for (; *s; s++)
        n += *s == '\n';
    return n;
}

static void test_spec(void)
{
    struct err err = ERR_INIT;

    ok(log_enabled(LOG_LEVEL_WARN) && !log_enabled(LOG_LEVEL_INFO), "warn is the level at start");
    is_int(log_configure("loud", &err), -EINVAL, "an unknown level is refused");
    is_int(log_configure("", &err), -EINVAL, "so is an empty one");
    is_int(log_configure("warnings", &err), -EINVAL, "and one that only begins right");
    is_int(log_configure("info,colour", &err), -EINVAL, "and an unknown option");
    is_int(log_configure("info,file=", &err), -EINVAL, "and an empty path");
    is_int(log_configure("info,file=/nonexistent/x", &err), -ENOENT, "a failing open is reported");
    ok(!log_enabled(LOG_LEVEL_INFO), "what failed changed nothing");
}

static void test_lines(int fd)
{
    char want[4096];

    configure("info");
    log_info("disk", "opened %s", "a.raw");
    log_debug("disk", "not shown");
    is_str(slurp(fd), "hull: info: disk: opened a.raw\n", "a line as the header says");
    configure("debug");
    log_set_raw_terminal(true);
    log_error("guest", "esc \033[2J nl \n tab \t utf8 \xc3\xa4");
    log_set_raw_terminal(false);
    is_str(slurp(fd), "hull: error: guest: esc ?[2J nl ? tab ? utf8 \xc3\xa4\n",
           "control characters do not get through, and a file has no CR");
    configure("trace");
    memset(want, 'x', sizeof(want) - 1);
    want[sizeof(want) - 1] = '\0';
    errno = ENOTTY;
    log_error("m", "%s", want);
    is_int(errno, ENOTTY, "errno stays");
    slurp(fd);
    ok(strlen(text) < 2048 && text[strlen(text) - 1] == '\n', "a long line is cut, and ends");
}

static void test_raw(int fd)
{
    int saved = dup(STDERR_FILENO);
    struct err err = ERR_INIT;

    if (truncate(path, 0) < 0 || dup2(fd, STDERR_FILENO) < 0)
        perror("dup2");
    is_int(log_configure("warn", &err), 0, "back to standard error");
    log_set_raw_terminal(true);
    log_warn("m", "one");
    log_set_raw_terminal(false);
    log_warn("m", "two");
    dup2(saved, STDERR_FILENO);
    close(saved);
    is_str(slurp(fd), "hull: warn: m: one\r\nhull: warn: m: two\n", "CR LF in raw mode only");
}

static void test_budget(int fd)
{
    struct log_budget budget = {0};

    configure("warn");
    for (int i = 0; i < 1000; i++)
        log_guest(&budget, "uart", "odd write %d", i);
    is_int(count_lines(slurp(fd)), 10, "a burst of ten passes");
    is_int(budget.dropped, 990, "the rest is counted");
    configure("warn");
    budget.refilled_ns -= 2 * NS_PER_SEC;
    for (int i = 0; i < 5; i++)
        log_guest(&budget, "uart", "again %d", i);
    is_str(slurp(fd),
           "hull: warn: uart: again 0 (990 earlier messages left out)\n"
           "hull: warn: uart: again 1\n",
           "two seconds give two more lines, and the first tells what is missing");
    configure("warn");
    budget.refilled_ns = 0; /* the boot of the host */
    for (int i = 0; i < 100; i++)
        log_guest(&budget, "uart", "later");
    is_int(count_lines(slurp(fd)), 10, "a long silence saves up no more than a burst");
    configure("error");
    budget = (struct log_budget){0};
    log_guest(&budget, "uart", "below the level");
    is_int(budget.tokens_used, 0, "what the level holds back costs nothing");
}

static void *chatter(void *arg)
{
    (void)arg;
    for (int i = 0; i < LINES_PER_THREAD; i++)
        log_warn("thread", "a line of some length, to be written whole");
    return NULL;
}

static void test_threads(int fd)
{
    pthread_t threads[THREADS];
    unsigned whole = 0;

    configure("warn");
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, chatter, NULL);
    for (int i = 0; i < 20; i++)
        log_set_raw_terminal(i & 1);
    log_set_raw_terminal(false);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    slurp(fd);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        whole +=
            strcmp(line, "hull: warn: thread: a line of some length, to be written whole") == 0;
    is_int(whole, THREADS * LINES_PER_THREAD, "lines of several threads stay whole");
}

int main(void)
{
    int fd = mkstemp(path);
    struct err err = ERR_INIT;

    test_spec();
    test_lines(fd);
    test_raw(fd);
    test_budget(fd);
    test_threads(fd);
    log_configure("warn", &err);
    unlink(path);
    close(fd);
    return tap_done();
}
