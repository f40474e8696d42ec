/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Interrupts by eventfd, for other processes and kernel threads (vhost): Hull's own devices send
 * their messages directly. One thread of the VM waits for all of them, started with the first.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/err.h"
#include "engine/soft/vm.h"

struct irqfd {
    int fd;
    uint64_t addr;
    uint32_t data;
    bool used, set, masked;
};

#define ROUTES_STEP 16
#define QUIT_ROUTE  UINT32_MAX

struct irqfds {
    pthread_mutex_t lock;
    struct irqfd *list;
    unsigned count;
    int epoll, quit;
    bool running;
    pthread_t thread;
};

static void deliver(struct soft_vm *vm, unsigned route)
{
    struct irqfds *f = vm->irqfds;
    pthread_mutex_lock(&f->lock);
    struct irqfd *i = route < f->count ? &f->list[route] : NULL;
    uint64_t value;
    /* Masked: the signal waits in the eventfd. */
    bool send = i && i->used && i->set && !i->masked &&
                read(i->fd, &value, sizeof(value)) == (ssize_t)sizeof(value);
    uint64_t addr = send ? i->addr : 0;
    uint32_t data = send ? i->data : 0;
    pthread_mutex_unlock(&f->lock);
    if (send)
        irqchip_msi_send(vm->irqchip, addr, data);
}

static void *irqfd_main(void *arg)
{
    struct soft_vm *vm = arg;
    struct epoll_event events[16];
    pthread_setname_np(pthread_self(), "irqfd");
    for (;;) {
        int count = epoll_wait(vm->irqfds->epoll, events, 16, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.u32 == QUIT_ROUTE)
                return NULL;
            deliver(vm, events[i].data.u32);
        }
        if (count < 0 && errno != EINTR)
            return NULL;
    }
}

int irqfds_init(struct soft_vm *vm, struct err *err)
{
    struct irqfds *f = calloc(1, sizeof(*f));
    if (!f)
        return err_errno(err, ENOMEM, "the soft engine");
    f->epoll = f->quit = -1;
    pthread_mutex_init(&f->lock, NULL);
    vm->irqfds = f;
    return 0;
}

void irqfds_fini(struct soft_vm *vm)
{
    struct irqfds *f = vm->irqfds;
    const uint64_t one = 1;
    if (!f)
        return;
    if (f->running && write(f->quit, &one, sizeof(one)) == (ssize_t)sizeof(one))
        pthread_join(f->thread, NULL);
    if (f->epoll >= 0)
        close(f->epoll);
    if (f->quit >= 0)
        close(f->quit);
    pthread_mutex_destroy(&f->lock);
    free(f->list);
    free(f);
    vm->irqfds = NULL;
}

static int start(struct soft_vm *vm)
{
    struct irqfds *f = vm->irqfds;
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = QUIT_ROUTE};
    if (f->running)
        return 0;
    if (f->epoll < 0)
        f->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (f->quit < 0)
        f->quit = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (f->epoll < 0 || f->quit < 0 || epoll_ctl(f->epoll, EPOLL_CTL_ADD, f->quit, &event) < 0)
        return -errno;
    int code = pthread_create(&f->thread, NULL, irqfd_main, vm);
    f->running = code == 0;
    return -code;
}

static int find_route(struct irqfds *f)
{
    for (unsigned i = 0; i < f->count; i++) {
        if (!f->list[i].used)
            return (int)i;
    }
    struct irqfd *list = realloc(f->list, (f->count + ROUTES_STEP) * sizeof(*list));
    if (!list)
        return -ENOMEM;
    f->list = list;
    for (unsigned i = 0; i < ROUTES_STEP; i++)
        f->list[f->count + i] = (struct irqfd){.fd = -1};
    f->count += ROUTES_STEP;
    return (int)f->count - ROUTES_STEP;
}

int soft_irqfd_new(struct engine_vm *evm, struct engine_irqfd *irqfd)
{
    struct soft_vm *vm = soft_vm_of(evm);
    struct irqfds *f = vm->irqfds;
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        return -errno;
    pthread_mutex_lock(&f->lock);
    int code = start(vm);
    int route = code < 0 ? code : find_route(f);
    if (route >= 0)
        f->list[route] = (struct irqfd){.fd = fd, .used = true};
    pthread_mutex_unlock(&f->lock);
    if (route < 0) {
        close(fd);
        return route;
    }
    *irqfd = (struct engine_irqfd){.fd = fd, .route = (unsigned)route};
    return 0;
}

/* Is it waited for? Only while it may be delivered. */
static int watch(struct irqfds *f, const struct engine_irqfd *irqfd, bool on)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = irqfd->route};
    int rc = epoll_ctl(f->epoll, on ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, irqfd->fd, &event);
    return rc < 0 && errno != EEXIST && errno != ENOENT ? -errno : 0;
}

int soft_irqfd_set(struct engine_vm *evm, struct engine_irqfd *irqfd, uint64_t addr, uint32_t data,
                   bool masked)
{
    struct irqfds *f = soft_vm_of(evm)->irqfds;
    pthread_mutex_lock(&f->lock);
    struct irqfd *i = &f->list[irqfd->route];
    i->addr = addr;
    i->data = data;
    i->masked = masked;
    i->set = true;
    int code = watch(f, irqfd, !masked);
    pthread_mutex_unlock(&f->lock);
    return code;
}

void soft_irqfd_free(struct engine_vm *evm, struct engine_irqfd *irqfd)
{
    struct irqfds *f = soft_vm_of(evm)->irqfds;
    pthread_mutex_lock(&f->lock);
    watch(f, irqfd, false);
    f->list[irqfd->route] = (struct irqfd){.fd = -1};
    pthread_mutex_unlock(&f->lock);
    close(irqfd->fd);
    irqfd->fd = -1;
}
