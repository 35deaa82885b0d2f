// Sampling whose randomness is a function of (seed, index): a stream that is resumed after a crash
// draws the numbers the unbroken one would have drawn. native/sampling.py is the same algorithm for
// the stub; the contract tests run both.
#include "internal.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace {

struct candidate {
    int32_t token;
    float logit;
};

// Best first; equal logits by the lower id, so that no sort decides a tie.
bool better(const candidate &a, const candidate &b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

uint64_t mix(uint64_t x) {  // the finaliser of splitmix64
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

double uniform(uint64_t seed, uint64_t index) {  // in [0, 1)
    return static_cast<double>(mix(mix(seed) ^ index) >> 11) * 0x1p-53;
}

} // namespace

struct la_sampler {
    la_sampling params;
    int32_t n_vocab;
    std::vector<int32_t> window;     // ring of the last accepted tokens
    size_t next = 0;
    std::vector<candidate> candidates;
    std::vector<int32_t> distinct;                   // the window, sorted, each token once
    std::vector<std::pair<int32_t, float>> changed;  // what the penalty replaced
};

namespace {

void accept(la_sampler &s, int32_t token) {
    const auto size = static_cast<size_t>(s.params.repetition_window);
    if (size == 0) {
        return;
    }
    if (s.window.size() < size) {
        s.window.push_back(token);
    } else {
        s.window[s.next] = token;
        s.next = (s.next + 1) % size;
    }
}

// Changes the logits in place and remembers the old values: a vocabulary is never copied for it.
void penalise(la_sampler &s, float *logits) {
    s.changed.clear();
    const double penalty = s.params.repetition_penalty;
    if (penalty == 1.0) {
        return;
    }
    s.distinct = s.window;
    std::sort(s.distinct.begin(), s.distinct.end());
    s.distinct.erase(std::unique(s.distinct.begin(), s.distinct.end()), s.distinct.end());
    s.changed.reserve(s.distinct.size());  // nothing below may throw between change and undo
    for (const int32_t token : s.distinct) {
        s.changed.emplace_back(token, logits[token]);
        const double logit = logits[token];
        logits[token] = static_cast<float>(logit > 0 ? logit / penalty : logit * penalty);
    }
}

void unpenalise(const la_sampler &s, float *logits) {
    for (const auto &[token, logit] : s.changed) {
        logits[token] = logit;
    }
}

int32_t argmax(const float *logits, int32_t n) {
    int32_t best = -1;
    float highest = -std::numeric_limits<float>::infinity();
    for (int32_t i = 0; i < n; ++i) {
        if (logits[i] > highest) {  // false for NaN
            highest = logits[i];
            best = i;
        }
    }
    return best;
}

// The k best in one pass: a heap with the worst of them on top, which most tokens do not beat.
void gather_top_k(la_sampler &s, const float *logits, size_t k) {
    auto &c = s.candidates;
    c.clear();
    for (int32_t i = 0; i < s.n_vocab; ++i) {
        const candidate x{i, logits[i]};
        if (c.size() < k && x.logit > -std::numeric_limits<float>::infinity()) {
            c.push_back(x);
            std::push_heap(c.begin(), c.end(), better);
        } else if (!c.empty() && x.logit > c.front().logit) {  // a tie keeps the lower id
            std::pop_heap(c.begin(), c.end(), better);
            c.back() = x;
            std::push_heap(c.begin(), c.end(), better);
        }
    }
}

void gather_all(la_sampler &s, const float *logits) {
    auto &c = s.candidates;
    c.clear();
    for (int32_t i = 0; i < s.n_vocab; ++i) {
        if (logits[i] > -std::numeric_limits<float>::infinity()) {  // false for NaN
            c.push_back({i, logits[i]});
        }
    }
}

void gather(la_sampler &s, const float *logits) {
    const auto k = static_cast<size_t>(s.params.top_k);
    if (k == 0 || k >= static_cast<size_t>(s.n_vocab)) {
        gather_all(s, logits);
    } else {
        gather_top_k(s, logits, k);
    }
}

// The shortest best-first run with probability top_p, and of it those with at least min_p of the
// best. A heap gives up the best few without sorting a whole vocabulary.
void keep_likely(la_sampler &s, double highest) {
    auto &c = s.candidates;
    double total = 0;
    for (const candidate &x : c) {
        total += std::exp(x.logit - highest);
    }
    const auto worse = [](const candidate &a, const candidate &b) { return better(b, a); };
    std::make_heap(c.begin(), c.end(), worse);
    std::vector<candidate> kept;
    double sum = 0;
    for (auto end = c.end(); end != c.begin(); --end) {
        const double weight = std::exp(c.front().logit - highest);
        if (!kept.empty() && (weight < s.params.min_p || sum >= s.params.top_p * total)) {
            break;
        }
        kept.push_back(c.front());
        sum += weight;
        std::pop_heap(c.begin(), end, worse);
    }
    c = std::move(kept);
}

int32_t draw(const la_sampler &s, double highest, double u) {
    double total = 0;
    for (const candidate &x : s.candidates) {
        total += std::exp((x.logit - highest) / s.params.temperature);
    }
    double sum = 0;
    for (const candidate &x : s.candidates) {
        sum += std::exp((x.logit - highest) / s.params.temperature);
        if (sum > u * total) {
            return x.token;
        }
    }
    return s.candidates.back().token;
}

int32_t choose(la_sampler &s, const float *logits, uint64_t index) {
    const int32_t best = argmax(logits, s.n_vocab);
    if (best < 0 || logits[best] == std::numeric_limits<float>::infinity()) {
        throw la::fault{LA_DECODE, "the logits are not finite: the model or its KV state is broken", 0};
    }
    if (s.params.temperature == 0 || s.params.top_k == 1) {
        return best;
    }
    const double highest = logits[best];
    gather(s, logits);
    if (s.params.top_p < 1 || s.params.min_p > 0) {
        keep_likely(s, highest);
    } else {
        // Any fixed order will do for the draw, but it must not depend on how the cut was made.
        const auto by_id = [](const candidate &a, const candidate &b) { return a.token < b.token; };
        if (s.params.top_k > 0) {
            std::sort(s.candidates.begin(), s.candidates.end(), by_id);
        }
    }
    return draw(s, highest, uniform(s.params.seed, index));
}

} // namespace

extern "C" {

int la_sampler_new(const la_model *model, const la_sampling *params, la_sampler **out) noexcept {
    return la::guarded([&] { *out = new la_sampler{*params, model->n_vocab, {}, 0, {}, {}, {}}; });
}

void la_sampler_free(la_sampler *sampler) noexcept { delete sampler; }

int la_sampler_accept(la_sampler *sampler, const int32_t *tokens, int32_t n) noexcept {
    return la::guarded([&] {
        for (int32_t i = 0; i < n; ++i) {
            if (tokens[i] < 0 || tokens[i] >= sampler->n_vocab) {
                throw la::fault{LA_TOKEN, "not a token of this vocabulary", tokens[i], sampler->n_vocab};
            }
        }
        for (int32_t i = 0; i < n; ++i) {
            accept(*sampler, tokens[i]);
        }
    });
}

int la_sample(la_context *context, int32_t row, la_sampler *sampler, uint64_t index, int32_t *token) noexcept {
    const float *borrowed = nullptr;
    const int status = la_logits(context, row, &borrowed);
    if (status != LA_OK) {
        return status;
    }
    float *logits = const_cast<float *>(borrowed);
    return la::guarded([&] {
        penalise(*sampler, logits);
        try {
            *token = choose(*sampler, logits, index);
        } catch (...) {
            unpenalise(*sampler, logits);
            throw;
        }
        unpenalise(*sampler, logits);
    });
}

} // extern "C"
