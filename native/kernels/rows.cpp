// Part of ggml-base, which the shim and every CPU backend link. See rows.h.
#include "rows.h"

#include <atomic>
#include <mutex>

namespace {

constexpr int max_pools = 64;

struct choice {
    std::atomic<const ggml_threadpool *> pool{nullptr};
    std::atomic<int> rows{LA_ROWS_ANY};
};

choice choices[max_pools];
std::atomic<int> n_choices{0};
std::mutex changing;

choice *find(const ggml_threadpool *pool) {
    for (int i = 0, n = n_choices.load(std::memory_order_acquire); i < n; ++i) {
        if (choices[i].pool.load(std::memory_order_acquire) == pool) {
            return choices + i;
        }
    }
    return nullptr;
}

} // namespace

extern "C" bool la_rows_set(const ggml_threadpool *pool, int rows) {
    const std::lock_guard<std::mutex> guard(changing);
    choice *known = find(pool);
    if (rows == LA_ROWS_ANY) {  // which is what a pool without an entry does
        if (known != nullptr) {
            known->pool.store(nullptr, std::memory_order_release);
        }
        return true;
    }
    if (known == nullptr) {
        known = find(nullptr);
        const int n = n_choices.load(std::memory_order_relaxed);
        if (known == nullptr && n == max_pools) {
            return false;
        }
        if (known == nullptr) {
            known = choices + n;
            n_choices.store(n + 1, std::memory_order_release);
        }
    }
    known->rows.store(rows, std::memory_order_relaxed);
    known->pool.store(pool, std::memory_order_release);
    return true;
}

extern "C" int la_rows_of(const ggml_threadpool *pool) {
    const choice *known = pool == nullptr ? nullptr : find(pool);
    return known == nullptr ? LA_ROWS_ANY : known->rows.load(std::memory_order_relaxed);
}
