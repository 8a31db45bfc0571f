/* SPDX-License-Identifier: MIT */
#include "rows.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* __builtin_cpu_supports also looks at what the operating system saves (XCR0), but not every compiler that has it knows
 * "f16c" by name. F16C works on the AVX registers, so AVX2 being usable makes it usable. */
static bool has_f16c(void)
{
    unsigned eax, ebx, ecx, edx;

    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

bool ht_cpu_has(enum ht_cpu level)
{
    switch (level) {
    case HT_CPU_SCALAR:
        return true;
#if defined(__x86_64__)
    case HT_CPU_AVX2:
        return has_avx2();
    case HT_CPU_AVX512:
        return has_avx512();
#elif defined(__aarch64__)
    case HT_CPU_NEON:
        return true;
#endif
    default:
        return false;
    }
}
