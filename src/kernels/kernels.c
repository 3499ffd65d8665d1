/* The tables, and which of them this CPU can run. */
#include "kernels/kernels.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels_internal.h"

static const struct kernels plain = {
    .name = "plain",
    .pack = pack_plain,
    .pack_part = pack_part_plain,
    .matmul = matmul_plain,
    .dequantize = dequantize_plain,
    .attention = attention_plain,
    .store = store_plain,
    .codec = codec_plain,
    .rotate = codec_rotate,
    .rms_norm = rms_norm_plain,
    .swiglu = swiglu_plain,
    .add = add_plain,
};

#ifdef HAVE_X86

#include <cpuid.h>

static const struct kernels avx2 = {
    .name = "avx2",
    .pack = pack_avx2,
    .pack_part = pack_part_avx2,
    .matmul = matmul_avx2,
    .dequantize = dequantize_plain,
    .attention = attention_avx2,
    .store = store_avx2,
    .codec = codec_avx2,
    .rotate = rotate_avx2,
    .rms_norm = rms_norm_avx2,
    .swiglu = swiglu_avx2,
    .add = add_avx2,
};

#ifdef HAVE_AVXVNNI
static const struct kernels avxvnni = {
    .name = "avxvnni",
    .pack = pack_avx2,
    .pack_part = pack_part_avx2,
    .matmul = matmul_avxvnni,
    .dequantize = dequantize_plain,
    .attention = attention_avx2,
    .store = store_avx2,
    .codec = codec_avx2,
    .rotate = rotate_avx2,
    .rms_norm = rms_norm_avx2,
    .swiglu = swiglu_avx2,
    .add = add_avx2,
};

static bool has_avxvnni(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
}
#endif

static const struct kernels avx512 = {
    .name = "avx512",
    .pack = pack_avx512,
    .pack_part = pack_part_avx512,
    .matmul = matmul_avx512,
    .dequantize = dequantize_plain,
    .attention = attention_avx512,
    .store = store_avx2,
    .codec = codec_avx512,
    .rotate = rotate_avx2,
    .rms_norm = rms_norm_avx512,
    .swiglu = swiglu_avx512,
    .add = add_avx512,
};

static bool has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}

#ifdef HAVE_AMX

#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"
#include "kernels/selfcheck.h"

static const struct kernels amx = {
    .name = "amx",
    .pack = pack_avx512,
    .pack_part = pack_part_avx512,
    .matmul = matmul_amx,
    .dequantize = dequantize_plain,
    .attention = attention_avx512,
    .store = store_avx2,
    .codec = codec_avx512,
    .rotate = rotate_avx2,
    .rms_norm = rms_norm_avx512,
    .swiglu = swiglu_avx512,
    .add = add_avx512,
};

/* The processor has tiles with 8-bit products, and the system lets this process use them: Linux gives that
 * leave once asked, for all threads. */
static bool has_amx(void)
{
    const unsigned tiles = 1u << 24, int8 = 1u << 25;
    const long ask = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    unsigned a, b, c, d;
    return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & tiles) && (d & int8) &&
           syscall(SYS_arch_prctl, ask, tile_data) == 0;
}

static bool amx_works;

static void check_amx(void)
{
    enum dtype type;
    if (!has_amx())
        return;
    amx_works = selfcheck_matmul(matmul_amx, &type);
    if (!amx_works)
        log_warning("AMX is not used: its product of %s weights is not what it should be",
                    dtype_info((uint32_t)type)->name);
}

static const struct kernels *get_amx(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, check_amx);
    return amx_works ? &amx : NULL;
}

#endif

#endif

const struct kernels *kernels_get(enum isa isa)
{
    if (isa == ISA_PLAIN)
        return &plain;
#ifdef HAVE_X86
    if (isa == ISA_AVX2)
        return has_avx2() ? &avx2 : NULL;
#ifdef HAVE_AVXVNNI
    if (isa == ISA_AVXVNNI)
        return has_avx2() && has_avxvnni() ? &avxvnni : NULL;
#endif
#ifdef HAVE_AMX
    if (isa == ISA_AMX)
        return get_amx();
#endif
    if (isa == ISA_AVX512)
        return has_avx512() ? &avx512 : NULL;
#endif
    return NULL;
}

const struct kernels *kernels_named(const char *name)
{
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        const struct kernels *k = kernels_get((enum isa)isa);
        if (k && strcmp(k->name, name) == 0)
            return k;
    }
    return NULL;
}

const struct kernels *kernels_best(void)
{
    static const char *const names[ISA_COUNT] = {"plain", "avx2", "avxvnni", "avx512", "amx"};
    const char *limit = getenv("LLMS_ISA");
    int isa = ISA_COUNT - 1;
    for (int i = 0; limit && i < ISA_COUNT; i++)
        if (strcmp(limit, names[i]) == 0)
            isa = i;
    while (!kernels_get((enum isa)isa))
        isa--;
    return kernels_get((enum isa)isa);
}
