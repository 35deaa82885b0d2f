// Grammars: compiled once for a model and then copied, asked token by token.
#include "sampling.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <list>

namespace {

constexpr size_t SHELF = 16;  // compiled grammars that are kept
constexpr size_t BREAKER_SHELF = 64;
constexpr size_t FIRST_PART = 64;  // tokens asked about at once; more while it goes quickly
constexpr std::chrono::seconds PATIENCE{1};
constexpr size_t FEW = 128;   // the likeliest tokens, tried before the vocabulary

la::grammar compile(const llama_vocab *vocab, const std::string &text) {
    la::check_grammar(vocab, text);
    la::grammar made{llama_sampler_init_grammar(vocab, text.c_str(), "root")};
    if (!made) {
        throw la::fault{LA_GRAMMAR, "llama.cpp does not accept it", 0, 0};
    }
    return made;
}

} // namespace

// --- what samplers of one model share -------------------------------------------------------------

namespace la {

struct sampler_shelf {
    struct compiled {
        std::string text;
        bool is_schema;
        grammar pristine;
    };
    std::list<compiled> grammars;  // used last first
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

std::string piece_of(const llama_vocab *vocab, int32_t token) {
    std::string piece(64, '\0');
    int32_t n = llama_token_to_piece(vocab, token, piece.data(), static_cast<int32_t>(piece.size()), 0, true);
    if (n < 0) {
        piece.resize(static_cast<size_t>(-n));
        n = llama_token_to_piece(vocab, token, piece.data(), -n, 0, true);
    }
    piece.resize(static_cast<size_t>(std::max(n, 0)));
    return piece;
}

std::shared_ptr<const breaker> make_breaker(const la_model &model, const std::string &text) {
    auto made = std::make_shared<breaker>();
    for (int32_t token = 0; token < model.n_vocab; ++token) {
        if (piece_of(model.vocab, token).find(text) != std::string::npos) {
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

} // namespace

grammar take_grammar(const la_model &model, const char *text, bool is_schema) {
    require_vocabulary(model);
    sampler_shelf &shelf = shelf_of(model);
    auto &kept = shelf.grammars;
    const auto found = std::find_if(kept.begin(), kept.end(), [&](const auto &one) {
        return one.is_schema == is_schema && one.text == text;
    });
    if (found != kept.end()) {
        kept.splice(kept.begin(), kept, found);
    } else {
        const std::string rules = is_schema ? schema_to_grammar(text) : text;
        kept.push_front({text, is_schema, compile(model.vocab, rules)});
        ++shelf.n_compiled;
        if (kept.size() > SHELF) {
            kept.pop_back();
        }
    }
    return grammar{llama_sampler_clone(kept.front().pristine.get())};
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

// --- asking --------------------------------------------------------------------------------------

namespace {

// In parts, so that a grammar which makes it slow is given up before others have waited long.
void ask(la_sampler &s) {
    using clock = std::chrono::steady_clock;
    const auto began = clock::now();
    size_t part = FIRST_PART;
    for (size_t at = 0; at < s.table.size();) {
        const size_t n = std::min(part, s.table.size() - at);
        llama_token_data_array array{s.table.data() + at, n, -1, false};
        llama_sampler_apply(s.grammar.get(), &array);
        at += n;
        const auto took = clock::now() - began;
        if (took > PATIENCE) {
            throw la::fault{LA_STUCK, "the grammar is too ambiguous: it took more than a second for one token", 0, 0};
        }
        part *= took < PATIENCE / 100 ? 4 : 1;
    }
}

} // namespace

bool permits(la_sampler &s, int32_t token) {
    s.table.assign(1, {token, 0.0f, 0.0f});
    ask(s);
    if (s.table[0].logit != 0.0f) {
        return false;
    }
    s.proven = token;
    return true;
}

int32_t best_permitted(la_sampler &s, const float *logits) {
    gather_best(logits, s.n_vocab, FEW, s.candidates);
    std::sort(s.candidates.begin(), s.candidates.end(), better);
    s.table.clear();
    for (const candidate &x : s.candidates) {
        s.table.push_back({x.token, x.logit, 0.0f});
    }
    ask(s);
    for (const llama_token_data &x : s.table) {
        if (x.logit != -std::numeric_limits<float>::infinity()) {
            s.proven = x.id;
            return x.id;
        }
    }
    return -1;
}

bool mask_forbidden(la_sampler &s, const float *logits) {
    constexpr float never = -std::numeric_limits<float>::infinity();
    s.table.clear();
    for (int32_t i = 0; i < s.n_vocab; ++i) {
        if (logits[i] > never) {
            s.table.push_back({i, logits[i], 0.0f});
        }
    }
    ask(s);
    s.masked.assign(static_cast<size_t>(s.n_vocab), never);
    bool left = false;
    for (const llama_token_data &x : s.table) {
        s.masked[static_cast<size_t>(x.id)] = x.logit;
        left = left || x.logit != never;
    }
    return left;
}

int32_t permitted_end(la_sampler &s) {
    for (int32_t token = 0; token < s.n_vocab; ++token) {
        if (llama_vocab_is_eog(s.model->vocab, token) && permits(s, token)) {
            return token;
        }
    }
    return -1;
}

} // namespace la

extern "C" uint64_t la_grammars_compiled(const la_model *model) noexcept {
    return model->shelf ? model->shelf->n_compiled : 0;
}
