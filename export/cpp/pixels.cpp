#include "pixels.hpp"

#include <algorithm>
#include <cctype>
#include <fstream>
#include <iterator>
#include <regex>
#include <string>

#include "bundle.hpp"

namespace trueodds {
namespace {

using Shape = std::vector<std::int64_t>;

const std::string NPY = "\x93NUMPY";
const std::string PPM = "P6";

std::string contents(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path)) {
    throw Error(path.string() + " cannot be read");
  }
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string written(const Shape& shape) {
  std::string text;
  for (const std::int64_t size : shape) {
    text += (text.empty() ? "(" : ", ") + std::to_string(size);
  }
  return text + ")";
}

// The bytes from `start` on as `count` images. Throws Error where they are fewer or more than that.
Images images(const std::string& content, std::size_t start, std::int64_t count, const Images& one) {
  const auto wanted = static_cast<std::size_t>(count * one.size());
  if (content.size() - start != wanted) {
    throw Error("it holds " + std::to_string(content.size() - start) + " bytes of pixels, not " +
                std::to_string(wanted));
  }
  return {count, one.height, one.width, {content.begin() + static_cast<std::ptrdiff_t>(start), content.end()}};
}

// numpy.lib.format: magic, version, the header's length in 2 bytes (version 1) or 4, header.
Images from_npy(const std::string& content, const Images& one) {
  const std::size_t prefix = content.size() > 6 && content[6] == 1 ? 10 : 12;
  std::size_t length = 0;
  for (std::size_t at = prefix; at > 8 && content.size() >= prefix; --at) {
    length = length * 256 + static_cast<unsigned char>(content[at - 1]);
  }
  // A plain array's takes 118 bytes or a little more.
  if (content.size() < prefix || length > 4096 || content.size() - prefix < length) {
    throw Error("its header is damaged");
  }
  const std::string header = content.substr(prefix, length);
  static const std::regex type("'descr': *'[|<>=]?u1'"), order("'fortran_order': *False");
  static const std::regex sizes("'shape': *\\((?:(\\d{1,9}), *)?(\\d{1,9}), *(\\d{1,9}), *3,?\\)");
  if (!std::regex_search(header, type) || !std::regex_search(header, order)) {
    throw Error("it is no array of uint8 in C order: use numpy.ascontiguousarray(images, numpy.uint8)");
  }
  std::smatch shape;
  if (!std::regex_search(header, shape, sizes) || std::stoll(shape[2]) != one.height ||
      std::stoll(shape[3]) != one.width) {
    throw Error("the network takes the shape (N, " + written({one.height, one.width, 3}).substr(1) + "; the file says " +
                header.substr(0, header.find('\n')));
  }
  return images(content, prefix + length, shape[1].matched ? std::stoll(shape[1]) : 1, one);
}

// The next number of a header, from `at` on, which is moved behind it; white space and comments go before.
std::int64_t next_number(const std::string& content, std::size_t& at) {
  while (at < content.size() && (std::isspace(static_cast<unsigned char>(content[at])) != 0 || content[at] == '#')) {
    at = content[at] == '#' ? std::min(content.find('\n', at), content.size()) : at + 1;
  }
  std::int64_t number = 0;
  const std::size_t start = at;
  while (at < content.size() && std::isdigit(static_cast<unsigned char>(content[at])) != 0 && at - start < 9) {
    number = number * 10 + (content[at++] - '0');
  }
  if (at == start) {
    throw Error("its header is damaged");
  }
  return number;
}

// Netpbm's binary colour image: P6, width, height, the highest level and one white space, with comments between.
Images from_ppm(const std::string& content, const Images& one) {
  std::size_t at = PPM.size();
  const std::int64_t width = next_number(content, at), height = next_number(content, at);
  const std::int64_t highest = next_number(content, at);
  if (highest != 255) {
    throw Error("it has not 8 bits a colour: use convert -depth 8");
  }
  if (width != one.width || height != one.height) {
    throw Error("it has " + std::to_string(width) + " x " + std::to_string(height) + " pixels, the network takes " +
                std::to_string(one.width) + " x " + std::to_string(one.height));
  }
  return images(content, std::min(at + 1, content.size()), 1, one);
}

Images parsed(const std::filesystem::path& path, const std::string& content, const Images& one) {
  if (content.starts_with(NPY)) {
    return from_npy(content, one);
  }
  if (content.starts_with(PPM)) {
    return from_ppm(content, one);
  }
  // Bytes have no form that could be wrong, so their name must say that they are meant.
  if (path.extension() == ".rgb") {
    return images(content, 0, static_cast<std::int64_t>(content.size()) / one.size(), one);
  }
  throw Error("it is neither .npy nor binary .ppm, and not named .rgb; decode it first, for example by "
              "convert photo.jpg -resize 32x32! photo.ppm");
}

}  // namespace

Images read_images(const std::filesystem::path& path, std::int64_t height, std::int64_t width) {
  const std::string content = contents(path);
  try {
    Images found = parsed(path, content, {1, height, width, {}});
    if (found.count == 0) {
      throw Error("there is no image in it");
    }
    return found;
  } catch (const Error& error) {
    throw Error(path.string() + ": " + error.what());
  }
}

}  // namespace trueodds
