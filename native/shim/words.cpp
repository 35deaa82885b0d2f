#include "words.h"

#include "elements.h"
#include "internal.h"

#include <algorithm>
#include <numeric>

namespace {

constexpr size_t MAX_UNIFORM = 16;  // classes that are kept: n_vocab bytes each, and their lists

// Whether every character of the text is of the class, and there are not too many.
bool is_uniform(const llama_grammar_element *of, std::string_view text) {
    uint32_t value = 0;
    int n_left = 0;
    size_t n = 0;
    for (const char c : text) {
        if (!la::decode(static_cast<uint8_t>(c), value, n_left)) {
            return false;
        }
        if (n_left == 0 && (!la::matches(of, value) || ++n > la::uniform_words::LONGEST)) {
            return false;
        }
    }
    return n_left == 0;
}

} // namespace

namespace la {

bool decode(uint8_t byte, uint32_t &value, int &n_left) {
    if (n_left == 0) {
        const int n = byte < 0x80 ? 0 : byte < 0xC2 ? -1 : byte < 0xE0 ? 1 : byte < 0xF0 ? 2 : byte < 0xF5 ? 3 : -1;
        if (n < 0 || byte == 0) {
            return false;
        }
        value = n == 0 ? byte : byte & (0x3Fu >> n);
        n_left = n;
        return true;
    }
    const bool overlong = value == 0 && ((n_left == 2 && byte < 0xA0) || (n_left == 3 && byte < 0x90));
    const bool beyond = (n_left == 2 && value == 0xD && byte >= 0xA0) || (n_left == 3 && value == 4 && byte >= 0x90);
    if ((byte >> 6) != 2 || overlong || beyond) {
        return false;
    }
    value = value << 6 | (byte & 0x3Fu);
    --n_left;
    return true;
}

std::string piece_of(const la_model &model, int32_t token, bool special) {
    std::string piece(64, '\0');
    int32_t n = llama_token_to_piece(model.vocab, token, piece.data(), static_cast<int32_t>(piece.size()), 0, special);
    if (n < 0) {
        piece.resize(static_cast<size_t>(-n));
        n = llama_token_to_piece(model.vocab, token, piece.data(), -n, 0, special);
    }
    piece.resize(static_cast<size_t>(std::max(n, 0)));
    return piece;
}

vocabulary::vocabulary(const la_model &model, const std::vector<int32_t> &shown) {
    const auto n = static_cast<size_t>(model.n_vocab);
    ends.resize(n);
    begin.reserve(n + 1);
    std::vector<int32_t> tokens;
    for (int32_t token = 0; token < model.n_vocab; ++token) {
        const std::string piece = piece_of(model, token, std::binary_search(shown.begin(), shown.end(), token));
        if (llama_vocab_is_eog(model.vocab, token)) {
            ends[static_cast<size_t>(token)] = true;
            enders.push_back(token);
        }
        begin.push_back(static_cast<uint32_t>(bytes.size()));
        bytes += piece;
        longest = std::max(longest, piece.size());
        if (!piece.empty()) {
            tokens.push_back(token);
        }
    }
    begin.push_back(static_cast<uint32_t>(bytes.size()));
    std::sort(tokens.begin(), tokens.end(), [&](int32_t a, int32_t b) { return text(a) < text(b); });
    all = sorted(std::move(tokens));
}

word_list vocabulary::sorted(std::vector<int32_t> tokens) const {
    word_list made;
    made.order = std::move(tokens);
    made.shared.reserve(made.order.size());
    std::string_view before;
    for (const int32_t token : made.order) {
        const auto here = text(token);
        const auto differ = std::mismatch(before.begin(), before.end(), here.begin(), here.end());
        made.shared.push_back(static_cast<uint32_t>(differ.second - here.begin()));
        before = here;
    }
    made.next.resize(made.order.size());
    for (size_t i = made.order.size(); i-- > 0;) {
        size_t next = i + 1;
        while (next < made.order.size() && made.shared[next] >= made.shared[i]) {
            next = made.next[next];
        }
        made.next[i] = static_cast<uint32_t>(next);
    }
    return made;
}

const uniform_words *vocabulary::uniform(const llama_grammar_element *of) const {
    ranges key;
    each_range(of, [&](uint32_t low, uint32_t high) { key.emplace_back(low, high); });
    for (const uint32_t c : {'a', 'e', 'n'}) {  // of fewer characters there are few texts
        if (!matches(of, c)) {
            return nullptr;
        }
    }
    const std::lock_guard<std::mutex> held(lock_);
    const std::pair<bool, ranges> named{of->type == LLAMA_GRETYPE_CHAR_NOT, std::move(key)};
    const auto found = uniform_.find(named);
    if (found != uniform_.end() || uniform_.size() >= MAX_UNIFORM) {
        return found == uniform_.end() ? nullptr : found->second.get();
    }
    auto made = std::make_unique<uniform_words>();
    made->inside.resize(ends.size());
    std::vector<int32_t> others;
    for (const int32_t token : all.order) {
        const bool inside = !ends[static_cast<size_t>(token)] && is_uniform(of, text(token));
        made->inside[static_cast<size_t>(token)] = inside;
        made->n_inside += inside;
        if (!inside) {
            others.push_back(token);
        }
    }
    made->others = sorted(std::move(others));
    return uniform_.emplace(named, std::move(made)).first->second.get();
}

} // namespace la
