// setup.py gives the words about the build to this file alone, so that a new version compiles one file anew.
#include "build_info.h"

#include <iterator>
#include <sstream>

namespace fastloss {

std::vector<std::string> cpu_capabilities();
std::string cpu_capability();
std::vector<std::string> cpu_schedule_names();
std::vector<std::string> cuda_schedule_names();

BuildInfo build_info() {
  std::istringstream architectures(FASTLOSS_CUDA_ARCHITECTURES);
  return {FASTLOSS_VERSION,
          FASTLOSS_COMPILER,
          FASTLOSS_TORCH_ABI,
          FASTLOSS_CUDA_VERSION,
          {std::istream_iterator<std::string>(architectures), {}},
          cpu_capabilities(),
          cpu_capability()};
}

ScheduleNames schedule_names() { return {cpu_schedule_names(), cuda_schedule_names()}; }

}  // namespace fastloss
