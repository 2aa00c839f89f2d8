// torch's part. A line of standard input is a work: its name ("linear" or "layer"), precision, rows, inputs, outputs,
// and how many times to compute it. Each is answered by a line with the library that computes what oneDNN does not:
// the BLAS, or in 8 bits the engine of quantised layers.
#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <functional>
#include <iostream>
#include <map>
#include <string>

using at::Tensor;
using Work = std::function<void()>;

constexpr int64_t HEAD_DIM = 32;

static Tensor normal(at::IntArrayRef shape, at::ScalarType type) { return (at::randn(shape) * 0.05).to(type); }

struct Linear {
    Tensor weight, bias;
    Linear(int64_t inputs, int64_t outputs, at::ScalarType type)
        : weight(normal({outputs, inputs}, type)), bias(normal({outputs}, type)) {}
    Tensor operator()(const Tensor &x) const { return at::linear(x, weight, bias); }
};

static c10::IValue call(const char *name, torch::jit::Stack stack)
{
    c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(&stack);
    return stack.at(0);
}

// As `torch.ao.quantization.quantize_dynamic` computes a linear layer.
static Work int8_linear(const Tensor &x, const Linear &linear)
{
    const double scale = linear.weight.abs().max().item<double>() / 127;
    const Tensor weight = at::quantize_per_tensor(linear.weight, scale, 0, at::kQInt8);
    const c10::IValue packed = call("quantized::linear_prepack", {weight, linear.bias});
    return [=] { call("quantized::linear_dynamic", {x, packed, false}); };
}

// BERT's layer over one document, operation by operation as transformers calls torch.
static Work layer(const Tensor &rows, int64_t hidden, int64_t inner, at::ScalarType type)
{
    const Linear query(hidden, hidden, type), key(hidden, hidden, type), value(hidden, hidden, type);
    const Linear out(hidden, hidden, type), up(hidden, inner, type), down(inner, hidden, type);
    const Tensor weight = at::ones({hidden}, type), bias = at::zeros({hidden}, type), x = rows.unsqueeze(0);
    return [=] {
        const auto heads = [](const Tensor &y) { return y.view({1, y.size(1), -1, HEAD_DIM}).transpose(1, 2); };
        const auto norm = [&](const Tensor &y) { return at::layer_norm(y, {hidden}, weight, bias, 1e-12); };
        const Tensor attended = at::scaled_dot_product_attention(heads(query(x)), heads(key(x)), heads(value(x)));
        const Tensor middle = norm(out(attended.transpose(1, 2).reshape_as(x)) + x);
        norm(down(at::gelu(up(middle))) + middle);
    };
}

int main()
{
    const c10::InferenceMode guard;
    at::set_num_threads(1);
    // The default's FBGEMM ends with "unknown architecture" in the emulator.
    at::globalContext().setQEngine(at::QEngine::ONEDNN);
    const std::string config = at::show_config(), key = "BLAS_INFO=";
    const size_t at = config.find(key);
    const std::string blas = at == std::string::npos ? "no BLAS" : config.substr(at + key.size(), config.find(',', at) - at - key.size());
    std::map<std::string, Work> works;
    std::string name, precision;
    for (int64_t rows, inputs, outputs, times; std::cin >> name >> precision >> rows >> inputs >> outputs >> times;) {
        Work &work = works[name + precision + ' ' + std::to_string(inputs) + ' ' + std::to_string(outputs)];
        if (!work) {
            const auto type = precision == "bfloat16" ? at::kBFloat16 : at::kFloat;
            const Tensor x = normal({rows, inputs}, type);
            if (name == "layer")
                work = layer(x, inputs, outputs, type);
            else if (precision == "int8")
                work = int8_linear(x, Linear(inputs, outputs, type));
            else
                work = [x, linear = Linear(inputs, outputs, type)] { linear(x); };
        }
        while (times-- > 0)
            work();
        std::cout << (precision == "int8" ? "engine " + at::toString(at::globalContext().qEngine()) : blas) << std::endl;
    }
}
