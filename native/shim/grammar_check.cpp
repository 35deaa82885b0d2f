// Checks of a grammar before it is used.
//
// llama.cpp's parser does not check its input, nor does the matcher: a repetition that counts down never
// ends, a hidden left recursion fills the memory, deep brackets overflow the stack. All of these are
// refused here, before either reads them.
#include "sampling.h"

#include "llama-grammar.h"

#include <algorithm>
#include <map>
#include <cstring>

namespace {

constexpr uint64_t MAX_ELEMENTS = 2'000'000;  // of all rules, repetitions written out
constexpr uint64_t MAX_REPETITIONS = 2'000;
constexpr int MAX_BRACKETS = 200;
constexpr size_t MAX_LEFT_DEPTH = 5'000;
constexpr size_t MAX_SKIPPED = 8;        // times that one thing, which may be empty, may follow itself
constexpr size_t MAX_ALL_SKIPPED = 16;   // and different ones in a row

[[noreturn]] void refuse(const std::string &why) {
    // llama.cpp quotes everything after the place of an error.
    throw la::fault{LA_GRAMMAR, why.size() <= 160 ? why : why.substr(0, 160) + "...", 0, 0};
}

// --- the text, before it is parsed -------------------------------------------------------------

const char *skip_space(const char *at) {
    while (*at == ' ' || *at == '\t' || *at == '\r' || *at == '\n' || *at == '#') {
        if (*at == '#') {
            at += std::strcspn(at, "\r\n");
        } else {
            ++at;
        }
    }
    return at;
}

const char *skip_quoted(const char *at, char end) {
    for (++at; *at != '\0' && *at != end; ++at) {
        if (*at == '\\' && at[1] != '\0') {
            ++at;
        }
    }
    return at;
}

uint64_t number(const char *&at) {
    uint64_t value = 0;
    for (; '0' <= *at && *at <= '9'; ++at) {
        value = std::min<uint64_t>(10 * value + static_cast<uint64_t>(*at - '0'), 1'000'000'000);
    }
    return value;
}

// "{m,n}" at `at`: how often the item before it is written out.
uint64_t repetitions(const char *&at) {
    at = skip_space(at + 1);
    const uint64_t least = number(at);
    at = skip_space(at);
    uint64_t most = least;
    if (*at == ',') {
        at = skip_space(at + 1);
        if ('0' <= *at && *at <= '9') {
            most = number(at);
            if (most < least) {
                refuse("a repetition {m,n} whose n is less than its m");
            }
        }
    }
    if (most > MAX_REPETITIONS) {
        refuse("a repetition of more than 2,000 times, which llama.cpp's parser reads as one without a limit; "
               "repeat a rule that is a repetition itself");
    }
    return most;
}

void check_text(const char *text) {
    uint64_t elements = 0;
    uint64_t last = 1;  // elements of the item that a repetition would repeat
    int brackets = 0;
    for (const char *at = text; *at != '\0'; ++at) {
        const char *start = at;
        switch (*at) {
        case '#': at += std::strcspn(at, "\r\n") - 1; continue;
        case '"': at = skip_quoted(at, '"'); last = static_cast<uint64_t>(at - start); break;
        case '[': at = skip_quoted(at, ']'); last = static_cast<uint64_t>(at - start); break;
        case '{': last *= std::max<uint64_t>(repetitions(at), 1); --at; break;
        case '(':
            if (++brackets > MAX_BRACKETS) {
                refuse("brackets nested more than 200 deep");
            }
            last = 1;
            break;
        case ')': --brackets; last = 1; break;
        case ' ': case '\t': case '\r': case '\n': continue;
        case '*': case '+': case '?': last *= 2; break;
        default: last = 1; break;
        }
        elements += last;
        if (elements > MAX_ELEMENTS) {
            refuse("too large: its repetitions, written out, are more than 2,000,000 elements");
        }
        if (*at == '\0') {
            return;  // an end inside quotes is reported by the parser
        }
    }
}

// --- the rules, before they are used ------------------------------------------------------------

bool ends(const llama_grammar_element &e) {
    return e.type == LLAMA_GRETYPE_END || e.type == LLAMA_GRETYPE_ALT;
}

// Rules that may match nothing. Each alternative is looked at once for each rule in it that is found
// to be such a one, so that the order of the rules costs nothing.
std::vector<bool> find_empty(const llama_grammar_rules &rules) {
    std::vector<bool> empty(rules.size(), false);
    std::vector<std::vector<size_t>> users(rules.size());  // alternatives of rules alone, by rule in them
    std::vector<std::pair<uint32_t, size_t>> left;         // of an alternative: its rule, what is not yet empty
    std::vector<uint32_t> found;
    for (uint32_t r = 0; r < rules.size(); ++r) {
        for (size_t i = 0; i < rules[r].size(); ++i) {
            const size_t begin = i;
            bool refs = true;
            for (; i < rules[r].size() && !ends(rules[r][i]); ++i) {
                refs = refs && rules[r][i].type == LLAMA_GRETYPE_RULE_REF;
            }
            if (!refs) {
                continue;
            }
            for (size_t at = begin; at < i; ++at) {
                users[rules[r][at].value].push_back(left.size());
            }
            left.emplace_back(r, i - begin);
            if (i == begin) {
                found.push_back(r);
            }
        }
    }
    while (!found.empty()) {
        const uint32_t rule = found.back();
        found.pop_back();
        if (empty[rule]) {
            continue;
        }
        empty[rule] = true;
        for (const size_t alternative : users[rule]) {
            if (--left[alternative].second == 0) {
                found.push_back(left[alternative].first);
            }
        }
    }
    return empty;
}

// The rules that each rule may begin with.
std::vector<std::vector<uint32_t>> find_first(const llama_grammar_rules &rules) {
    const auto empty = find_empty(rules);
    std::vector<std::vector<uint32_t>> first(rules.size());
    for (size_t r = 0; r < rules.size(); ++r) {
        bool at_start = true;
        for (const auto &e : rules[r]) {
            if (ends(e)) {
                at_start = true;
            } else if (at_start && e.type == LLAMA_GRETYPE_RULE_REF) {
                first[r].push_back(e.value);
                at_start = empty[e.value];
            } else {
                at_start = false;
            }
        }
    }
    return first;
}

// Left recursion, also through rules that may be empty.
void check_left(const llama_grammar_rules &rules, const std::vector<std::string> &names) {
    const auto first = find_first(rules);
    const size_t n = rules.size();
    std::vector<char> state(n, 0);  // 1: on the path, 2: done
    for (size_t root = 0; root < n; ++root) {
        std::vector<std::pair<size_t, size_t>> path;
        if (state[root] == 0) {
            path.emplace_back(root, 0);
            state[root] = 1;
        }
        while (!path.empty()) {
            auto &[rule, next] = path.back();
            if (next == first[rule].size()) {
                state[rule] = 2;
                path.pop_back();
                continue;
            }
            const uint32_t child = first[rule][next++];
            if (state[child] == 1) {
                refuse("left recursion: rule '" + names[child] + "' may begin with itself");
            }
            if (state[child] == 0) {
                state[child] = 1;
                path.emplace_back(child, 0);
            }
            if (path.size() > MAX_LEFT_DEPTH) {
                refuse("its rules begin with one another more than 5,000 deep");
            }
        }
    }
}

// Rules of equal content are one: each "x"? is a rule of its own.
std::vector<uint32_t> same_rules(const llama_grammar_rules &rules) {
    std::map<std::vector<uint64_t>, uint32_t> first;
    std::vector<uint32_t> same(rules.size());
    for (uint32_t r = 0; r < rules.size(); ++r) {
        std::vector<uint64_t> content;
        for (const auto &e : rules[r]) {
            content.push_back(static_cast<uint64_t>(e.type) << 32 | e.value);
        }
        same[r] = first.emplace(std::move(content), r).first->second;
    }
    return same;
}

// ("x"?){0,400}, or "x"? "x"? "x"?…: each may be skipped, so each is a stack of its own.
void check_skipping(const llama_grammar_rules &rules) {
    const auto empty = find_empty(rules);
    const auto same = same_rules(rules);
    const auto skips = [&](const llama_grammar_element &e) {
        return e.type == LLAMA_GRETYPE_RULE_REF && empty[e.value];
    };
    for (uint32_t r = 0; r < rules.size(); ++r) {
        size_t run = 1;
        size_t any = 1;
        for (size_t i = 1; i < rules[r].size(); ++i) {
            const auto &before = rules[r][i - 1];
            const bool again = skips(before) && skips(rules[r][i]) && same[before.value] == same[rules[r][i].value];
            run = again ? run + 1 : 1;
            any = skips(before) && skips(rules[r][i]) ? any + 1 : 1;
            if (run > MAX_SKIPPED || any > MAX_ALL_SKIPPED) {
                refuse("too many parts in a row that may be empty: 16, or 8 times the same");
            }
        }
        // A repetition {0,n} is written S S(n-1), and S(n-1) is S S(n-2).
        size_t chain = 0;
        for (uint32_t at = r; rules[at].size() >= 2 && skips(rules[at][0]) && skips(rules[at][1]);) {
            const uint32_t next = rules[at][1].value;
            if (next == at || rules[next].empty() || !skips(rules[next][0]) ||
                same[rules[next][0].value] != same[rules[at][0].value]) {
                break;
            }
            if (++chain > MAX_SKIPPED) {
                refuse("more than 8 repetitions of something that may be empty; let it not be empty");
            }
            at = next;
        }
    }
}

std::shared_ptr<const la::grammar_rules> check_rules(llama_grammar_parser &parser) {
    std::vector<std::string> names(parser.rules.size());
    for (const auto &[name, id] : parser.symbol_ids) {
        if (id >= parser.rules.size() || parser.rules[id].empty()) {
            refuse("rule '" + name + "' is used and not defined");
        }
        names[id] = name;
    }
    if (parser.rules.empty()) {
        refuse("it has no rules");
    }
    if (parser.symbol_ids.find("root") == parser.symbol_ids.end()) {
        refuse("it has no rule named root");
    }
    check_left(parser.rules, names);
    check_skipping(parser.rules);
    auto checked = std::make_shared<la::grammar_rules>();
    checked->root = parser.symbol_ids.at("root");
    checked->rules = std::move(parser.rules);
    checked->names = std::move(names);
    return checked;
}

} // namespace

std::shared_ptr<const la::grammar_rules> la::check_grammar(const llama_vocab *vocab, const std::string &text) {
    check_text(text.c_str());
    llama_grammar_parser parser(vocab);
    try {
        for (const char *at = skip_space(text.c_str()); *at != '\0';) {
            at = parser.parse_rule(at);
        }
    } catch (const std::exception &e) {
        std::string why = e.what();
        if (why.find(" at _") != std::string::npos) {
            why.insert(0, "names of rules hold letters, digits and hyphens; ");
        }
        refuse(why);
    }
    return check_rules(parser);
}
