// Bounds for the code of llama.cpp's common/ that renders templates and parses replies: how deep it
// calls itself, and how much it does. chat.cmake writes the calls into a copy of its sources.
#pragma once

#include <cstdint>
#include <stdexcept>

namespace la_bounds {

constexpr int MAX_DEPTH = 400;           // of nested expressions, statements and values
constexpr int64_t MAX_WORK = 20000000;   // steps of one call into this library

struct used {
    int depth = 0;
    int64_t work = 0;
};

inline used &here() {
    static thread_local used now;
    return now;
}

inline void spend(int64_t steps) {
    used &now = here();
    now.work += steps;
    if (steps < 0 || now.work > MAX_WORK) {
        throw std::length_error("the template or the reply takes too many steps");
    }
}

// For the time of one call of a function that calls itself.
class call {
  public:
    call() {
        spend(1);
        if (++here().depth > MAX_DEPTH) {
            --here().depth;
            throw std::length_error("the template or the reply is nested too deeply");
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
            throw std::length_error("the reply is nested too deeply");
        }
        return value_++;
    }
    int operator--(int) { return value_--; }

  private:
    int value_;
};

// At the beginning of each call from outside.
inline void begin() { here() = used{}; }

}  // namespace la_bounds
