// Which compiled instruction set runs here. Builds for one CPU hold it linked in; portable builds
// carry a library for each, and this process loads the best one that works.
#include "internal.h"

#include <dirent.h>
#include <dlfcn.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// What ggml_backend_score() of a CPU library adds up, at the pinned commit, on x86-64: 1 and a bit
// for each feature it was compiled with (ggml-cpu/arch/x86/cpu-feats.cpp). It tests the CPU alone,
// not whether the system saves those registers, nor whether the instructions work.
constexpr int SCORE_AVX = 1 << 4;
constexpr int SCORE_AVX512 = 1 << 7;
constexpr int SCORE_AMX_INT8 = 1 << 11;

std::string variant = "linked";

#if defined(__x86_64__)
__attribute__((target("amx-tile,amx-int8"))) void use_tiles() {
    alignas(64) uint8_t config[64] = {1};  // palette 1
    for (int tile = 0; tile < 3; ++tile) {
        config[16 + 2 * tile] = 64;  // bytes of a row
        config[48 + tile] = 16;      // rows
    }
    alignas(64) static uint8_t data[1024] = {};
    __asm__ volatile("ldtilecfg %0" ::"m"(config));  // as in tiles.h: all 64 bytes are read
    _tile_zero(0);
    _tile_loadd(1, data, 64);
    _tile_loadd(2, data, 64);
    _tile_dpbssd(0, 1, 2);
    _tile_stored(0, data, 64);
    _tile_release();
}
#endif

// Some virtual machines advertise AMX, grant it, and fault at its first instruction. A child runs
// these instructions; it writes a byte where it survived them. Its exit status is not used: the
// process may have a SIGCHLD handler that collects it first.
bool amx_works() {
#if defined(__x86_64__) && defined(__linux__)
    int ends[2];
    if (pipe(ends) != 0) {
        return false;
    }
    const pid_t child = fork();
    if (child == 0) {
        const rlimit none{0, 0};
        setrlimit(RLIMIT_CORE, &none);
        for (const int fault : {SIGILL, SIGSEGV, SIGBUS, SIGFPE}) {
            signal(fault, SIG_DFL);
        }
        constexpr int REQUEST_PERMISSION = 0x1023;  // ARCH_REQ_XCOMP_PERM
        constexpr int TILE_DATA = 18;               // XFEATURE_XTILEDATA
        syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA);  // refused: the instructions fault
        use_tiles();
        _exit(write(ends[1], "1", 1) == 1 ? 0 : 1);
    }
    close(ends[1]);
    char byte = 0;
    ssize_t n = 0;
    do {
        n = child > 0 ? read(ends[0], &byte, 1) : 0;
    } while (n < 0 && errno == EINTR);
    close(ends[0]);
    while (child > 0 && waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
    }
    return n == 1;
#else
    return false;
#endif
}

// Zero where this process must not run it.
int usable_score(int score) {
#if defined(__x86_64__)
    const int features = score - 1;
    // These two test XGETBV as well: whether the system saves the registers.
    if ((features & SCORE_AVX) != 0 && !__builtin_cpu_supports("avx")) {
        return 0;
    }
    if ((features & SCORE_AVX512) != 0 && !__builtin_cpu_supports("avx512f")) {
        return 0;
    }
    static const bool tiles = amx_works();  // evaluated at the first library that needs them
    if ((features & SCORE_AMX_INT8) != 0 && !tiles) {
        return 0;
    }
#endif
    return score;
}

int score_of(const std::string &path) {
    void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        return 0;
    }
    using score_function = int (*)();
    const auto score = reinterpret_cast<score_function>(dlsym(library, "ggml_backend_score"));
    const int value = score == nullptr ? 1 : score();
    dlclose(library);
    return value > 0 ? usable_score(value) : 0;
}

std::vector<std::string> libraries_in(const char *folder) {
    std::vector<std::string> names;
    if (DIR *open = opendir(folder)) {
        while (const dirent *entry = readdir(open)) {
            const std::string name = entry->d_name;
            if (name.rfind("libggml-", 0) == 0 && name.size() > 3 && name.compare(name.size() - 3, 3, ".so") == 0) {
                names.push_back(name);
            }
        }
        closedir(open);
    }
    std::sort(names.begin(), names.end());
    return names;
}

void load_cpu(const std::string &folder, const std::vector<std::string> &names) {
    int best = 0;
    std::string best_name;
    for (const std::string &name : names) {
        const int score = score_of(folder + "/" + name);
        if (score > best) {
            best = score;
            best_name = name;
        }
    }
    if (best == 0) {
        throw la::fault{LA_LOAD, "no CPU library in " + folder + " runs on this machine: the installation is "
                                 "incomplete, or was made for another architecture"};
    }
    if (ggml_backend_load((folder + "/" + best_name).c_str()) == nullptr) {
        throw la::fault{LA_LOAD, "the CPU library " + folder + "/" + best_name + " could not be loaded"};
    }
    variant = best_name.substr(0, best_name.size() - 3);
    const std::string prefix = "libggml-cpu-";
    if (variant.rfind(prefix, 0) == 0) {
        variant = variant.substr(prefix.size());
    }
}

} // namespace

extern "C" {

int la_backends_load(const char *folder) noexcept {
    return la::guarded([&] {
        if (ggml_backend_reg_by_name("CPU") != nullptr) {
            return;  // linked in, or loaded by an earlier call
        }
        std::vector<std::string> cpu;
        for (const std::string &name : libraries_in(folder)) {
            if (name.rfind("libggml-cpu", 0) == 0) {
                cpu.push_back(name);
            } else if (name != "libggml-base.so") {
                ggml_backend_load((std::string(folder) + "/" + name).c_str());  // a GPU: absent is fine
            }
        }
        load_cpu(folder, cpu);
    });
}

const char *la_cpu_variant(void) noexcept { return variant.c_str(); }

int la_amx_works(void) noexcept {
    bool works = false;
    la::guarded([&] { works = amx_works(); });
    return works;
}

} // extern "C"
