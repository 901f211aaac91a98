#include "answer.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>

#include <nlohmann/json.hpp>

namespace trueodds {
namespace {

// Members in the order in which they are given; numbers as float, whose shortest text is printed.
using Json = nlohmann::basic_json<nlohmann::ordered_map, std::vector, std::string, bool, std::int64_t, std::uint64_t,
                                  float>;

template <typename Number>
std::span<const Number> row(const std::vector<Number>& table, std::size_t place, std::size_t width) {
  return std::span(table).subspan(place * width, width);
}

// By logits, for probabilities of the tail tie at 0.
std::vector<std::size_t> likeliest_first(std::span<const float> logits) {
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  return order;
}

std::vector<float> softmax(std::span<const float> logits) {
  const float highest = *std::max_element(logits.begin(), logits.end());
  std::vector<float> shares(logits.size());
  std::transform(logits.begin(), logits.end(), shares.begin(), [&](float z) { return std::exp(z - highest); });
  const float total = std::accumulate(shares.begin(), shares.end(), 0.0F);
  std::transform(shares.begin(), shares.end(), shares.begin(), [&](float share) { return share / total; });
  return shares;
}

}  // namespace

std::string answer(const Bundle& bundle, const Outputs& outputs, std::size_t place) {
  const std::size_t classes = bundle.labels.size();
  const auto logits = row(outputs.logits, place, classes);
  const auto probabilities = row(outputs.probabilities, place, classes);
  const auto members = row(outputs.prediction_set, place, classes);
  const bool is_ood = outputs.is_ood[place] != 0;
  const std::vector<std::size_t> order = likeliest_first(logits);
  const std::vector<float> uncalibrated = softmax(logits);

  Json predictions = Json::array();
  for (const std::size_t k : order) {
    predictions.push_back({{"label", bundle.labels[k]},
                           {"class_index", k},
                           {"probability", probabilities[k]},
                           {"uncalibrated_probability", uncalibrated[k]}});
  }
  Json possible = Json::array();
  for (std::size_t k = 0; k < classes; ++k) {
    if (members[k] != 0) {
      possible.push_back(bundle.labels[k]);
    }
  }
  // Whoever is not calibrated is never sure enough.
  const bool abstain = is_ood || !bundle.promise || probabilities[order[0]] < bundle.promise->sure_from;
  const Json coverage = bundle.promise ? Json(static_cast<float>(bundle.promise->coverage)) : Json();
  const Json told = {{"model", {{"name", bundle.name}, {"version", bundle.version}}},
                     {"predictions", predictions},
                     {"prediction_set", {{"labels", possible}, {"coverage", coverage}}},
                     {"abstain", abstain},
                     {"ood", {{"score", outputs.ood_score[place]}, {"is_ood", is_ood}}}};
  return told.dump();
}

}  // namespace trueodds
