/* SPDX-License-Identifier: Apache-2.0 */
#include "vm/vcpus.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/units.h"

#define VCPU_STACK_BYTES (256 * KIB)

#define VCPUS_ALL        UINT_MAX

struct vcpu_thread {
    struct vcpus *set;
    unsigned id;
    struct engine_vcpu *engine;
    pthread_t thread;
    bool started;
    struct engine_exit exit;
    struct err err; /* why it could not be created */
};

struct vcpus {
    const struct engine_ops *ops;
    struct engine_vm *engine_vm;
    struct engine_probe *measure;
    vcpus_exit_fn on_exit;
    void *ctx;
    unsigned count;

    pthread_mutex_t create_lock; /* the engine makes one vCPU at a time */
    pthread_mutex_t lock;
    pthread_cond_t changed; /* paused, quit, or running count changed */
    bool paused;            /* atomic for the fast look between two runs; written under the lock */
    unsigned only;          /* with paused false: the one vCPU that may run, or VCPUS_ALL */
    bool quit;
    unsigned running; /* threads outside the wait below */
    unsigned ready;   /* threads that have created their vCPU, or failed to */

    struct vcpu_thread threads[];
};

/* Wait for permission to run. False: the thread ends. */
static bool vcpu_wait(struct vcpus *set, unsigned id)
{
    bool run;

    pthread_mutex_lock(&set->lock);
    while ((set->paused || (set->only != VCPUS_ALL && set->only != id)) && !set->quit)
        pthread_cond_wait(&set->changed, &set->lock);
    run = !set->quit;
    if (run)
        set->running++;
    pthread_mutex_unlock(&set->lock);
    return run;
}

static void vcpu_parked(struct vcpus *set)
{
    pthread_mutex_lock(&set->lock);
    set->running--;
    pthread_cond_broadcast(&set->changed);
    pthread_mutex_unlock(&set->lock);
}

/* Run until paused or until the engine gives up. */
static void vcpu_run_until_paused(struct vcpu_thread *vcpu)
{
    struct vcpus *set = vcpu->set;

    while (!__atomic_load_n(&set->paused, __ATOMIC_ACQUIRE)) {
        set->ops->vcpu_run(vcpu->engine, &vcpu->exit);
        if (vcpu->exit.kind == ENGINE_EXIT_KICK)
            continue;
        /* Whoever owns the VM decides; without a decision no vCPU goes on. */
        vcpus_request_pause(set);
        set->on_exit(set->ctx, vcpu->id, &vcpu->exit);
    }
}

static void vcpu_create(struct vcpu_thread *vcpu)
{
    struct vcpus *set = vcpu->set;

    pthread_mutex_lock(&set->create_lock);
    if (vcpu->id == 0 && set->measure)
        set->ops->vm_measure(set->engine_vm, set->measure);
    set->ops->vcpu_new(set->engine_vm, vcpu->id, &vcpu->engine, &vcpu->err);
    pthread_mutex_unlock(&set->create_lock);
    pthread_mutex_lock(&set->lock);
    set->ready++;
    pthread_cond_broadcast(&set->changed);
    pthread_mutex_unlock(&set->lock);
}

static void *vcpu_main(void *arg)
{
    struct vcpu_thread *vcpu = arg;
    char name[16];

    snprintf(name, sizeof(name), "vcpu%u", vcpu->id);
    pthread_setname_np(pthread_self(), name);
    vcpu_create(vcpu);
    while (vcpu_wait(vcpu->set, vcpu->id)) {
        vcpu_run_until_paused(vcpu);
        vcpu_parked(vcpu->set);
    }
    return NULL;
}

static int vcpus_start(struct vcpus *set, struct err *err)
{
    pthread_attr_t attr;
    int code = 0;

    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, VCPU_STACK_BYTES);
    for (unsigned i = 0; i < set->count && code == 0; i++) {
        struct vcpu_thread *vcpu = &set->threads[i];
        vcpu->set = set;
        vcpu->id = i;
        code = pthread_create(&vcpu->thread, &attr, vcpu_main, vcpu);
        vcpu->started = code == 0;
        if (code != 0)
            err_errno(err, code, "cannot create the thread of vCPU %u", i);
    }
    pthread_attr_destroy(&attr);
    return -code;
}

int vcpus_new(struct vcpus **out, struct engine_vm *engine_vm, unsigned count,
              vcpus_exit_fn on_exit, void *ctx, struct engine_probe *measure, struct err *err)
{
    struct vcpus *set = calloc(1, sizeof(*set) + count * sizeof(set->threads[0]));

    if (!set)
        return err_set(err, ENOMEM, "out of memory");
    set->ops = engine_vm->ops;
    set->engine_vm = engine_vm;
    set->measure = measure;
    set->on_exit = on_exit;
    set->ctx = ctx;
    set->count = count;
    set->paused = true;
    pthread_mutex_init(&set->create_lock, NULL);
    pthread_mutex_init(&set->lock, NULL);
    pthread_cond_init(&set->changed, NULL);
    int ret = vcpus_start(set, err);
    if (ret != 0) {
        vcpus_free(set);
        return ret;
    }
    *out = set;
    return 0;
}

int vcpus_wait_ready(struct vcpus *set, struct err *err)
{
    pthread_mutex_lock(&set->lock);
    while (set->ready < set->count)
        pthread_cond_wait(&set->changed, &set->lock);
    pthread_mutex_unlock(&set->lock);
    for (unsigned i = 0; i < set->count; i++) {
        if (!set->threads[i].engine)
            return err_set(err, set->threads[i].err.code, "%s", set->threads[i].err.text);
    }
    return 0;
}

void vcpus_free(struct vcpus *set)
{
    if (!set)
        return;
    /* A thread that is still creating its vCPU finishes that first: only then can it be kicked. */
    pthread_mutex_lock(&set->lock);
    for (unsigned i = 0; i < set->count; i++) {
        while (set->threads[i].started && set->ready < i + 1)
            pthread_cond_wait(&set->changed, &set->lock);
    }
    pthread_mutex_unlock(&set->lock);
    vcpus_pause(set);
    pthread_mutex_lock(&set->lock);
    set->quit = true;
    pthread_cond_broadcast(&set->changed);
    pthread_mutex_unlock(&set->lock);
    for (unsigned i = 0; i < set->count; i++) {
        if (set->threads[i].started)
            pthread_join(set->threads[i].thread, NULL);
    }
    for (unsigned i = 0; i < set->count; i++) {
        if (set->threads[i].engine)
            set->ops->vcpu_free(set->threads[i].engine);
    }
    pthread_cond_destroy(&set->changed);
    pthread_mutex_destroy(&set->lock);
    pthread_mutex_destroy(&set->create_lock);
    free(set);
}

static void resume(struct vcpus *set, unsigned only)
{
    pthread_mutex_lock(&set->lock);
    set->only = only;
    __atomic_store_n(&set->paused, false, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&set->changed);
    pthread_mutex_unlock(&set->lock);
}

void vcpus_resume(struct vcpus *set)
{
    resume(set, VCPUS_ALL);
}

void vcpus_resume_one(struct vcpus *set, unsigned id)
{
    resume(set, id);
}

void vcpus_kick_all(struct vcpus *set)
{
    for (unsigned i = 0; i < set->count; i++) {
        if (set->threads[i].engine)
            set->ops->vcpu_kick(set->threads[i].engine);
    }
}

void vcpus_request_pause(struct vcpus *set)
{
    pthread_mutex_lock(&set->lock);
    __atomic_store_n(&set->paused, true, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&set->lock);
    vcpus_kick_all(set);
}

void vcpus_pause(struct vcpus *set)
{
    vcpus_request_pause(set);
    pthread_mutex_lock(&set->lock);
    while (set->running > 0)
        pthread_cond_wait(&set->changed, &set->lock);
    pthread_mutex_unlock(&set->lock);
}

struct engine_vcpu *vcpus_get(struct vcpus *set, unsigned id)
{
    return set->threads[id].engine;
}

int vcpus_reset(struct vcpus *set, struct err *err)
{
    for (unsigned i = 0; i < set->count; i++) {
        int ret = set->ops->vcpu_reset(set->threads[i].engine, err);
        if (ret != 0)
            return ret;
    }
    return 0;
}
