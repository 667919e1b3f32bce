// The kernels by name, for programs on the host.
#pragma once
#include "../../../kernels/cuda/finish.cu"
#include "../../../kernels/cuda/norm.cu"
#include "../../../kernels/w2/kernel.cu"
#include "../../../kernels/w2/wide.cu"
#include "../../../kernels/w3/kernel.cu"
#include "../../../kernels/w3/wide.cu"
#include "../../../kernels/w4/kernel.cu"
#include "../../../kernels/w4/wide.cu"
#include "../../../kernels/w4a8/kernel.cu"
#include "../../../kernels/w4a8/wide.cu"
#include "../../../kernels/w8a8/kernel.cu"
#include "../../../kernels/w8a8/wide.cu"

struct Entry {
    const char* name;
    void (*run)(const void* arguments);
    size_t bytes;  // of the arguments
    int threads;
    int (*shared)(const void* arguments);  // bytes of dynamic shared memory
    int blocks;  // that a multiprocessor runs side by side
    int together;  // blocks of a cluster
};

template <class Arguments, void KERNEL_OF(const Arguments)>
static void run_kernel(const void* arguments) {
    // Some have to lie where it is round.
    Arguments own;
    memcpy(&own, arguments, sizeof own);
    KERNEL_OF(own);
}

template <int BYTES>
static int always(const void*) {
    return BYTES;
}

// Of arguments that begin as all that are dealt out do.
template <class Kind>
static int of_middle(const void* arguments) {
    return middle_shared<Kind>(((const Small*)arguments)->together_log);
}

#define ENTRY_OF(name, Arguments, threads, shared, together) \
    {#name, run_kernel<Arguments, name>, sizeof(Arguments), threads, shared, name##_blocks, together}
#define ENTRY_WITH(name, Arguments, threads, shared) ENTRY_OF(name, Arguments, threads, shared, 1)
#define ENTRY(name, Arguments, threads, shared) ENTRY_WITH(name, Arguments, threads, (always<shared>))
#define ROWS_ENTRY(name, type, rows, group) ENTRY(name##_##type##_##rows##_g##group, Small, 256, small_shared<rows / 8>())
#define GROUPS(name, type, rows) \
    ROWS_ENTRY(name, type, rows, 128), ROWS_ENTRY(name, type, rows, 64), ROWS_ENTRY(name, type, rows, 32)
#define ENTRIES(name) GROUPS(name, f16, 8), GROUPS(name, f16, 16), GROUPS(name, bf16, 8), GROUPS(name, bf16, 16)
#define BYTES_ENTRIES(name, Weight)                      \
    ENTRY(name##_8, Integer, 256, small_shared<1>()),    \
    ENTRY(name##_16, Integer, 256, small_shared<2>()),   \
    ENTRY_WITH(name##_64, Integer, 256, of_middle<Integers<Weight>>)
#define DEQUANTIZE_ENTRIES(name) \
    ENTRY(name##_dequantize_f16, Dequantize, 128, 0), ENTRY(name##_dequantize_bf16, Dequantize, 128, 0)
#define MIDDLE_ENTRY(name, type, T, Weight) ENTRY_WITH(name##_##type##_64, Middle, 256, (of_middle<Grouped<T, Weight<T>>>))
#define MIDDLE_ENTRIES(name, Weight) MIDDLE_ENTRY(name, f16, F16, Weight), MIDDLE_ENTRY(name, bf16, BF16, Weight)
#define WIDE_ENTRY(name, Arguments) ENTRY_OF(name##_256, Arguments, 256, always<wide_shared()>, 2)
static const Entry KERNELS[] = {
    WIDE_ENTRY(w2a16_f16, Wide),
    WIDE_ENTRY(w2a16_bf16, Wide),
    WIDE_ENTRY(w3a16_f16, Wide),
    WIDE_ENTRY(w3a16_bf16, Wide),
    WIDE_ENTRY(w4a16_f16, Wide),
    WIDE_ENTRY(w4a16_bf16, Wide),
    WIDE_ENTRY(w4a8, WideIntegers),
    WIDE_ENTRY(w8a8, WideIntegers),
    ENTRIES(w2a16),
    ENTRIES(w3a16),
    ENTRIES(w4a16),
    MIDDLE_ENTRIES(w2a16, W2),
    MIDDLE_ENTRIES(w3a16, W3),
    MIDDLE_ENTRIES(w4a16, W4),
    BYTES_ENTRIES(w4a8, W4Bytes),
    BYTES_ENTRIES(w8a8, W8Bytes),
    DEQUANTIZE_ENTRIES(w2),
    DEQUANTIZE_ENTRIES(w3),
    DEQUANTIZE_ENTRIES(w4),
    ENTRY(w2_repack, Repack, 128, repack_shared<PlainCodes<2>>()),
    ENTRY(w3_repack, Repack, 128, repack_shared<Thirds>()),
    ENTRY(w4_repack, Repack, 128, repack_shared<PlainCodes<4>>()),
    ENTRY(finish_f16, Finish, 256, 0),
    ENTRY(finish_bf16, Finish, 256, 0),
    ENTRY(finish_integers, FinishIntegers, 256, 0),
    ENTRY(w4a8_codes, Dequantize, 128, 0),
    ENTRY(w4a8_repack, Repack, 128, 0),
    ENTRY(w8a8_repack, Repack, 128, 0),
    ENTRY(norm_f16, Norm, 256, 64),
    ENTRY(norm_bf16, Norm, 256, 64),
};

// `nullptr` if there is none of that name.
static const Entry* find_kernel(const char* name) {
    for (const Entry& one : KERNELS)
        if (!strcmp(one.name, name)) return &one;
    return nullptr;
}
