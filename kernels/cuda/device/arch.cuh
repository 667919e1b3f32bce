// What kernels ask of the processor, in inline PTX and built-in functions: no header of the toolkit is needed. Tests on the host
// put a file of the same name in its place.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE __device__ __forceinline__
#define KERNEL(name, threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks) name

// Sixteen bytes, one access of memory.
struct __align__(16) Words {
    u32 at[4];
};

// Types of activations. Numbers of them are carried as 16 bits.
struct F16 {};
struct BF16 {};

// Read anew each time: whoever keeps it in a register does so on purpose.
DEVICE int thread() {
    int index;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
    return index;
}

// The same number, and the compiler does not know it: what follows from it is not kept through a loop.
DEVICE int again(int number) {
    asm volatile("" : "+r"(number));
    return number;
}

DEVICE int block_x() { return blockIdx.x; }
DEVICE int block_y() { return blockIdx.y; }

// Memory that the threads of a block share, as much as the launch asks for.
DEVICE u8* shared_memory() {
    extern __shared__ __align__(16) u8 bytes[];
    return bytes;
}

DEVICE void sync() { __syncthreads(); }

// Counts a block that has arrived and answers how many were there before. What the block had written before a barrier is then
// seen by the blocks that arrive later, after a barrier of theirs. For one thread of a block.
DEVICE u32 arrive(u32* count) {
    u32 before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(count) : "memory");
    return before;
}

// With programmatic dependent launch: waits until the kernels before have ended and what they wrote can be read. Until then
// only weights may be read, which no kernel of the chain writes (one that does, as a repacking, must have ended before the
// chain begins). Every thread of every kernel of a chain must come here: the next kernel relies on it.
DEVICE void wait_for_earlier() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the kernels behind start, up to where they wait.
DEVICE void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Weights: read once by a block, never written. Volatile, so that they stay where they are issued: ahead of the wait, and
// tiles ahead of their use.
DEVICE Words load_weights(const u8* at) {
    Words w;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(w.at[0]), "=r"(w.at[1]), "=r"(w.at[2]), "=r"(w.at[3])
        : "l"(at));
    return w;
}

DEVICE void load_words(const u8* at, u32 (&words)[1]) {
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(words[0]) : "l"(at));
}

DEVICE void load_words(const u8* at, u32 (&words)[2]) {
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "l"(at));
}

DEVICE void load_words(const u8* at, u32 (&words)[4]) {
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
        : "l"(at));
}

// What lane `lane` of the warp has. All lanes come here together.
DEVICE u32 of_lane(u32 value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }

// Activations: read by many blocks.
DEVICE Words load_activations(const u16* at) { return *(const Words*)at; }

// Copies 16 bytes to shared memory, of which the last are zeros from `count` on; some time before `wait_for_copies` comes back, if
// `close_copies` was called, and no more than LATER times since. A thread waits for its own: others see them behind a barrier.
DEVICE void copy_later(u8* to, const u16* from, int count) {
    u32 place = (u32)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(place), "l"(from), "r"(count) : "memory");
}

// The same for 16 bytes of weights, at once.
DEVICE void copy_weights_later(u8* to, const u8* from) {
    u32 place = (u32)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(place), "l"(from) : "memory");
}

DEVICE void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LATER>
DEVICE void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
}

DEVICE Words load_shared(const u8* at) { return *(const Words*)at; }
DEVICE void store_shared(u8* at, const Words& words) { *(Words*)at = words; }
DEVICE u32 load_shared_word(const u8* at) { return *(const u32*)at; }

// Numbers that blocks leave for one another, past the first-level cache.
DEVICE void store_partial(float* at, float value) {
    asm volatile("st.relaxed.gpu.global.f32 [%0], %1;" ::"l"(at), "f"(value) : "memory");
}

DEVICE Words load_partials(const float* at) {
    Words w;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(w.at[0]), "=r"(w.at[1]), "=r"(w.at[2]), "=r"(w.at[3])
        : "l"(at)
        : "memory");
    return w;
}

DEVICE float as_float(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 as_bits(float value) { return __float_as_uint(value); }

DEVICE float to_float(F16, u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

DEVICE float to_float(BF16, u16 bits) { return as_float((u32)bits << 16); }

DEVICE u16 from_float(F16, float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

DEVICE u16 from_float(BF16, float value) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

// a b + c, rounded once. Compilers are told not to make one of two operations: they would do it in one place and not in another.
DEVICE float fused(float a, float b, float c) {
    float value;
    asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(value) : "f"(a), "f"(b), "f"(c));
    return value;
}

// a / b and the root, rounded as IEEE says.
DEVICE float divided(float a, float b) {
    float value;
    asm("div.rn.f32 %0, %1, %2;" : "=f"(value) : "f"(a), "f"(b));
    return value;
}

DEVICE float root(float a) {
    float value;
    asm("sqrt.rn.f32 %0, %1;" : "=f"(value) : "f"(a));
    return value;
}

DEVICE float magnitude(float a) { return as_float(as_bits(a) & 0x7fffffffu); }

// The larger one; what is not a number stays so.
DEVICE float larger(float a, float b) {
    float value;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(value) : "f"(a), "f"(b));
    return value;
}

// The nearest integer, half to even.
DEVICE int nearest(float a) {
    int value;
    asm("cvt.rni.s32.f32 %0, %1;" : "=r"(value) : "f"(a));
    return value;
}

// 1 / (1 + exp(-value)), to a few units in the last place where it is not small.
DEVICE float sigmoid(float value) {
    float power, inverse;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(-1.44269504f * value));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + power));
    return inverse;
}

// (word & mask) | set in one instruction, which the compiler makes two of when mask and set are constants.
DEVICE u32 and_or(u32 word, u32 mask, u32 set) {
    u32 bits;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(bits) : "r"(word), "r"(mask), "r"(set));
    return bits;
}

// Both halves: a - b.
DEVICE u32 minus(F16, u32 a, u32 b) {
    u32 difference;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(difference) : "r"(a), "r"(b));
    return difference;
}

// There is no subtraction of bfloat16 before sm_90. The sign of b is turned here, which a constant takes for nothing.
DEVICE u32 minus(BF16, u32 a, u32 b) {
    u32 difference;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(difference) : "r"(a), "r"(0x3f803f80u), "r"(b ^ 0x80008000u));
    return difference;
}

// d += a b: rows of 16 of a (weights), columns of 8 of b (token rows), 16 along k. All lanes of a warp come here together.
DEVICE void mma(F16, float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE void mma(BF16, float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same for signed bytes, 32 along k, with integer sums.
DEVICE void mma(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
