// Shared by the files of the sampler.
#pragma once

#include "internal.h"
#include "matcher.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <unordered_map>
#include <utility>

namespace la {

struct candidate {
    int32_t token;
    float logit;
};

// Best first; equal logits by the lower id, so that no sort decides a tie.
inline bool better(const candidate &a, const candidate &b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

// The nearest float that is not infinite.
inline float finite(double number) {
    constexpr double most = std::numeric_limits<float>::max();
    return static_cast<float>(std::min(std::max(number, -most), most));
}

// The last tokens, at most `size` of them; 0 is the newest.
class recent {
  public:
    explicit recent(int32_t size) : size_(static_cast<size_t>(size)) {}
    size_t count() const { return tokens_.size(); }
    int32_t back(size_t i) const {
        const size_t newest = tokens_.size() < size_ ? tokens_.size() - 1 : (next_ + size_ - 1) % size_;
        return tokens_[(newest + tokens_.size() - i) % tokens_.size()];
    }
    // The token that fell out, or -1.
    int32_t push(int32_t token) {
        if (size_ == 0) {
            return -1;
        }
        if (tokens_.size() < size_) {
            tokens_.push_back(token);
            return -1;
        }
        const int32_t old = tokens_[next_];
        tokens_[next_] = token;
        next_ = (next_ + 1) % size_;
        return old;
    }

  private:
    size_t size_;
    size_t next_ = 0;
    std::vector<int32_t> tokens_;
};

// A text that ends repetitions: the tokens that contain it, and the tokens it is spelled with.
struct breaker {
    std::vector<int32_t> containing;  // sorted
    std::vector<int32_t> spelled;     // empty if one token
};
using breakers = std::vector<std::shared_ptr<const breaker>>;

// One reply's position in a grammar; none: any reply is allowed.
struct constrained {
    std::shared_ptr<const vocabulary> words;
    std::unique_ptr<matcher> way;
    explicit operator bool() const { return way != nullptr; }
};

// One step of the choice. A min_p that directly follows top_p is part of its step.
struct stage {
    la_stage kind;
    double top_p = 1;
    double min_p = 0;
};

// The rules of a text; a fault, unless it is a grammar that can be used safely.
std::shared_ptr<const grammar_rules> check_grammar(const llama_vocab *vocab, const std::string &text);
std::shared_ptr<const breaker> take_breaker(const la_model &model, const char *text);

} // namespace la

struct la_grammar {
    std::shared_ptr<const la::grammar_rules> rules;
    std::shared_ptr<const la::vocabulary> words;
    uint64_t n_elements = 0;
};

struct la_sampler {
    la_sampler(const la_sampling &wishes, const la_model &of)
        : params(wishes), model(&of), n_vocab(of.n_vocab), window(wishes.repetition_window),
          spoken(wishes.dry_window), mu(2 * wishes.mirostat_tau) {}

    la_sampling params;
    const la_model *model;
    int32_t n_vocab;
    std::vector<std::pair<int32_t, double>> bias;
    std::vector<la::stage> edits;                 // penalties and DRY that come first: they change logits in place
    std::vector<la::stage> stages;                // what follows, without what is off
    bool greedy = false;                          // the choice is the likeliest token after the edits
    bool penalises = false;
    bool dries = false;
    la::recent window;                            // of the penalties
    std::unordered_map<int32_t, int32_t> counts;  // how often each token is in the window
    la::recent spoken;                            // of DRY
    la::breakers breakers;
    la::constrained grammar;
    int32_t proven = -1;                          // the last token checked by the grammar and allowed
    double mu;                                    // of mirostat
    int32_t pending = -1;                         // the token chosen last, and mu once it is accepted
    double pending_mu = 0;
    // Working memory, kept from token to token.
    std::vector<la::candidate> candidates;
    std::vector<la::candidate> kept;
    std::vector<double> weights;
    std::vector<std::pair<int32_t, float>> changed;  // old logits, oldest first
    std::vector<int32_t> matches;
    std::unordered_map<int32_t, int32_t> longest;
    std::vector<char> allowed;
    std::vector<float> masked;
};

namespace la {

// The steps of the choice in this order, from the parameters.
void plan_stages(la_sampler &s, const int32_t *order, int32_t n);

void remember(la_sampler &s, int32_t token);
// Apply logit bias and the edits in place; the old logits are in s.changed.
void edit_logits(la_sampler &s, float *logits);
// Penalties or DRY behind other stages: they change the candidates.
void edit_candidates(la_sampler &s, la_stage kind);
void restore_logits(const la_sampler &s, float *logits) noexcept;

// Whether the grammar lets this token come next.
bool permits(la_sampler &s, int32_t token);
// Of a greedy choice: the likeliest permitted token among the best few, or -1.
int32_t best_permitted(la_sampler &s, const float *logits);
// Copy the logits into s.masked, forbidden tokens at minus infinity; false if none is left.
bool mask_forbidden(la_sampler &s, const float *logits);
// An end-of-generation token the grammar permits, or -1.
int32_t permitted_end(la_sampler &s);

// The lowest index of the highest logit; -1 if none is above minus infinity.
int32_t argmax(const float *logits, int32_t n);
// The token that the parameters and (seed, index) choose; -1: there is no finite logit.
int32_t choose(la_sampler &s, const float *logits, uint64_t index);
// The k best of the logits, unordered.
void gather_best(const float *logits, int32_t n, size_t k, std::vector<candidate> &out);

} // namespace la
