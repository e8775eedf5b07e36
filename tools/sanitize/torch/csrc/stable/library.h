// In place of torch's header: there are no ops to register.
#pragma once

namespace torch::stable::detail {

struct StableLibrary {
  void impl(const char*, int) {}
};

}  // namespace torch::stable::detail

#define TORCH_BOX(function) 0
// A template that nobody asks for.
#define STABLE_TORCH_LIBRARY_IMPL(library, key, m) \
  template <class Library>                         \
  void register_##key(Library& m)
