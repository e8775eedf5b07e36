// Refusals: a sentence that names the argument, what it was and what it should be.
//
// std::invalid_argument becomes Python's ValueError, std::out_of_range IndexError.
#pragma once

#include <sstream>
#include <stdexcept>

namespace fastloss {

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

}  // namespace fastloss
