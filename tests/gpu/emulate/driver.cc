// A CUDA driver without a device: the part of the interface that `kernels/cuda/driver` uses, under the names of libcuda, with the
// host's memory and the emulated kernels. Work waits in its stream until somebody waits for it, so that what is freed or changed
// too early is seen by the address sanitizer. Everything it runs is EMULATED.
//
// The environment says what device it plays: FAKE_CUDA_VERSION (13000), FAKE_CUDA_DEVICES (1), FAKE_CUDA_CAPABILITY (90),
// FAKE_CUDA_MULTIPROCESSORS (3), FAKE_CUDA_MEMORY, FAKE_CUDA_CACHE and FAKE_CUDA_SHARED (bytes), FAKE_CUDA_REFUSES (an image is refused whose first bytes are these: ELF or PTX).
#include "kernels.cuh"

#define API extern "C" __attribute__((visibility("default"))) int

namespace {

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, NO_BINARY = 209, NOT_FOUND = 500, UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901 };

typedef std::function<void()> Work;

struct Stream {
    std::vector<Work> queue;
    std::vector<Work>* recording = nullptr;
    bool spoilt = false;
};

struct Module {
    std::string image;
};

struct Event {
    double at = 0;
};

struct Config {
    unsigned grid[3], block[3], shared;
    Stream* stream;
    const struct Attribute {
        int id;
        char pad[4];
        union {
            int value;
            char bytes[64];
        };
    }* attributes;
    unsigned count;
};

std::map<u64, size_t> memory;
std::vector<Stream*> streams;
size_t used;

long long setting(const char* name, long long otherwise) {
    const char* value = getenv(name);
    return value ? atoll(value) : otherwise;
}

void put(Stream* stream, Work work) { (stream->recording ? *stream->recording : stream->queue).push_back(std::move(work)); }

void run(Stream* stream) {
    std::vector<Work> queue;
    queue.swap(stream->queue);
    for (Work& work : queue) work();
}

// The bytes of an ELF file end behind its table of sections; PTX ends with a zero.
size_t size_of(const char* image) {
    if (memcmp(image, "\177ELF", 4)) return strlen(image);
    u64 sections;
    u16 size, count;
    memcpy(&sections, image + 40, 8), memcpy(&size, image + 58, 2), memcpy(&count, image + 60, 2);
    return sections + (size_t)size * count;
}

std::map<const Entry*, int> shared_allowed;

// Bytes that a block may ask for: as of sm_89, so that bands are of four rows of tiles for some formats, and of eight for w4.
int most_shared() { return (int)setting("FAKE_CUDA_SHARED", 99 << 10); }

}  // namespace

API cuDriverGetVersion(int* version) { return *version = (int)setting("FAKE_CUDA_VERSION", 13000), SUCCESS; }
API cuInit(unsigned) { return setting("FAKE_CUDA_DEVICES", 1) ? SUCCESS : NO_DEVICE; }
API cuDeviceGetCount(int* count) { return *count = (int)setting("FAKE_CUDA_DEVICES", 1), SUCCESS; }
API cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal < setting("FAKE_CUDA_DEVICES", 1) ? SUCCESS : INVALID_DEVICE; }
API cuDeviceGetName(char* name, int size, int) { return snprintf(name, size, "emulated device"), SUCCESS; }
API cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = (size_t)setting("FAKE_CUDA_MEMORY", 1 << 30), SUCCESS; }
API cuDeviceGetAttribute(int* value, int attribute, int) {
    int capability = (int)setting("FAKE_CUDA_CAPABILITY", 90);
    switch (attribute) {
        case 16: *value = (int)setting("FAKE_CUDA_MULTIPROCESSORS", 3); break;
        case 38: *value = (int)setting("FAKE_CUDA_CACHE", 1 << 20); break;  // bytes of the second level
        case 75: *value = capability / 10; break;
        case 76: *value = capability % 10; break;
        case 97: *value = most_shared(); break;
        default: *value = 0;
    }
    return SUCCESS;
}
API cuDevicePrimaryCtxRetain(void** context, int device) { return *context = (void*)(uintptr_t)(device + 1), SUCCESS; }
API cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
static thread_local void* current_context;
API cuCtxSetCurrent(void* context) { return current_context = context, SUCCESS; }
API cuCtxGetCurrent(void** context) { return *context = current_context, SUCCESS; }
API cuCtxSynchronize() {
    for (Stream* stream : streams) run(stream);
    return SUCCESS;
}
API cuGetErrorName(int code, const char** name) {
    return *name = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : code == NO_BINARY ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : "an error", SUCCESS;
}
API cuGetErrorString(int, const char** text) { return *text = "as the emulated driver says", SUCCESS; }

API cuMemGetInfo_v2(size_t* free, size_t* total) {
    cuDeviceTotalMem_v2(total, 0);
    return *free = *total - used, SUCCESS;
}
API cuMemAlloc_v2(u64* at, size_t bytes) {
    if (bytes == 0) return INVALID_VALUE;
    if (used + bytes > (size_t)setting("FAKE_CUDA_MEMORY", 1 << 30)) return OUT_OF_MEMORY;
    void* allocated;
    if (posix_memalign(&allocated, 256, bytes)) return OUT_OF_MEMORY;
    memset(allocated, 0xff, bytes);  // NaN
    memory[*at = (u64)allocated] = bytes;
    used += bytes;
    return SUCCESS;
}
API cuMemFree_v2(u64 at) {
    cuCtxSynchronize();
    auto found = memory.find(at);
    if (found == memory.end()) return INVALID_VALUE;
    used -= found->second;
    free((void*)at);
    memory.erase(found);
    return SUCCESS;
}
API cuMemcpyHtoDAsync_v2(u64 to, const void* from, size_t bytes, Stream* stream) {
    return put(stream, [=] { memcpy((void*)to, from, bytes); }), SUCCESS;
}
API cuMemcpyDtoHAsync_v2(void* to, u64 from, size_t bytes, Stream* stream) {
    return put(stream, [=] { memcpy(to, (void*)from, bytes); }), SUCCESS;
}
API cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t bytes, Stream* stream) {
    return put(stream, [=] { memcpy((void*)to, (void*)from, bytes); }), SUCCESS;
}
API cuMemsetD8Async(u64 at, unsigned char byte, size_t bytes, Stream* stream) {
    if (bytes == 0) return INVALID_VALUE;
    return put(stream, [=] { memset((void*)at, byte, bytes); }), SUCCESS;
}

API cuStreamCreate(Stream** stream, unsigned) { return streams.push_back(*stream = new Stream), SUCCESS; }
// Waiting for a stream that is being recorded is refused, and spoils the recording.
API cuStreamSynchronize(Stream* stream) {
    if (stream->recording) return stream->spoilt = true, UNSUPPORTED;
    return run(stream), SUCCESS;
}
API cuStreamWaitEvent(Stream*, Event*, unsigned) { return cuCtxSynchronize(); }
API cuStreamDestroy_v2(Stream* stream) {
    streams.erase(std::find(streams.begin(), streams.end(), stream));
    delete stream;
    return SUCCESS;
}
API cuStreamBeginCapture_v2(Stream* stream, int) {
    stream->spoilt = false;
    return stream->recording = new std::vector<Work>, SUCCESS;
}
API cuStreamEndCapture(Stream* stream, std::vector<Work>** graph) {
    *graph = stream->recording;
    stream->recording = nullptr;
    return stream->spoilt ? CAPTURE_INVALIDATED : SUCCESS;
}
API cuGraphInstantiateWithFlags(std::vector<Work>** exec, std::vector<Work>* graph, u64) { return *exec = new std::vector<Work>(*graph), SUCCESS; }
API cuGraphLaunch(std::vector<Work>* exec, Stream* stream) {
    for (const Work& work : *exec) put(stream, work);
    return SUCCESS;
}
API cuGraphExecDestroy(std::vector<Work>* exec) { return delete exec, SUCCESS; }
API cuGraphDestroy(std::vector<Work>* graph) { return delete graph, SUCCESS; }

API cuEventCreate(Event** event, unsigned) { return *event = new Event, SUCCESS; }
API cuEventRecord(Event* event, Stream* stream) {
    if (stream->recording) return UNSUPPORTED;
    return put(stream, [=] { event->at = (double)clock() / CLOCKS_PER_SEC; }), SUCCESS;
}
API cuEventSynchronize(Event*) { return cuCtxSynchronize(); }
API cuEventElapsedTime_v2(float* ms, Event* from, Event* to) { return *ms = (float)(1e3 * (to->at - from->at)), SUCCESS; }
API cuEventDestroy_v2(Event* event) { return cuCtxSynchronize(), delete event, SUCCESS; }

API cuModuleLoadData(Module** module, const char* image) {
    const char* refuses = getenv("FAKE_CUDA_REFUSES");
    bool elf = !memcmp(image, "\177ELF", 4);
    if (refuses && strstr(refuses, elf ? "ELF" : "PTX")) return NO_BINARY;
    return *module = new Module{std::string(image, size_of(image))}, SUCCESS;
}
API cuModuleUnload(Module* module) { return delete module, SUCCESS; }
API cuModuleGetFunction(const Entry** function, Module* module, const char* name) {
    *function = find_kernel(name);
    // With the zero or the bracket behind it: names begin like others.
    std::string text(name);
    bool there = module->image.find(text + '\0') != std::string::npos || module->image.find(text + '(') != std::string::npos;
    return *function && there ? SUCCESS : NOT_FOUND;
}
// The only one there is: the most dynamic shared memory that a kernel may be launched with, where it is more than 48 KiB.
API cuFuncSetAttribute(const Entry* entry, int attribute, int value) {
    if (attribute != 8 || value < 0 || value > most_shared()) return INVALID_VALUE;
    return shared_allowed[entry] = value, SUCCESS;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const Entry* entry, int threads, size_t shared, unsigned) {
    if (threads != entry->threads || (int)shared != entry->shared(nullptr)) return INVALID_VALUE;
    return *blocks = entry->blocks, SUCCESS;
}
API cuLaunchKernelEx(const Config* config, const Entry* entry, void** parameters, void**) {
    Config copy = *config;
    static u64 seed;
    if ((int)copy.block[0] != entry->threads || copy.block[1] != 1 || copy.grid[2] != 1) return INVALID_VALUE;
    if ((int)copy.shared != entry->shared(parameters[0]) || copy.grid[1] % entry->together != 0) return INVALID_VALUE;
    if (copy.shared > 48 << 10 && (int)copy.shared > shared_allowed[entry]) return INVALID_VALUE;
    auto arguments = std::make_shared<std::vector<char>>((char*)parameters[0], (char*)parameters[0] + entry->bytes);
    put(config->stream, [=] {
        emulated::launch(copy.grid[0], copy.grid[1], copy.block[0], std::max(16u, copy.shared), seed++, entry->together, [&] { entry->run(arguments->data()); });
    });
    return SUCCESS;
}

// Rows of numbers, of which boxes are copied with the chunks of 128 bytes in another order.
API cuTensorMapEncodeTiled(Map* map, int type, u32 rank, void* memory, const u64* sizes, const u64* strides, const u32* box, const u32* steps, int interleave,
                           int swizzle, int promotion, int fill) {
    enum { BYTE_TYPE = 0, SHORT_TYPE = 1, SWIZZLE_128B = 3, PROMOTION_256B = 3 };
    u32 size = type == BYTE_TYPE ? 1 : 2;
    bool right = (type == BYTE_TYPE || type == SHORT_TYPE) && rank == 2 && interleave == 0 && swizzle == SWIZZLE_128B && promotion <= PROMOTION_256B && fill == 0;
    right &= (u64)map % 128 == 0 && (u64)memory % 16 == 0 && strides[0] % 16 == 0 && strides[0] < 1ull << 40 && steps[0] == 1 && steps[1] == 1;
    right &= sizes[0] - 1 < 1ull << 32 && sizes[1] - 1 < 1ull << 32 && box[0] * size == 128 && box[1] - 1 < 256;
    right &= strides[0] >= sizes[0] * size;
    if (!current_context) return INVALID_CONTEXT;
    if (!right) return INVALID_VALUE;
    emulated::Rows rows = {(const u8*)memory, sizes[0], sizes[1], strides[0], size, box[0], box[1]};
    return memcpy(map, &rows, sizeof rows), SUCCESS;
}

// cuBLASLt, as far as `kernels/cuda/driver/blas.rs` uses it: D = op(A) B in f32, or with a bias and C added and rounded to 16 bits, or of bytes in 32-bit integers; columns
// first.
struct Layout {
    int type;
    u64 rows, columns;
    long long stride;
};
struct Product {
    int compute, scale, transposed, epilogue;
    const u16* bias;
};
enum { HALF = 2, BRAIN = 14, SINGLE = 0, BYTE = 3, INTEGER = 10, COMPUTE_32F = 68, COMPUTE_32I = 72, NOT_SUPPORTED = 15 };

API cublasLtCreate(void** handle) { return *handle = malloc(1), SUCCESS; }
API cublasLtDestroy(void* handle) { return free(handle), SUCCESS; }
API cublasLtMatrixLayoutCreate(Layout** layout, int type, u64 rows, u64 columns, long long stride) {
    return *layout = new Layout{type, rows, columns, stride}, SUCCESS;
}
API cublasLtMatrixLayoutDestroy(Layout* layout) { return delete layout, SUCCESS; }
API cublasLtMatmulDescCreate(Product** product, int compute, int scale) { return *product = new Product{compute, scale, 0, 1, nullptr}, SUCCESS; }
API cublasLtMatmulDescDestroy(Product* product) { return delete product, SUCCESS; }
API cublasLtMatmulDescSetAttribute(Product* product, int attribute, const int* value, size_t bytes) {
    if (attribute == 8 && bytes == 8) return memcpy(&product->bias, value, 8), SUCCESS;
    if ((attribute != 3 && attribute != 7) || bytes != 4) return (int)NOT_SUPPORTED;
    return (attribute == 3 ? product->transposed : product->epilogue) = *value, SUCCESS;
}
API cublasLtMatmulPreferenceCreate(int** preference) { return *preference = new int(-1), SUCCESS; }
API cublasLtMatmulPreferenceDestroy(int* preference) { return delete preference, SUCCESS; }
API cublasLtMatmulPreferenceSetAttribute(int* schemes, int attribute, const void* value, size_t bytes) {
    if (attribute == 3 && bytes == 4) return memcpy(schemes, value, 4), SUCCESS;
    return bytes == (attribute == 1 ? 8u : 4u) ? (int)SUCCESS : (int)NOT_SUPPORTED;
}
API cublasLtMatmulAlgoGetHeuristic(void*, Product* product, Layout* a, Layout* b, Layout*, Layout* d, const int* schemes, int, int* result, int* count) {
    bool floats = product->compute == COMPUTE_32F && product->scale == SINGLE && (d->type == SINGLE || d->type == a->type) && (a->type == HALF || a->type == BRAIN);
    bool bytes = product->compute == COMPUTE_32I && product->scale == INTEGER && d->type == INTEGER && a->type == BYTE && a->rows % 4 == 0 && a->columns % 4 == 0;
    int whole = bytes ? 16 : 8;
    bool right = (floats || bytes) && product->transposed == 1 && b->type == a->type && a->rows == b->rows && d->rows == a->columns &&
                 d->columns == b->columns && a->stride % whole == 0 && b->stride % whole == 0 && a->stride >= (long long)a->rows;
    right &= product->bias ? product->epilogue == 4 && d->type == a->type : product->epilogue == 1;
    // Parts of sums are added up in the type of the sums.
    right &= *schemes == 2;
    memset(result, 0, 96);  // cublasLtMatmulHeuristicResult_t, whose state is then a success
    return *count = right, SUCCESS;
}
API cublasLtMatmul(void*, Product* product, const void* alpha, const u16* a, Layout* a_layout, const u16* b, Layout* b_layout, const void* beta,
                   const u16* c, Layout* c_layout, float* d, Layout* d_layout, const void*, void*, size_t, Stream* stream) {
    bool bytes = product->compute == COMPUTE_32I;
    bool adds = bytes ? *(const int*)beta != 0 : *(const float*)beta != 0;
    bool plain = bytes ? *(const int*)alpha == 1 : *(const float*)alpha == 1;
    // What is added is of the type of D, and spaced as it.
    if (adds && (bytes || *(const float*)beta != 1 || d_layout->type != a_layout->type || c_layout->stride != d_layout->stride)) return INVALID_VALUE;
    if (!plain || (u64)a % 16 || (u64)b % 16 || (u64)d % 16) return INVALID_VALUE;
    Layout left = *a_layout, right = *b_layout, out = *d_layout;
    const u16* bias = product->bias;
    put(stream, [=] {
        auto number = [&](u16 bits) { return left.type == HALF ? to_float(F16(), bits) : to_float(BF16(), bits); };
        for (u64 i = 0; i < out.rows; i++)
            for (u64 j = 0; j < out.columns; j++) {
                if (bytes) {
                    int sum = 0;
                    for (u64 k = 0; k < left.rows; k++) sum += ((const signed char*)a)[i * left.stride + k] * ((const signed char*)b)[j * right.stride + k];
                    ((int*)d)[j * out.stride + i] = sum;
                    continue;
                }
                double sum = 0;
                for (u64 k = 0; k < left.rows; k++) sum += (double)number(a[i * left.stride + k]) * number(b[j * right.stride + k]);
                u64 at = j * out.stride + i;
                if (bias) sum += (double)number(bias[i]);
                if (adds) sum += (double)number(c[at]);
                if (out.type == SINGLE)
                    d[at] = (float)sum;
                else
                    ((u16*)d)[at] = out.type == HALF ? from_float(F16(), (float)sum) : from_float(BF16(), (float)sum);
            }
    });
    return SUCCESS;
}
