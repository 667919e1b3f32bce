// The processor that kernels ask for in `cuda/device/arch.cuh`, on the host: every thread of a block is a fiber, and what a
// warp or a block does together waits for all of its threads. Fibers take turns in a random order, shared memory starts as
// garbage, and what is undefined on the device is an error where it can be seen. This is no device: it says nothing about code
// generation, memory order between blocks, or time.
#pragma once
#include <sanitizer/asan_interface.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <vector>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;

#define DEVICE inline
// The blocks that a multiprocessor is to run side by side are known by name.
#define KERNEL(name, threads, blocks)         \
    static const int name##_blocks = (blocks); \
    static void name

struct alignas(16) Words {
    u32 at[4];
};
struct F16 {};
struct BF16 {};

namespace emulated {

// Where a thread of the host was left, so that it can go on there.
#if defined(__x86_64__)
extern "C" void switch_stacks(void** from, void* to);
asm(".text\n"
    ".local switch_stacks\n"
    "switch_stacks:\n"
    "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    "mov %rsp, (%rdi)\n"
    "mov %rsi, %rsp\n"
    "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n"
    "ret\n");

struct Place {
    void* stack;

    // As if `entry` had been called, with the six registers kept that a callee has to keep.
    void begin(std::vector<char>& memory, void entry()) {
        void** top = (void**)((uintptr_t)(memory.data() + memory.size()) / 16 * 16) - 1;
        *--top = (void*)entry;
        stack = top - 6;
    }
    void leave_for(Place& other) { switch_stacks(&stack, other.stack); }
};
#else
// The library asks the kernel, and the sanitizer, for much more than is wanted here: it takes two or three times as long.
struct Place {
    ucontext_t context;

    void begin(std::vector<char>& memory, void entry()) {
        getcontext(&context);
        context.uc_stack.ss_sp = memory.data();
        context.uc_stack.ss_size = memory.size();
        context.uc_link = nullptr;
        makecontext(&context, entry, 0);
    }
    void leave_for(Place& other) { swapcontext(&context, &other.context); }
};
#endif

[[noreturn]] static void fail(const char* what) {
    fprintf(stderr, "emulated: %s\n", what);
    // Nothing may be taken down from the stack of a thread of the device.
    _Exit(3);
}

// Of a block, and blocks of a cluster, which run at the same time.
const int MOST_THREADS = 256, LANES = 32, MOST_BLOCKS = 2;

// All threads of a warp or a block at one place of the program.
struct Meeting {
    int size = 0, here = 0;
    const void* place = nullptr;
    u64 round = 0;
};

// A copy to shared memory that is on its way.
struct Copy {
    u8* to;
    u8 bytes[16];
};

struct Fiber;
// What goes on beside the threads.
static void go_on(bool nothing_else);
// What a thread leaves behind.
static void end_of(Fiber& fiber);
static void end_of_cluster();

struct Fiber {
    Place place;
    std::vector<char> stack;
    bool done = false;
    bool waited = false;  // for the kernels before
    const Meeting* waits = nullptr;
    u64 round = 0;
    std::vector<Copy> copies;
    std::vector<size_t> closed;  // how many copies there were, each time
    std::vector<const u8*> unfenced;  // chunks that it wrote to shared memory since the last fence
};

struct Block {
    int x, y;
    std::unique_ptr<u8, void (*)(void*)> memory{nullptr, free};
    size_t bytes;
    std::vector<bool> unfenced;  // chunks of 16 bytes that tensor cores may not see yet
    Meeting warps[MOST_THREADS / LANES], all;
    u64 arrived_in;
};

static std::mt19937_64 random_numbers;
static Place scheduler;
static Fiber fibers[MOST_BLOCKS * MOST_THREADS];
static Block blocks[MOST_BLOCKS];
// Among all fibers: those of a block follow one another.
static int current;
static Meeting cluster;
static std::function<void()> body;

static Block& own_block() { return blocks[current / MOST_THREADS]; }
static Meeting& own_warp() { return own_block().warps[current % MOST_THREADS / LANES]; }

// A sum that a block leaves for another. It is published by an arrival of its block behind a barrier.
struct Partial {
    bool published;
    u64 round;
};

static std::map<const float*, Partial> partials;

static void publish() {
    for (auto& [at, partial] : partials) {
        if (partial.published) continue;
        if (partial.round == own_block().all.round) fail("a block arrives without a barrier after its partial sums");
        partial.published = true;
    }
    own_block().arrived_in = own_block().all.round;
}

// What the kernels before have written may be read, and what they read be overwritten.
static void after_wait() {
    if (!fibers[current].waited) fail("memory of earlier kernels is accessed before they have ended");
}

static void give_way() { fibers[current].place.leave_for(scheduler); }

// Waits for all; the last to come does `together` before any goes on.
static void meet(Meeting& meeting, const void* place, const std::function<void()>& together) {
    if (meeting.here == 0) meeting.place = place;
    if (meeting.place != place) fail("threads of a warp or a block wait for one another at different places");
    if (++meeting.here == meeting.size) {
        together();
        meeting.here = 0;
        meeting.round++;
        return;
    }
    Fiber& fiber = fibers[current];
    fiber.waits = &meeting;
    fiber.round = meeting.round;
    give_way();
}

static void run_fiber() {
    body();
    if (!fibers[current].waited) fail("a thread ends without having waited for the kernels before");
    if (!fibers[current].copies.empty()) fail("a thread ends while copies to shared memory are on their way");
    end_of(fibers[current]);
    fibers[current].done = true;
    for (;;) give_way();
}

static void start(int block, int x, int y, int threads, size_t shared_bytes) {
    Block& own = blocks[block];
    own.x = x, own.y = y, own.bytes = shared_bytes;
    // No more aligned than shared memory has to be.
    own.memory.reset((u8*)aligned_alloc(16, (shared_bytes + 15) / 16 * 16));
    memset(own.memory.get(), 0xff, shared_bytes);  // NaN
    own.unfenced.assign(shared_bytes / 16 + 1, false);
    own.all = Meeting{threads};
    own.arrived_in = ~0ull;
    for (Meeting& warp : own.warps) warp = Meeting{LANES};
    for (int i = 0; i < threads; i++) {
        Fiber& fiber = fibers[MOST_THREADS * block + i];
        fiber.stack.resize(64 << 10);
        fiber.done = fiber.waited = false;
        fiber.waits = nullptr;
        fiber.copies.clear();
        fiber.closed.clear();
        fiber.unfenced.clear();
        // What was there before is nobody's any more.
        ASAN_UNPOISON_MEMORY_REGION(fiber.stack.data(), fiber.stack.size());
        fiber.place.begin(fiber.stack, run_fiber);
    }
}

// Runs the blocks of a grid one after another, in a random order; those of a cluster, which follow one another in the second direction,
// at the same time.
static void launch(int blocks_x, int blocks_y, int threads, size_t shared_bytes, u64 seed, int together, const std::function<void()>& kernel) {
    random_numbers.seed(seed);
    body = kernel;
    partials.clear();
    std::vector<int> order(blocks_x * blocks_y / together);
    for (size_t i = 0; i < order.size(); i++) order[i] = (int)i;
    std::shuffle(order.begin(), order.end(), random_numbers);
    for (int index : order) {
        cluster = Meeting{threads * together};
        for (int i = 0; i < together; i++) start(i, index % blocks_x, index / blocks_x * together + i, threads, shared_bytes);
        std::vector<int> ready, some;
        // How seldom a warp has its turn, of 256 times, unless no other can go on: so that some come to be far ahead of others.
        const unsigned RATES[] = {0, 128, 252};
        unsigned seldom[MOST_BLOCKS * MOST_THREADS / LANES];
        for (unsigned& one : seldom) one = RATES[random_numbers() % 3];
        for (;;) {
            ready.clear();
            bool all_done = true;
            for (int i = 0; i < MOST_THREADS * together; i++) {
                Fiber& fiber = fibers[i];
                if (i % MOST_THREADS >= threads || fiber.done) continue;
                all_done = false;
                if (!fiber.waits || fiber.waits->round != fiber.round) ready.push_back(i);
            }
            if (all_done) break;
            go_on(ready.empty());
            bool skipped[MOST_BLOCKS * MOST_THREADS / LANES];
            for (int i = 0; i < MOST_BLOCKS * MOST_THREADS / LANES; i++) skipped[i] = random_numbers() % 256 < seldom[i];
            some.clear();
            for (int i : ready)
                if (!skipped[i / LANES]) some.push_back(i);
            if (some.empty()) some = ready;
            std::shuffle(some.begin(), some.end(), random_numbers);
            for (int i : some) {
                fibers[i].waits = nullptr;
                current = i;
                scheduler.leave_for(fibers[i].place);
            }
        }
        end_of_cluster();
    }
}

static float half_to_float(u16 bits) {
    _Float16 value;
    memcpy(&value, &bits, 2);
    return (float)value;
}

static u16 half_from_float(float value) {
    _Float16 half = (_Float16)value;
    u16 bits;
    memcpy(&bits, &half, 2);
    return bits;
}

static float bits_to_float(u32 bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static u32 bits_of_float(float value) {
    u32 bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static void aligned(const void* at, size_t bytes) {
    if ((uintptr_t)at % bytes != 0) fail("an access of memory is not aligned");
}

}  // namespace emulated

DEVICE int thread() { return emulated::current % emulated::MOST_THREADS; }
DEVICE int again(int number) { return number; }
DEVICE int block_x() { return emulated::own_block().x; }
DEVICE int block_y() { return emulated::own_block().y; }
DEVICE u8* shared_memory() { return emulated::own_block().memory.get(); }

// A barrier elsewhere is another barrier.
#define sync() emulated::meet(emulated::own_block().all, [] { static const char place = 0; return &place; }(), [] {})

DEVICE u32 arrive(u32* count) {
    emulated::publish();
    return (*count)++;
}

DEVICE void wait_for_earlier() { emulated::fibers[emulated::current].waited = true; }
DEVICE void let_next_start() {}

DEVICE Words load_weights(const u8* at) {
    emulated::aligned(at, 16);
    Words words;
    memcpy(&words, at, 16);
    return words;
}

template <int N>
DEVICE void load_words(const u8* at, u32 (&words)[N]) {
    emulated::aligned(at, 4 * N);
    memcpy(words, at, 4 * N);
}

DEVICE Words load_activations(const u16* at) {
    emulated::after_wait();
    emulated::aligned(at, 16);
    Words words;
    memcpy(&words, at, 16);
    return words;
}

// What is there before the wait is garbage.
DEVICE void copy_weights_later(u8* to, const u8* from, int count = 16) {
    emulated::aligned(to, 16);
    emulated::aligned(from, 16);
    memset(to, 0xff, 16);
    emulated::Copy copy = {to, {}};
    memcpy(copy.bytes, from, count);
    emulated::fibers[emulated::current].copies.push_back(copy);
}

DEVICE void copy_later(u8* to, const u16* from, int count) {
    emulated::after_wait();
    copy_weights_later(to, (const u8*)from, count);
}

DEVICE void close_copies() {
    emulated::Fiber& fiber = emulated::fibers[emulated::current];
    fiber.closed.push_back(fiber.copies.size());
}

template <size_t LATER>
DEVICE void wait_for_copies() {
    emulated::Fiber& fiber = emulated::fibers[emulated::current];
    if (fiber.closed.size() <= LATER) return;
    auto kept = fiber.closed.end() - LATER;
    size_t done = kept[-1];
    for (size_t i = 0; i < done; i++) memcpy(fiber.copies[i].to, fiber.copies[i].bytes, 16);
    fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + done);
    fiber.closed.erase(fiber.closed.begin(), kept);
    for (size_t& closed : fiber.closed) closed -= done;
}

DEVICE Words load_shared(const u8* at) {
    emulated::aligned(at, 16);
    Words words;
    memcpy(&words, at, 16);
    return words;
}

DEVICE void store_shared(u8* at, const Words& words) {
    emulated::aligned(at, 16);
    memcpy(at, &words, 16);
    emulated::fibers[emulated::current].unfenced.push_back(at);
    emulated::Block& block = emulated::own_block();
    block.unfenced[(at - block.memory.get()) / 16] = true;
}

DEVICE u32 load_shared_word(const u8* at) {
    emulated::aligned(at, 4);
    u32 word;
    memcpy(&word, at, 4);
    return word;
}

DEVICE void store_partial(float* at, float value) {
    emulated::after_wait();
    emulated::partials[at] = {false, emulated::own_block().all.round};
    *at = value;
}

DEVICE Words load_partials(const float* at) {
    emulated::aligned(at, 16);
    for (int i = 0; i < 4; i++) {
        auto found = emulated::partials.find(at + i);
        if (found == emulated::partials.end() || !found->second.published) emulated::fail("a partial sum is read that no block has published");
    }
    if (emulated::own_block().arrived_in == emulated::own_block().all.round) emulated::fail("partial sums are read without a barrier after the arrival");
    Words words;
    memcpy(&words, at, 16);
    return words;
}

DEVICE float fused(float a, float b, float c) { return std::fma(a, b, c); }
DEVICE float as_float(u32 bits) { return emulated::bits_to_float(bits); }
DEVICE u32 as_bits(float value) { return emulated::bits_of_float(value); }
DEVICE float to_float(F16, u16 bits) { return emulated::half_to_float(bits); }
DEVICE float to_float(BF16, u16 bits) { return as_float((u32)bits << 16); }
DEVICE u16 from_float(F16, float value) { return emulated::half_from_float(value); }

DEVICE u16 from_float(BF16, float value) {
    u32 bits = emulated::bits_of_float(value);
    if (value != value) return 0x7fff;
    return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

DEVICE float divided(float a, float b) { return a / b; }
DEVICE float root(float a) { return std::sqrt(a); }
DEVICE float magnitude(float a) { return std::fabs(a); }
DEVICE float larger(float a, float b) { return a != a || b != b ? NAN : std::max(a, b); }
DEVICE int nearest(float a) { return (int)std::nearbyint(a); }

DEVICE float sigmoid(float value) { return 1.0f / (1.0f + std::exp(-value)); }

DEVICE u32 and_or(u32 word, u32 mask, u32 set) { return (word & mask) | set; }

template <class T>
DEVICE u32 minus(T type, u32 a, u32 b) {
    u32 low = from_float(type, to_float(type, (u16)a) - to_float(type, (u16)b));
    u32 high = from_float(type, to_float(type, (u16)(a >> 16)) - to_float(type, (u16)(b >> 16)));
    return low | high << 16;
}

DEVICE u32 of_lane(u32 value, int lane) {
    static u32 values[emulated::MOST_BLOCKS * emulated::MOST_THREADS];
    int warp = emulated::current / 32;
    values[emulated::current] = value;
    static const char place = 0;
    emulated::meet(emulated::own_warp(), &place, [] {});
    u32 answer = values[32 * warp + lane];
    // Nobody writes again before all have read.
    emulated::meet(emulated::own_warp(), &place, [] {});
    return answer;
}

// Fragments as the instruction set's manual draws them for m16n8k16.
template <class T>
DEVICE void mma(T type, float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    struct Lane {
        float* d;
        u32 a[4], b[2];
    };
    static Lane lanes[emulated::MOST_BLOCKS * emulated::MOST_THREADS];
    int warp = emulated::current / 32;
    lanes[emulated::current] = {d, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    static const char place = 0;
    emulated::meet(emulated::own_warp(), &place, [=] {
        auto half = [&](u32 word, int i) { return to_float(type, (u16)(word >> 16 * i)); };
        float left[16][16], right[16][8];
        for (int lane = 0; lane < 32; lane++) {
            const Lane& l = lanes[32 * warp + lane];
            int g = lane / 4, t = lane % 4;
            for (int i = 0; i < 2; i++) {
                for (int r = 0; r < 4; r++) left[g + 8 * (r % 2)][2 * t + i + 8 * (r / 2)] = half(l.a[r], i);
                for (int r = 0; r < 2; r++) right[2 * t + i + 8 * r][g] = half(l.b[r], i);
            }
        }
        for (int lane = 0; lane < 32; lane++) {
            float* d = lanes[32 * warp + lane].d;
            int g = lane / 4, t = lane % 4;
            for (int i = 0; i < 4; i++) {
                double sum = d[i];
                for (int k = 0; k < 16; k++) sum += (double)left[g + 8 * (i / 2)][k] * right[k][2 * t + i % 2];
                d[i] = (float)sum;
            }
        }
    });
}

DEVICE void mma(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    struct Lane {
        int* d;
        u32 a[4], b[2];
    };
    static Lane lanes[emulated::MOST_BLOCKS * emulated::MOST_THREADS];
    int warp = emulated::current / 32;
    lanes[emulated::current] = {d, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    static const char place = 0;
    emulated::meet(emulated::own_warp(), &place, [=] {
        int left[16][32], right[32][8];
        for (int lane = 0; lane < 32; lane++) {
            const Lane& l = lanes[32 * warp + lane];
            int g = lane / 4, t = lane % 4;
            for (int i = 0; i < 4; i++) {
                for (int r = 0; r < 4; r++) left[g + 8 * (r % 2)][4 * t + i + 16 * (r / 2)] = (signed char)(l.a[r] >> 8 * i);
                for (int r = 0; r < 2; r++) right[4 * t + i + 16 * r][g] = (signed char)(l.b[r] >> 8 * i);
            }
        }
        for (int lane = 0; lane < 32; lane++) {
            int* d = lanes[32 * warp + lane].d;
            int g = lane / 4, t = lane % 4;
            for (int i = 0; i < 4; i++)
                for (int k = 0; k < 32; k++) d[i] += left[g + 8 * (i / 2)][k] * right[k][2 * t + i % 2];
        }
    });
}
