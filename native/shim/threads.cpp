// The compute threads of a context.
#include "internal.h"

#include "ggml-cpu.h"
#include "rows.h"

namespace {

// The CPU backend may be a library of its own: its functions are found by name.
template <class Function> Function *cpu_function(const char *name) {
    const ggml_backend_reg_t cpu = ggml_backend_reg_by_name("CPU");
    return cpu == nullptr ? nullptr : reinterpret_cast<Function *>(ggml_backend_reg_get_proc_address(cpu, name));
}

ggml_threadpool_t new_pool(int n_threads) {
    const auto create = cpu_function<decltype(ggml_threadpool_new)>("ggml_threadpool_new");
    if (create == nullptr) {
        return nullptr;
    }
    ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
    params.poll = 0;  // between steps they sleep: others need the cores
    return create(&params);
}

} // namespace

void la::compute_threads::attach(llama_context *context, int n_threads, int n_threads_batch) {
    step_ = new_pool(n_threads);
    batch_ = n_threads_batch == n_threads ? step_ : new_pool(n_threads_batch);
    if (step_ != nullptr && batch_ != nullptr) {
        llama_attach_threadpool(context, step_, batch_);
    }
}

void la::compute_threads::compute_rows(int32_t how) {
    for (const ggml_threadpool_t pool : {step_, batch_}) {
        if (pool != nullptr && !la_rows_set(pool, how)) {
            throw fault{LA_CONTEXT, "too many contexts of this process decode at the same time"};
        }
    }
}

la::compute_threads::~compute_threads() {
    const auto free = cpu_function<decltype(ggml_threadpool_free)>("ggml_threadpool_free");
    if (free == nullptr) {
        return;
    }
    if (batch_ != nullptr && batch_ != step_) {
        free(batch_);
    }
    if (step_ != nullptr) {
        free(step_);
    }
}
