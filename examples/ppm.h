/* SPDX-License-Identifier: MIT
 *
 * ppm.h - what the examples share: colour images of 8 bits in PPM files, and options.
 */
#ifndef EXAMPLES_PPM_H
#define EXAMPLES_PPM_H

#include <halotile.h>

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

/* RGB, 8 bits, pixels side by side. */
static struct ht_array new_image(int64_t height, int64_t width)
{
    struct ht_array image = {NULL, HT_U8, 3, height, width, 1, 3 * width, 3};
    image.data = malloc((size_t)(3 * height * width));
    if (!image.data)
        fail("image", "there is not enough memory");
    return image;
}

/* A number of a PPM header: behind white space, and comments from # to the end of their line. */
static int64_t number_in(FILE *file, const char *path)
{
    int c = getc(file);
    while (isspace(c) || c == '#') {
        if (c == '#')
            while (c != '\n' && c != EOF)
                c = getc(file);
        c = getc(file);
    }
    int64_t number = 0;
    for (; isdigit(c) && number < 1 << 24; c = getc(file))
        number = 10 * number + (c - '0');
    if (!isspace(c) || number < 1)
        fail(path, "not a PPM file (P6)");
    return number;
}

static struct ht_array read_ppm(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        fail(path, "cannot be opened");
    if (getc(file) != 'P' || getc(file) != '6')
        fail(path, "not a PPM file (P6)");
    int64_t width = number_in(file, path), height = number_in(file, path);
    if (number_in(file, path) != 255)
        fail(path, "must have 8 bits a channel");
    struct ht_array image = new_image(height, width);
    if (fread(image.data, (size_t)(3 * width), (size_t)height, file) != (size_t)height)
        fail(path, "ends too early");
    fclose(file);
    return image;
}

static void write_ppm(const char *path, const struct ht_array *image)
{
    FILE *file = fopen(path, "wb");
    if (!file)
        fail(path, "cannot be written");
    fprintf(file, "P6\n%lld %lld\n255\n", (long long)image->width, (long long)image->height);
    size_t rows = fwrite(image->data, (size_t)(3 * image->width), (size_t)image->height, file);
    if (rows != (size_t)image->height || fclose(file) != 0)
        fail(path, "cannot be written");
}

/* The number behind an option, or what it is by itself. */
static int64_t option(int argc, char **argv, const char *name, int64_t otherwise)
{
    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return strtoll(argv[i + 1], NULL, 10);
    return otherwise;
}

#endif
