// Images as the network is fed them: uint8 (N, H, W, 3), read from .npy, .ppm or .rgb files. Nothing is scaled or framed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace trueodds {

// count images, each of size() bytes: rows from the top, RGB.
struct Images {
  std::int64_t count;
  std::int64_t height;
  std::int64_t width;
  std::vector<std::uint8_t> pixels;

  std::int64_t size() const { return height * width * 3; }
};

// Throws Error where the file is none of these, damaged, or of another height and width.
Images read_images(const std::filesystem::path& path, std::int64_t height, std::int64_t width);

}  // namespace trueodds
