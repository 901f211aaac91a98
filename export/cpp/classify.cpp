// trueodds_torch, trueodds_onnx: BUNDLE IMAGES... → a line of JSON for each image, in order.
//
// Exit status: 0 all answered, 1 a file or the bundle is at fault, 2 called wrongly.
#include <algorithm>
#include <exception>
#include <iostream>

#include "answer.hpp"
#include "bundle.hpp"
#include "network.hpp"
#include "pixels.hpp"

namespace {

// Of images, to bound the memory that a large file takes.
constexpr std::int64_t BATCH = 64;

void classify(trueodds::Network& network, const trueodds::Bundle& bundle, trueodds::Images images) {
  for (std::int64_t start = 0; start < images.count; start += BATCH) {
    const std::int64_t count = std::min(BATCH, images.count - start);
    const trueodds::Outputs outputs = network.forward(images.pixels.data() + start * images.size(), count);
    trueodds::check(outputs, static_cast<std::size_t>(count), bundle.labels.size());
    for (std::int64_t place = 0; place < count; ++place) {
      std::cout << trueodds::answer(bundle, outputs, static_cast<std::size_t>(place)) << '\n';
    }
  }
}

void run(const std::filesystem::path& directory, const std::vector<std::filesystem::path>& paths) {
  const trueodds::Bundle bundle = trueodds::load_bundle(directory);
  const auto network = trueodds::load_network(bundle);
  for (const auto& path : paths) {
    classify(*network, bundle, trueodds::read_images(path, bundle.height, bundle.width));
  }
  if (!std::cout.flush()) {
    throw trueodds::Error("standard output cannot be written");
  }
}

}  // namespace

int main(int count, char** arguments) {
  const std::string program = std::filesystem::path(arguments[0]).filename();
  if (count < 3) {
    std::cerr << "usage: " << program << " BUNDLE IMAGES...  (.npy uint8 (N, H, W, 3), .ppm or .rgb)\n";
    return 2;
  }
  try {
    run(arguments[1], {arguments + 2, arguments + count});
  } catch (const std::exception& error) {
    std::cerr << program << ": " << error.what() << '\n';
    return 1;
  }
  return 0;
}
