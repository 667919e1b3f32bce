// The kernels for few token rows by name, for programs on the host.
#pragma once
#include "../../../kernels/w2/kernel.cu"
#include "../../../kernels/w3/kernel.cu"
#include "../../../kernels/w4/kernel.cu"

struct Entry {
    const char* name;
    void (*kernel)(Small);
    int nt;
};
#define ENTRY(name, type, rows, group) {#name "_" #type "_" #rows "_g" #group, name##_##type##_##rows##_g##group, rows / 8}
#define GROUPS(name, type, rows) ENTRY(name, type, rows, 128), ENTRY(name, type, rows, 64), ENTRY(name, type, rows, 32)
#define ENTRIES(name) GROUPS(name, f16, 8), GROUPS(name, f16, 16), GROUPS(name, bf16, 8), GROUPS(name, bf16, 16)
static const Entry KERNELS[] = {ENTRIES(w2a16), ENTRIES(w3a16), ENTRIES(w4a16)};

// `nullptr` if there is none of that name.
static const Entry* find_kernel(const char* name) {
    for (const Entry& one : KERNELS)
        if (!strcmp(one.name, name)) return &one;
    return nullptr;
}
