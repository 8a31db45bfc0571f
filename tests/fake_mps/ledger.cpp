// SPDX-License-Identifier: MIT
//
// ledger.cpp - see ledger.h.
#include "ledger.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <mutex>
#include <thread>

namespace fake_mps {
namespace {

struct Ledger {
    std::mutex mutex;
    std::array<int64_t, COUNTS> counts{};
    std::map<std::string, int64_t> operators, launches;
    std::vector<Transfer> transfers;
    std::vector<std::string> violations;
    Limits limits;
    int64_t driver = 0;
    std::array<std::thread::id, DEVICES> users; // nobody: a default id
    std::array<std::string, DEVICES> uses;
};

// Never destroyed: tensors are freed while the process ends.
Ledger &ledger()
{
    static Ledger &the = *new Ledger;
    return the;
}

struct Locked {
    Ledger &book = ledger();
    std::lock_guard<std::mutex> lock{book.mutex};
    Ledger *operator->() { return &book; }
};

std::string readable(int64_t bytes)
{
    static const struct { int shift; const char *unit; } units[] = {{30, "GB"}, {20, "MB"}, {10, "KB"}};
    char text[64];
    for (const auto &u : units)
        if (bytes >= int64_t(1) << u.shift) {
            std::snprintf(text, sizeof text, "%.2f %s", double(bytes) / double(int64_t(1) << u.shift), u.unit);
            return text;
        }
    return std::to_string(bytes) + " bytes";
}

std::string out_of_memory(int64_t live, int64_t limit, int64_t bytes)
{
    return "MPS backend out of memory (MPS allocated: " + readable(live) +
           ", other allocations: 0.00 GB, max allowed: " + readable(limit) + "). Tried to allocate " + readable(bytes) +
           " on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit for memory allocations "
           "(may cause system failure).";
}

} // namespace

Limits limits() { return Locked()->limits; }
void set_limits(const Limits &limits) { Locked()->limits = limits; }

void count(Count what, int64_t by) { Locked()->counts[what] += by; }
void count_launch(const std::string &kernel) { Locked()->launches[kernel]++; }

void count_operation(const std::string &name)
{
    Locked book;
    book->counts[OPERATIONS]++;
    book->operators[name]++;
}

void record(const Transfer &transfer)
{
    Locked book;
    bool up = transfer.direction == "upload";
    book->counts[up ? UPLOADS : DOWNLOADS]++;
    book->counts[up ? UPLOAD_BYTES : DOWNLOAD_BYTES] += transfer.bytes;
    book->transfers.push_back(transfer);
}

void reserve_memory(int64_t bytes)
{
    Locked book;
    auto &counts = book->counts;
    int64_t live = counts[LIVE_BYTES], limit = book->limits.memory;
    if (limit && live + bytes > limit)
        throw std::runtime_error(out_of_memory(live, limit, bytes));
    counts[ALLOCATIONS]++;
    counts[LIVE_BYTES] = live + bytes;
    counts[PEAK_BYTES] = std::max(counts[PEAK_BYTES], live + bytes);
    counts[LARGEST_ALLOCATION] = std::max(counts[LARGEST_ALLOCATION], bytes);
    book->driver = std::max(book->driver, live + bytes);
}

void release_memory(int64_t bytes) { Locked()->counts[LIVE_BYTES] -= bytes; }
int64_t driver_memory() { return Locked()->driver; }

void empty_cache()
{
    Locked book;
    book->counts[CACHE_EMPTIES]++;
    book->driver = book->counts[LIVE_BYTES];
}

std::string count_name(Count what)
{
    static const char *const names[COUNTS] = {
        "uploads", "upload_bytes", "downloads", "download_bytes", "scalar_reads", "device_copies", "operations",
        "allocations", "live_bytes", "peak_bytes", "largest_allocation", "synchronizes", "cache_empties",
        "command_blocks", "libraries",
    };
    return names[what];
}

int64_t counted(Count what) { return Locked()->counts[what]; }
std::map<std::string, int64_t> operators() { return Locked()->operators; }
std::map<std::string, int64_t> launches() { return Locked()->launches; }
std::vector<Transfer> transfers() { return Locked()->transfers; }

void reset_counts()
{
    Locked book;
    int64_t live = book->counts[LIVE_BYTES];
    book->counts = {};
    book->counts[LIVE_BYTES] = book->counts[PEAK_BYTES] = live;
    book->operators.clear();
    book->launches.clear();
    book->transfers.clear();
}

void note_violation(const std::string &what) { Locked()->violations.push_back(what); }

void forbid(const std::string &what)
{
    note_violation(what);
    throw Violation("fake_mps: " + what);
}

std::vector<std::string> violations() { return Locked()->violations; }

std::vector<std::string> take_violations()
{
    std::vector<std::string> taken;
    Locked()->violations.swap(taken);
    return taken;
}

static thread_local int device_now = 0;

int current_device() { return device_now; }
void set_current_device(int index) { device_now = index; }

InUse::InUse(const std::string &what) : device_(current_device())
{
    auto self = std::this_thread::get_id();
    std::string problem;
    int64_t busy = 0;
    {
        Locked book;
        auto &user = book->users[device_];
        auto &use = book->uses[device_];
        if (book->limits.threads)
            device_ = -1;
        else if (user == self)
            problem = what + " within " + use + " of the same thread";
        else if (user != std::thread::id())
            problem = "two threads at once: " + what + " during " + use + " of another";
        else
            user = self, use = what;
        busy = book->limits.busy;
    }
    if (!problem.empty())
        forbid(problem);
    if (busy)
        std::this_thread::sleep_for(std::chrono::microseconds(busy));
}

InUse::~InUse()
{
    if (device_ >= 0)
        Locked()->users[device_] = std::thread::id();
}

bool InUse::by_this_thread() { return Locked()->users[current_device()] == std::this_thread::get_id(); }

} // namespace fake_mps
