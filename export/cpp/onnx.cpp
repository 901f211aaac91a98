// ONNX Runtime, by its C++ API, which is headers around its C API; on the CPU.
#include <onnxruntime_cxx_api.h>

#include "network.hpp"

namespace trueodds {
namespace {

template <typename Number>
std::vector<Number> numbers(const Ort::Value& output) {
  const auto* start = output.GetTensorData<Number>();
  return {start, start + output.GetTensorTypeAndShapeInfo().GetElementCount()};
}

// Booleans, which std::vector would not keep as bytes.
std::vector<std::uint8_t> flags(const Ort::Value& output) {
  const auto* start = output.GetTensorData<bool>();
  return {start, start + output.GetTensorTypeAndShapeInfo().GetElementCount()};
}

class OnnxNetwork : public Network {
 public:
  explicit OnnxNetwork(const Bundle& bundle)
      : environment_(ORT_LOGGING_LEVEL_ERROR, "trueodds"),
        session_(environment_, bundle.file("model.onnx").c_str(), Ort::SessionOptions()),
        height_(bundle.height),
        width_(bundle.width) {}

  Outputs forward(std::uint8_t* pixels, std::int64_t count) override {
    const std::array<std::int64_t, 4> shape{count, height_, width_, 3};
    const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const auto size = static_cast<std::size_t>(count * height_ * width_ * 3);
    const Ort::Value given = Ort::Value::CreateTensor<std::uint8_t>(memory, pixels, size, shape.data(), shape.size());
    const char* input = "pixels";
    const std::vector<Ort::Value> outputs =
        session_.Run(Ort::RunOptions(), &input, &given, 1, OUTPUTS.data(), OUTPUTS.size());
    return {numbers<float>(outputs[0]), numbers<float>(outputs[1]), flags(outputs[2]), flags(outputs[4]),
            numbers<float>(outputs[5])};
  }

 private:
  Ort::Env environment_;
  Ort::Session session_;
  std::int64_t height_;
  std::int64_t width_;
};

}  // namespace

std::unique_ptr<Network> load_network(const Bundle& bundle) {
  try {
    return std::make_unique<OnnxNetwork>(bundle);
  } catch (const Ort::Exception& error) {
    throw Error(std::string("model.onnx cannot be loaded: ") + error.what());
  }
}

}  // namespace trueodds
