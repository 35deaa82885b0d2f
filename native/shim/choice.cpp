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

// The order of the candidates, in which sums are added and draws are made.
enum class sorted { by_token, best_first, no };

struct cut {
    la_sampler &s;
    uint64_t index;
    double highest;              // logit of the best candidate
    size_t listed;               // what llama.cpp would list: also those that cannot be drawn any more
    sorted order = sorted::by_token;
    double temperature = 1.0;    // of the draw
};

void gather_all(la_sampler &s, const float *logits) {
    auto &c = s.candidates;
    c.clear();
    for (int32_t i = 0; i < s.n_vocab; ++i) {
        if (logits[i] > NEVER) {  // false for NaN
            c.push_back({i, logits[i]});
        }
    }
}

// Below the highest logit by so many standard deviations.
template <class Each> double sigma_floor(const la_sampler &s, double highest, Each each) {
    double sum = 0;
    size_t n = 0;
    each([&](float logit) {
        sum += logit;
        ++n;
    });
    const double mean = sum / static_cast<double>(n);
    double squares = 0;
    each([&](float logit) { squares += (logit - mean) * (logit - mean); });
    return highest - s.params.top_n_sigma * std::sqrt(squares / static_cast<double>(n));
}

void keep_above(la_sampler &s, double floor) {
    auto &c = s.candidates;
    c.erase(std::remove_if(c.begin(), c.end(), [&](const candidate &x) { return x.logit < floor; }), c.end());
}

// The first stages read the logits as they are: then a top_k needs no list of the whole vocabulary.
// Returns how many stages that were.
size_t gather(cut &now, const float *logits) {
    la_sampler &s = now.s;
    const auto &stages = s.stages;
    const auto k = static_cast<size_t>(s.params.top_k);
    size_t at = !stages.empty() && stages[0].kind == LA_TOP_N_SIGMA ? 1 : 0;
    if (at < stages.size() && stages[at].kind == LA_TOP_K) {
        if (k >= static_cast<size_t>(s.n_vocab)) {
            gather_all(s, logits);
        } else {
            la::gather_best(logits, s.n_vocab, k, s.candidates);
            now.order = sorted::no;
        }
        now.listed = std::min(now.listed, k);
        ++at;
    } else {
        gather_all(s, logits);
    }
    if (!stages.empty() && stages[0].kind == LA_TOP_N_SIGMA) {
        keep_above(s, sigma_floor(s, now.highest, [&](const auto &take) {
                       for (int32_t i = 0; i < s.n_vocab; ++i) {
                           if (logits[i] > NEVER) {
                               take(logits[i]);
                           }
                       }
                   }));
    }
    return at;
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
    const auto least = static_cast<size_t>(s.params.min_keep);
    double reached = 0;
    size_t n = 0;
    while (n < order.size() && (reached <= s.params.typical_p || n < least)) {
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
void keep_likely(la_sampler &s, double highest, const la::stage &how) {
    auto &c = s.candidates;
    const double total = sum_of_weights(c, highest, 1.0);
    const auto worse = [](const candidate &a, const candidate &b) { return better(b, a); };
    std::make_heap(c.begin(), c.end(), worse);
    s.kept.clear();
    const size_t least = std::max<size_t>(1, static_cast<size_t>(s.params.min_keep));
    double sum = 0;
    for (auto end = c.end(); end != c.begin(); --end) {
        const double weight = std::exp(c.front().logit - highest);
        if (s.kept.size() >= least && (weight < how.min_p || sum >= how.top_p * total)) {
            break;
        }
        s.kept.push_back(c.front());
        sum += weight;
        std::pop_heap(c.begin(), end, worse);
    }
    c.swap(s.kept);
}

// Of the best-first candidates, leave out all but the last that reach the threshold; how many.
size_t exclude_top(la_sampler &s, double highest) {
    auto &c = s.candidates;
    const double total = sum_of_weights(c, highest, 1.0);
    size_t last = 0;
    while (last + 1 < c.size() && std::exp(c[last + 1].logit - highest) / total >= s.params.xtc_threshold) {
        ++last;
    }
    if (c.size() - last < static_cast<size_t>(s.params.min_keep)) {
        return 0;
    }
    c.erase(c.begin(), c.begin() + static_cast<std::ptrdiff_t>(last));
    return last;
}

void keep_best(cut &now) {
    const auto k = static_cast<size_t>(now.s.params.top_k);
    auto &c = now.s.candidates;
    now.listed = std::min(now.listed, k);
    if (k >= c.size()) {
        return;
    }
    if (now.order != sorted::best_first) {
        std::partial_sort(c.begin(), c.begin() + static_cast<std::ptrdiff_t>(k), c.end(), better);
        now.order = sorted::no;
    }
    c.resize(k);
}

void keep_sigma(cut &now) {
    auto &c = now.s.candidates;
    keep_above(now.s, sigma_floor(now.s, now.highest, [&](const auto &take) {
                   for (const candidate &x : c) {
                       take(x.logit);
                   }
               }));
}

// Between temperature - range and temperature + range, by the entropy of the candidates.
double dynamic_temperature(const cut &now) {
    const la_sampling &p = now.s.params;
    const auto &c = now.s.candidates;
    if (p.dynatemp_range == 0 || c.size() < 2) {
        return p.temperature;
    }
    const double total = sum_of_weights(c, now.highest, 1.0);
    const double log_total = std::log(total);
    double entropy = 0;
    for (const candidate &x : c) {
        const double behind = x.logit - now.highest;
        entropy += std::exp(behind) / total * (log_total - behind);
    }
    const double share = std::max(0.0, entropy) / std::log(static_cast<double>(now.listed));
    const double least = std::max(0.0, p.temperature - p.dynatemp_range);
    return least + (p.temperature + p.dynatemp_range - least) * std::pow(share, p.dynatemp_exponent);
}

void scale(cut &now, bool is_last) {
    auto &c = now.s.candidates;
    const double temperature = dynamic_temperature(now);
    if (temperature == 0) {
        c.front() = *std::min_element(c.begin(), c.end(), better);
        c.resize(1);
        return;
    }
    if (is_last) {
        now.temperature = temperature;
        return;
    }
    for (candidate &x : c) {
        x.logit = la::finite(x.logit / temperature);
    }
    now.highest = la::finite(now.highest / temperature);
}

void exclude(cut &now) {
    la_sampler &s = now.s;
    if (!(uniform(s.params.seed ^ XTC_STREAM, now.index) < s.params.xtc_probability)) {
        return;
    }
    if (now.order != sorted::best_first) {
        std::sort(s.candidates.begin(), s.candidates.end(), better);
    }
    now.listed -= exclude_top(s, now.highest);
    now.highest = s.candidates.front().logit;
    now.order = sorted::best_first;
}

void apply(cut &now, const la::stage &stage, bool is_last) {
    la_sampler &s = now.s;
    switch (stage.kind) {
    case LA_TOP_N_SIGMA:
        keep_sigma(now);
        break;
    case LA_TOP_K:
        keep_best(now);
        break;
    case LA_TYPICAL_P:
        keep_typical(s, now.highest);
        now.highest = s.candidates.front().logit;
        now.listed = s.candidates.size();
        now.order = sorted::best_first;
        break;
    case LA_TOP_P:
    case LA_MIN_P:
        keep_likely(s, now.highest, stage);
        now.listed = s.candidates.size();
        now.order = sorted::best_first;
        break;
    case LA_XTC:
        exclude(now);
        break;
    case LA_TEMPERATURE:
        scale(now, is_last);
        break;
    case LA_PENALTIES:
    case LA_DRY:
        la::edit_candidates(s, stage.kind);
        now.highest = std::min_element(s.candidates.begin(), s.candidates.end(), better)->logit;
        now.order = now.order == sorted::by_token ? sorted::by_token : sorted::no;
        break;
    case LA_STAGES:
        break;
    }
}

struct drawn {
    int32_t token;
    double share;  // its probability among the candidates
};

drawn draw(la_sampler &s, double highest, double temperature, double u) {
    auto &weights = s.weights;
    weights.resize(s.candidates.size());
    double total = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
        weights[i] = std::exp((s.candidates[i].logit - highest) / temperature);
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
    const drawn found = draw(s, highest, s.params.temperature, uniform(s.params.seed, index));
    s.pending = found.token;
    s.pending_mu = s.mu;
    if (found.share > 0) {
        s.pending_mu -= s.params.mirostat_eta * (-std::log2(found.share) - s.params.mirostat_tau);
    }
    return found.token;
}

// Whether the temperature is 0, so that nothing is drawn.
bool takes_likeliest(const la_sampling &p, const int32_t *order, int32_t n) {
    const bool is_fixed = p.dynatemp_range == 0 && std::find(order, order + n, LA_TEMPERATURE) != order + n;
    return p.temperature == 0 && (is_fixed || p.mirostat != 0);
}

// Whether a stage does anything. `cold`: nothing is drawn, so nothing may leave out the likeliest.
bool is_on(const la_sampling &p, la_stage kind, bool cold) {
    switch (kind) {
    case LA_PENALTIES:
        return p.repetition_window > 0 &&
               (p.repetition_penalty != 1.0 || p.frequency_penalty != 0.0 || p.presence_penalty != 0.0);
    case LA_DRY:
        return p.dry_multiplier > 0;
    case LA_TOP_N_SIGMA:
        return p.top_n_sigma > 0;
    case LA_TOP_K:
        return p.top_k > 0;
    case LA_TYPICAL_P:
        return p.typical_p < 1 && !cold;
    case LA_TOP_P:
        return p.top_p < 1;
    case LA_MIN_P:
        return p.min_p > 0;
    case LA_XTC:
        return p.xtc_probability > 0 && p.xtc_threshold <= 0.5 && !cold;
    case LA_TEMPERATURE:
        return p.temperature != 1 || p.dynatemp_range > 0;
    case LA_STAGES:
        break;
    }
    return false;
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

void plan_stages(la_sampler &s, const int32_t *order, int32_t n) {
    const la_sampling &p = s.params;
    const bool cold = takes_likeliest(p, order, n);
    bool may_miss = false;  // the likeliest token may have been left out
    s.greedy = p.mirostat != 0 && cold;
    for (int32_t i = 0; i < n; ++i) {
        if (order[i] < 0 || order[i] >= LA_STAGES) {
            throw fault{LA_EXCEPTION, "not a stage of the choice", order[i], LA_STAGES};
        }
        const auto kind = static_cast<la_stage>(order[i]);
        const bool is_edit = kind == LA_PENALTIES || kind == LA_DRY;
        if (!is_on(p, kind, cold) || (p.mirostat != 0 && !is_edit)) {
            continue;
        }
        s.penalises = s.penalises || kind == LA_PENALTIES;
        s.dries = s.dries || kind == LA_DRY;
        if (is_edit && s.stages.empty()) {
            s.edits.push_back({kind});
            continue;
        }
        const bool leaves_one = kind == LA_TEMPERATURE ? cold : kind == LA_TOP_K && p.top_k == 1;
        s.greedy = s.greedy || (leaves_one && !may_miss);
        may_miss = may_miss || is_edit || kind == LA_TYPICAL_P || kind == LA_XTC;
        if (kind == LA_MIN_P && !s.stages.empty() && s.stages.back().kind == LA_TOP_P) {
            s.stages.back().min_p = p.min_p;
            continue;
        }
        s.stages.push_back({kind, kind == LA_TOP_P ? p.top_p : 1, kind == LA_MIN_P ? p.min_p : 0});
    }
}

int32_t choose(la_sampler &s, const float *logits, uint64_t index) {
    const int32_t best = argmax(logits, s.n_vocab);
    if (best < 0 || logits[best] == -NEVER) {
        return -1;
    }
    if (s.greedy) {
        return best;
    }
    if (s.params.mirostat != 0) {
        return choose_mirostat(s, logits, index, best);
    }
    cut now{s, index, logits[best], static_cast<size_t>(s.n_vocab)};
    for (size_t at = gather(now, logits); at < s.stages.size(); ++at) {
        apply(now, s.stages[at], at + 1 == s.stages.size());
    }
    if (now.order == sorted::no) {
        // Any fixed order will do for the draw, but it must not depend on how the cut was made.
        const auto by_id = [](const candidate &a, const candidate &b) { return a.token < b.token; };
        std::sort(s.candidates.begin(), s.candidates.end(), by_id);
    }
    return draw(s, now.highest, now.temperature, uniform(s.params.seed, index)).token;
}

} // namespace la
