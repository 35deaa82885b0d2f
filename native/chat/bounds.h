// Bounds for the code of llama.cpp's common/ that renders templates and parses replies: how deep it
// calls itself, and how much it does. chat.cmake writes the calls into a copy of its sources.
#pragma once

#include <cstddef>
#include <cstdint>
#include <ctime>
#include <stdexcept>

namespace la_bounds {

constexpr int MAX_DEPTH = 400;           // of nested expressions, statements and values
constexpr int64_t MAX_WORK = 20000000;   // steps of one call into this library

constexpr size_t MAX_TEXT = 64 << 20;    // bytes of one value
constexpr int64_t MAX_GROWTH = 1 << 30;  // bytes of all values of one call, those that are gone included
constexpr double MAX_SECONDS = 5;        // of this thread's own work
constexpr int64_t STEPS_PER_LOOK = 256;

struct used {
    int depth = 0;
    int64_t work = 0;
    int64_t growth = 0;
    int64_t next_look = STEPS_PER_LOOK;
    double until = 0;
    const char *reason = nullptr;  // why it was stopped; llama.cpp catches what is thrown in places
};

inline used &here() {
    static thread_local used now;
    return now;
}

[[noreturn]] inline void refuse(const char *reason) {
    used &now = here();
    now.reason = now.reason == nullptr ? reason : now.reason;  // the first one is the cause
    throw std::length_error(reason);
}

inline double thread_seconds() {
    timespec now = {};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

inline void spend(int64_t steps) {
    used &now = here();
    now.work += steps;
    if (steps < 0 || now.work > MAX_WORK) {
        refuse("the template or the reply takes too many steps");
    }
    if (now.work >= now.next_look) {
        now.next_look = now.work + STEPS_PER_LOOK;
        if (now.until > 0 && thread_seconds() > now.until) {
            now.work = MAX_WORK;
            refuse("the template or the reply takes too long");
        }
    }
}

// The size of one value, if it may have that.
inline size_t fits(size_t bytes) {
    if (bytes > MAX_TEXT) {
        refuse("a value of the template is too long");
    }
    return bytes;
}

// Bytes that a value takes.
inline void grow(size_t bytes) {
    used &now = here();
    spend(1 + static_cast<int64_t>(fits(bytes)) / 4096);
    now.growth += static_cast<int64_t>(bytes);
    if (now.growth > MAX_GROWTH) {
        refuse("the values of the template are too long");
    }
}

// What an expression gives.
template <class Value> Value measured(Value value) {
    if (value) {
        grow(value->val_str.length() + 48 * value->val_str.parts.size());
    }
    return value;
}

// For the time of one call of a function that calls itself.
class call {
  public:
    call() {
        spend(1);
        if (++here().depth > MAX_DEPTH) {
            --here().depth;
            refuse("the template or the reply is nested too deeply");
        }
    }
    ~call() { --here().depth; }
    call(const call &) = delete;
    call &operator=(const call &) = delete;
};

// In place of a parser's counter of its own depth.
class depth {
  public:
    depth(int value = 0) : value_(value) {}
    operator int() const { return value_; }
    int operator++(int) {
        spend(1);
        if (value_ >= MAX_DEPTH) {
            refuse("the reply is nested too deeply");
        }
        return value_++;
    }
    int operator--(int) { return value_--; }

  private:
    int value_;
};

// At the beginning of each call from outside.
inline void begin() {
    here() = used{};
    here().until = thread_seconds() + MAX_SECONDS;
}

}  // namespace la_bounds
