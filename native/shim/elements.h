// What the elements of a grammar's rules match. For matcher.cpp and words.cpp.
#pragma once

#include "llama-grammar.h"

#include <cstdint>

namespace la {

using element = llama_grammar_element;

// The ranges of the characters at `at`; returns the element after them.
template <typename F> const element *each_range(const element *at, F &&f) {
    do {
        if (at->type == LLAMA_GRETYPE_CHAR_ANY) {
            f(0u, 0x10FFFFu);
            ++at;
        } else if (at[1].type == LLAMA_GRETYPE_CHAR_RNG_UPPER) {
            f(at->value, at[1].value);
            at += 2;
        } else {
            f(at->value, at->value);
            ++at;
        }
    } while (at->type == LLAMA_GRETYPE_CHAR_ALT);
    return at;
}

inline const element *after(const element *at) {
    return each_range(at, [](uint32_t, uint32_t) {});
}

inline bool matches(const element *at, uint32_t c) {
    bool found = false;
    each_range(at, [&](uint32_t low, uint32_t high) { found = found || (low <= c && c <= high); });
    return found == (at->type != LLAMA_GRETYPE_CHAR_NOT);
}

inline bool is_token(const element *at) {
    return at->type == LLAMA_GRETYPE_TOKEN || at->type == LLAMA_GRETYPE_TOKEN_NOT;
}

// One more byte of strict UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF.
bool decode(uint8_t byte, uint32_t &value, int &n_left);

} // namespace la
