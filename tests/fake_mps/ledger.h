// SPDX-License-Identifier: MIT
//
// ledger.h - what the emulated device remembers: counters, transfers, launches, violations, limits, who is using it.
//
// One ledger for a process, shared by the device and the Metal runtime. All functions may be called from any thread.
// A violation is something that real hardware or real torch would answer with wrong numbers, a crash or an abort, or
// that halotile has sworn off: it is always kept, and raised where the caller can still be told.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace fake_mps {

enum Count {
    UPLOADS, UPLOAD_BYTES,     // copies from the host to the device
    DOWNLOADS, DOWNLOAD_BYTES, // copies from the device to the host, but scalars
    SCALAR_READS,              // a value of the device that the host waited for: item(), equal(), nonzero()
    DEVICE_COPIES,
    OPERATIONS, // kernels of the device, but copies and launches
    ALLOCATIONS, LIVE_BYTES, PEAK_BYTES, LARGEST_ALLOCATION,
    SYNCHRONIZES, CACHE_EMPTIES,
    COMMAND_BLOCKS, LIBRARIES,
    COUNTS
};

struct Transfer {
    std::string direction; // "upload" or "download"
    int64_t bytes;
    std::string dtype;        // as torch names it, "float32"
    bool host_contiguous;     // of the host's tensor
    int64_t host_offset;      // of the host's tensor, in elements
};

struct Violation : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Settings, 0 meaning none where a limit is one.
struct Limits {
    int64_t memory = 0;                           // live bytes; above it an allocation fails as torch's would
    int64_t recommended = int64_t(16) << 30;      // what recommended_max_memory() tells
    int64_t tensor = int64_t(1) << 31;            // a tensor has fewer elements, and fewer bytes
    int64_t group = 1024;                         // threads in a group of a launch
    int64_t busy = 0;                             // microseconds that each use of the device lasts at least
    bool guard = false;                           // allocations end at a page that faults
    bool threads = false;                         // as CUDA's devices: several may use one at a time
    bool wrong_views = false;                     // convolutions of views are right for the first of a batch only
    bool wrong_kernels = false;                   // convolutions with kernels of 256 and more are wrong
    bool wrong_channels_last = false;             // convolutions of channels_last tensors are wrong
};

Limits limits();
void set_limits(const Limits &limits);

void count(Count what, int64_t by = 1);
void count_operation(const std::string &name);
void count_launch(const std::string &kernel);
void record(const Transfer &transfer);

// Memory: the first throws std::runtime_error with torch's text when the memory limit is passed, and changes nothing.
void reserve_memory(int64_t bytes);
void release_memory(int64_t bytes);
void empty_cache();
int64_t driver_memory(); // the most that was live since the cache was emptied

std::string count_name(Count what);
int64_t counted(Count what);
std::map<std::string, int64_t> operators();
std::map<std::string, int64_t> launches();
std::vector<Transfer> transfers();
void reset_counts(); // all but live bytes; the peak restarts from them; violations stay

void note_violation(const std::string &what);
[[noreturn]] void forbid(const std::string &what); // notes it, throws Violation
std::vector<std::string> violations();
std::vector<std::string> take_violations(); // and forgets them

constexpr int DEVICES = 2; // an Apple machine has one: the other is for runs on several

int current_device(); // of this thread, as torch's guards set it
void set_current_device(int index);

// The current device is in use by this thread while one of these lives. Creating another meanwhile is a violation: on
// another thread since two threads crash torch's MPS, on the same one since work within a command block spoils its
// encoder.
class InUse {
public:
    explicit InUse(const std::string &what);
    ~InUse();
    InUse(const InUse &) = delete;
    InUse &operator=(const InUse &) = delete;
    static bool by_this_thread();

private:
    int device_;
};

} // namespace fake_mps
