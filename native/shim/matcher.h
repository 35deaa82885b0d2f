// The matcher of grammars: which tokens may come next, and what comes after one.
#pragma once

#include "llama-grammar.h"
#include "words.h"

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace la {

// The rules of a grammar's text; shared by all matchers of it.
struct grammar_rules {
    llama_grammar_rules rules;
    std::vector<std::string> names;  // of the rules
    uint32_t root = 0;
};

// One reply's position in a grammar: the set of all stacks of elements still to be matched. Equal
// stacks are one, however many derivations lead to them, so the work of a step is that of its distinct
// stacks. Work is counted; too much of it for one query is a fault (LA_STUCK).
class matcher {
  public:
    explicit matcher(std::shared_ptr<const grammar_rules> of);

    bool permits(const vocabulary &words, int32_t token);
    // For each token whether it may come next.
    void permitted(const vocabulary &words, std::vector<char> &out);
    // Advance by a token that permits() allows.
    void accept(const vocabulary &words, int32_t token);
    // Advance by a text; false, and nothing has changed, if the grammar does not begin with it.
    bool advance(std::string_view text);

  private:
    struct node {
        const llama_grammar_element *top;
        uint32_t below;
        int32_t closure;  // index into closures_, or -1: not computed yet
    };
    struct mixed {
        size_t operator()(const std::pair<const llama_grammar_element *, uint32_t> &x) const {
            return (reinterpret_cast<size_t>(x.first) ^ (size_t{x.second} << 32)) * 0x9e3779b97f4a7c15ull >> 16;
        }
    };
    struct state {
        std::vector<uint32_t> stacks;  // the top of each is a terminal, or it is EMPTY
        uint32_t value = 0;            // of an unfinished UTF-8 sequence
        int n_left = 0;                // bytes it still needs
    };

    bool may_end() const;
    size_t run_of(uint32_t stack, size_t most);
    const uniform_words *widest(const vocabulary &words);
    void permit(const vocabulary &words, const word_list &list, std::vector<char> &out);
    uint32_t push(const llama_grammar_element *top, uint32_t below);
    int32_t close(uint32_t stack);
    void add_closed(uint32_t stack, std::vector<uint32_t> &out);
    void begin_set();
    bool step(const state &from, uint8_t byte, state &to);
    bool walk(std::string_view text, size_t from);
    void may_spend(uint64_t most);
    void spend(uint64_t work);
    [[noreturn]] void give_up() const;
    void forget_dead();

    std::shared_ptr<const grammar_rules> of_;
    std::vector<node> nodes_;
    std::unordered_map<std::pair<const llama_grammar_element *, uint32_t>, uint32_t, mixed> known_;
    std::vector<std::vector<uint32_t>> closures_;
    std::vector<uint64_t> in_set_;  // of a stack: the number of the set it was last added to
    uint64_t set_ = 0;
    uint64_t work_ = 0;  // of this question
    uint64_t most_work_ = 0;
    std::vector<state> path_;  // the states after each byte of a text; path_[0] is the present one
};

} // namespace la
