/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The processor of the soft engine: the CPUID that the guest sees and the features that the decoder
 * accepts, which are the same thing by construction.
 *
 *     host         what the engine does well on this host (the default)
 *     x86-64-v2    a stable set, the same on every host that has it: a VM can move
 *     x86-64-v3    the same with AVX2, BMI, FMA, MOVBE
 *
 * Each may be followed by ,+name or ,-name. A feature that the host's CPU has not and the engine
 * executes on it (vector units) is refused with its name.
 */
#ifndef HULL_ENGINE_SOFT_MODEL_H
#define HULL_ENGINE_SOFT_MODEL_H

#include "engine/cpuid.h"
#include "engine/soft/insn.h"

struct err;

struct soft_model {
    insn_features features;   /* for the decoder */
    struct cpuid_table cpuid; /* of all vCPUs; topology is added by the reader, by vCPU */
    uint64_t xcr0_allowed;    /* bits XSETBV may set */
    uint64_t cr4_allowed;     /* bits MOV to CR4 may set */
    uint64_t efer_allowed;
    unsigned phys_bits;
    bool amd;                                        /* vendor: where the two differ */
    bool nx, pcid, gib_pages, smep, smap, umip, pku; /* for the MMU's reserved bits */
};

/* spec: "host", "x86-64-v3,-avx2,+rdrand"; NULL is "host". */
int model_init(struct soft_model *model, const char *spec, unsigned vcpu_count, struct err *err);

/* CPUID of a vCPU, with what depends on its state (OSXSAVE, OSPKE, XSAVE sizes). */
void model_cpuid(const struct soft_cpu *cpu, uint32_t function, uint32_t index, uint32_t out[4]);

#endif
