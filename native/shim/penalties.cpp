// What changes logits before the choice: bias, penalties, DRY. native/sampling.py is the same.
#include "sampling.h"

#include <algorithm>
#include <cmath>

namespace {

constexpr double FLOAT_LOG_MAX = 88.7;  // exp() of more does not fit a float

bool contains(const std::vector<int32_t> &sorted, int32_t token) {
    return std::binary_search(sorted.begin(), sorted.end(), token);
}

// Whether the tokens that end just before the `i` newest spell the breaker.
bool ends_spelled(const la::recent &spoken, const std::vector<int32_t> &spelled, size_t i) {
    if (spelled.empty() || i + spelled.size() > spoken.count()) {
        return false;
    }
    for (size_t k = 0; k < spelled.size(); ++k) {
        if (spoken.back(i + spelled.size() - 1 - k) != spelled[k]) {
            return false;
        }
    }
    return true;
}

// How many tokens follow the last breaker: a repetition does not reach beyond it.
size_t since_breaker(const la_sampler &s) {
    for (size_t i = 0; i < s.spoken.count(); ++i) {
        const int32_t token = s.spoken.back(i);
        for (const auto &one : s.breakers) {
            if (contains(one->containing, token) || ends_spelled(s.spoken, one->spelled, i)) {
                return i;
            }
        }
    }
    return s.spoken.count();
}

// For each k, how far the text before the k newest tokens agrees with the text's end (Z function
// of the reversed text); then for each token the longest repetition it would prolong.
void find_repetitions(la_sampler &s) {
    s.longest.clear();
    const size_t n = s.spoken.count();
    const auto allowed = static_cast<size_t>(s.params.dry_allowed_length);
    const size_t reach = since_breaker(s);
    if (n < 2 || reach < allowed) {
        return;
    }
    auto &z = s.matches;
    z.assign(n, 0);
    size_t left = 0;
    size_t right = 0;  // [left, right) is the box that reaches furthest
    for (size_t k = 1; k < n; ++k) {
        size_t length = k < right ? std::min<size_t>(right - k, static_cast<size_t>(z[k - left])) : 0;
        while (k + length < n && s.spoken.back(length) == s.spoken.back(k + length)) {
            ++length;
        }
        z[k] = static_cast<int32_t>(length);
        if (k + length > right) {
            left = k;
            right = k + length;
        }
        const size_t counted = std::min(length, reach);
        if (counted >= allowed) {
            int32_t &longest = s.longest[s.spoken.back(k - 1)];
            longest = std::max(longest, static_cast<int32_t>(counted));
        }
    }
}

bool is_breaker(const la_sampler &s, int32_t token) {
    return std::any_of(s.breakers.begin(), s.breakers.end(),
                       [&](const auto &one) { return contains(one->containing, token); });
}

double dry_penalty(const la_sampling &p, int32_t length) {
    double power = length - p.dry_allowed_length;
    if (p.dry_base > 1.000001) {
        power = std::min(power, std::floor(FLOAT_LOG_MAX / std::log(p.dry_base)));
    }
    return p.dry_multiplier * std::pow(p.dry_base, power);
}

double penalised(const la_sampling &p, double logit, int32_t count) {
    const double scaled = logit > 0 ? logit / p.repetition_penalty : logit * p.repetition_penalty;
    return scaled - (count * p.frequency_penalty + p.presence_penalty);
}

void set(la_sampler &s, float *logits, int32_t token, double logit) {
    s.changed.emplace_back(token, logits[token]);  // reserved: does not throw
    logits[token] = static_cast<float>(logit);
}

} // namespace

namespace la {

void remember(la_sampler &s, int32_t token) {
    if (s.penalises) {
        ++s.counts[token];
        const int32_t old = s.window.push(token);
        if (old >= 0) {
            const auto found = s.counts.find(old);
            if (--found->second == 0) {
                s.counts.erase(found);
            }
        }
    }
    if (s.dries) {
        s.spoken.push(token);
    }
}

void edit_logits(la_sampler &s, float *logits) {
    s.changed.clear();
    if (s.bias.empty() && s.counts.empty() && !s.dries) {
        return;
    }
    if (s.dries) {
        find_repetitions(s);
    }
    // Nothing may throw between a change and the way back.
    s.changed.reserve(s.bias.size() + s.counts.size() + s.longest.size());
    for (const auto &[token, bias] : s.bias) {
        set(s, logits, token, static_cast<double>(logits[token]) + bias);
    }
    for (const stage &edit : s.edits) {
        if (edit.kind == LA_PENALTIES) {
            for (const auto &[token, count] : s.counts) {
                set(s, logits, token, penalised(s.params, logits[token], count));
            }
            continue;
        }
        for (const auto &[token, length] : s.longest) {
            if (!is_breaker(s, token)) {
                set(s, logits, token, logits[token] - dry_penalty(s.params, length));
            }
        }
    }
}

void edit_candidates(la_sampler &s, la_stage kind) {
    const auto &edited = kind == LA_PENALTIES ? s.counts : s.longest;
    for (candidate &one : s.candidates) {
        const auto found = edited.find(one.token);
        if (found == edited.end() || (kind == LA_DRY && is_breaker(s, one.token))) {
            continue;
        }
        const double logit = kind == LA_PENALTIES ? penalised(s.params, one.logit, found->second)
                                                  : one.logit - dry_penalty(s.params, found->second);
        one.logit = finite(logit);
    }
}

void restore_logits(const la_sampler &s, float *logits) noexcept {
    for (auto change = s.changed.rbegin(); change != s.changed.rend(); ++change) {
        logits[change->first] = change->second;
    }
}

} // namespace la
