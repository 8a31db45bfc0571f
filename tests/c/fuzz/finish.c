/* SPDX-License-Identifier: MIT
 *
 * ht_finish of any source into any destination, against one pixel after the other.
 */
#include "naive.h"

static bool finish_naively(const struct ht_array *destination, const struct ht_array *source, const float *ny,
                           const float *nx, const struct ht_values *values, struct ht_position *bad)
{
    bool found = false, clamp = values->clamp || is_integer_dtype(destination->dtype);
    EACH_ELEMENT(source, c, y, x) {
        volatile float quotient = naive_load(source->dtype, element_of(source, c, y, x));
        if (quotient == 0)
            quotient = 0; /* -0 becomes +0 */
        if (ny) {
            volatile float norm = ny[y] * nx[x];
            quotient = quotient / norm;
        }
        naive_store(destination->dtype, element_of(destination, c, y, x), naive_image_value(quotient, values, clamp));
        if (!isfinite(quotient) && !found)
            *bad = (struct ht_position){c, y, x};
        found |= !isfinite(quotient);
    }
    return found;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = input_of(data, size);
    choose_rows(&in);
    struct ht_values values = values_from(&in);
    enum ht_dtype from = (enum ht_dtype)number(&in, 0, 5), to = (enum ht_dtype)number(&in, 0, 5);
    int64_t channels = number(&in, 1, 5), height = number(&in, 1, 9), width = number(&in, 1, 90);
    int64_t more = byte_of(&in) > 250, wide = byte_of(&in) > 250 ? 1000 : 0;
    height = wide ? 1 : height;
    enum content content = (enum content)number(&in, TAME, ANYTHING);
    uint8_t how = byte_of(&in);
    struct owned source = owned_from(&in, from, channels, height, width + wide, true);
    struct owned destination = owned_from(&in, to, channels, height + more, width + wide, false);
    fill_owned(&source, &in, content);
    float *ny = how & 1 ? weights_from(&in, height) : NULL, *nx = ny ? weights_from(&in, width + wide) : NULL;
    struct owned want = copy_of(&destination), before = copy_of(&source);
    struct ht_position bad = {-1, -1, -1}, first = bad;
    unset_elements(&destination);

    enum ht_status status = ht_finish(&destination.array, &source.array, ny, nx, &values, how & 2 ? &bad : NULL);
    if (!naive_valid(&values))
        CHECK(status == HT_BAD_VALUES);
    else if (more || !is_model_dtype(from) || !naive_fit(&values, to))
        CHECK(status == HT_BAD_ARRAY);
    else {
        bool found = finish_naively(&want.array, &source.array, ny, nx, &values, &first);
        CHECK(status == (found ? HT_NONFINITE : HT_OK));
        if (!(how & 2))
            first = (struct ht_position){-1, -1, -1};
        CHECK(bad.c == first.c && bad.y == first.y && bad.x == first.x);
        check_same(&destination, &want);
    }
    struct ht_array *array = how & 4 ? &source.array : &destination.array;
    int64_t *sides[] = {&array->channels, &array->height, &array->width};
    if (how % 5 == 0)
        array->dtype = HT_DTYPE_COUNT;
    else
        *sides[how % 3] += 1;
    values = ht_values_of(HT_U8);
    CHECK(more || ht_finish(&destination.array, &source.array, ny, nx, &values, NULL) == HT_BAD_ARRAY);
    CHECK(memcmp(source.memory, before.memory, source.bytes) == 0);
    free(source.memory), free(destination.memory), free(want.memory), free(before.memory), free(ny), free(nx);
    return 0;
}
