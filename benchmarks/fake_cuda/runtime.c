/* A CUDA runtime without a GPU: it answers like a machine with one NVIDIA GPU, and computes nothing.
 *
 * Loaded before libcudart (LD_PRELOAD) as libcuda.so.1, it answers the calls that torch makes to find, describe and
 * initialize a device. Memory is the host's, zeroed; kernels do nothing. Any other call reaches the
 * real libcudart, which fails as it does on every machine without a driver.
 *
 * FAKE_CUDA_CAPABILITY: "9.0" by default. Built by device.py, with the CUDA headers in torch's wheels.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver_types.h"
#include "vector_types.h"

#ifndef CUDA_NUMBER
#define CUDA_NUMBER 13000 /* 1000 * major + 10 * minor */
#endif

typedef unsigned long long flags_t;

static int device = 0;

static void capability(int *major, int *minor) {
    const char *text = getenv("FAKE_CUDA_CAPABILITY");
    if (text == NULL || sscanf(text, "%d.%d", major, minor) != 2) {
        *major = 9;
        *minor = 0;
    }
}

/* Devices */
int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *id) { *id = device; return 0; }
int cudaSetDevice(int id) { device = id; return 0; }
int cudaDeviceSynchronize(void) { return 0; }
int cudaDriverGetVersion(int *version) { *version = CUDA_NUMBER; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = CUDA_NUMBER; return 0; }
int cudaGetLastError(void) { return 0; }
int cudaPeekAtLastError(void) { return 0; }
int cudaMemGetInfo(size_t *free_bytes, size_t *total) { *free_bytes = *total = 80UL << 30; return 0; }

int cudaDeviceGetAttribute(int *value, int attribute, int id) {
    int major, minor;
    (void)id;
    capability(&major, &minor);
    *value = attribute == cudaDevAttrComputeCapabilityMajor   ? major
             : attribute == cudaDevAttrComputeCapabilityMinor ? minor
                                                              : 1;
    return 0;
}

int cudaGetDeviceProperties(struct cudaDeviceProp *found, int id) {
    (void)id;
    memset(found, 0, sizeof *found);
    capability(&found->major, &found->minor);
    strcpy(found->name, found->major == 9 ? "NVIDIA H100 80GB HBM3" : "NVIDIA fake GPU");
    found->totalGlobalMem = 80UL << 30;
    found->multiProcessorCount = 132;
    found->maxThreadsPerMultiProcessor = 2048;
    found->maxThreadsPerBlock = 1024;
    found->warpSize = 32;
    found->regsPerBlock = found->regsPerMultiprocessor = 65536;
    found->sharedMemPerBlock = 48 << 10;
    found->sharedMemPerBlockOptin = 227 << 10;
    found->sharedMemPerMultiprocessor = 228 << 10;
    found->l2CacheSize = 50 << 20;
    found->maxGridSize[0] = 2147483647;
    found->maxGridSize[1] = found->maxGridSize[2] = 65535;
    return 0;
}
int cudaGetDeviceProperties_v2(struct cudaDeviceProp *found, int id) {
    return cudaGetDeviceProperties(found, id);
}

/* Streams and events: there is one of each, and it has always finished. */
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return 0; }
int cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
    (void)flags, (void)priority;
    *stream = (void *)1;
    return 0;
}
int cudaStreamIsCapturing(void *stream, int *status) { (void)stream; *status = 0; return 0; }
int cudaStreamGetCaptureInfo(void *stream, int *status) { return cudaStreamIsCapturing(stream, status); }
int cudaStreamQuery(void *stream) { (void)stream; return 0; }
int cudaStreamSynchronize(void *stream) { (void)stream; return 0; }
int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) {
    (void)stream, (void)event, (void)flags;
    return 0;
}
int cudaEventCreateWithFlags(void **event, unsigned flags) { (void)flags; *event = (void *)2; return 0; }
int cudaEventRecord(void *event, void *stream) { (void)event, (void)stream; return 0; }
int cudaEventRecordWithFlags(void *event, void *stream, unsigned flags) {
    (void)event, (void)stream, (void)flags;
    return 0;
}
int cudaEventQuery(void *event) { (void)event; return 0; }
int cudaEventSynchronize(void *event) { (void)event; return 0; }
int cudaEventDestroy(void *event) { (void)event; return 0; }

/* Memory and kernels: for the few small tensors with values that Inductor makes as examples. */
int cudaMalloc(void **memory, size_t size) {
    *memory = aligned_alloc(512, (size + 511) / 512 * 512);
    if (*memory == NULL) return cudaErrorMemoryAllocation;
    memset(*memory, 0, size);
    return 0;
}
int cudaFree(void *memory) { free(memory); return 0; }
int cudaHostAlloc(void **memory, size_t size, unsigned flags) {
    (void)flags;
    return cudaMalloc(memory, size);
}
int cudaFreeHost(void *memory) { return cudaFree(memory); }
int cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *memory) {
    memset(found, 0, sizeof *found);
    found->type = cudaMemoryTypeHost;
    found->hostPointer = (void *)memory;
    return 0;
}
int cudaMemsetAsync(void *memory, int value, size_t size, void *stream) {
    (void)stream;
    memset(memory, value, size);
    return 0;
}
int cudaMemcpyAsync(void *target, const void *source, size_t size, int kind, void *stream) {
    (void)kind, (void)stream;
    memcpy(target, source, size);
    return 0;
}
int cudaLaunchKernel(const void *f, dim3 grid, dim3 block, void **args, size_t shared, void *stream) {
    (void)f, (void)grid, (void)block, (void)args, (void)shared, (void)stream;
    return 0;
}

/* The driver's functions, by name: torch asks for the state of the primary context. */
static int context_state(int id, unsigned *flags, int *active) {
    (void)id;
    if (flags != NULL) *flags = 0;
    *active = 0;
    return 0;
}
static int nothing(void) { return 0; }
int cudaGetDriverEntryPoint(const char *name, void **function, flags_t flags, void *status) {
    (void)flags, (void)status;
    *function = strcmp(name, "cuDevicePrimaryCtxGetState") ? (void *)nothing : (void *)context_state;
    return 0;
}
int cudaGetDriverEntryPointByVersion(
    const char *name, void **function, unsigned version, flags_t flags, void *status) {
    (void)version;
    return cudaGetDriverEntryPoint(name, function, flags, status);
}
int cuInit(unsigned flags) { (void)flags; return 0; }
int cuDriverGetVersion(int *version) { return cudaDriverGetVersion(version); }
int cuDevicePrimaryCtxGetState(int id, unsigned *flags, int *active) {
    return context_state(id, flags, active);
}
int cuGetErrorString(int error, const char **text) { (void)error; *text = ""; return 0; }
