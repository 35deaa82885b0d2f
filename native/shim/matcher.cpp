// The matcher of grammars. llama.cpp parses the text; its own matcher is not used: it follows every
// derivation apart, so that an enumeration of some hundred values takes seconds for one token, and it
// aborts the process where a reply does not follow the grammar.
#include "matcher.h"

#include "elements.h"
#include "internal.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <unordered_set>

namespace {

constexpr uint32_t EMPTY = 0;               // the stack on which nothing is left
// Tests of a terminal, and pushes. All requests of a model wait for one's question: 30 ms at most for
// one token, and 150 ms for the whole vocabulary.
constexpr uint64_t TOKEN_WORK = 1'000'000;
constexpr uint64_t VOCABULARY_WORK = 5'000'000;
constexpr uint64_t PUSH_WORK = 32;          // a new stack also costs memory
constexpr size_t MANY_STACKS = 1u << 16;    // kept between tokens; above, dead ones are removed

using la::after;
using la::decode;
using la::each_range;
using la::element;
using la::is_token;
using la::matches;

bool ends(const element *at) { return at->type == LLAMA_GRETYPE_END || at->type == LLAMA_GRETYPE_ALT; }

// Whether some character from low to high matches.
bool matches_some(const element *at, uint32_t low, uint32_t high) {
    if (at->type != LLAMA_GRETYPE_CHAR_NOT) {
        bool found = false;
        each_range(at, [&](uint32_t a, uint32_t b) { found = found || (a <= high && low <= b && a <= b); });
        return found;
    }
    for (bool grew = true; grew && low <= high;) {  // what is excluded from the lower end on
        grew = false;
        each_range(at, [&](uint32_t a, uint32_t b) {
            if (a <= low && low <= b) {
                low = b + 1;
                grew = true;
            }
        });
    }
    return low <= high;
}

} // namespace

namespace la {

matcher::matcher(std::shared_ptr<const grammar_rules> of) : of_(std::move(of)) {
    may_spend(TOKEN_WORK);
    nodes_.push_back({nullptr, EMPTY, -1});
    path_.resize(1);
    begin_set();
    const element *at = of_->rules[of_->root].data();
    for (bool more = true; more; ++at) {
        add_closed(ends(at) ? EMPTY : push(at, EMPTY), path_[0].stacks);
        while (!ends(at)) {
            ++at;
        }
        more = at->type == LLAMA_GRETYPE_ALT;
    }
}

void matcher::may_spend(uint64_t most) {
    work_ = 0;
    most_work_ = most;
}

void matcher::spend(uint64_t work) {
    work_ += work;
    if (work_ > most_work_) {
        give_up();
    }
}

void matcher::give_up() const {
    std::map<const element *, size_t> rule_at;
    for (size_t r = 0; r < of_->rules.size(); ++r) {
        rule_at.emplace(of_->rules[r].data(), r);
    }
    std::vector<size_t> counts(of_->rules.size(), 0);
    for (const uint32_t stack : path_[0].stacks) {
        if (stack != EMPTY) {
            ++counts[std::prev(rule_at.upper_bound(nodes_[stack].top))->second];
        }
    }
    const auto most = static_cast<size_t>(std::max_element(counts.begin(), counts.end()) - counts.begin());
    throw fault{LA_STUCK,
                "the grammar is too ambiguous: the text so far can be read in " +
                    std::to_string(path_[0].stacks.size()) + " ways, and the next token takes more than " +
                    std::to_string(most_work_ / 1'000'000) + " million steps to find, about rule '" + of_->names[most] +
                    "'; let fewer of its parts begin alike or be empty",
                0, 0};
}

uint32_t matcher::push(const element *top, uint32_t below) {
    const auto [found, is_new] = known_.try_emplace({top, below}, static_cast<uint32_t>(nodes_.size()));
    if (is_new) {
        nodes_.push_back({top, below, -1});
        spend(PUSH_WORK);
    }
    return found->second;
}

// The stacks whose top is a terminal that a stack may become. Left recursion was refused before.
int32_t matcher::close(uint32_t stack) {
    if (nodes_[stack].closure >= 0) {
        return nodes_[stack].closure;
    }
    std::vector<uint32_t> closed;
    std::vector<uint32_t> todo{stack};
    std::unordered_set<uint32_t> done;
    while (!todo.empty()) {
        const uint32_t one = todo.back();
        todo.pop_back();
        if (!done.insert(one).second) {
            continue;
        }
        spend(1);
        const element *top = nodes_[one].top;
        if (one == EMPTY || top->type != LLAMA_GRETYPE_RULE_REF) {
            closed.push_back(one);
            continue;
        }
        const uint32_t below = ends(top + 1) ? nodes_[one].below : push(top + 1, nodes_[one].below);
        const element *at = of_->rules[top->value].data();
        for (bool more = true; more; ++at) {
            todo.push_back(ends(at) ? below : push(at, below));
            while (!ends(at)) {
                ++at;
            }
            more = at->type == LLAMA_GRETYPE_ALT;
        }
    }
    closures_.push_back(std::move(closed));
    return nodes_[stack].closure = static_cast<int32_t>(closures_.size() - 1);
}

void matcher::begin_set() { ++set_; }

void matcher::add_closed(uint32_t stack, std::vector<uint32_t> &out) {
    const auto &closed = closures_[static_cast<size_t>(close(stack))];
    if (in_set_.size() < nodes_.size()) {
        in_set_.resize(nodes_.capacity(), 0);
    }
    spend(closed.size());
    for (const uint32_t one : closed) {
        if (in_set_[one] != set_) {
            in_set_[one] = set_;
            out.push_back(one);
        }
    }
}

bool matcher::step(const state &from, uint8_t byte, state &to) {
    to.stacks.clear();
    to.value = from.value;
    to.n_left = from.n_left;
    if (!decode(byte, to.value, to.n_left)) {
        return false;
    }
    spend(from.stacks.size());
    if (to.n_left > 0) {
        uint32_t low = to.value << (6 * to.n_left);
        uint32_t high = low | ((1u << (6 * to.n_left)) - 1);
        if (to.value == 0) {
            low = to.n_left == 2 ? 0x800 : 0x10000;
        } else if (to.n_left == 2 && to.value == 0xD) {
            high = 0xD7FF;
        } else if (to.n_left == 3 && to.value == 4) {
            high = 0x10FFFF;
        }
        for (const uint32_t stack : from.stacks) {
            const element *top = nodes_[stack].top;
            if (stack != EMPTY && !is_token(top) && matches_some(top, low, high)) {
                to.stacks.push_back(stack);
            }
        }
        return !to.stacks.empty();
    }
    begin_set();
    for (const uint32_t stack : from.stacks) {
        const element *top = nodes_[stack].top;
        if (stack != EMPTY && !is_token(top) && matches(top, to.value)) {
            const element *next = after(top);
            const uint32_t below = nodes_[stack].below;
            add_closed(ends(next) ? below : push(next, below), to.stacks);
        }
    }
    return !to.stacks.empty();
}

// From path_[from] on; whether the whole text matches.
bool matcher::walk(std::string_view text, size_t from) {
    if (path_.size() <= text.size()) {
        path_.resize(text.size() + 1);
    }
    for (; from < text.size(); ++from) {
        if (!step(path_[from], static_cast<uint8_t>(text[from]), path_[from + 1])) {
            return false;
        }
    }
    return true;
}

bool matcher::may_end() const {
    const auto &stacks = path_[0].stacks;
    return path_[0].n_left == 0 && std::find(stacks.begin(), stacks.end(), EMPTY) != stacks.end();
}

namespace {

bool names(const element *top, int32_t token) {
    const bool same = top->value == static_cast<uint32_t>(token);
    return same == (top->type == LLAMA_GRETYPE_TOKEN);
}

} // namespace

bool matcher::permits(const vocabulary &words, int32_t token) {
    may_spend(TOKEN_WORK);
    if (words.ends[static_cast<size_t>(token)]) {
        return may_end();
    }
    for (const uint32_t stack : path_[0].stacks) {
        if (stack != EMPTY && is_token(nodes_[stack].top) && names(nodes_[stack].top, token)) {
            return true;
        }
    }
    const auto text = words.text(token);
    return !text.empty() && walk(text, 0);
}

// How many characters of the class on top of a stack may follow one another, up to `most`.
size_t matcher::run_of(uint32_t stack, size_t most) {
    const element *top = nodes_[stack].top;
    const element *next = after(top);
    for (size_t n = 1; n <= most; ++n) {
        const uint32_t below = nodes_[stack].below;
        const auto &closed = closures_[static_cast<size_t>(close(ends(next) ? below : push(next, below)))];
        const auto again = std::find_if(closed.begin(), closed.end(), [&](uint32_t one) {
            return one != EMPTY && nodes_[one].top == top;
        });
        if (again == closed.end()) {
            return n;
        }
        if (*again == stack) {
            return most;
        }
        stack = *again;
    }
    return most;
}

// The largest part of the vocabulary whose texts may all come next, of one class of characters.
const uniform_words *matcher::widest(const vocabulary &words) {
    constexpr size_t FEW = 8;  // classes; another state than in a string has none of such kind
    const uniform_words *found = nullptr;
    std::vector<const element *> seen;
    if (path_[0].n_left > 0) {
        return nullptr;
    }
    for (const uint32_t stack : path_[0].stacks) {
        const element *top = nodes_[stack].top;
        if (stack == EMPTY || is_token(top) || std::find(seen.begin(), seen.end(), top) != seen.end()) {
            continue;
        }
        if (seen.size() == FEW) {
            break;
        }
        seen.push_back(top);
        const uniform_words *one = words.uniform(top);
        if (one != nullptr && (found == nullptr || one->n_inside > found->n_inside) &&
            run_of(stack, uniform_words::LONGEST) == uniform_words::LONGEST) {
            found = one;
        }
    }
    return found;
}

// Of the tokens of a list.
void matcher::permit(const vocabulary &words, const word_list &list, std::vector<char> &out) {
    size_t n_valid = 0;  // path_[0] to path_[n_valid] are of the text before; one byte more did not match
    for (size_t i = 0; i < list.order.size();) {
        if (list.shared[i] > n_valid) {
            i = list.next[i];  // all before it begin with what did not match
            continue;
        }
        const auto text = words.text(list.order[i]);
        n_valid = list.shared[i];
        while (n_valid < text.size() && step(path_[n_valid], static_cast<uint8_t>(text[n_valid]), path_[n_valid + 1])) {
            ++n_valid;
        }
        out[static_cast<size_t>(list.order[i])] = n_valid == text.size();
        ++i;
    }
}

void matcher::permitted(const vocabulary &words, std::vector<char> &out) {
    may_spend(VOCABULARY_WORK);
    path_.resize(std::max(path_.size(), words.longest + 1));
    const uniform_words *uniform = widest(words);
    if (uniform != nullptr) {
        out = uniform->inside;
    } else {
        out.assign(words.ends.size(), 0);
    }
    permit(words, uniform == nullptr ? words.all : uniform->others, out);
    for (const uint32_t stack : path_[0].stacks) {
        const element *top = nodes_[stack].top;
        if (stack == EMPTY || !is_token(top)) {
            continue;
        }
        for (size_t token = 0; token < out.size(); ++token) {
            out[token] = out[token] != 0 || names(top, static_cast<int32_t>(token));
        }
    }
    const bool end = may_end();
    for (const int32_t token : words.enders) {
        out[static_cast<size_t>(token)] = end;
    }
}

void matcher::accept(const vocabulary &words, int32_t token) {
    if (words.ends[static_cast<size_t>(token)]) {
        return;
    }
    may_spend(TOKEN_WORK);
    const auto text = words.text(token);
    state next;
    begin_set();
    for (const uint32_t stack : path_[0].stacks) {
        const element *top = nodes_[stack].top;
        if (stack != EMPTY && is_token(top) && names(top, token)) {
            add_closed(ends(top + 1) ? nodes_[stack].below : push(top + 1, nodes_[stack].below), next.stacks);
        }
    }
    if (!text.empty() && walk(text, 0)) {
        state &read = path_[text.size()];
        if (next.stacks.empty()) {
            next = std::move(read);
        } else if (read.n_left == 0) {
            begin_set();
            for (const uint32_t stack : next.stacks) {
                in_set_[stack] = set_;
            }
            for (const uint32_t stack : read.stacks) {
                if (in_set_[stack] != set_) {
                    next.stacks.push_back(stack);
                }
            }
        }
    }
    path_[0] = std::move(next);
    if (nodes_.size() > MANY_STACKS) {
        forget_dead();
    }
}

bool matcher::advance(std::string_view text) {
    work_ = 0;
    if (text.empty()) {
        return true;
    }
    if (!walk(text, 0)) {
        return false;
    }
    path_[0] = std::move(path_[text.size()]);
    if (nodes_.size() > MANY_STACKS) {
        forget_dead();
    }
    return true;
}

void matcher::forget_dead() {
    const std::vector<node> old = std::move(nodes_);
    nodes_.assign(1, {nullptr, EMPTY, -1});
    known_.clear();
    closures_.clear();
    in_set_.clear();
    may_spend(VOCABULARY_WORK);
    std::unordered_map<uint32_t, uint32_t> moved{{EMPTY, EMPTY}};
    for (uint32_t &stack : path_[0].stacks) {
        std::vector<uint32_t> above;
        for (uint32_t at = stack; moved.find(at) == moved.end(); at = old[at].below) {
            above.push_back(at);
        }
        for (; !above.empty(); above.pop_back()) {
            const uint32_t at = above.back();
            moved[at] = push(old[at].top, moved[old[at].below]);
        }
        stack = moved[stack];
    }
}

} // namespace la
