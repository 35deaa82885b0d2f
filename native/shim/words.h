// The texts of a model's tokens, in the forms in which a grammar is compared with all of them.
#pragma once

#include "llama-grammar.h"

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

struct la_model;

namespace la {

// Tokens in the order of their texts, so that what neighbours begin with alike is read once.
struct word_list {
    std::vector<int32_t> order;
    std::vector<uint32_t> shared;  // bytes that order[i] begins with like order[i - 1]
    std::vector<uint32_t> next;    // of i: the first after it that shares fewer bytes
};

// Texts of many characters are of one class: most of a vocabulary is of the characters that the
// inside of a JSON string may have. They are known once, and only the others are read.
struct uniform_words {
    static constexpr size_t LONGEST = 32;  // characters; longer texts are among the others
    std::vector<char> inside;  // of each token, whether its text is of such characters
    size_t n_inside = 0;
    word_list others;
};

// A control token has no text: a reply does not show it.
class vocabulary {
  public:
    vocabulary(const la_model &model, const std::vector<int32_t> &shown);

    std::string bytes;
    std::vector<uint32_t> begin;  // of token i: bytes[begin[i]] to bytes[begin[i + 1]]
    std::vector<bool> ends;       // tokens that end a reply
    std::vector<int32_t> enders;  // the same as a list
    word_list all;                // tokens that have a text
    size_t longest = 0;           // bytes of a text

    std::string_view text(int32_t token) const {
        const auto at = static_cast<size_t>(token);
        return std::string_view(bytes).substr(begin[at], begin[at + 1] - begin[at]);
    }
    // The tokens of the characters that the element matches; null where that is not worth its
    // memory. Lives as long as the vocabulary. For any thread.
    const uniform_words *uniform(const llama_grammar_element *of) const;

  private:
    word_list sorted(std::vector<int32_t> tokens) const;

    using ranges = std::vector<std::pair<uint32_t, uint32_t>>;
    mutable std::mutex lock_;
    mutable std::map<std::pair<bool, ranges>, std::unique_ptr<const uniform_words>> uniform_;
};

std::string piece_of(const la_model &model, int32_t token, bool special);

} // namespace la
