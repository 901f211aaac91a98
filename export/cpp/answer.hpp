// One image's answer as JSON, in the words of the service: docs/cpp.md shows one.
#pragma once

#include <string>

#include "bundle.hpp"
#include "network.hpp"

namespace trueodds {

// Of the image at `place` among those that `outputs` are of. All classes are told, the likeliest first.
std::string answer(const Bundle& bundle, const Outputs& outputs, std::size_t place);

}  // namespace trueodds
