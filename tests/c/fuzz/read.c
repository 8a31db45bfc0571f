/* SPDX-License-Identifier: MIT
 *
 * ht_read of any image into any window, against one pixel after the other.
 */
#include "naive.h"

static void read_naively(const struct ht_array *window, const struct ht_array *image, int64_t y, int64_t x,
                         const struct ht_values *values)
{
    EACH_ELEMENT(window, c, wy, wx) {
        const void *at = element_of(image, c, naive_reflect(y + wy, image->height), naive_reflect(x + wx, image->width));
        naive_store(window->dtype, element_of(window, c, wy, wx),
                    naive_model_value(naive_load(image->dtype, at), values));
    }
}

static int64_t far_or_near(struct input *in, int64_t size)
{
    uint8_t how = byte_of(in);
    if (how > 240)
        return whole_number(in) / 5; /* below 2^61 */
    return how % 3 == 0 ? 0 : how % (3 * size) - size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = input_of(data, size);
    choose_rows(&in);
    struct ht_values values = values_from(&in);
    enum ht_dtype from = (enum ht_dtype)number(&in, 0, HT_DTYPE_COUNT - 1), to = (enum ht_dtype)number(&in, 0, 5);
    int64_t channels = number(&in, 1, 5), height = number(&in, 1, 12), width = number(&in, 1, 80);
    int64_t more = byte_of(&in) > 250, wide = byte_of(&in) > 250 ? 1000 : 0, rows = number(&in, 1, wide ? 2 : 24);
    height = wide ? 1 : height;
    struct owned image = owned_from(&in, from, channels, height, width + wide, true);
    struct owned window = owned_from(&in, to, channels + more, rows, number(&in, 1, 120) + wide, false);
    uint8_t how = byte_of(&in); /* which side is none, in the end */
    int64_t y = far_or_near(&in, height), x = far_or_near(&in, width);
    fill_owned(&image, &in, ANYTHING);
    struct owned want = copy_of(&window), before = copy_of(&image);
    unset_elements(&window);

    enum ht_status status = ht_read(&window.array, &image.array, y, x, &values);
    if (more || !is_model_dtype(to))
        CHECK(status == HT_BAD_ARRAY);
    else if (!naive_valid(&values))
        CHECK(status == HT_BAD_VALUES);
    else {
        CHECK(status == HT_OK);
        read_naively(&want.array, &image.array, y, x, &values);
        check_same(&window, &want);
    }
    struct ht_array *arrays[] = {&window.array, &image.array};
    int64_t *sides[] = {&arrays[how & 1]->channels, &arrays[how & 1]->height, &arrays[how & 1]->width};
    *sides[how % 3] = 0;
    CHECK(ht_read(&window.array, &image.array, y, x, &values) == HT_BAD_ARRAY);
    CHECK(memcmp(image.memory, before.memory, image.bytes) == 0);
    free(image.memory), free(window.memory), free(want.memory), free(before.memory);
    return 0;
}
