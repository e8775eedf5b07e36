// What was built and what was chosen: all that the Python module fastloss._C asks of the ops library.
#pragma once

#include <string>
#include <vector>

namespace fastloss {

struct BuildInfo {
  std::string version, compiler;
  std::string torch_abi;     // the oldest torch that the library loads with
  std::string cuda_version;  // empty: built without
  std::vector<std::string> cuda_architectures;
  std::vector<std::string> cpu_capabilities;  // what was built and this machine can run, the best last
  std::string cpu_capability;                 // the one in use
};

// Raises std::invalid_argument where FASTLOSS_CPU_CAPABILITY names none that this machine can run.
__attribute__((visibility("default"))) BuildInfo build_info();

// The paths through a device's kernels; what an op's `schedule` returns is an index into these.
struct ScheduleNames {
  std::vector<std::string> cpu, cuda;
};
__attribute__((visibility("default"))) ScheduleNames schedule_names();

}  // namespace fastloss
