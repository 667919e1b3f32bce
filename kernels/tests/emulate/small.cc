// Runs a kernel for few token rows on the host. Reads a request from standard input: a line with the kernel's name, a line of
// numbers, and the arrays, little-endian; writes y to standard output. Every array lies in an allocation of exactly its size,
// so that a sanitizer sees what reaches beyond.
#include "../../w2/kernel.cu"
#include "../../w3/kernel.cu"
#include "../../w4/kernel.cu"

template <class T>
static T* read_array(size_t count, size_t alignment) {
    if (count == 0) return nullptr;
    T* array = (T*)aligned_alloc(alignment, count * sizeof(T));
    if (fread(array, sizeof(T), count, stdin) != count) emulated::fail("the request ends too early");
    return array;
}

struct Entry {
    const char* name;
    void (*kernel)(Small);
    int nt;
};
#define ENTRY(name, type, rows, group) {#name "_" #type "_" #rows "_g" #group, name##_##type##_##rows##_g##group, rows / 8}
#define GROUPS(name, type, rows) ENTRY(name, type, rows, 128), ENTRY(name, type, rows, 64), ENTRY(name, type, rows, 32)
#define ENTRIES(name) GROUPS(name, f16, 8), GROUPS(name, f16, 16), GROUPS(name, bf16, 8), GROUPS(name, bf16, 16)
static const Entry KERNELS[] = {ENTRIES(w2a16), ENTRIES(w3a16), ENTRIES(w4a16)};

int main() {
    char name[64];
    int rows, k, n, x_stride, y_stride, k_tiles, together, splits, gated, single, has_bias, has_residual, launches;
    long long tile_bytes, seed;
    while (scanf("%63s %d %d %d %d %d %d %d %d %d %d %d %d %d %lld %lld", name, &rows, &k, &n, &x_stride, &y_stride, &k_tiles,
                 &together, &splits, &gated, &single, &has_bias, &has_residual, &launches, &tile_bytes, &seed) == 16) {
        getchar();
        const Entry* entry = nullptr;
        for (const Entry& one : KERNELS)
            if (!strcmp(one.name, name)) entry = &one;
        if (!entry) emulated::fail("there is no such kernel");
        int row_tiles = (n + 31) / 32, blocks = (row_tiles + together - 1) / together, columns = 8 * entry->nt;
        Small a = {};
        a.tiles = read_array<u8>(tile_bytes, 128);
        a.x = read_array<u16>((size_t)rows * x_stride, 16);
        a.bias = has_bias ? read_array<u16>(n, 2) : nullptr;
        size_t outputs = (size_t)rows * y_stride;
        a.residual = has_residual ? read_array<u16>(outputs, 2) : nullptr;
        size_t bytes = outputs * (single ? 4 : 2);
        std::vector<float> partial;
        std::vector<u32> arrived;
        if (splits > 1) {
            partial.resize((size_t)splits * row_tiles * 32 * columns);
            arrived.resize(blocks);
            a.arrived = arrived.data();
        }
        a.rows = rows, a.k = k, a.n = n, a.x_stride = x_stride, a.y_stride = y_stride, a.k_tiles = k_tiles;
        a.together = together;
        a.splits = splits, a.tiles_each = k_tiles / splits, a.tiles_left = k_tiles % splits, a.gated = gated, a.single = single;
        a.y = malloc(bytes);
        std::vector<u8> first;
        for (int i = 0; i < launches; i++) {
            memset(a.y, 0xff, bytes);
            std::fill(partial.begin(), partial.end(), NAN);
            a.partial = splits > 1 ? partial.data() : nullptr;
            int shared = entry->nt == 1 ? small_shared<1>() : small_shared<2>();
            emulated::launch(blocks, splits, 32 * WARPS, shared, seed + i, [&] { entry->kernel(a); });
            std::vector<u8> y((u8*)a.y, (u8*)a.y + bytes);
            if (i == 0) first = y;
            if (y != first) emulated::fail("the order of threads changes the result");
            for (u32 count : arrived)
                if (count) emulated::fail("a count of arrived blocks is not zero afterwards");
        }
        fwrite(first.data(), 1, bytes, stdout);
        fflush(stdout);
        free((void*)a.tiles), free((void*)a.x), free((void*)a.bias), free((void*)a.residual), free(a.y);
    }
    return 0;
}
