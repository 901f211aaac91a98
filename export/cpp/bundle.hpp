// A bundle as a program needs it: what its network takes, its labels, and what its answers promise.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace trueodds {

// Why there is no answer: tells the problem and the remedy.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// coverage: how often a prediction set holds the true label. sure_from: below this probability the model abstains.
struct Promise {
  double coverage;
  float sure_from;
};

// promise is none where the bundle was never calibrated.
struct Bundle {
  std::filesystem::path directory;
  std::string name;
  std::string version;
  std::vector<std::string> labels;
  std::int64_t height;
  std::int64_t width;
  std::optional<Promise> promise;

  // The path of a file that the manifest names. Throws Error where there is none.
  std::filesystem::path file(const std::string& wanted) const;
};

// Reads manifest.json and calibration.json. Throws Error. Digests are not checked: see docs/cpp.md.
Bundle load_bundle(const std::filesystem::path& directory);

}  // namespace trueodds
