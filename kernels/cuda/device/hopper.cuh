// What kernels ask of sm_90a alone, as `arch.cuh` does of all: products that a group of four warps makes of what lies in shared memory,
// copies of boxes of memory that two blocks receive at once, barriers that count bytes, and clusters of blocks.
#pragma once
#include "arch.cuh"

// A kernel whose blocks are in clusters of two, that follow one another in the second direction of the grid. It gets all that a thread may
// have of registers.
#define CLUSTER_KERNEL(name, threads) extern "C" __global__ void __cluster_dims__(1, 2, 1) __launch_bounds__(threads, 1) name
#define CONSTANT __grid_constant__

// How rows lie in memory, as the driver encodes it for copies of boxes.
struct __align__(128) Map {
    u64 opaque[16];
};

// Which of its cluster a block is.
DEVICE int cluster_rank() {
    int rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// A line of weights, 128 bytes, is brought to the second-level cache.
DEVICE void prefetch_weights(const u8* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

// The rows will be asked for soon.
DEVICE void prefetch_map(const Map& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }

// A barrier of all threads of a cluster, in two parts. What was written before it is seen behind it; if it begins with `cluster_begin`,
// barriers that are published alone.
DEVICE void cluster_begin() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Lanes that went different ways are together again.
DEVICE void sync_warp() { __syncwarp(); }

DEVICE u32 shared_address(const u8* at) { return (u32)__cvta_generic_to_shared(at); }

// A barrier of eight bytes in shared memory, on which so many threads arrive for each of its phases. Others of the cluster see it behind
// `publish_barriers` and a barrier of the cluster.
DEVICE void make_barrier(u8* barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
DEVICE void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrives; the phase ends when so many bytes were copied.
DEVICE void expect_bytes(u8* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}

// Arrives at the barrier that a block of the cluster has in this place.
DEVICE void arrive_at(u8* barrier, int rank) {
    asm volatile(
        "{\n"
        ".reg .u32 place;\n"
        "mapa.shared::cluster.u32 place, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [place];\n"
        "}" ::"r"(shared_address(barrier)), "r"(rank)
        : "memory");
}

// Until a phase has ended: those of a barrier are 0 and 1 in turn. The one before the last counts as not ended.
DEVICE void wait_at(u8* barrier, int phase) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(shared_address(barrier)), "r"(phase)
        : "memory");
}

// Copies a box of memory, whose first number is in column x of row y, to the same place in the shared memory of both blocks of the cluster, where
// it counts for the barrier in the same place. Rows of 128 bytes follow one another, with chunks of 16 bytes where `described` expects
// them; zeros where there is no memory. For one thread.
DEVICE void copy_box(u8* to, const Map& map, int x, int y, u8* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(
            shared_address(to)),
        "l"(&map), "r"(x), "r"(y), "r"(shared_address(barrier)), "h"((u16)3)
        : "memory");
}

// What this thread wrote to shared memory may be multiplied, once a barrier has told the others.
DEVICE void fence_for_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Products are made some time between `start_products` and `wait_for_products`: until then neither their sums nor what they are made of may be
// touched. Those before `close_products` are one lot; all lots but the last so many are waited for. All lanes of four warps come here.
DEVICE void start_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void close_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LATER>
DEVICE void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LATER) : "memory");
}

// A sum that was waited for: what is made of it comes later.
DEVICE void settled(float& sum) { asm volatile("" : "+f"(sum)::"memory"); }
DEVICE void settled(int& sum) { asm volatile("" : "+r"(sum)::"memory"); }

#define EIGHT_OF(kind, d, i) \
    kind(d[i]), kind(d[i + 1]), kind(d[i + 2]), kind(d[i + 3]), kind(d[i + 4]), kind(d[i + 5]), kind(d[i + 6]), kind(d[i + 7])
#define ALL_OF(kind, d)                                                                                                             \
    EIGHT_OF(kind, d, 0), EIGHT_OF(kind, d, 8), EIGHT_OF(kind, d, 16), EIGHT_OF(kind, d, 24), EIGHT_OF(kind, d, 32),                \
        EIGHT_OF(kind, d, 40), EIGHT_OF(kind, d, 48), EIGHT_OF(kind, d, 56), EIGHT_OF(kind, d, 64), EIGHT_OF(kind, d, 72),          \
        EIGHT_OF(kind, d, 80), EIGHT_OF(kind, d, 88), EIGHT_OF(kind, d, 96), EIGHT_OF(kind, d, 104), EIGHT_OF(kind, d, 112),        \
        EIGHT_OF(kind, d, 120)
// d += a b: 64 rows of a, 256 columns of b, 32 bytes along k of both, which descriptors describe.
#define WIDE_PRODUCT(kind, d, a, b, types, rest)  \
    asm volatile(                                 \
        "{\n"                                     \
        ".reg .pred adds;\n"                      \
        "setp.eq.u32 adds, 0, 0;\n"               \
        "wgmma.mma_async.sync.aligned." types " {" \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                    \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "          \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "          \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "          \
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "          \
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "          \
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "\
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "\
        "%128, %129, adds" rest ";\n"             \
        "}"                                       \
        : ALL_OF(kind, d)                         \
        : "l"(a), "l"(b))

DEVICE void wide_product(F16, float (&d)[128], u64 a, u64 b) { WIDE_PRODUCT("+f", d, a, b, "m64n256k16.f32.f16.f16", ", 1, 1, 0, 0"); }
DEVICE void wide_product(BF16, float (&d)[128], u64 a, u64 b) { WIDE_PRODUCT("+f", d, a, b, "m64n256k16.f32.bf16.bf16", ", 1, 1, 0, 0"); }
DEVICE void wide_product(u8, int (&d)[128], u64 a, u64 b) { WIDE_PRODUCT("+r", d, a, b, "m64n256k32.s32.s8.s8", ""); }
