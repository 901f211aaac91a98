#include "bundle.hpp"

#include <cmath>
#include <fstream>

#include <nlohmann/json.hpp>

namespace trueodds {
namespace {

using nlohmann::json;

json read(const std::filesystem::path& path) {
  std::ifstream file(path);
  if (!file) {
    throw Error(path.string() + " cannot be read: name a bundle's folder, <name>/<version>");
  }
  return json::parse(file);
}

std::optional<Promise> promise_of(const std::filesystem::path& directory, const json& manifest) {
  if (!manifest.at("files").contains("calibration.json")) {
    return std::nullopt;
  }
  const json calibration = read(directory / "calibration.json");
  const double alpha = calibration.at("conformal").at(0).at("alpha").get<double>();
  // 0.95, not 0.9500000000000001.
  const double coverage = std::round((1 - alpha) * 1e6) / 1e6;
  return Promise{coverage, static_cast<float>(calibration.at("abstention").at("threshold").get<double>())};
}

}  // namespace

std::filesystem::path Bundle::file(const std::string& wanted) const {
  const std::filesystem::path path = directory / wanted;
  if (!std::filesystem::is_regular_file(path)) {
    throw Error(path.string() + " is missing: export the bundle again");
  }
  return path;
}

Bundle load_bundle(const std::filesystem::path& directory) {
  try {
    const json manifest = read(directory / "manifest.json");
    const json& input = manifest.at("input");
    return Bundle{directory,
                  manifest.at("name"),
                  manifest.at("version"),
                  manifest.at("labels").get<std::vector<std::string>>(),
                  input.at("height").get<std::int64_t>(),
                  input.at("width").get<std::int64_t>(),
                  promise_of(directory, manifest)};
  } catch (const json::exception& error) {
    throw Error(directory.string() + " is no bundle: " + error.what());
  }
}

}  // namespace trueodds
