/* SPDX-License-Identifier: MIT
 *
 * Hashes of many restored images, which every processor must give: of any byte order and word size. The blends that
 * need sin and exp are hashed apart: their last bits are the C library's. Prints one line.
 */
#include "random_plans.h"

static int mix(void *context, const struct ht_batch *b)
{
    (void)context;
    int64_t windows = b->channels * b->height * b->width, outputs = b->out_channels * b->out_height * b->out_width;
    for (int64_t k = 0; k < b->count; k++)
        for (int64_t i = 0; i < outputs; i++) {
            float a = b->windows[k * windows + i % windows] * 0.75f, c = b->windows[k * windows + (i * 7 + 3) % windows] / 3;
            b->outputs[k * outputs + i] = a + c;
        }
    return 0;
}

static uint64_t hash[2] = {1469598103934665603u, 1469598103934665603u};

/* The value, not the bytes. */
static void add_element(int which, const struct ht_array *a, int64_t i)
{
    uint64_t bits = 0;
    uint32_t word;
    if (a->dtype == HT_U8)
        bits = ((uint8_t *)a->data)[i];
    else if (a->dtype == HT_F64)
        memcpy(&bits, (double *)a->data + i, sizeof bits);
    else if (a->dtype == HT_F32)
        memcpy(&word, (float *)a->data + i, sizeof word), bits = word;
    else
        bits = ((uint16_t *)a->data)[i];
    for (int k = 0; k < 8; k++)
        hash[which] = (hash[which] ^ (bits >> 8 * k & 0xff)) * 1099511628211u;
}

static void fill(const struct ht_array *a)
{
    for (int64_t i = 0; i < a->channels * a->height * a->width; i++)
        switch (a->dtype) {
        case HT_U8: ((uint8_t *)a->data)[i] = (uint8_t)random_bits(); break;
        case HT_F32: ((float *)a->data)[i] = random_float(); break;
        case HT_F64: ((double *)a->data)[i] = (double)random_float() / 3; break;
        case HT_U16: ((uint16_t *)a->data)[i] = (uint16_t)random_bits(); break;
        default: ((uint16_t *)a->data)[i] = (uint16_t)(random_bits() & (a->dtype == HT_F16 ? 0x3bff : 0x3f7f));
        }
}

int main(void)
{
    CHECK(ht_rows_init(NULL));
    for (case_number = 0; case_number < 600; case_number++) {
        struct ht_plan plan = random_plan();
        int64_t channels = between(1, 4);
        enum ht_dtype from = (enum ht_dtype)between(0, HT_DTYPE_COUNT - 1), to = (enum ht_dtype)between(0, HT_DTYPE_COUNT - 1);
        struct ht_array image = new_array(from, channels, plan.y.size, plan.x.size);
        struct ht_array output = new_array(to, channels, plan.y.output_size, plan.x.output_size);
        struct ht_restore_options o = {&plan, ht_values_of(from), ht_values_of(to), between(1, 4), NULL};
        if (one_in(2))
            o.input.gain = 1.7f, o.input.offset = -0.3f, o.output.gain = 0.9f, o.output.offset = 0.1f;
        fill(&image);
        CHECK(ht_restore(&image, &output, &o, mix, NULL, NULL) == HT_OK);
        int which = plan.blend == HT_COSINE || plan.blend == HT_GAUSSIAN;
        for (int64_t i = 0; i < output.channels * output.height * output.width; i++)
            add_element(which, &output, i);
        free(image.data);
        free(output.data);
    }
    printf("check_bits: %016llx %016llx\n", (unsigned long long)hash[0], (unsigned long long)hash[1]);
    return 0;
}
