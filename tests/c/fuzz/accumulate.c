/* SPDX-License-Identifier: MIT
 *
 * ht_accumulate of any source, against one pixel after the other.
 */
#include "naive.h"

/* Returns whether there is a NaN or an infinity; *bad is the first. */
static bool accumulate_naively(const struct ht_array *sums, const struct ht_array *source, const float *wy,
                               const float *wx, struct ht_position *bad)
{
    bool found = false;
    EACH_ELEMENT(source, c, y, x) {
        float value = naive_load(source->dtype, element_of(source, c, y, x)), sum;
        volatile float weight = wy[y] * wx[x], part = weight * value;
        memcpy(&sum, element_of(sums, c, y, x), sizeof sum);
        sum = sum + part;
        memcpy(element_of(sums, c, y, x), &sum, sizeof sum);
        if (!isfinite(value) && !found)
            *bad = (struct ht_position){c, y, x};
        found |= !isfinite(value);
    }
    return found;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = input_of(data, size);
    choose_rows(&in);
    enum ht_dtype from = (enum ht_dtype)number(&in, 0, 5), to = byte_of(&in) > 250 ? HT_F16 : HT_F32;
    int64_t channels = number(&in, 1, 5), height = number(&in, 1, 9), width = number(&in, 1, 90);
    int64_t more = byte_of(&in) > 250, wide = byte_of(&in) > 250 ? 1000 : 0;
    height = wide ? 1 : height;
    enum content content = (enum content)number(&in, TAME, ANYTHING);
    bool wanted = byte_of(&in) & 1;
    struct owned source = owned_from(&in, from, channels, height, width + wide, true);
    struct owned sums = owned_from(&in, to, channels, height, width + wide + more, false);
    fill_owned(&source, &in, content);
    fill_owned(&sums, &in, ANY_FINITE);
    float *wy = weights_from(&in, height), *wx = weights_from(&in, width + wide);
    struct owned want = copy_of(&sums), before = copy_of(&source);
    struct ht_position bad = {-1, -1, -1}, first = bad;

    enum ht_status status = ht_accumulate(&sums.array, &source.array, wy, wx, wanted ? &bad : NULL);
    if (more || !is_model_dtype(from) || to != HT_F32 || sums.array.stride_x != 1) {
        CHECK(status == HT_BAD_ARRAY);
    } else {
        bool found = accumulate_naively(&want.array, &source.array, wy, wx, &first);
        CHECK(status == (found ? HT_NONFINITE : HT_OK));
        if (!wanted)
            first = (struct ht_position){-1, -1, -1};
        CHECK(bad.c == first.c && bad.y == first.y && bad.x == first.x);
    }
    check_same(&sums, &want);
    CHECK(memcmp(source.memory, before.memory, source.bytes) == 0);
    free(source.memory), free(sums.memory), free(want.memory), free(before.memory), free(wy), free(wx);
    return 0;
}
