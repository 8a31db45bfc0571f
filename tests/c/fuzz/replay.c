/* SPDX-License-Identifier: MIT
 *
 * Runs a fuzz target on files, or on `-n COUNT` random inputs: where there is no fuzzer. Prints one line.
 */
#include "input.h"

static uint8_t buffer[1 << 16];

static void run_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    CHECK(file);
    size_t size = fread(buffer, 1, sizeof buffer, file);
    fclose(file);
    LLVMFuzzerTestOneInput(buffer, size);
}

static void run_random(long count)
{
    struct input in = {.state = 20261201};
    for (long i = 0; i < count; i++) {
        size_t size = next_bits(&in) % 160;
        for (size_t k = 0; k < size; k++)
            buffer[k] = (uint8_t)next_bits(&in);
        LLVMFuzzerTestOneInput(buffer, size);
    }
}

int main(int argc, char **argv)
{
    long count = argc > 2 && strcmp(argv[1], "-n") == 0 ? strtol(argv[2], NULL, 10) : 0;
    run_random(count);
    int files = argc - (count ? 3 : 1);
    for (int i = argc - files; i < argc; i++)
        run_file(argv[i]);
    printf("%s: %ld random inputs, %d files: ok\n", argv[0], count, files);
    return 0;
}
