/* How matrix products compute the rows of a batch, chosen by the shim for each decode.
 *
 * Kernels for groups of rows and for single rows add in different orders, so the last bits of a row depend on how
 * many rows there are. LA_ROWS_MANY computes each row as one among many, LA_ROWS_ALONE as in a product of its own.
 *
 * The choice belongs to a pool of compute threads: contexts of one process may decode at the same time.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define LA_EXPORT
#else
#define LA_EXPORT __attribute__((visibility("default")))
#endif

enum la_rows { LA_ROWS_ANY = 0, LA_ROWS_MANY = 1, LA_ROWS_ALONE = 2 };

struct ggml_threadpool;

/* For the shim, around a decode; LA_ROWS_ANY after it. False where too many pools have one at the same time. */
LA_EXPORT bool la_rows_set(const struct ggml_threadpool *pool, int rows);
/* For kernels, from any compute thread of the pool. */
LA_EXPORT int la_rows_of(const struct ggml_threadpool *pool);

#ifdef __cplusplus
}
#endif
