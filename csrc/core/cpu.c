/* SPDX-License-Identifier: MIT */
#include "rows.h"

#if defined(HT_X86_64)
#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>

static void ask(unsigned leaf, unsigned answers[4]) { __cpuidex((int *)answers, (int)leaf, 0); }

static uint64_t saved_by_system(void) { return _xgetbv(0); }
#else
#include <cpuid.h>

static void ask(unsigned leaf, unsigned answers[4])
{
    if (!__get_cpuid_count(leaf, 0, &answers[0], &answers[1], &answers[2], &answers[3]))
        answers[0] = answers[1] = answers[2] = answers[3] = 0;
}

static uint64_t saved_by_system(void)
{
    uint32_t low, high;

    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}
#endif

/* Of CPUID's answers, and of XCR0. Numbers: Intel's manual, volume 2A, CPUID, and volume 1, 13.3.
 * __builtin_cpu_supports would tell, but not in every compiler's library for Windows. */
enum { EAX, EBX, ECX };
#define BIT(N) (1u << (N))
#define LEAF_1_ECX (BIT(12) | BIT(27) | BIT(28) | BIT(29)) /* FMA, XGETBV, AVX, F16C */
#define AVX2_EBX BIT(5)
#define AVX512_EBX (BIT(16) | BIT(17) | BIT(30) | BIT(31)) /* F, DQ, BW, VL */
#define AVX_STATE 0x06u
#define AVX512_STATE 0xe6u

static bool has(unsigned features, uint64_t state)
{
    unsigned none[4], first[4], seventh[4];

    ask(0, none);
    if (none[EAX] < 7) /* the highest leaf */
        return false;
    ask(1, first);
    ask(7, seventh);
    return (first[ECX] & LEAF_1_ECX) == LEAF_1_ECX && (seventh[EBX] & features) == features
        && (saved_by_system() & state) == state;
}
#endif

bool ht_cpu_has(enum ht_cpu level)
{
    switch (level) {
    case HT_CPU_SCALAR:
        return true;
#if defined(HT_X86_64)
    case HT_CPU_AVX2:
        return has(AVX2_EBX, AVX_STATE);
    case HT_CPU_AVX512:
        return has(AVX2_EBX | AVX512_EBX, AVX512_STATE);
#elif defined(HT_AARCH64)
    case HT_CPU_NEON:
        return true;
#endif
    default:
        return false;
    }
}
