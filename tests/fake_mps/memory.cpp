// SPDX-License-Identifier: MIT
//
// memory.cpp - see memory.h.
#include "memory.h"

#include "ledger.h"

#include <c10/core/DeviceType.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace fake_mps {
namespace {

struct Block {
    size_t bytes;
    void *data;
    void *mapped; // none: data is from aligned_alloc
    size_t mapped_bytes;
};

size_t rounded_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

// A page that faults, the data's pages, a page that faults; the data ends with its pages.
void map_guarded(Block &block)
{
    size_t page = size_t(sysconf(_SC_PAGESIZE)), inner = rounded_up(block.bytes, page);
    block.mapped_bytes = inner + 2 * page;
    void *mapped = mmap(nullptr, block.mapped_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED)
        throw std::bad_alloc();
    block.mapped = mapped;
    if (mprotect((char *)mapped + page, inner, PROT_READ | PROT_WRITE))
        throw std::bad_alloc();
    block.data = (char *)mapped + page + (inner - block.bytes);
}

void release(Block *block)
{
    if (block->mapped)
        munmap(block->mapped, block->mapped_bytes);
    else
        std::free(block->data);
    delete block;
}

void free_block(void *context)
{
    auto *block = static_cast<Block *>(context);
    release_memory(int64_t(block->bytes));
    release(block);
}

Block *new_block(size_t bytes)
{
    std::unique_ptr<Block, void (*)(Block *)> block(new Block{bytes, nullptr, nullptr, 0}, release);
    if (bytes && limits().guard)
        map_guarded(*block);
    else if (bytes && !(block->data = std::aligned_alloc(64, rounded_up(bytes, 64))))
        throw std::bad_alloc();
    if (bytes)
        std::memset(block->data, 0xff, bytes);
    return block.release();
}

class DeviceAllocator final : public c10::Allocator {
public:
    c10::DataPtr allocate(size_t bytes) override
    {
        int64_t limit = limits().tensor;
        if (limit && int64_t(bytes) >= limit)
            forbid("an allocation of " + std::to_string(bytes) + " bytes reaches the limit of " +
                   std::to_string(limit));
        reserve_memory(int64_t(bytes));
        Block *block;
        try {
            block = new_block(bytes);
        } catch (...) {
            release_memory(int64_t(bytes));
            throw;
        }
        return {device_address(block->data), block, &free_block, 
                c10::Device(c10::DeviceType::PrivateUse1, c10::DeviceIndex(current_device()))};
    }

    c10::DeleterFnPtr raw_deleter() const override { return nullptr; }

    void copy_data(void *to, const void *from, size_t bytes) const override
    {
        std::memcpy(host_address(to), host_address(from), bytes);
    }
};

DeviceAllocator the_allocator;
REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &the_allocator);

} // namespace

c10::Allocator *device_allocator() { return &the_allocator; }

} // namespace fake_mps
