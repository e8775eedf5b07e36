// The Python module fastloss._C: what was built and what was chosen. The only file that knows Python, and all that has
// to be compiled for each version of it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "build_info.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "What was built and what was chosen; the ops are in torch.ops.fastloss.";
  m.def("build_info", [] {
    const fastloss::BuildInfo found = fastloss::build_info();
    pybind11::dict info;
    info["version"] = found.version;
    info["compiler"] = found.compiler;
    info["torch_abi"] = found.torch_abi;
    info["cuda_version"] =
        found.cuda_version.empty() ? pybind11::object(pybind11::none()) : pybind11::str(found.cuda_version);
    info["cuda_architectures"] = found.cuda_architectures;
    info["cpu_capabilities"] = found.cpu_capabilities;
    info["cpu_capability"] = found.cpu_capability;
    return info;
  });
  m.def("schedule_names", [] {
    const fastloss::ScheduleNames names = fastloss::schedule_names();
    pybind11::dict of_device;
    of_device["cpu"] = names.cpu;
    of_device["cuda"] = names.cuda;
    return of_device;
  });
}
