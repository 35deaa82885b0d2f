// A sampler: the state of one request, and the choice of its next token.
#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace {

using la::argmax;
using la::candidate;

constexpr float INFINITE = std::numeric_limits<float>::infinity();

// The choice is made first and only checked by the grammar, which nearly always permits it; only
// a refusal costs the whole vocabulary.
int32_t choose_permitted(la_sampler &s, const float *logits, uint64_t index) {
    const int32_t wished = la::choose(s, logits, index);
    if (!s.grammar || wished < 0 || la::permits(s, wished)) {
        return wished;
    }
    if (s.greedy) {
        const int32_t found = la::best_permitted(s, logits);
        if (found >= 0) {
            return found;
        }
    }
    if (la::mask_forbidden(s, logits)) {
        const int32_t token = la::choose(s, s.masked.data(), index);
        s.proven = token;
        return token;
    }
    const int32_t end = la::permitted_end(s);
    if (end < 0) {
        throw la::fault{LA_STUCK, "no token of the vocabulary continues as the grammar requires", 0, 0};
    }
    return end;
}

[[noreturn]] void say_why_none(const la_sampler &s, const float *logits) {
    const int32_t best = argmax(logits, s.n_vocab);
    if (best < 0 || logits[best] == INFINITE) {
        throw la::fault{LA_DECODE, "the logits are not finite: the model or its KV state is broken", 0, 0};
    }
    throw la::fault{LA_STUCK, "logit_bias and penalties leave no token", 0, 0};
}

// Puts the logits back however a sample ends.
struct edited {
    la_sampler &s;
    float *logits;
    edited(la_sampler &sampler, float *values) : s(sampler), logits(values) { la::edit_logits(s, logits); }
    ~edited() { la::restore_logits(s, logits); }
    edited(const edited &) = delete;
    edited &operator=(const edited &) = delete;
};

int32_t sample(la_sampler &s, float *logits, uint64_t index) {
    int32_t token;
    {
        const edited meanwhile(s, logits);
        token = choose_permitted(s, logits, index);
    }
    if (token < 0) {
        say_why_none(s, logits);
    }
    return token;
}

} // namespace

extern "C" {

int la_sampler_new(const la_model *model, const la_sampling *params, const la_sampling_texts *texts,
                   la_sampler **out) noexcept {
    return la::guarded([&] {
        auto made = std::make_unique<la_sampler>(*params, *model);
        for (int32_t i = 0; i < texts->n_bias; ++i) {
            const int32_t token = texts->bias_tokens[i];
            if (token < 0 || token >= model->n_vocab) {
                throw la::fault{LA_TOKEN, "not a token of this vocabulary", token, model->n_vocab};
            }
            made->bias.emplace_back(token, texts->bias_values[i]);
        }
        la::plan_stages(*made, texts->stages, texts->n_stages);
        if (made->dries) {
            for (int32_t i = 0; i < texts->n_breakers; ++i) {
                made->breakers.push_back(la::take_breaker(*model, texts->breakers[i]));
            }
        }
        if (texts->grammar != nullptr) {
            made->grammar = {texts->grammar->words, std::make_unique<la::matcher>(texts->grammar->rules)};
            if (!made->grammar.way->advance({texts->grammar_before, texts->n_grammar_before})) {
                throw la::fault{LA_GRAMMAR, "the text before the reply does not begin as the grammar does", 0, 0};
            }
        }
        *out = made.release();
    });
}

void la_sampler_free(la_sampler *sampler) noexcept { delete sampler; }

int la_sampler_accept(la_sampler *sampler, const int32_t *tokens, int32_t n, int is_reply) noexcept {
    la_sampler &s = *sampler;
    return la::guarded([&] {
        for (int32_t i = 0; i < n; ++i) {
            if (tokens[i] < 0 || tokens[i] >= s.n_vocab) {
                throw la::fault{LA_TOKEN, "not a token of this vocabulary", tokens[i], s.n_vocab};
            }
        }
        for (int32_t i = 0; i < n; ++i) {
            const int32_t token = tokens[i];
            if (is_reply != 0 && s.grammar) {
                if (s.proven != token && !la::permits(s, token)) {
                    throw la::fault{LA_GRAMMAR, "the reply so far does not follow the grammar", token, 0};
                }
                s.proven = -1;
                s.grammar.way->accept(*s.grammar.words, token);
            }
            if (is_reply != 0 && s.pending == token) {
                s.mu = s.pending_mu;
            }
            s.pending = -1;
            la::remember(s, token);
        }
    });
}

int la_sample_from(la_sampler *sampler, float *logits, uint64_t index, int32_t *token) noexcept {
    return la::guarded([&] { *token = sample(*sampler, logits, index); });
}

int la_sample(la_context *context, int32_t row, la_sampler *sampler, uint64_t index, int32_t *token) noexcept {
    const float *borrowed = nullptr;
    const int status = la_logits(context, row, &borrowed);
    if (status != LA_OK) {
        return status;
    }
    const int sampled = la_sample_from(sampler, const_cast<float *>(borrowed), index, token);
    context->spoiled = context->spoiled || sampled == LA_DECODE;
    return sampled;
}

int la_logprobs(const la_model *model, const float *logits, int32_t token, int32_t n, double *of_token,
                int32_t *tokens, double *of_tokens) noexcept {
    return la::guarded([&] {
        const int32_t best = argmax(logits, model->n_vocab);
        if (token < 0 || token >= model->n_vocab) {
            throw la::fault{LA_TOKEN, "not a token of this vocabulary", token, model->n_vocab};
        }
        if (best < 0 || logits[best] == INFINITE) {
            throw la::fault{LA_DECODE, "the logits are not finite: the model or its KV state is broken", 0, 0};
        }
        const double highest = logits[best];
        double total = 0;
        for (int32_t i = 0; i < model->n_vocab; ++i) {
            total += std::exp(logits[i] - highest);
        }
        const double log_total = std::log(total);
        const auto logprob = [&](float logit) { return logit - highest - log_total; };
        *of_token = logprob(logits[token]);
        std::vector<candidate> likeliest;
        if (n > 0) {
            la::gather_best(logits, model->n_vocab, static_cast<size_t>(n), likeliest);
            std::sort(likeliest.begin(), likeliest.end(), la::better);
        }
        for (int32_t i = 0; i < n; ++i) {
            const bool there = static_cast<size_t>(i) < likeliest.size();
            tokens[i] = there ? likeliest[static_cast<size_t>(i)].token : -1;
            of_tokens[i] = there ? logprob(likeliest[static_cast<size_t>(i)].logit) : -HUGE_VAL;
        }
    });
}

} // extern "C"
