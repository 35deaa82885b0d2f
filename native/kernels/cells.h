/* Where the cells of a KV cache stand in their sequences: what the shim tells the attention kernel.
 *
 * The shim sets `extra` of each K tensor of a cache to a la_cells. llama.cpp's CPU backend uses that field for weights
 * only. A K tensor without it belongs to another context, such as one for embeddings.
 */
#pragma once
#include <stdint.h>

#define LA_CELLS_MAGIC 0x6c615f63656c6c73ull

struct la_cells {
    uint64_t magic;     /* LA_CELLS_MAGIC */
    const void *cells;  /* of the shim */
    /* Writes the positions of cells 0 to n - 1, -1 for an empty one. Called by compute threads during a decode. */
    void (*positions)(const struct la_cells *self, int32_t n, int32_t *out);
};
