// The log, the last error, and what this build is.
#include "internal.h"

#include <atomic>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <set>

namespace {

constexpr size_t KEPT_LINES = 40;
constexpr size_t KEPT_BYTES_PER_LINE = 1000;

std::mutex log_mutex;
std::deque<std::string> log_lines;
bool line_is_open = false;            // the last line did not end in \n: the next part belongs to it
std::atomic<int> forward_level{0};

// Of overridden metadata, guarded by log_mutex; see la::overrides_read.
bool overrides_are_watched = false;
std::set<std::string> overrides_used;
std::map<std::string, std::string> overrides_refused;  // by key, the type that was expected

thread_local std::string error_text;
thread_local int64_t error_value = 0;
thread_local int64_t error_limit = 0;

void keep(const char *text) {
    const std::lock_guard<std::mutex> hold(log_mutex);
    if (!line_is_open) {
        log_lines.emplace_back();
        if (log_lines.size() > KEPT_LINES) {
            log_lines.pop_front();
        }
    }
    std::string &line = log_lines.back();
    line.append(text, strnlen(text, KEPT_BYTES_PER_LINE - std::min(KEPT_BYTES_PER_LINE, line.size())));
    line_is_open = text[0] != '\0' && text[strlen(text) - 1] != '\n';
}

// The text between the first two marks of a kind in a line.
std::string quoted(const std::string &line) {
    const size_t start = line.find('\'');
    const size_t end = start == std::string::npos ? start : line.find('\'', start + 1);
    return end == std::string::npos ? "" : line.substr(start + 1, end - start - 1);
}

void note_override(const char *text) {
    const std::lock_guard<std::mutex> hold(log_mutex);
    if (!overrides_are_watched) {
        return;
    }
    const std::string line = text;
    if (line.find("Using metadata override") != std::string::npos) {
        overrides_used.insert(quoted(line));
    } else if (line.find("Bad metadata override type") != std::string::npos) {
        const std::string before = "expected ";
        const size_t at = line.rfind(before);
        const size_t start = at == std::string::npos ? line.size() : at + before.size();
        overrides_refused[quoted(line)] = line.substr(start, line.find(' ', start) - start);
    }
}

void on_log(ggml_log_level level, const char *text, void *) noexcept {
    static thread_local ggml_log_level last = GGML_LOG_LEVEL_INFO;
    if (level == GGML_LOG_LEVEL_CONT) {
        level = last;
    }
    last = level;
    const int forward = forward_level.load(std::memory_order_relaxed);
    if (forward > 0 && level >= forward) {
        fputs(text, stderr);
    }
    if (level >= GGML_LOG_LEVEL_INFO) {
        try {
            note_override(text);
            if (level >= GGML_LOG_LEVEL_WARN) {
                keep(text);
            }
        } catch (...) {  // out of memory: a lost log line must not end the process
        }
    }
}

// Before anything else of llama.cpp runs: its default logger writes to stderr.
const bool initialised = [] {
    llama_log_set(on_log, nullptr);
    llama_backend_init();
    return true;
}();

} // namespace

int la::report(int status, const char *text, int64_t value, int64_t limit) noexcept {
    try {
        error_text = text;
    } catch (...) {
        error_text.clear();
    }
    error_value = value;
    error_limit = limit;
    return status;
}

la::overrides_read::overrides_read(bool watches) {
    const std::lock_guard<std::mutex> hold(log_mutex);
    overrides_are_watched = watches;
    overrides_used.clear();
    overrides_refused.clear();
}

la::overrides_read::~overrides_read() {
    const std::lock_guard<std::mutex> hold(log_mutex);
    overrides_are_watched = false;
}

bool la::overrides_read::has_read(const std::string &key) const {
    const std::lock_guard<std::mutex> hold(log_mutex);
    return overrides_used.count(key) > 0;
}

std::string la::overrides_read::wanted_type(const std::string &key) const {
    const std::lock_guard<std::mutex> hold(log_mutex);
    const auto found = overrides_refused.find(key);
    return found == overrides_refused.end() ? "" : found->second;
}

extern "C" {

const char *la_source_id(void) noexcept { return LA_SOURCE_ID; }
const char *la_kernels_id(void) noexcept { return LA_KERNELS_ID; }
const char *la_system_info(void) noexcept { return llama_print_system_info(); }

const char *la_device_names(void) noexcept {
    static const std::string names = []() noexcept {
        std::string joined;
        for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
            joined += (i == 0 ? "" : ",");
            joined += ggml_backend_dev_name(ggml_backend_dev_get(i));
        }
        return joined;
    }();
    return names.c_str();
}

void la_log_forward(int level) noexcept { forward_level.store(level, std::memory_order_relaxed); }

size_t la_log_tail(char *out, size_t capacity) noexcept {
    const std::lock_guard<std::mutex> hold(log_mutex);
    size_t used = 0;
    for (const std::string &line : log_lines) {
        const size_t n = std::min(line.size(), capacity - used);
        memcpy(out + used, line.data(), n);
        used += n;
    }
    return used;
}

void la_log_clear(void) noexcept {
    const std::lock_guard<std::mutex> hold(log_mutex);
    log_lines.clear();
    line_is_open = false;
}

int la_offloads(void) noexcept {
    bool yes = false;
    la::guarded([&] { yes = llama_supports_gpu_offload(); });
    return yes;
}

int32_t la_gpus(la_device *out, int32_t capacity) noexcept {
    int32_t n = 0;
    const int status = la::guarded([&] {
        for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
            const ggml_backend_dev_t device = ggml_backend_dev_get(i);
            if (ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_GPU) {
                continue;
            }
            if (n < capacity) {
                size_t free = 0;
                size_t total = 0;
                ggml_backend_dev_memory(device, &free, &total);
                la_device &entry = out[n];
                strncpy(entry.name, ggml_backend_dev_description(device), sizeof entry.name - 1);
                entry.name[sizeof entry.name - 1] = '\0';
                entry.free = free;
                entry.total = total;
            }
            ++n;
        }
    });
    return status == LA_OK ? n : -1;
}

const char *la_error_text(void) noexcept { return error_text.c_str(); }
int64_t la_error_value(void) noexcept { return error_value; }
int64_t la_error_limit(void) noexcept { return error_limit; }

} // extern "C"
