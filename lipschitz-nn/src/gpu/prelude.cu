// What all kernels share. They are plain C beside these names, so that a test can run them on a processor.

#define KERNEL extern "C" __global__ void
#define DEVICE static __device__ __forceinline__
#define SHARED __shared__
#define UNROLL _Pragma("unroll")
