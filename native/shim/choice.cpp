// The choice of a token from logits. Its randomness is a function of (seed, index): a stream that is
// resumed after a crash draws the numbers the unbroken one would have drawn. native/sampling.py is the
// same algorithm for the stub; a test runs both.
#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace {

using la::better;
using la::candidate;

constexpr float NEVER = -std::numeric_limits<float>::infinity();
constexpr uint64_t XTC_STREAM = 0x5854435854435854ull;  // independent of the draw's randomness
constexpr size_t MIROSTAT_N_LIKELIEST = 100;            // tokens for the estimate, as in the paper

uint64_t mix(uint64_t x) {  // the finaliser of splitmix64
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

double uniform(uint64_t seed, uint64_t index) {  // in [0, 1)
    return static_cast<double>(mix(mix(seed) ^ index) >> 11) * 0x1p-53;
}

void gather_all(la_sampler &s, const float *logits) {
    auto &c = s.candidates;
    c.clear();
    for (int32_t i = 0; i < s.n_vocab; ++i) {
        if (logits[i] > NEVER) {  // false for NaN
            c.push_back({i, logits[i]});
        }
    }
}

void gather(la_sampler &s, const float *logits) {
    const auto k = static_cast<size_t>(s.params.top_k);
    if (k == 0 || k >= static_cast<size_t>(s.n_vocab)) {
        gather_all(s, logits);
    } else {
        la::gather_best(logits, s.n_vocab, k, s.candidates);
    }
}

double sum_of_weights(const std::vector<candidate> &c, double highest, double temperature) {
    double total = 0;
    for (const candidate &x : c) {
        total += std::exp((x.logit - highest) / temperature);
    }
    return total;
}

// Of the best-first candidates, those whose surprise is closest to the expected one, with probability
// typical_p together; best first again.
void keep_typical(la_sampler &s, double highest) {
    auto &c = s.candidates;
    std::sort(c.begin(), c.end(), better);
    const double total = sum_of_weights(c, highest, 1.0);
    const double log_total = std::log(total);
    double expected = 0;
    for (const candidate &x : c) {
        const double surprise = log_total - (x.logit - highest);
        expected += std::exp(-surprise) * surprise;
    }
    std::vector<std::pair<double, size_t>> order;  // rank decides a tie
    order.reserve(c.size());
    for (size_t i = 0; i < c.size(); ++i) {
        order.emplace_back(std::fabs(log_total - (c[i].logit - highest) - expected), i);
    }
    std::sort(order.begin(), order.end());
    double reached = 0;
    size_t n = 0;
    while (n < order.size() && reached <= s.params.typical_p) {
        reached += std::exp(c[order[n].second].logit - highest) / total;
        ++n;
    }
    order.resize(n);
    s.kept.clear();
    for (const auto &[score, rank] : order) {
        s.kept.push_back(c[rank]);
    }
    c.swap(s.kept);
    std::sort(c.begin(), c.end(), better);
}

// The shortest best-first run with probability top_p, and of it those with at least min_p of the
// best. A heap yields the best few without sorting a whole vocabulary.
void keep_likely(la_sampler &s, double highest) {
    auto &c = s.candidates;
    const double total = sum_of_weights(c, highest, 1.0);
    const auto worse = [](const candidate &a, const candidate &b) { return better(b, a); };
    std::make_heap(c.begin(), c.end(), worse);
    s.kept.clear();
    double sum = 0;
    for (auto end = c.end(); end != c.begin(); --end) {
        const double weight = std::exp(c.front().logit - highest);
        if (!s.kept.empty() && (weight < s.params.min_p || sum >= s.params.top_p * total)) {
            break;
        }
        s.kept.push_back(c.front());
        sum += weight;
        std::pop_heap(c.begin(), end, worse);
    }
    c.swap(s.kept);
}

// Of the best-first candidates, leave out all but the last that reach the threshold.
void exclude_top(la_sampler &s, double highest) {
    auto &c = s.candidates;
    const double total = sum_of_weights(c, highest, 1.0);
    size_t last = 0;
    while (last + 1 < c.size() && std::exp(c[last + 1].logit - highest) / total >= s.params.xtc_threshold) {
        ++last;
    }
    c.erase(c.begin(), c.begin() + static_cast<std::ptrdiff_t>(last));
}

struct drawn {
    int32_t token;
    double share;  // its probability among the candidates
};

drawn draw(la_sampler &s, double highest, double u) {
    auto &weights = s.weights;
    weights.resize(s.candidates.size());
    double total = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
        weights[i] = std::exp((s.candidates[i].logit - highest) / s.params.temperature);
        total += weights[i];
    }
    double sum = 0;
    size_t at = 0;
    while (at + 1 < weights.size() && (sum += weights[at]) <= u * total) {
        ++at;
    }
    return {s.candidates[at].token, weights[at] / total};
}

// How many of the best to keep, from the slope of the likeliest: probabilities are assumed to
// fall as a power of the rank (Zipf).
size_t mirostat_count(const la_sampler &s, size_t n) {
    double products = 0;
    double squares = 0;
    const auto &c = s.candidates;
    for (size_t i = 0; i + 1 < std::min(MIROSTAT_N_LIKELIEST, n); ++i) {
        const double t = std::log(static_cast<double>(i + 2) / static_cast<double>(i + 1));
        products += t * ((static_cast<double>(c[i].logit) - c[i + 1].logit) / s.params.temperature);
        squares += t * t;
    }
    const double slope = squares > 0 ? products / squares : 0;
    const double epsilon = slope - 1;
    if (slope <= 0 || epsilon == 0) {
        return n;
    }
    const double k = std::pow(epsilon * std::pow(2.0, s.mu) / (1 - std::pow(static_cast<double>(s.n_vocab), -epsilon)),
                              1 / slope);
    if (!(k < static_cast<double>(n))) {
        return n;
    }
    return k < 1 ? 1 : static_cast<size_t>(k);
}

void keep_mirostat_1(la_sampler &s) {
    auto &c = s.candidates;
    const auto sort_best = [&](size_t n) {
        std::partial_sort(c.begin(), c.begin() + static_cast<std::ptrdiff_t>(n), c.end(), better);
    };
    sort_best(std::min(MIROSTAT_N_LIKELIEST, c.size()));
    const size_t k = mirostat_count(s, c.size());
    if (k > MIROSTAT_N_LIKELIEST) {
        sort_best(k);
    }
    c.resize(k);
}

void keep_mirostat_2(la_sampler &s, double highest, int32_t best) {
    auto &c = s.candidates;
    const double total = sum_of_weights(c, highest, s.params.temperature);
    const auto surprises = [&](const candidate &x) {
        return -std::log2(std::exp((x.logit - highest) / s.params.temperature) / total) > s.mu;
    };
    c.erase(std::remove_if(c.begin(), c.end(), surprises), c.end());
    if (c.empty()) {
        c.push_back({best, static_cast<float>(highest)});
    }
}

int32_t choose_mirostat(la_sampler &s, const float *logits, uint64_t index, int32_t best) {
    const double highest = logits[best];
    gather_all(s, logits);
    if (s.params.mirostat == 1) {
        keep_mirostat_1(s);
    } else {
        keep_mirostat_2(s, highest, best);
    }
    const drawn found = draw(s, highest, uniform(s.params.seed, index));
    s.pending = found.token;
    s.pending_mu = s.mu;
    if (found.share > 0) {
        s.pending_mu -= s.params.mirostat_eta * (-std::log2(found.share) - s.params.mirostat_tau);
    }
    return found.token;
}

} // namespace

namespace la {

// Whole blocks at once, in a form that compilers turn into vector instructions.
constexpr int32_t BLOCK = 16;

int32_t argmax(const float *logits, int32_t n) {
    float lanes[BLOCK];
    std::fill(lanes, lanes + BLOCK, NEVER);
    const int32_t whole = n - n % BLOCK;
    for (int32_t i = 0; i < whole; i += BLOCK) {
        for (int32_t j = 0; j < BLOCK; ++j) {
            lanes[j] = logits[i + j] > lanes[j] ? logits[i + j] : lanes[j];  // NaN is never more
        }
    }
    float highest = NEVER;
    for (const float lane : lanes) {
        highest = lane > highest ? lane : highest;
    }
    for (int32_t i = whole; i < n; ++i) {
        highest = logits[i] > highest ? logits[i] : highest;
    }
    if (highest == NEVER) {
        return -1;
    }
    int32_t at = 0;
    for (; at < whole; at += BLOCK) {
        int32_t here = 0;
        for (int32_t j = 0; j < BLOCK; ++j) {
            here |= logits[at + j] == highest;
        }
        if (here != 0) {
            break;
        }
    }
    while (logits[at] != highest) {
        ++at;
    }
    return at;
}

// The k best in one pass: a heap with the worst of them on top, which most tokens do not beat.
void gather_best(const float *logits, int32_t n, size_t k, std::vector<candidate> &c) {
    c.clear();
    int32_t i = 0;
    const auto has_none = [&](int32_t begin) {  // where a grammar allows few tokens
        int32_t any = 0;
        for (int32_t j = 0; j < BLOCK; ++j) {
            any |= logits[begin + j] > NEVER;
        }
        return any == 0;
    };
    for (; i < n && c.size() < k; ++i) {
        while (i % BLOCK == 0 && i + BLOCK < n && has_none(i)) {
            i += BLOCK;
        }
        if (logits[i] > NEVER) {
            c.push_back({i, logits[i]});
            std::push_heap(c.begin(), c.end(), better);
        }
    }
    const auto offer = [&](int32_t token) {
        if (logits[token] > c.front().logit) {  // a tie keeps the lower id
            std::pop_heap(c.begin(), c.end(), better);
            c.back() = {token, logits[token]};
            std::push_heap(c.begin(), c.end(), better);
        }
    };
    for (; i + BLOCK <= n; i += BLOCK) {
        const float bar = c.front().logit;
        int32_t any = 0;
        for (int32_t j = 0; j < BLOCK; ++j) {
            any |= logits[i + j] > bar;
        }
        for (int32_t j = 0; any != 0 && j < BLOCK; ++j) {
            offer(i + j);
        }
    }
    for (; i < n; ++i) {
        offer(i);
    }
}

int32_t choose(la_sampler &s, const float *logits, uint64_t index) {
    const la_sampling &p = s.params;
    const int32_t best = argmax(logits, s.n_vocab);
    if (best < 0 || logits[best] == -NEVER) {
        return -1;
    }
    if (p.temperature == 0 || (p.top_k == 1 && p.mirostat == 0)) {
        return best;
    }
    if (p.mirostat != 0) {
        return choose_mirostat(s, logits, index, best);
    }
    double highest = logits[best];
    gather(s, logits);
    bool sorted = false;
    if (p.typical_p < 1) {
        keep_typical(s, highest);
        highest = s.candidates.front().logit;
        sorted = true;
    }
    if (p.top_p < 1 || p.min_p > 0) {
        keep_likely(s, highest);
        sorted = true;
    }
    if (p.xtc_probability > 0 && p.xtc_threshold <= 0.5 &&
        uniform(p.seed ^ XTC_STREAM, index) < p.xtc_probability) {
        if (!sorted) {
            std::sort(s.candidates.begin(), s.candidates.end(), better);
        }
        exclude_top(s, highest);
        highest = s.candidates.front().logit;
        sorted = true;
    }
    if (!sorted && p.top_k > 0) {
        // Any fixed order will do for the draw, but it must not depend on how the cut was made.
        const auto by_id = [](const candidate &a, const candidate &b) { return a.token < b.token; };
        std::sort(s.candidates.begin(), s.candidates.end(), by_id);
    }
    return draw(s, highest, uniform(p.seed, index)).token;
}

} // namespace la
