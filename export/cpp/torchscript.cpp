// TorchScript, by libtorch, on the CPU.
#include <torch/script.h>

#include "network.hpp"

namespace trueodds {
namespace {

template <typename Number>
std::vector<Number> numbers(const c10::IValue& output, at::ScalarType type) {
  const at::Tensor tensor = output.toTensor().to(type).contiguous();
  const auto* start = tensor.const_data_ptr<Number>();
  return {start, start + tensor.numel()};
}

class TorchScriptNetwork : public Network {
 public:
  explicit TorchScriptNetwork(const Bundle& bundle)
      : module_(torch::jit::freeze(evaluated(bundle.file("model.torchscript.pt")))),
        height_(bundle.height),
        width_(bundle.width) {}

  Outputs forward(std::uint8_t* pixels, std::int64_t count) override {
    const c10::InferenceMode inference;
    const at::Tensor given = torch::from_blob(pixels, {count, height_, width_, 3}, torch::kUInt8);
    const std::vector<c10::IValue> outputs = module_.forward({given}).toTuple()->elements().vec();
    check_size("outputs", outputs.size(), OUTPUTS.size());
    return {numbers<float>(outputs[0], torch::kFloat), numbers<float>(outputs[1], torch::kFloat),
            numbers<std::uint8_t>(outputs[2], torch::kUInt8), numbers<std::uint8_t>(outputs[4], torch::kUInt8),
            numbers<float>(outputs[5], torch::kFloat)};
  }

 private:
  static torch::jit::Module evaluated(const std::filesystem::path& path) {
    torch::jit::Module module = torch::jit::load(path.string(), torch::kCPU);
    module.eval();
    return module;
  }

  torch::jit::Module module_;
  std::int64_t height_;
  std::int64_t width_;
};

}  // namespace

std::unique_ptr<Network> load_network(const Bundle& bundle) {
  try {
    return std::make_unique<TorchScriptNetwork>(bundle);
  } catch (const c10::Error& error) {
    // Its other text is a trace of the stack.
    throw Error("model.torchscript.pt cannot be loaded: " + std::string(error.what_without_backtrace()));
  }
}

}  // namespace trueodds
