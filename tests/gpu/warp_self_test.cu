// Runs every function of csrc/cuda/warp.cuh on a GPU and checks it against its description, which
// is what the emulator implements. nvcc -std=c++17 -Icsrc -arch=native; exits with 1 on failure.
#include <cmath>
#include <cstdio>

#include "cuda/warp.cuh"

using namespace tnt_kernels::cuda;

__device__ int failures;

__device__ void expect(bool good, const char* what) {
  if (!good) {
    atomicAdd(&failures, 1);
    printf("lane %d: %s\n", lane_id(), what);
  }
}

__device__ void expect_near(float got, double exact, double relative, const char* what) {
  expect(fabs(got - exact) <= relative * fabs(exact), what);
}

// Operands of small integers, so that every product and sum is exact in every format.
__device__ float a_at(int row, int k) { return static_cast<float>((row * 3 + k * 5) % 7 - 3); }
__device__ float b_at(int k, int column) { return static_cast<float>((k * 4 + column) % 5 - 2); }

__device__ float product_at(int row, int column, int depth) {
  float sum = 1;  // the accumulator starts at 1
  for (int k = 0; k < depth; ++k) sum += a_at(row, k) * b_at(k, column);
  return sum;
}

__device__ void expect_product(const float (&d)[4], int depth, const char* what) {
  for (int i = 0; i < 4; ++i) {
    const int row = lane_id() / 4 + i / 2 * 8, column = lane_id() % 4 * 2 + i % 2;
    expect(d[i] == product_at(row, column, depth), what);
  }
}

__device__ void test_mma() {
  const int g = lane_id() / 4, t = lane_id() % 4;
  Words<2> a[2];
  uint32_t b[2];
  for (int k = 0; k < 2; ++k) {
    const int first = 2 * t + 8 * k;
    for (int half = 0; half < 2; ++half) {
      a[k].w[half] = pack_f16(a_at(g + 8 * half, first), a_at(g + 8 * half, first + 1));
    }
    b[k] = pack_f16(b_at(first, g), b_at(first + 1, g));
  }
  float d8[4] = {1, 1, 1, 1}, d16[4] = {1, 1, 1, 1}, tf32[4] = {1, 1, 1, 1};
  warp_mma_f16_k8(d8, a[0], b[0]);
  expect_product(d8, 8, "mma f16 k8");
  warp_mma_f16_k16(d16, a[0], a[1], b[0], b[1]);
  expect_product(d16, 16, "mma f16 k16");

  Words<2> brain_a[2];
  uint32_t brain_b[2];
  for (int k = 0; k < 2; ++k) {
    const int first = 2 * t + 8 * k;
    for (int half = 0; half < 2; ++half) {
      brain_a[k].w[half] = pack_bf16(a_at(g + 8 * half, first), a_at(g + 8 * half, first + 1));
    }
    brain_b[k] = pack_bf16(b_at(first, g), b_at(first + 1, g));
  }
  float brain8[4] = {1, 1, 1, 1}, brain16[4] = {1, 1, 1, 1};
  warp_mma_bf16_k8(brain8, brain_a[0], brain_b[0]);
  expect_product(brain8, 8, "mma bf16 k8");
  warp_mma_bf16_k16(brain16, brain_a[0], brain_a[1], brain_b[0], brain_b[1]);
  expect_product(brain16, 16, "mma bf16 k16");

  const uint32_t one = pack_f16(1, 1);
  Words<2> h8 = {{one, one}}, h16 = {{one, one}};
  warp_mma_f16_k8(h8, a[0], b[0]);
  warp_mma_f16_k16(h16, a[0], a[1], b[0], b[1]);
  const FloatPair l8 = unpack_f16(h8.w[0]), u8 = unpack_f16(h8.w[1]);
  const FloatPair l16 = unpack_f16(h16.w[0]), u16 = unpack_f16(h16.w[1]);
  expect_product({l8.lo, l8.hi, u8.lo, u8.hi}, 8, "mma f16 k8 with a f16 sum");
  expect_product({l16.lo, l16.hi, u16.lo, u16.hi}, 16, "mma f16 k16 with a f16 sum");

  warp_mma_tf32_k8(tf32, a_at(g, t), a_at(g + 8, t), a_at(g, t + 4), a_at(g + 8, t + 4), b_at(t, g),
                   b_at(t + 4, g));
  expect_product(tf32, 8, "mma tf32 k8");
}

__device__ void test_shuffles() {
  const float lane = static_cast<float>(lane_id());
  expect(warp_shuffle_xor<1>(lane) == static_cast<float>(lane_id() ^ 1), "shuffle 1");
  expect(warp_shuffle_xor<2>(lane) == static_cast<float>(lane_id() ^ 2), "shuffle 2");
  expect(warp_shuffle_xor<16>(lane) == static_cast<float>(lane_id() ^ 16), "shuffle 16");
  const int other = (lane_id() * 5 + 3) % 32;
  expect(warp_shuffle(lane, other) == static_cast<float>(other), "shuffle from any lane");
  const uint32_t g = lane_id() / 4, t = lane_id() % 4;
  const uint32_t transposed = warp_transpose_b16((8 * g + 2 * t + 1) << 16 | (8 * g + 2 * t));
  expect(transposed == ((16 * t + 8 + g) << 16 | (16 * t + g)), "transposition");
  expect(warp_id() == static_cast<int>(threadIdx.x / 32), "warp id");
}

__device__ void test_scalars() {
  const float nan = as_float(0x7fffffffu);
  const float x = 0.37f + 0.11f * lane_id();
  expect_near(exp2_approx(-x), exp2(-static_cast<double>(x)), 3e-7, "exp2");
  expect_near(rsqrt_approx(x), 1 / sqrt(static_cast<double>(x)), 3e-7, "rsqrt");
  expect_near(rcp_approx(x), 1 / static_cast<double>(x), 3e-7, "rcp");
  expect_near(erf_f32(x), erf(static_cast<double>(x)), 3e-7, "erf");
  expect(exp2_approx(as_float(0xff800000u)) == 0, "exp2 of -infinity");
  expect(fma_f32(2, 3, 1) == 7, "fma");
  expect(fma_sat_f32(2, 3, 1) == 1 && fma_sat_f32(-2, 3, 1) == 0, "saturated fma");
  expect(fma_sat_f32(nan, 3, 1) == 0, "saturated fma of NaN");
  expect(round_tf32(as_float(0x3f801000u)) == as_float(0x3f802000u), "tf32 rounds ties up");
  expect(round_tf32(as_float(0xbf800fffu)) == -1 && isnan(round_tf32(nan)), "tf32 rounding");
  expect(sqrt_f32(9) == 3 && abs_f32(-2) == 2, "square root, magnitude");
  const uint32_t bytes = 0xff800100u;
  expect(byte_f32<0>(bytes) == 0 && byte_f32<1>(bytes) == 1 && byte_f32<2>(bytes) == 128 &&
             byte_f32<3>(bytes) == 255,
         "bytes of a word");
  expect(max_f32(nan, 2) == 2 && max_f32(2, nan) == 2, "max of NaN");
}

__device__ void test_pairs() {
  const uint32_t pair = pack_f16(1.5f, -2), nan = 0x7fff7fffu, big = pack_f16(70000, -70000);
  const FloatPair halves = unpack_f16(pair), infinite = unpack_f16(big);
  expect(halves.lo == 1.5f && halves.hi == -2, "order of a f16 pair");
  expect(isinf(infinite.lo) && isinf(infinite.hi), "f16 overflow");
  const FloatPair brain = unpack_bf16(pack_bf16(1.5f, -2));
  expect(brain.lo == 1.5f && brain.hi == -2, "order of a bf16 pair");
  expect(pack_bf16(1.00390625f, 1.01171875f) == 0x3f823f80u, "bf16 rounds half to even");
  expect(mul_f16x2(pair, pair) == pack_f16(2.25f, 4), "f16 product");
  expect(fma_f16x2(pair, pair, pair) == pack_f16(3.75f, 2), "f16 fma");
  expect(fma_sat_f16x2(pair, pack_f16(1, 1), 0) == pack_f16(1, 0), "saturated f16 fma");
  expect(fma_sat_f16x2(nan, pair, pair) == 0, "saturated f16 fma of NaN");
  expect(max_f16x2(nan, pair) == pair && min_f16x2(pair, nan) == pair, "f16 max and min of NaN");
}

__device__ void test_memory() {
  uint32_t* words = dynamic_shared();
  store_words(words + 4 * thread_id(), Words<4>{{1u, 2u, 3u, static_cast<uint32_t>(thread_id())}});
  warp_sync();
  expect(load_words<1>(words + 4 * (thread_id() ^ 1)).w[0] == 1u, "store, warp_sync, load");
  block_sync();
  const int other = (thread_id() + 32) % block_threads();
  expect(load_words<4>(words + 4 * other).w[3] == static_cast<uint32_t>(other), "16-byte access");
  expect(load_words<2>(words + 4 * other).w[1] == 2u, "8-byte access");
  expect(load_words<1>(words + 4 * other).w[0] == 1u, "4-byte access");
  expect(load_half_word(words + 4 * other + 1) == 2u, "2-byte access");
  expect(load_float(words) == as_float(1u), "load of a float");
  expect(block_any(thread_id() == 40) && !block_any(false), "any thread of the block");
  store_half_word(words + 4 * thread_id() + 1, 0x10005u);
  expect(load_words<1>(words + 4 * thread_id() + 1).w[0] == 5u, "2-byte store");
  store_float(words + 4 * thread_id(), 2.5f);
  expect(load_float(words + 4 * thread_id()) == 2.5f, "store of a float");
}

__global__ void self_test_kernel() {
  test_mma();
  test_shuffles();
  test_scalars();
  test_pairs();
  test_memory();
}

int main() {
  self_test_kernel<<<1, 64, 64 * 16>>>();
  int count = 0;
  cudaError_t error = cudaDeviceSynchronize();
  if (error == cudaSuccess) error = cudaMemcpyFromSymbol(&count, failures, sizeof count);
  if (error != cudaSuccess) {
    printf("warp self-test: %s\n", cudaGetErrorString(error));
    return 1;
  }
  printf("warp self-test: %s\n", count == 0 ? "passed" : "failed");
  return count != 0;
}
