// A bundle's network in some runtime: one source file for each, all with the same load_network.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "bundle.hpp"

namespace trueodds {

// In the order in which the graph answers, as service/backends has them.
inline constexpr std::array OUTPUTS{"logits", "probabilities", "prediction_set", "energy", "is_ood", "ood_score"};

// Of N images and C classes: logits and calibrated probabilities (N, C), prediction_set (N, C) of 0 and 1, is_ood (N) of
// 0 and 1, ood_score (N), higher is stranger.
struct Outputs {
  std::vector<float> logits;
  std::vector<float> probabilities;
  std::vector<std::uint8_t> prediction_set;
  std::vector<std::uint8_t> is_ood;
  std::vector<float> ood_score;
};

class Network {
 public:
  virtual ~Network() = default;
  // `pixels` are of `count` images, (count, H, W, 3).
  virtual Outputs forward(std::uint8_t* pixels, std::int64_t count) = 0;
};

// Throws Error, or what the runtime throws.
std::unique_ptr<Network> load_network(const Bundle& bundle);

// Throws Error where a network gives not as many numbers as it should.
inline void check_size(const char* name, std::size_t found, std::size_t expected) {
  if (found != expected) {
    throw Error(std::string("the network's ") + name + " are " + std::to_string(found) + " numbers, not " +
                std::to_string(expected) + ": its labels are another network's, or it is no bundle's; export it again");
  }
}

inline void check(const Outputs& outputs, std::size_t count, std::size_t classes) {
  check_size("logits", outputs.logits.size(), count * classes);
  check_size("probabilities", outputs.probabilities.size(), count * classes);
  check_size("prediction_set", outputs.prediction_set.size(), count * classes);
  check_size("is_ood", outputs.is_ood.size(), count);
  check_size("ood_score", outputs.ood_score.size(), count);
}

}  // namespace trueodds
