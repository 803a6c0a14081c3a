/* What a kernel finds on a GPU, on a processor: a thread of the block is a thread, blocks run one after the
   other, and what a block shares is static. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KERNEL static void
#define DEVICE static inline
#define SHARED static
#define UNROLL

typedef struct {
    unsigned x, y, z;
} Place;

static _Thread_local Place threadIdx, blockIdx;
static Place blockDim, gridDim;
static pthread_barrier_t barrier;
#define __syncthreads() pthread_barrier_wait(&barrier)

static void launch(void *(*of_thread)(void *), unsigned x, unsigned y)
{
    pthread_t threads[THREADS];
    gridDim = (Place){x, y, 1};
    blockDim = (Place){THREADS, 1, 1};
    pthread_barrier_init(&barrier, NULL, THREADS);
    for (size_t i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, of_thread, (void *)i);
    for (size_t i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&barrier);
}

/* A kernel's call, by every thread of every block. */
#define OF_THREAD(name, call)                                                                                     \
    static void *name(void *thread)                                                                               \
    {                                                                                                             \
        threadIdx = (Place){(unsigned)(size_t)thread, 0, 0};                                                      \
        for (unsigned y = 0; y < gridDim.y; y++)                                                                  \
            for (unsigned x = 0; x < gridDim.x; x++) {                                                            \
                blockIdx = (Place){x, y, 0};                                                                      \
                pthread_barrier_wait(&barrier);                                                                   \
                call;                                                                                             \
            }                                                                                                     \
        return NULL;                                                                                              \
    }

/* Arrays of four-byte numbers, each behind its count. */
static void *arrays[16];
static unsigned counts[16], count;

static void take(const char *path)
{
    FILE *file = fopen(path, "rb");
    for (count = 0; file && fread(&counts[count], 4, 1, file) == 1; count++) {
        arrays[count] = malloc(4 * (size_t)counts[count] + 4);
        if (fread(arrays[count], 4, counts[count], file) != counts[count])
            exit(2);
    }
    fclose(file);
}

static void give(const char *path)
{
    FILE *file = fopen(path, "wb");
    for (unsigned i = 0; i < count; i++)
        fwrite(arrays[i], 4, counts[i], file);
    fclose(file);
}
