// SPDX-License-Identifier: MIT
//
// buffers.cpp - the runtime's functions for buffers: memory of AOTInductor's, which is no tensor's.
#include "memory.h"
#include "runtime.h"

#include <cstring>
#include <map>
#include <mutex>
#include <vector>

namespace fake_mps {
namespace {

std::mutex mutex;

// Never destroyed: callers may keep theirs until the process ends.
std::map<const void *, std::vector<char>> &buffers()
{
    static auto &the = *new std::map<const void *, std::vector<char>>;
    return the;
}

// Where bytes [offset, offset + size) of a buffer are.
char *within(void *buffer, size_t offset, size_t size)
{
    auto found = buffers().find(buffer);
    if (found == buffers().end())
        forbid("a buffer that was never given out, or is freed");
    if (offset > found->second.size() || size > found->second.size() - offset)
        forbid("bytes beyond the end of a buffer");
    return found->second.data() + offset;
}

} // namespace
} // namespace fake_mps

using namespace fake_mps;

extern "C" {

AOTITorchError aoti_torch_mps_malloc(void **buffer, size_t num_bytes)
{
    return answer("malloc", [&] {
        std::lock_guard<std::mutex> lock(mutex);
        std::vector<char> bytes(num_bytes ? num_bytes : 1);
        *buffer = device_address(bytes.data());
        buffers()[*buffer] = std::move(bytes);
    });
}

AOTITorchError aoti_torch_mps_free(void *ptr)
{
    return answer("free", [&] {
        std::lock_guard<std::mutex> lock(mutex);
        within(ptr, 0, 0);
        buffers().erase(ptr);
    });
}

AOTITorchError aoti_torch_mps_memcpy(void *buffer, size_t constant_offset, size_t bytes_read, size_t data_size,
                                     uint8_t *constants_start)
{
    return answer("memcpy", [&] {
        std::lock_guard<std::mutex> lock(mutex);
        std::memcpy(within(buffer, constant_offset, data_size), constants_start + bytes_read, data_size);
        record({"upload", int64_t(data_size), "uint8", true, int64_t(bytes_read)});
    });
}

AOTITorchError aoti_torch_mps_copy_buffer(void *src_buffer, void *dst_buffer, size_t data_size, size_t src_offset,
                                          size_t dst_offset)
{
    return answer("copy_buffer", [&] {
        InUse in_use("copy_buffer");
        std::lock_guard<std::mutex> lock(mutex);
        char *to = within(dst_buffer, dst_offset, data_size);
        std::memcpy(to, within(src_buffer, src_offset, data_size), data_size);
        count(DEVICE_COPIES);
    });
}

} // extern "C"
