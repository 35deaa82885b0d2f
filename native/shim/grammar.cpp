// Grammars: compiled once for a model and then shared, evaluated token by token.
#include "sampling.h"

#include <algorithm>
#include <limits>
#include <list>

namespace {

constexpr size_t SHELF = 16;  // compiled grammars that are kept
constexpr size_t WORDS_SHELF = 3;
constexpr size_t BREAKER_SHELF = 64;
constexpr size_t FEW = 128;   // the likeliest tokens, tried before the vocabulary

} // namespace

// --- what samplers of one model share -------------------------------------------------------------

namespace la {

struct sampler_shelf {
    struct compiled {
        std::string text;
        std::shared_ptr<const grammar_rules> rules;
    };
    std::list<compiled> grammars;  // used last first
    std::list<std::pair<std::vector<int32_t>, std::shared_ptr<const vocabulary>>> words;  // by the control tokens shown
    std::list<std::pair<std::string, std::shared_ptr<const breaker>>> breakers;
    uint64_t n_compiled = 0;
};

namespace {

sampler_shelf &shelf_of(const la_model &model) {
    if (!model.shelf) {
        model.shelf = std::make_shared<sampler_shelf>();
    }
    return *model.shelf;
}

std::string piece_of(const llama_vocab *vocab, int32_t token, bool special) {
    std::string piece(64, '\0');
    int32_t n = llama_token_to_piece(vocab, token, piece.data(), static_cast<int32_t>(piece.size()), 0, special);
    if (n < 0) {
        piece.resize(static_cast<size_t>(-n));
        n = llama_token_to_piece(vocab, token, piece.data(), -n, 0, special);
    }
    piece.resize(static_cast<size_t>(std::max(n, 0)));
    return piece;
}

std::shared_ptr<const breaker> make_breaker(const la_model &model, const std::string &text) {
    auto made = std::make_shared<breaker>();
    for (int32_t token = 0; token < model.n_vocab; ++token) {
        if (piece_of(model.vocab, token, true).find(text) != std::string::npos) {
            made->containing.push_back(token);
        }
    }
    std::vector<int32_t> tokens(text.size() + 8);
    const int32_t n = tokenize(model, text, tokens.data(), static_cast<int32_t>(tokens.size()), false, true);
    if (n > 1) {
        made->spelled.assign(tokens.begin(), tokens.begin() + n);
    }
    return made;
}

std::shared_ptr<const vocabulary> make_words(const la_model &model, const std::vector<int32_t> &shown) {
    auto made = std::make_shared<vocabulary>();
    const auto n = static_cast<size_t>(model.n_vocab);
    made->ends.resize(n);
    made->begin.reserve(n + 1);
    for (int32_t token = 0; token < model.n_vocab; ++token) {
        const bool is_shown = std::binary_search(shown.begin(), shown.end(), token);
        const std::string piece = piece_of(model.vocab, token, is_shown);
        made->ends[static_cast<size_t>(token)] = llama_vocab_is_eog(model.vocab, token);
        made->begin.push_back(static_cast<uint32_t>(made->bytes.size()));
        made->bytes += piece;
        made->longest = std::max(made->longest, piece.size());
        if (!piece.empty()) {
            made->order.push_back(token);
        }
    }
    made->begin.push_back(static_cast<uint32_t>(made->bytes.size()));
    std::sort(made->order.begin(), made->order.end(),
              [&](int32_t a, int32_t b) { return made->text(a) < made->text(b); });
    std::string_view before;
    for (const int32_t token : made->order) {
        const auto text = made->text(token);
        const auto differ = std::mismatch(before.begin(), before.end(), text.begin(), text.end());
        made->shared.push_back(static_cast<uint32_t>(differ.second - text.begin()));
        before = text;
    }
    return made;
}

} // namespace

constrained take_grammar(const la_model &model, const char *text, const std::vector<int32_t> &shown) {
    require_vocabulary(model);
    sampler_shelf &shelf = shelf_of(model);
    auto &kept = shelf.grammars;
    const auto found = std::find_if(kept.begin(), kept.end(), [&](const auto &one) { return one.text == text; });
    if (found != kept.end()) {
        kept.splice(kept.begin(), kept, found);
    } else {
        kept.push_front({text, check_grammar(model.vocab, text)});
        ++shelf.n_compiled;
        if (kept.size() > SHELF) {
            kept.pop_back();
        }
    }
    auto &words = shelf.words;
    const auto of = std::find_if(words.begin(), words.end(), [&](const auto &one) { return one.first == shown; });
    if (of != words.end()) {
        words.splice(words.begin(), words, of);
    } else {
        words.push_front({shown, make_words(model, shown)});
        if (words.size() > WORDS_SHELF) {
            words.pop_back();
        }
    }
    return {words.front().second, std::make_unique<matcher>(kept.front().rules)};
}

std::shared_ptr<const breaker> take_breaker(const la_model &model, const char *text) {
    require_vocabulary(model);
    auto &kept = shelf_of(model).breakers;
    const auto found = std::find_if(kept.begin(), kept.end(), [&](const auto &one) { return one.first == text; });
    if (found != kept.end()) {
        kept.splice(kept.begin(), kept, found);
    } else {
        kept.emplace_front(text, make_breaker(model, text));
        if (kept.size() > BREAKER_SHELF) {
            kept.pop_back();
        }
    }
    return kept.front().second;
}

// --- queries -------------------------------------------------------------------------------------

bool permits(la_sampler &s, int32_t token) {
    if (!s.grammar.way->permits(*s.grammar.words, token)) {
        return false;
    }
    s.proven = token;
    return true;
}

int32_t best_permitted(la_sampler &s, const float *logits) {
    gather_best(logits, s.n_vocab, FEW, s.candidates);
    std::sort(s.candidates.begin(), s.candidates.end(), better);
    for (const candidate &x : s.candidates) {
        if (permits(s, x.token)) {
            return x.token;
        }
    }
    return -1;
}

bool mask_forbidden(la_sampler &s, const float *logits) {
    constexpr float never = -std::numeric_limits<float>::infinity();
    s.grammar.way->permitted(*s.grammar.words, s.allowed);
    s.masked.assign(static_cast<size_t>(s.n_vocab), never);
    bool left = false;
    for (size_t i = 0; i < s.masked.size(); ++i) {
        if (s.allowed[i] != 0 && logits[i] > never) {
            s.masked[i] = logits[i];
            left = true;
        }
    }
    return left;
}

int32_t permitted_end(la_sampler &s) {
    for (int32_t token = 0; token < s.n_vocab; ++token) {
        if (s.grammar.words->ends[static_cast<size_t>(token)] && permits(s, token)) {
            return token;
        }
    }
    return -1;
}

} // namespace la

extern "C" uint64_t la_grammars_compiled(const la_model *model) noexcept {
    return model->shelf ? model->shelf->n_compiled : 0;
}
