// Measures the mathematics of csrc/cpu/kernels and csrc/losses against double precision. Compiled by test_lanes.py,
// once per instruction set.
//
// Usage: lanes_accuracy STRIDE: every STRIDE-th float32 of each documented range; 1 is all of them. Prints a line for
// each function, "name setting ULP argument" (the largest error in units in the last place of the float nearest to the
// truth, and where) or "name wrong argument" for the first result that is not what the function promises.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "losses.h"
#include "storage.h"
using namespace FASTLOSS_NAMESPACE;

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

uint64_t stride;

// Calls work(first, local) for W multiples of stride at a time, from first on, all below count, on all processors; and
// merge(local) for each processor's part.
template <class Local, class Work, class Merge>
void over(uint64_t count, Work work, Merge merge) {
  constexpr uint64_t chunk = 1 << 16;
  uint64_t vectors = (count / stride + W - 1) / W;
  std::atomic<uint64_t> next{0};
  std::mutex mutex;
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < std::max(1u, std::thread::hardware_concurrency()); ++t) {
    threads.emplace_back([&] {
      Local local{};
      for (uint64_t begin; (begin = next.fetch_add(chunk)) < vectors;) {
        for (uint64_t v = begin; v < std::min(begin + chunk, vectors); ++v) work(v * W * stride, local);
      }
      std::lock_guard<std::mutex> lock(mutex);
      merge(local);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

f64 magnitude(f64 x) { return x < 0 ? -x : x; }

struct Worst {
  double ulp = 0;
  float at = 0;
};

// function(x) against truth(double(x)) for every float x between low and high, both of one sign.
template <class Function, class Truth>
void measure(const char* name, double setting, float low, float high, Function function, Truth truth) {
  uint32_t first = std::min(bits_as<uint32_t>(low), bits_as<uint32_t>(high));
  uint32_t last = std::max(bits_as<uint32_t>(low), bits_as<uint32_t>(high));
  Worst worst;
  over<Worst>(
      uint64_t(last) - first + 1,
      [&](uint64_t offset, Worst& local) {
        f32 x;
        for (int lane = 0; lane < W; ++lane) {
          x[lane] = bits_as<float>(uint32_t(std::min(first + offset + lane * stride, uint64_t(last))));
        }
        f64 expected;
        for (int lane = 0; lane < W; ++lane) expected[lane] = truth(double(x[lane]));
        // One unit in the last place is 2^(exponent - 23), of the smallest normal number below that.
        i64 exponent = (i64)max(magnitude(expected), f64{} + 0x1p-126) & 0x7ff0000000000000;
        f64 ulp = magnitude(__builtin_convertvector(function(x), f64) - expected) / ((f64)exponent * 0x1p-23);
        i64 fine = ulp <= local.ulp;
        for (int lane = 0; lane < W; ++lane) {
          if (!fine[lane] && !(ulp[lane] <= local.ulp)) local = {ulp[lane], x[lane]};
        }
      },
      [&](const Worst& local) {
        if (!(local.ulp <= worst.ulp)) worst = local;
      });
  printf("%s %g %.4f %a\n", name, setting, worst.ulp, worst.at);
}

void expect(const char* name, float x, float got, float expected) {
  bool same = expected != expected ? got != got : got == expected;
  if (!same) printf("%s wrong %a: %a\n", name, x, got);
}

// The value of a 16-bit floating-point number.
double decode(uint32_t bits, int mantissa_bits) {
  int exponent_bits = 15 - mantissa_bits;
  int exponent = (bits & 0x7fff) >> mantissa_bits, highest = (1 << exponent_bits) - 1;
  int bias = highest >> 1;
  double mantissa = bits & ((1 << mantissa_bits) - 1);
  double magnitude = exponent == highest ? (mantissa ? NAN : INFINITY)
                     : exponent == 0     ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                                         : std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
  return bits & 0x8000 ? -magnitude : magnitude;
}

#if defined(FASTLOSS_AVX512_BF16)
constexpr bool kBfloat16HasSubnormals = false;  // the instruction makes them zero
#else
constexpr bool kBfloat16HasSubnormals = true;
#endif

// Every 16-bit number widens to its value, and every float narrows to the nearest one, ties to even.
template <class T>
void check_storage(const char* name, int mantissa_bits) {
  std::vector<double> value(1 << 15);
  for (uint32_t bits = 0; bits < 1 << 15; ++bits) value[bits] = decode(bits, mantissa_bits);
  for (uint32_t bits = 0; bits < 1 << 16; bits += W) {
    u16 x;
    for (int lane = 0; lane < W; ++lane) x[lane] = uint16_t(bits + lane);
    f32 y = widen(x, T{});
    for (int lane = 0; lane < W; ++lane) expect(name, bits + lane, y[lane], float(decode(bits + lane, mantissa_bits)));
  }
  const uint32_t infinity = ((1 << (15 - mantissa_bits)) - 1) << mantissa_bits;
  // Past the largest number, what the next one would be: half-way to it is where infinity begins.
  value[infinity] = 2 * value[infinity - 1] - value[infinity - 2];
  uint64_t wrong = ~uint64_t{0};
  over<uint64_t>(
      uint64_t{1} << 31,
      [&](uint64_t first, uint64_t& local) {
        f32 x;
        for (int lane = 0; lane < W; ++lane) x[lane] = bits_as<float>(uint32_t(first + lane * stride) & 0x7fffffff);
        u16 y = narrow(x, T{}), negative = narrow(-x, T{});
        for (int lane = 0; lane < W; ++lane) {
          double exact = x[lane];
          bool right;
          if (std::is_same_v<T, bfloat16> && !kBfloat16HasSubnormals && exact < 0x1p-126) {
            right = y[lane] == 0 && negative[lane] == 0x8000;
          } else if (exact != exact || y[lane] > infinity) {
            right = exact != exact && y[lane] > infinity && (negative[lane] & 0x7fff) > infinity;
          } else {
            double below = y[lane] == 0 ? INFINITY : exact - value[y[lane] - 1];
            double above = y[lane] == infinity ? INFINITY : value[y[lane] + 1] - exact;
            double distance =
                y[lane] == infinity ? std::max(value[infinity] - exact, 0.0) : std::fabs(exact - value[y[lane]]);
            double other = std::min(below, above);
            right =
                (distance < other || (distance == other && y[lane] % 2 == 0)) && negative[lane] == (y[lane] | 0x8000);
          }
          if (!right && local == 0) local = first + lane * stride + 1;
        }
      },
      [&](uint64_t local) {
        if (local) wrong = std::min(wrong, local - 1);
      });
  if (wrong != ~uint64_t{0}) printf("%s wrong %a narrowed\n", name, bits_as<float>(uint32_t(wrong)));
}

int main(int, char** arguments) {
  stride = strtoull(arguments[1], nullptr, 10);
  const float smallest = 0x1p-149f, normal = 0x1p-126f, largest = 0x1.fffffep127f;

  // Half of all floats are this small: there the series is exact in double, and much quicker.
  auto tiny = [](double x) { return std::fabs(x) < 0x1p-18; };
  auto exp_lanes = [](f32 x) { return exp(x); };
  auto exp_truth = [=](double x) { return tiny(x) ? 1 + x + x * x / 2 : std::exp(x); };
  auto log1p_truth = [=](double x) { return tiny(x) ? x - x * x * (0.5 - x / 3) : std::log1p(x); };
  auto one_minus_p_truth = [=](double x) { return tiny(x) ? x - x * x * (0.5 - x / 6) : -std::expm1(-x); };
  measure("exp", 0, 0.0f, 88.0f, exp_lanes, exp_truth);
  measure("exp", 0, -0.0f, -87.3f, exp_lanes, exp_truth);
  measure("log", 0, normal, largest, [](f32 x) { return log(x); }, [](double x) { return std::log(x); });
  measure("log1p_unit", 0, 0.0f, 1.0f, [](f32 x) { return log1p_unit(x); }, log1p_truth);
  measure("sqrt", 0, normal, 1.0f, [](f32 x) { return sqrt(x); }, [](double x) { return std::sqrt(x); });
  measure("one_minus_p", 0, 0.0f, 200.0f, [](f32 nll) { return one_minus_p(nll, exp(-nll)); }, one_minus_p_truth);
  auto nll_truth = [](double p) { return -std::log(p); };
  measure("nll_of", 0, normal, 0.5f, [](f32 p) { return nll_of(p, 1 - p); }, nll_truth);
  measure("nll_of", 1, 0.0f, 0.5f, [](f32 q) { return nll_of(1 - q, q); }, [=](double q) { return -log1p_truth(-q); });
  const uint64_t all = stride;
  stride *= 31;  // pow takes long in double
  for (float gamma : {0.01f, 0.3f, 0.5f, 0.7f, 1.5f, 2.5f, 3.0f, 5.0f, 7.77f, 16.0f}) {
    // Down to where the power is subnormal, which the function returns as 0 or rounded.
    float lowest = float(std::max(std::exp2(-126.0 / gamma), 0x1p-126));
    measure(
        "pow", gamma, std::nextafter(lowest, 1.0f), 1.0f, [=](f32 q) { return pow(q, gamma); },
        [=](double q) { return std::pow(q, double(gamma)); });
  }
  stride = all;

  for (float x : {-87.31f, -88.0f, -104.0f, -1e4f, -3e38f, -INFINITY}) expect("exp", x, exp(f32{} + x)[0], 0);
  expect("exp", NAN, exp(f32{} + NAN)[0], NAN);
  for (float x : {INFINITY, NAN}) expect("log", x, log(f32{} + x)[0], x);
  expect("log1p_unit", NAN, log1p_unit(f32{} + NAN)[0], NAN);
  for (float x : {0.0f, NAN}) expect("sqrt", x, sqrt(f32{} + x)[0], x);
  for (float x : {0.0f, smallest, NAN}) expect("pow", x, pow(f32{} + x, 2.5f)[0], x == x ? 0 : NAN);
  expect("pow", 1e-30f, pow(f32{} + 1e-30f, 2.5f)[0], 0);
  expect("one_minus_p", INFINITY, one_minus_p(f32{} + INFINITY, f32{})[0], 1);
  expect("one_minus_p", NAN, one_minus_p(f32{} + NAN, f32{} + NAN)[0], NAN);

  expect("nll_of", NAN, nll_of(f32{} + NAN, f32{} + NAN)[0], NAN);
  expect("nll_of", 0, nll_of(f32{} + 1, f32{})[0], 0);

  check_storage<bfloat16>("bfloat16", 7);
  check_storage<float16>("float16", 10);
}
