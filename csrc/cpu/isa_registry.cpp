// Picks the instruction set, once, when it is first asked for.
#include "isa_registry.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string>

namespace fastloss {

#if defined(__x86_64__)
namespace {

// clang 14 has no name for it that __builtin_cpu_supports would take.
bool supports_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

}  // namespace
#endif

const std::vector<const Isa*>& usable_isas() {
  static const std::vector<const Isa*> isas = [] {
    std::vector<const Isa*> found = {&baseline::isa};
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && supports_f16c();
    if (avx2) found.push_back(&avx2::isa);
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512) found.push_back(&avx512::isa);
    if (avx512 && __builtin_cpu_supports("avx512bf16")) found.push_back(&avx512_bf16::isa);
#endif
    return found;
  }();
  return isas;
}

namespace {

// Index in usable_isas().
size_t choose() {
  const std::vector<const Isa*>& usable = usable_isas();
  const char* forced = std::getenv("FASTLOSS_CPU_CAPABILITY");
  if (!forced || !*forced) return usable.size() - 1;
  std::ostringstream names;
  for (size_t i = 0; i < usable.size(); ++i) {
    if (std::string(forced) == usable[i]->name) return i;
    names << " " << usable[i]->name;
  }
  std::ostringstream message;
  message << "FASTLOSS_CPU_CAPABILITY is '" << forced
          << "', but should be one of what this machine can run:" << names.str() << ".";
  throw std::invalid_argument(message.str());
}

size_t chosen() {
  static const size_t index = choose();
  return index;
}

}  // namespace

const Isa& isa_for(DType dtype) {
  const Isa* isa = usable_isas()[chosen()];
  return isa->only_bfloat16 && dtype != DType::bfloat16 ? *usable_isas()[chosen() - 1] : *isa;
}

std::vector<std::string> cpu_capabilities() {
  std::vector<std::string> names;
  for (const Isa* isa : usable_isas()) names.push_back(isa->name);
  return names;
}

std::string cpu_capability() { return usable_isas()[chosen()]->name; }

}  // namespace fastloss
