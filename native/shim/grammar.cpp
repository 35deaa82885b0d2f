// Grammars: compiled once, evaluated token by token. What the samplers of one model share.
#include "sampling.h"

#include <algorithm>
#include <limits>
#include <list>
#include <mutex>

namespace {

constexpr size_t WORDS_SHELF = 3;
constexpr size_t BREAKER_SHELF = 64;
constexpr size_t RULE_BYTES = 80;  // of a list, and of a name
constexpr size_t FEW = 128;  // the likeliest tokens, tried before the vocabulary

} // namespace

// --- what samplers of one model share -------------------------------------------------------------

namespace la {

struct sampler_shelf {
    std::mutex lock;  // of the vocabulary's texts: any thread may be the first that compiles a grammar
    std::list<std::pair<std::vector<int32_t>, std::shared_ptr<const vocabulary>>> words;  // by the control tokens shown
    std::list<std::pair<std::string, std::shared_ptr<const breaker>>> breakers;  // used last first
};

std::shared_ptr<sampler_shelf> make_shelf() { return std::make_shared<sampler_shelf>(); }

namespace {

std::shared_ptr<const breaker> make_breaker(const la_model &model, const std::string &text) {
    auto made = std::make_shared<breaker>();
    for (int32_t token = 0; token < model.n_vocab; ++token) {
        if (piece_of(model, token, true).find(text) != std::string::npos) {
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

// The texts of the tokens, with those of some control tokens (sorted).
std::shared_ptr<const vocabulary> words_of(const la_model &model, const std::vector<int32_t> &shown) {
    sampler_shelf &shelf = *model.shelf;
    const std::lock_guard<std::mutex> held(shelf.lock);
    auto &words = shelf.words;
    const auto found = std::find_if(words.begin(), words.end(), [&](const auto &one) { return one.first == shown; });
    if (found != words.end()) {
        words.splice(words.begin(), words, found);
        return words.front().second;
    }
    words.push_front({shown, std::make_shared<const vocabulary>(model, shown)});
    if (words.size() > WORDS_SHELF) {
        words.pop_back();
    }
    return words.front().second;
}

} // namespace

std::shared_ptr<const breaker> take_breaker(const la_model &model, const char *text) {
    require_vocabulary(model);
    auto &kept = model.shelf->breakers;
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
    const auto n = static_cast<size_t>(s.n_vocab);
    s.masked.resize(n);
    const char *allowed = s.allowed.data();
    float *masked = s.masked.data();
    float most = never;
    for (size_t i = 0; i < n; ++i) {  // without branches: it is all of the vocabulary
        const float one = allowed[i] != 0 ? logits[i] : never;
        masked[i] = one > never ? one : never;  // no number at all compares false
        most = masked[i] > most ? masked[i] : most;
    }
    return most > never;
}

int32_t permitted_end(la_sampler &s) {
    for (const int32_t token : s.grammar.words->enders) {
        if (permits(s, token)) {
            return token;
        }
    }
    return -1;
}

} // namespace la

extern "C" {

int la_grammar_new(const la_model *model, const char *text, const int32_t *shown, int32_t n_shown,
                   la_grammar **out) noexcept {
    return la::guarded([&] {
        la::require_vocabulary(*model);
        auto made = std::make_unique<la_grammar>();
        made->rules = la::check_grammar(model->vocab, text);
        try {
            la::matcher begin(made->rules);
        } catch (const la::fault &f) {
            throw la::fault{LA_GRAMMAR, f.text, 0, 0};
        }
        std::vector<int32_t> tokens(shown, shown + n_shown);
        std::sort(tokens.begin(), tokens.end());
        made->words = la::words_of(*model, tokens);
        for (const auto &rule : made->rules->rules) {  // now, and not when a reply first needs it
            for (const auto &one : rule) {
                if (one.type == LLAMA_GRETYPE_CHAR || one.type == LLAMA_GRETYPE_CHAR_NOT ||
                    one.type == LLAMA_GRETYPE_CHAR_ANY) {
                    made->words->uniform(&one);
                }
                made->n_elements += 1;
            }
        }
        *out = made.release();
    });
}

void la_grammar_free(la_grammar *grammar) noexcept { delete grammar; }

uint64_t la_grammar_bytes(const la_grammar *grammar) noexcept {
    return grammar->n_elements * sizeof(llama_grammar_element) + grammar->rules->rules.size() * RULE_BYTES;
}

} // extern "C"
