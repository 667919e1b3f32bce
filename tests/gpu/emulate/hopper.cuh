// What kernels ask of sm_90a alone (`cuda/device/hopper.cuh`), on the host. Copies of boxes come some time later, in any order; products are made
// as late as they may be, of what was there when they began, and it is an error if that is not there any more. What tensor cores read must
// have been copied by boxes, or fenced by the thread that wrote it.
#pragma once
#include "arch.cuh"

#define CLUSTER_KERNEL(name, threads)    \
    static const int name##_blocks = 1; \
    static void name
#define CONSTANT

struct alignas(128) Map {
    u64 opaque[16];
};

namespace emulated {

// What the driver writes to a `Map`: rows of `size` bytes a number, and the box that is copied at once.
struct Rows {
    const u8* memory;
    u64 columns, rows, stride;  // the last in bytes
    u32 size, box_columns, box_rows;
};
static_assert(sizeof(Rows) <= sizeof(Map));

struct ByteBarrier {
    Meeting meeting;
    int block = 0;
    bool published = false;
    u64 round = 0;  // of the cluster's barrier, when it was published
    long long bytes = 0;

    void look() {
        if (meeting.here != meeting.size || bytes != 0) return;
        meeting.here = 0;
        meeting.round++;
    }
};

struct Box {
    Rows rows;
    int x, y;
    u8 *to[MOST_BLOCKS], *barrier[MOST_BLOCKS];
};

// 64 rows of a times 256 columns of b, of which a warp has 16 rows.
struct WideProduct {
    std::function<void(const WideProduct&)> make;
    void* sums[LANES];
    u64 a, b;
    std::vector<u8> left, right;  // [16, 32] and [256, 32] bytes
};

struct Queue {
    std::vector<WideProduct> products;
    std::vector<size_t> lots;  // how many there were, each time
    bool started = false;
};

static std::map<const u8*, ByteBarrier> barriers;
static std::vector<Box> boxes;
static Queue queues[MOST_BLOCKS * MOST_THREADS / LANES];
static u64 cluster_rounds[MOST_BLOCKS * MOST_THREADS];
// Whether a block has used what belongs to another.
static bool reached_out[MOST_BLOCKS];

// Where shared memory begins: at no round address.
const u32 SHARED_BEGIN = 0x410;

// Chunks of 16 bytes of rows of 128 lie where the address of their row says.
static u32 swizzled(u32 address) { return address ^ (address >> 7 & 7) << 4; }

static u8* shared_at(Block& block, u32 address) {
    if (address < SHARED_BEGIN || address - SHARED_BEGIN >= block.bytes) fail("an address outside of shared memory");
    return block.memory.get() + (address - SHARED_BEGIN);
}

// For others than its block behind a barrier of the cluster.
static ByteBarrier& barrier_at(const u8* barrier, int user) {
    auto found = barriers.find(barrier);
    if (found == barriers.end() || !found->second.published) fail("a barrier is used that nobody has made, and published");
    if (found->second.block != user && found->second.round == cluster.round) fail("a barrier of another block is used before a barrier of the cluster");
    return found->second;
}

static int own_rank() { return current / MOST_THREADS; }

// The same place in another block.
static u8* in_block(const u8* at, int block) { return blocks[block].memory.get() + (at - own_block().memory.get()); }

static void copy(const Box& box) {
    const Rows& rows = box.rows;
    for (int b = 0; b < MOST_BLOCKS; b++) {
        if (fibers[MOST_THREADS * b].done) fail("a box is copied to a block that has ended");
        u32 address = SHARED_BEGIN + (u32)(box.to[b] - blocks[b].memory.get());
        for (u32 row = 0; row < rows.box_rows; row++)
            for (u32 column = 0; column < rows.box_columns; column++) {
                u64 from_row = (u64)box.y + row, from_column = (u64)box.x + column;
                u8* to = shared_at(blocks[b], swizzled(address + rows.size * (row * rows.box_columns + column)));
                if (from_row < rows.rows && from_column < rows.columns) {
                    memcpy(to, rows.memory + from_row * rows.stride + from_column * rows.size, rows.size);
                } else {
                    memset(to, 0, rows.size);
                }
            }
        ByteBarrier& barrier = barrier_at(box.barrier[b], b);
        barrier.bytes -= rows.size * rows.box_rows * rows.box_columns;
        barrier.look();
    }
}

static void go_on(bool nothing_else) {
    if (nothing_else && boxes.empty()) fail("threads wait for others that have ended or wait elsewhere");
    while (!boxes.empty() && (nothing_else || random_numbers() % 4 == 0)) {
        std::swap(boxes[random_numbers() % boxes.size()], boxes.back());
        copy(boxes.back());
        boxes.pop_back();
        nothing_else = false;
    }
}

static void end_of(Fiber&) {
    if (!queues[current / LANES].products.empty()) fail("a thread ends while products are on their way");
}

static void end_of_cluster() {
    if (!boxes.empty()) fail("a block ends while a copy to it is on its way");
    barriers.clear();
    for (bool& reached : reached_out) reached = false;
}

// The 32 bytes of each row that a descriptor describes.
static std::vector<u8> rows_of(u64 descriptor, int first, int count) {
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) fail("rows are described in an order that is not known here");
    u32 start = (u32)(descriptor & 0x3fff) << 4, eight_rows = (u32)(descriptor >> 32 & 0x3fff) << 4;
    Block& block = own_block();
    std::vector<u8> bytes;
    for (int row = first; row < first + count; row++)
        for (u32 chunk = 0; chunk < 2; chunk++) {
            const u8* at = shared_at(block, swizzled(start + row / 8 * eight_rows + row % 8 * 128 + 16 * chunk));
            if (block.unfenced[(at - block.memory.get()) / 16]) fail("what is multiplied was written without a fence");
            bytes.insert(bytes.end(), at, at + 16);
        }
    return bytes;
}

// Most of the time would go here. What is not a number has to stay so.
template <class Number>
__attribute__((no_sanitize("address", "undefined"), optimize("O3", "associative-math", "no-signed-zeros", "no-trapping-math"))) static Number dot_product(const Number* a, const Number* b, int count) {
    Number sum = 0;
    for (int i = 0; i < count; i++) sum += a[i] * b[i];
    return sum;
}

// All lanes of a warp come here: the last one does what is to be done.
template <class Number, class Sum, class Dot>
static void put_product(Sum (&sums)[128], u64 a, u64 b, const Dot& dot) {
    static void* lanes[MOST_BLOCKS * MOST_THREADS];
    lanes[current] = sums;
    int warp = current / LANES, first = 16 * (warp % 4);
    static const char place = 0;
    meet(own_warp(), &place, [=] {
        if (!queues[warp].started) fail("products are not started");
        WideProduct product = {nullptr, {}, a, b, rows_of(a, first, 16), rows_of(b, 0, 256)};
        memcpy(product.sums, lanes + LANES * warp, sizeof product.sums);
        product.make = [=](const WideProduct& own) {
            const int COUNT = 32 / sizeof(Number);
            auto numbers = [=](const std::vector<u8>& bytes) {
                std::vector<decltype(dot.number(Number()))> numbers(bytes.size() / sizeof(Number));
                for (size_t i = 0; i < numbers.size(); i++) {
                    Number bits;
                    memcpy(&bits, bytes.data() + sizeof bits * i, sizeof bits);
                    numbers[i] = dot.number(bits);
                }
                return numbers;
            };
            auto left = numbers(own.left), right = numbers(own.right);
            for (int lane = 0; lane < LANES; lane++)
                for (int i = 0; i < 128; i++) {
                    int row = 8 * (i / 2 % 2) + lane / 4, column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
                    ((Sum*)own.sums[lane])[i] += dot_product(&left[COUNT * row], &right[COUNT * column], COUNT);
                }
        };
        queues[warp].products.push_back(product);
    });
}

struct Bytes {
    static int number(signed char bits) { return bits; }
};
template <class T>
struct Halves {
    static float number(u16 bits) { return to_float(T(), bits); }
};

}  // namespace emulated

DEVICE int cluster_rank() { return emulated::own_rank(); }
DEVICE void cluster_arrive() {
    emulated::Meeting& cluster = emulated::cluster;
    emulated::cluster_rounds[emulated::current] = cluster.round;
    if (++cluster.here == cluster.size) cluster.here = 0, cluster.round++;
}
DEVICE void cluster_wait() {
    emulated::Fiber& fiber = emulated::fibers[emulated::current];
    fiber.round = emulated::cluster_rounds[emulated::current];
    if (emulated::cluster.round != fiber.round) return;
    fiber.waits = &emulated::cluster;
    emulated::give_way();
}
DEVICE void cluster_begin() {
    if (emulated::reached_out[cluster_rank()]) emulated::fail("others wait behind this barrier for what it does not order");
    cluster_arrive();
}
DEVICE void prefetch_weights(const u8* at) {
    // It has to be there.
    volatile u8 byte = *at;
    (void)byte;
}
DEVICE void prefetch_map(const Map& map) { emulated::aligned(&map, 128); }
template <class Sum>
DEVICE void settled(Sum&) {}
#define sync_warp() emulated::meet(emulated::own_warp(), [] { static const char place = 0; return &place; }(), [] {})

DEVICE u32 shared_address(const u8* at) { return emulated::SHARED_BEGIN + (u32)(at - emulated::own_block().memory.get()); }
DEVICE void make_barrier(u8* barrier, int count) {
    emulated::aligned(barrier, 8);
    emulated::ByteBarrier& own = emulated::barriers[barrier];
    own.meeting.size = count;
    own.block = cluster_rank();
}
DEVICE void publish_barriers() {
    for (auto& [at, barrier] : emulated::barriers)
        if (barrier.block == cluster_rank()) barrier.published = true, barrier.round = emulated::cluster.round;
}
DEVICE void expect_bytes(u8* barrier, int bytes) {
    emulated::ByteBarrier& own = emulated::barrier_at(barrier, cluster_rank());
    own.bytes += bytes;
    own.meeting.here++;
    own.look();
}
DEVICE void arrive_at(u8* barrier, int rank) {
    if (emulated::fibers[emulated::MOST_THREADS * rank].done) emulated::fail("a block arrives at a barrier of one that has ended");
    emulated::ByteBarrier& own = emulated::barrier_at(emulated::in_block(barrier, rank), cluster_rank());
    if (rank != cluster_rank()) emulated::reached_out[cluster_rank()] = true;
    own.meeting.here++;
    own.look();
}
DEVICE void wait_at(u8* barrier, int phase) {
    emulated::Meeting& meeting = emulated::barrier_at(barrier, cluster_rank()).meeting;
    emulated::Fiber& fiber = emulated::fibers[emulated::current];
    while ((int)(meeting.round % 2) == phase) {
        fiber.waits = &meeting;
        fiber.round = meeting.round;
        emulated::give_way();
    }
}
DEVICE void copy_box(u8* to, const Map& map, int x, int y, u8* barrier) {
    emulated::after_wait();
    emulated::aligned(&map, 128);
    if (shared_address(to) % 128 != 0) emulated::fail("a box is not copied to a multiple of 128");
    emulated::Box box = {{}, x, y, {}, {}};
    memcpy(&box.rows, &map, sizeof box.rows);
    for (int b = 0; b < emulated::MOST_BLOCKS; b++) {
        box.to[b] = emulated::in_block(to, b), box.barrier[b] = emulated::in_block(barrier, b);
        emulated::barrier_at(box.barrier[b], cluster_rank());
        emulated::reached_out[cluster_rank()] = true;
        memset(box.to[b], 0xff, box.rows.size * box.rows.box_rows * box.rows.box_columns);
    }
    emulated::boxes.push_back(box);
}
DEVICE void fence_for_products() {
    emulated::Fiber& fiber = emulated::fibers[emulated::current];
    emulated::Block& block = emulated::own_block();
    for (const u8* at : fiber.unfenced) block.unfenced[(at - block.memory.get()) / 16] = false;
    fiber.unfenced.clear();
}
DEVICE void start_products() { emulated::queues[emulated::current / emulated::LANES].started = true; }
DEVICE void close_products() {
    int warp = emulated::current / emulated::LANES;
    static const char place = 0;
    emulated::meet(emulated::own_warp(), &place, [=] {
        emulated::Queue& queue = emulated::queues[warp];
        queue.lots.push_back(queue.products.size());
        queue.started = false;
    });
}
template <size_t LATER>
DEVICE void wait_for_products() {
    int warp = emulated::current / emulated::LANES;
    static const char place = 0;
    emulated::meet(emulated::own_warp(), &place, [=] {
        emulated::Queue& queue = emulated::queues[warp];
        if (queue.lots.size() <= LATER) return;
        auto kept = queue.lots.end() - LATER;
        size_t done = kept[-1];
        for (size_t i = 0; i < done; i++) {
            const emulated::WideProduct& product = queue.products[i];
            if (product.left != emulated::rows_of(product.a, 16 * (warp % 4), 16) || product.right != emulated::rows_of(product.b, 0, 256))
                emulated::fail("what is multiplied is written to before the product is made");
            product.make(product);
        }
        queue.products.erase(queue.products.begin(), queue.products.begin() + done);
        queue.lots.erase(queue.lots.begin(), kept);
        for (size_t& lot : queue.lots) lot -= done;
    });
}

DEVICE void wide_product(F16, float (&d)[128], u64 a, u64 b) { emulated::put_product<u16>(d, a, b, emulated::Halves<F16>()); }
DEVICE void wide_product(BF16, float (&d)[128], u64 a, u64 b) { emulated::put_product<u16>(d, a, b, emulated::Halves<BF16>()); }
DEVICE void wide_product(u8, int (&d)[128], u64 a, u64 b) { emulated::put_product<signed char>(d, a, b, emulated::Bytes()); }
