// Included before ggml's AMX kernels. In the header of GCC before 12.4 and 13.3 `_tile_loadconfig` declares that
// it reads 8 of the 64 bytes of a tile configuration (GCC bug 114098). The compiler then drops the stores to the
// others, the configuration has no rows, and the first tile instruction is illegal.
#pragma once

#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

static inline void la_tile_loadconfig(const void *config) {
    __asm__ volatile("ldtilecfg\t%X0" ::"m"(*(const char(*)[64])config));
}

#define _tile_loadconfig la_tile_loadconfig
#endif
