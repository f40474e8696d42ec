/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The vCPU threads of one VM. All run or all are paused; a vCPU whose engine cannot go on parks
 * itself and tells the owner.
 *
 * Threads: called by the thread of the main loop, except vcpus_kick_all() [any].
 */
#ifndef HULL_VM_VCPUS_H
#define HULL_VM_VCPUS_H

#include "engine/engine.h"

struct vcpus;

/* Called on the vCPU's thread when it left the guest for a reason of its own; then it parks. */
typedef void (*vcpus_exit_fn)(void *ctx, unsigned id, const struct engine_exit *exit);

/*
 * Start count threads; each creates its vCPU in engine_vm, and they stay paused. This goes on
 * beside the caller, who builds the rest of the machine meanwhile and then calls
 * vcpus_wait_ready().
 *
 * measure: the thread of vCPU 0 first measures the engine, into *probe. It must be that thread:
 * Linux up to 6.11 waits for an RCU grace period when a KVM vCPU changes its thread.
 */
int vcpus_new(struct vcpus **vcpus, struct engine_vm *engine_vm, unsigned count,
              vcpus_exit_fn on_exit, void *ctx, struct engine_probe *measure, struct err *err);
/* All vCPUs are there, or -errno with err. */
int vcpus_wait_ready(struct vcpus *vcpus, struct err *err);
/* Pauses, joins the threads, frees the vCPUs. NULL is allowed. */
void vcpus_free(struct vcpus *vcpus);

void vcpus_resume(struct vcpus *vcpus);
/* Only this one; the others stay where they are. */
void vcpus_resume_one(struct vcpus *vcpus, unsigned id);
/* Returns when no vCPU runs guest code or an upcall. */
void vcpus_pause(struct vcpus *vcpus);

/* [any] Make every vCPU look at its paused flag before its next instruction. */
void vcpus_kick_all(struct vcpus *vcpus);

/* [any] No vCPU runs guest code again until vcpus_resume(); does not wait. Safe in an upcall: the
 * vCPU that made it executes no further instruction. */
void vcpus_request_pause(struct vcpus *vcpus);

/* While paused. */
struct engine_vcpu *vcpus_get(struct vcpus *vcpus, unsigned id);
int vcpus_reset(struct vcpus *vcpus, struct err *err);

#endif
