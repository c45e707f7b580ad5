#include "nn/attention.h"

#include <cmath>

#include "nn/recompute.h"

namespace quaver {
namespace {

std::unique_ptr<Linear> make_linear(Backend& backend, std::int64_t in, std::int64_t out, bool bias) {
  return std::make_unique<Linear>(backend, Linear::Options{in, out, 0, bias ? out : 0});
}

}  // namespace

Attention::Attention(Backend& backend, const ModelConfig& config, const Rotary* rotary)
    : backend_(backend),
      config_(config),
      q_columns_(config.heads * config.head_dim),
      kv_columns_(config.kv_heads * config.head_dim),
      gate_columns_(gate_features(config)) {
  if (rotary) rotary_.cosine = rotary->cosine(), rotary_.sine = rotary->sine();
  const bool gate_bias = config.gate_bias && gate_columns_ > 0;
  if (config.packed_qkv) {
    const std::int64_t qkv = q_columns_ + 2 * kv_columns_;
    // The gate stands last, so that a bias of q, k and v only, of the gate only, or of all is one range of
    // columns.
    const std::int64_t begin = config.qkv_bias ? 0 : qkv;
    const std::int64_t end = gate_bias ? qkv + gate_columns_ : qkv;
    qkv_proj_ = std::make_unique<Linear>(
        backend, Linear::Options{config.width, qkv + gate_columns_, end > begin ? begin : 0, end - begin});
  } else {
    q_proj_ = make_linear(backend, config.width, q_columns_, config.qkv_bias);
    k_proj_ = make_linear(backend, config.width, kv_columns_, config.qkv_bias);
    v_proj_ = make_linear(backend, config.width, kv_columns_, config.qkv_bias);
    k_proj_->share_input_of(*q_proj_);
    v_proj_->share_input_of(*q_proj_);
    if (gate_columns_ > 0) {
      gate_proj_ = make_linear(backend, config.width, gate_columns_, gate_bias);
      gate_proj_->share_input_of(*q_proj_);
    }
  }
  if (config.qk_norm != QkNorm::none) {
    for (auto* gain : {&q_gain_, &k_gain_}) {
      *gain = std::make_unique<Parameter>(backend, Shape{config.head_dim});
      backend.fill((*gain)->value, 1);
    }
  }
  out_proj_ = make_linear(backend, q_columns_, config.width, config.out_bias);
  if (gate_columns_ > 0) form_product_again(*out_proj_, backend, config.recompute);
}

Output Attention::make_input(Context& context, std::int64_t rows) {
  return first_projection().make_input(context, rows);
}

Attention::Projections Attention::slices(const Tensor& packed) const {
  const std::int64_t k = q_columns_, v = k + kv_columns_, gate = v + kv_columns_;
  return {packed, packed.columns(0, q_columns_), packed.columns(k, kv_columns_),
          packed.columns(v, kv_columns_), gate_columns_ > 0 ? packed.columns(gate, gate_columns_) : Tensor()};
}

Attention::Projections Attention::project(Context& context, const Output& x, Saved* saved) {
  if (qkv_proj_) return slices(qkv_proj_->forward(context, x, saved ? &saved->qkv : nullptr));
  Projections p;
  p.q = q_proj_->forward(context, x, saved ? &saved->q_proj : nullptr);
  p.k = k_proj_->forward(context, x, saved ? &saved->k_proj : nullptr);
  p.v = v_proj_->forward(context, x, saved ? &saved->v_proj : nullptr);
  if (gate_proj_) p.gate = gate_proj_->forward(context, x, saved ? &saved->gate_proj : nullptr);
  return p;
}

HeadTransform Attention::transform(std::int64_t heads, Parameter* gain) const {
  return {
      heads,          config_.head_dim, config_.qk_norm, config_.norm_epsilon, gain ? gain->value : Tensor(),
      rotary_.cosine, rotary_.sine};
}

std::pair<Tensor, Tensor> Attention::transform_forward(const Projections& p, const Tensor& positions) {
  if (!transforms()) return {p.q, p.k};
  if (transforms_as_one()) {
    const Tensor both = p.packed.columns(0, q_columns_ + kv_columns_);
    backend_.transform_heads(transform(config_.heads + config_.kv_heads, nullptr), both, positions, both);
    return {p.q, p.k};
  }
  const auto transformed = [&](std::int64_t heads, Parameter* gain, const Tensor& x) {
    // The backward of a rotation does not read what was rotated.
    Tensor out = config_.qk_norm == QkNorm::none ? x : backend_.allocate(x.dtype(), x.shape());
    backend_.transform_heads(transform(heads, gain), x, positions, out);
    return out;
  };
  const Tensor q = transformed(config_.heads, q_gain_.get(), p.q);
  return {q, transformed(config_.kv_heads, k_gain_.get(), p.k)};
}

void Attention::transform_backward(std::int64_t heads, Parameter* gain, const Tensor& dout, const Tensor& x,
                                   const Tensor& positions, const Output& dx) {
  backend_.transform_heads_backward(transform(heads, gain), dout, x, positions, dx,
                                    gain ? gain->accumulated_gradient(backend_) : Tensor());
}

AttentionShape Attention::shape_of(std::int64_t batch, std::int64_t query_len, std::int64_t key_len) const {
  return {batch,
          query_len,
          key_len,
          config_.heads,
          config_.kv_heads,
          config_.head_dim,
          1.0f / std::sqrt(static_cast<float>(config_.head_dim))};
}

void Attention::attend_cached(const CachedLayer& cached, const Tensor& q, const Tensor& k, const Tensor& v,
                              const Tensor& o) {
  std::int64_t row = 0;
  for (const CacheExtension& sequence : cached.sequences) {
    const KvCache::Layer& layer = sequence.cache->layers[cached.layer];
    const std::int64_t begin = sequence.cache->length, count = sequence.length, end = begin + count;
    backend_.copy(k.slice(row, count), layer.keys.slice(begin, count));
    backend_.copy(v.slice(row, count), layer.values.slice(begin, count));
    backend_.attention(shape_of(1, count, end), q.slice(row, count), layer.keys.slice(0, end),
                       layer.values.slice(0, end), {}, o.slice(row, count), {});
    row += count;
  }
}

Tensor Attention::forward(Context& context, const TokenBatch& tokens, const Output& x, Saved* saved,
                          const CachedLayer* cached) {
  const bool recomputes = config_.recompute == Recompute::attention;
  const bool forgets = saved && recomputes && context.gradients_enabled();  // a probe looks at what is saved
  if (!forgets) return run(context, tokens, x, saved, cached);
  auto& again = saved->again.emplace(Saved::Again{tokens, x, {}});
  return forward_and_forget<Saved>(backend_, context, again.record, [&](Saved* discarded) {
    return run(context, tokens, x, discarded, nullptr);
  });
}

Tensor Attention::run(Context& context, const TokenBatch& tokens, const Output& x, Saved* saved,
                      const CachedLayer* cached) {
  const Projections p = project(context, x, saved);
  const auto [q, k] = transform_forward(p, tokens.positions);
  const std::int64_t rows = tokens.batch * tokens.length;
  const AttentionShape shape = shape_of(tokens.batch, tokens.length, tokens.length);
  const Tensor o = backend_.allocate(q.dtype(), {rows, q_columns_});
  const Tensor lse = saved ? backend_.allocate(DType::f32, {rows, config_.heads}) : Tensor();
  if (cached) {
    attend_cached(*cached, q, k, p.v, o);
  } else {
    backend_.attention(shape, q, k, p.v, tokens.first_key, o, lse);
  }

  Output gated = p.gate ? out_proj_->make_input(context, rows) : out_proj_->cast_input(context, o);
  if (p.gate) backend_.gate(config_.gate_activation, o, p.gate, gated);
  const Tensor y = out_proj_->forward(context, gated, saved ? &saved->out_proj : nullptr);
  if (saved) {
    saved->shape = shape;
    saved->positions = tokens.positions;
    saved->first_key = tokens.first_key;
    saved->projected = p;
    saved->q = q, saved->k = k;
    saved->o = o, saved->lse = lse;
  }
  return y;
}

Attention::Gradients Attention::make_gradients(Context& context, const Saved& saved) {
  // attention_backward writes high precision alone. A norm's gradient is cast together with the parts beside it.
  const auto in_high_precision = [&](const Linear& linear) {
    const Shape shape{saved.o.rows(), linear.options().out_features};
    return Output{backend_.allocate(saved.o.dtype(), shape), {}, {}};
  };
  if (qkv_proj_) {
    const Output packed = transforms_as_one() ? qkv_proj_->make_output_gradient(context, saved.qkv)
                                              : in_high_precision(*qkv_proj_);
    const std::int64_t k = q_columns_, v = k + kv_columns_, gate = v + kv_columns_;
    return {packed, packed.columns(0, q_columns_), packed.columns(k, kv_columns_),
            packed.columns(v, kv_columns_), packed.columns(gate, gate_columns_)};
  }
  const auto of_transform = [&](Linear& linear, const Linear::Saved& linear_saved) {
    return transforms() ? linear.make_output_gradient(context, linear_saved) : in_high_precision(linear);
  };
  return {{},
          of_transform(*q_proj_, saved.q_proj),
          of_transform(*k_proj_, saved.k_proj),
          in_high_precision(*v_proj_),
          gate_proj_ ? gate_proj_->make_output_gradient(context, saved.gate_proj) : Output{}};
}

void Attention::attend_backward(const Saved& saved, const Tensor& d_o, const Gradients& gradients) {
  const auto attend = [&](const Tensor& dq, const Tensor& dk, const Tensor& dv) {
    backend_.attention_backward(saved.shape, d_o, saved.q, saved.k, saved.projected.v, saved.first_key,
                                saved.o, saved.lse, dq, dk, dv);
  };
  const auto allocate = [&](std::int64_t columns) {
    return backend_.allocate(d_o.dtype(), {d_o.rows(), columns});
  };
  if (!transforms()) return attend(gradients.q.values, gradients.k.values, gradients.v.values);
  if (transforms_as_one()) {
    const bool casts = gradients.packed.quantized.defined();  // v's gradient is cast in the same pass
    const std::int64_t v = q_columns_ + kv_columns_, columns = casts ? v + kv_columns_ : v;
    const Tensor turned = allocate(columns);
    attend(turned.columns(0, q_columns_), turned.columns(q_columns_, kv_columns_),
           casts ? turned.columns(v, kv_columns_) : gradients.v.values);
    HeadTransform transform_of_all = transform(config_.heads + config_.kv_heads, nullptr);
    transform_of_all.untouched = casts ? config_.kv_heads : 0;
    return backend_.transform_heads_backward(transform_of_all, turned, {}, saved.positions,
                                             gradients.packed.columns(0, columns), {});
  }
  const Tensor dq = allocate(q_columns_), dk = allocate(kv_columns_);
  attend(dq, dk, gradients.v.values);
  transform_backward(config_.heads, q_gain_.get(), dq, saved.projected.q, saved.positions, gradients.q);
  transform_backward(config_.kv_heads, k_gain_.get(), dk, saved.projected.k, saved.positions, gradients.k);
}

void Attention::project_backward(Context& context, const Saved& saved, const Gradients& gradients,
                                 const Tensor& dx) {
  const auto backward = [&](Linear& linear, const Linear::Saved& linear_saved, const Output& dy,
                            bool accumulate) {
    linear.backward(context, linear_saved, linear.cast_output_gradient(context, linear_saved, dy), dx,
                    accumulate);
  };
  if (qkv_proj_) return backward(*qkv_proj_, saved.qkv, gradients.packed, false);
  if (gate_proj_) backward(*gate_proj_, saved.gate_proj, gradients.gate, false);
  backward(*v_proj_, saved.v_proj, gradients.v, gate_proj_ != nullptr);
  backward(*k_proj_, saved.k_proj, gradients.k, true);
  backward(*q_proj_, saved.q_proj, gradients.q, true);
}

Output Attention::make_output_gradient(Context& context, const Saved& saved, const Tensor& values) {
  if (saved.again) return {values, {}, {}};
  return out_proj_->make_output_gradient(context, saved.out_proj, values);
}

void Attention::backward(Context& context, const Saved& saved, const Output& dy, const Tensor& dx) {
  if (saved.again) {
    const auto& [tokens, x, record] = *saved.again;
    const auto run_again = [&, &tokens = tokens, &x = x](Saved* again) {
      return run(context, tokens, x, again, nullptr);
    };
    return backward(context, saved_again<Saved>(context, record, run_again), dy, dx);
  }
  const Shape heads{dx.rows(), q_columns_};
  const Tensor dgated = backend_.allocate(dx.dtype(), heads);
  const Output dy_cast = out_proj_->cast_output_gradient(context, saved.out_proj, dy);
  out_proj_->backward_input(context, saved.out_proj, dy_cast, dgated);

  const Gradients gradients = make_gradients(context, saved);
  const Output gated = out_proj_->make_input_again(context, saved.out_proj);
  Tensor d_o = dgated;
  if (saved.projected.gate) {
    d_o = backend_.allocate(dx.dtype(), heads);
    backend_.gate_backward(config_.gate_activation, dgated, saved.o, saved.projected.gate, d_o,
                           gradients.gate, gated);
  }
  out_proj_->backward_weight(context, saved.out_proj, dy_cast, gated);

  attend_backward(saved, d_o, gradients);
  project_backward(context, saved, gradients, dx);
}

void Attention::visit(const std::string& name, ModuleVisitor& visitor) {
  const auto visit_child = [&](Linear* linear, const char* child) {
    if (linear) linear->visit(join_names(name, child), visitor);
  };
  visit_child(qkv_proj_.get(), "qkv_proj");
  visit_child(q_proj_.get(), "q_proj");
  visit_child(k_proj_.get(), "k_proj");
  visit_child(v_proj_.get(), "v_proj");
  visit_child(gate_proj_.get(), "gate_proj");
  if (q_gain_) visitor.parameter(join_names(name, "q_norm.gain"), *q_gain_);
  if (k_gain_) visitor.parameter(join_names(name, "k_norm.gain"), *k_gain_);
  visit_child(out_proj_.get(), "out_proj");
}

}  // namespace quaver
